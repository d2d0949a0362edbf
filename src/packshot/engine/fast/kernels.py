# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""The operations of `reference` as Triton kernels. Imported where there is a GPU, and in its tests.

Memory moves once where it can: the sums of a normalisation are taken where its input is written,
and what a normalisation does to a channel is a number times plus a number, applied with SiLU in one
pass. Nothing adds in an order that changes from run to run: there are no atomic additions.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from packshot.engine.fast.reference import FP8, FP8_MAX, Affine, GroupNorm

__all__ = [
    "advance",
    "affine",
    "attend_text",
    "from_int32",
    "gate",
    "geglu",
    "group_norm",
    "interleave",
    "join",
    "layer_norm",
    "softmax",
    "to_int8",
    "to_uint8",
]

SPLITS = 256  # strips of a feature map at most, whose sums are merged
STRIP = 128  # rows of a strip that are read at once
LANES = 64  # channels that one program of a feature map handles: 128 bytes of a row in bf16


# ---------------------------------------------------------------- feature maps


@triton.jit
def _joined(x, add, bias, skip, row, inside, cols, C, CS, HAS_ADD: tl.constexpr,
            HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr):  # fmt: skip
    """Return a tile of ``x`` + ``add`` + ``bias`` beside ``skip``, in the type of ``x``."""
    own = inside & (cols < C)[None, :]
    value = tl.load(x + row * C + cols[None, :], mask=own, other=0.0)
    if HAS_ADD or HAS_BIAS:
        total = value.to(tl.float32)
        if HAS_ADD:
            total += tl.load(add + row * C + cols[None, :], mask=own, other=0.0).to(tl.float32)
        if HAS_BIAS:
            total += tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        value = total.to(value.dtype)
    if HAS_SKIP:
        beside = inside & (cols >= C)[None, :]
        other = tl.load(skip + row * CS + (cols - C)[None, :], mask=beside, other=0.0)
        value = tl.where((cols < C)[None, :], value, other)
    return value


@triton.jit
def _join(x, add, bias, skip, out, P, C, CS, HAS_ADD: tl.constexpr, HAS_BIAS: tl.constexpr,
          HAS_SKIP: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    b, rows = tl.program_id(2), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * LANES + tl.arange(0, LANES)
    row = (b * P + rows).to(tl.int64)[:, None]
    inside = (rows < P)[:, None] & (cols < C + CS)[None, :]
    value = _joined(x, add, bias, skip, row, inside, cols, C, CS, HAS_ADD, HAS_BIAS, HAS_SKIP)
    tl.store(out + row * (C + CS) + cols[None, :], value, mask=inside)


def join(x: Tensor, add: Tensor | None, bias: Tensor | None, skip: Tensor | None = None) -> Tensor:
    """As `reference.join`."""
    b, p, c = x.shape
    beside = 0 if skip is None else skip.shape[-1]
    out = torch.empty((b, p, c + beside), dtype=x.dtype, device=x.device)
    rows = 64
    grid = (triton.cdiv(p, rows), triton.cdiv(c + beside, LANES), b)
    _join[grid](
        x, x if add is None else add, x if bias is None else bias, x if skip is None else skip, out,
        p, c, beside, add is not None, bias is not None, skip is not None, rows, LANES, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _sums(x, add, bias, skip, out, sums, P, C, CS, SPLITS, HAS_ADD: tl.constexpr,
          HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, ROWS: tl.constexpr, TURNS: tl.constexpr,
          LANES: tl.constexpr):  # fmt: skip
    """Join, and the sums and sums of squares of a strip of rows.

    They are those of the differences to the strip's first row, so that nothing cancels; and they
    are taken across threads once, at the end.
    """
    split, b = tl.program_id(0), tl.program_id(2)
    cols = tl.program_id(1) * LANES + tl.arange(0, LANES)
    there = cols < C + CS
    start = split * ROWS * TURNS
    first = (b * P + start + tl.zeros([1], tl.int32)).to(tl.int64)[:, None]
    pivot = _joined(
        x, add, bias, skip, first, there[None, :], cols, C, CS, HAS_ADD, HAS_BIAS, HAS_SKIP
    ).to(tl.float32)
    total = tl.zeros([ROWS, LANES], tl.float32)
    squares = tl.zeros([ROWS, LANES], tl.float32)
    for turn in range(TURNS):
        rows = start + turn * ROWS + tl.arange(0, ROWS)
        inside = (rows < P)[:, None] & there[None, :]
        row = (b * P + rows).to(tl.int64)[:, None]
        value = _joined(x, add, bias, skip, row, inside, cols, C, CS, HAS_ADD, HAS_BIAS, HAS_SKIP)
        if HAS_ADD or HAS_BIAS or HAS_SKIP:
            tl.store(out + row * (C + CS) + cols[None, :], value, mask=inside)
        value = tl.where(inside, value.to(tl.float32) - pivot, 0.0)
        total += value
        squares += value * value
    into = sums + ((b * SPLITS + split) * 3).to(tl.int64) * (C + CS) + cols
    tl.store(into[None, :], pivot, mask=there[None, :])
    tl.store(into + C + CS, tl.sum(total, 0), mask=there)
    tl.store(into + 2 * (C + CS), tl.sum(squares, 0), mask=there)


@triton.jit
def _merge(sums, weight, bias, shift, scale, offset, P, C, SPLITS, STRIP, EPS, SIZE: tl.constexpr,
           HAS_SHIFT: tl.constexpr, WIDTH: tl.constexpr, TURNS: tl.constexpr,
           DEPTH: tl.constexpr):  # fmt: skip
    """The strips of one group, merged in their order (Chan, Golub & LeVeque 1983)."""
    group, b = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    cols = group * SIZE + lane
    there = lane < SIZE
    moved = tl.zeros([WIDTH], tl.float32)
    if HAS_SHIFT:
        moved = tl.load(shift + b * C + cols, mask=there, other=0.0).to(tl.float32)
    mean_sum = tl.zeros([WIDTH], tl.float32)
    for turn in range(TURNS):
        split = turn * DEPTH + tl.arange(0, DEPTH)
        mask = (split < SPLITS)[:, None] & there[None, :]
        base = sums + ((b * SPLITS + split) * 3).to(tl.int64)[:, None] * C + cols[None, :]
        count = tl.maximum(tl.minimum(P - split * STRIP, STRIP), 0).to(tl.float32)
        pivot = tl.load(base, mask=mask, other=0.0)
        total = tl.load(base + C, mask=mask, other=0.0)
        mean_sum += tl.sum(tl.where(mask, pivot * count[:, None] + total, 0.0), 0)
    mean = tl.sum(tl.where(there, mean_sum / P + moved, 0.0), 0) / SIZE
    spread = tl.zeros([WIDTH], tl.float32)
    for turn in range(TURNS):
        split = turn * DEPTH + tl.arange(0, DEPTH)
        mask = (split < SPLITS)[:, None] & there[None, :]
        base = sums + ((b * SPLITS + split) * 3).to(tl.int64)[:, None] * C + cols[None, :]
        count = tl.maximum(tl.minimum(P - split * STRIP, STRIP), 0).to(tl.float32)[:, None]
        pivot = tl.load(base, mask=mask, other=0.0) + moved[None, :] - mean
        total = tl.load(base + C, mask=mask, other=0.0)
        squares = tl.load(base + 2 * C, mask=mask, other=0.0)
        part = squares + 2 * pivot * total + count * pivot * pivot
        spread += tl.sum(tl.where(mask, part, 0.0), 0)
    rstd = tl.rsqrt(tl.sum(tl.where(there, spread, 0.0), 0) / (P * SIZE) + EPS)
    by = tl.load(weight + cols, mask=there, other=0.0).to(tl.float32) * rstd
    plus = tl.load(bias + cols, mask=there, other=0.0).to(tl.float32) + (moved - mean) * by
    tl.store(scale + b * C + cols, by, mask=there)
    tl.store(offset + b * C + cols, plus, mask=there)


def group_norm(
    x: Tensor,
    norm: GroupNorm,
    *,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Affine]:
    """As `reference.group_norm`."""
    b, p, c = x.shape
    beside = 0 if skip is None else skip.shape[-1]
    joins = (add is not None, bias is not None, skip is not None)
    width = c + beside
    y = torch.empty((b, p, width), dtype=x.dtype, device=x.device) if any(joins) else x
    turns = triton.next_power_of_2(max(1, p // (STRIP * SPLITS)))
    rows = STRIP
    if (
        turns > 1
    ):  # then the sums of all turns are kept in registers: half the rows, twice the turns
        rows, turns = STRIP // 2, 2 * turns
    splits = triton.cdiv(p, rows * turns)
    sums = torch.empty((b, splits, 3, width), dtype=torch.float32, device=x.device)
    _sums[(splits, triton.cdiv(width, LANES), b)](
        x, x if add is None else add, x if bias is None else bias, x if skip is None else skip, y,
        sums, p, c, beside, splits, *joins, rows, turns, LANES, num_warps=4,
    )  # fmt: skip
    out = torch.empty((2, b, width), dtype=torch.float32, device=x.device)
    size = width // norm.groups
    _merge[(norm.groups, b)](
        sums, norm.weight, norm.bias, x if shift is None else shift, out[0], out[1], p, width,
        splits, rows * turns, norm.eps, size, shift is not None, triton.next_power_of_2(size),
        triton.cdiv(splits, 64), 64, num_warps=4,
    )  # fmt: skip
    return y, Affine(out[0], out[1])


@triton.jit
def _affine(x, scale, offset, out, P, C, SILU: tl.constexpr, ROWS: tl.constexpr,
            LANES: tl.constexpr):  # fmt: skip
    b, rows = tl.program_id(2), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = (rows < P)[:, None] & (cols < C)[None, :]
    at = (b * P + rows).to(tl.int64)[:, None] * C + cols[None, :]
    by = tl.load(scale + b * C + cols, mask=cols < C, other=0.0)[None, :]
    plus = tl.load(offset + b * C + cols, mask=cols < C, other=0.0)[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * by + plus
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


def affine(x: Tensor, norm: Affine, *, silu: bool) -> Tensor:
    """As `reference.affine`."""
    b, p, c = x.shape
    out = torch.empty_like(x)
    rows = 64
    grid = (triton.cdiv(p, rows), triton.cdiv(c, LANES), b)
    _affine[grid](x, norm.scale, norm.offset, out, p, c, silu, rows, LANES, num_warps=4)
    return out


# ---------------------------------------------------------------- tokens


@triton.jit
def _layer_norm(x, add, shift, weight, bias, out, quant, M, C, EPS, HAS_ADD: tl.constexpr,
                HAS_SHIFT: tl.constexpr, TO_FP8: tl.constexpr, LIMIT: tl.constexpr,
                ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    there = cols < C
    mask = (rows < M)[:, None] & there[None, :]
    at = rows.to(tl.int64)[:, None] * C + cols[None, :]
    value = tl.load(x + at, mask=mask, other=0.0)
    if HAS_ADD:
        value = (value.to(tl.float32) + tl.load(add + at, mask=mask, other=0.0).to(tl.float32)).to(
            x.dtype.element_ty
        )
        tl.store(x + at, value, mask=mask)
    y = value.to(tl.float32)
    if HAS_SHIFT:
        y += tl.load(shift + cols, mask=there, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(tl.where(mask, y, 0.0), 1) / C
    centred = tl.where(mask, y - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + EPS)
    by = tl.load(weight + cols, mask=there, other=0.0).to(tl.float32)[None, :]
    plus = tl.load(bias + cols, mask=there, other=0.0).to(tl.float32)[None, :]
    y = centred * rstd[:, None] * by + plus
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    shift: Tensor | None = None,
    quant: Tensor | None = None,
) -> Tensor:
    """As `reference.layer_norm`."""
    m, c = x.shape
    out = torch.empty((m, c), dtype=x.dtype if quant is None else FP8, device=x.device)
    rows, width = 2, triton.next_power_of_2(c)
    _layer_norm[(triton.cdiv(m, rows),)](
        x, x if add is None else add, x if shift is None else shift, weight, bias, out,
        x if quant is None else quant, m, c, eps, add is not None, shift is not None,
        quant is not None, FP8_MAX, rows, width, num_warps=4 if width > 1024 else 2,
    )  # fmt: skip
    return out


@triton.jit
def _gelu(x, FAST: tl.constexpr):
    """GELU (arXiv:1606.08415), x/2 * (1 + erf(x/sqrt 2)).

    The fast one takes erf from the tanh of an odd polynomial, fitted by us to within 4e-5, and that
    from the special-function unit, which is within 5e-4: an eighth of what bf16 rounds.
    """
    if FAST:
        square = tl.minimum(x * x, 25.0)  # beyond, the polynomial would turn back
        inner = x * (0.79771516 + square * (0.03680247 - 0.00031676 * square))
        turned = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [inner], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        turned = tl.erf(x * 0.7071067811865476)
    return 0.5 * x * (1.0 + turned)


@triton.jit
def _geglu(x, weight, bias, out, scale, quant, M, N, K: tl.constexpr, HAS_SCALE: tl.constexpr,
           TO_FP8: tl.constexpr, FAST: tl.constexpr, LIMIT: tl.constexpr, BM: tl.constexpr,
           BN: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr):  # fmt: skip
    """``x``, ``weight`` and ``out`` are tensor descriptors; BN counts values and gates."""
    down, across = tl.cdiv(M, BM), tl.cdiv(2 * N, BN)
    index = tl.program_id(0)
    band = index // (BAND * across)  # bands of rows, so that the weights stay in the L2 cache
    high = tl.minimum(down - band * BAND, BAND)
    m = band * BAND + (index % (BAND * across)) % high
    n = (index % (BAND * across)) // high
    sums = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        sums = tl.dot(x.load([m * BM, k]), weight.load([n * BN, k]).T, sums)
    if HAS_SCALE:
        sums *= tl.load(scale)
    cols = n * BN + tl.arange(0, BN)
    sums += tl.load(bias + cols, mask=cols < 2 * N, other=0.0).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(sums, [BM, BN // 2, 2]))
    y = value * _gelu(gate, FAST)
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    out.store([m * BM, n * (BN // 2)], y.to(out.dtype))


def geglu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    quant: Tensor | None = None,
    tiles: tuple[int, int, int, int, int] | None = None,
) -> Tensor:
    """As `reference.geglu`, for K and N whose rows are multiples of 16 bytes.

    ``tiles``: rows, columns, warps, stages, rows of tiles in a band. Where K is small, two small
    tiles on one multiprocessor hide each other's ends.
    """
    m, k = x.shape
    n = len(weight) // 2
    out = torch.empty((m, n), dtype=bias.dtype if quant is None else FP8, device=x.device)
    bm, bn, warps, stages, band = tiles or (
        (128, 128, 4, 2, 8) if k <= 640 else (128, 256, 8, 3, 16 // x.element_size() * 2)
    )
    bk = 128 // x.element_size()
    _geglu[(triton.cdiv(m, bm) * triton.cdiv(2 * n, bn),)](
        TensorDescriptor.from_tensor(x, [bm, bk]), TensorDescriptor.from_tensor(weight, [bn, bk]),
        bias, TensorDescriptor.from_tensor(out, [bm, bn // 2]), x if scale is None else scale,
        x if quant is None else quant, m, n, k, scale is not None, quant is not None,
        x.is_cuda, FP8_MAX, bm, bn, bk, band, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _gate(x, bias, out, quant, M, N, TO_FP8: tl.constexpr, FAST: tl.constexpr, LIMIT: tl.constexpr,
          ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * 2 * WIDTH + tl.arange(0, 2 * WIDTH)
    mask = (rows < M)[:, None] & (cols < 2 * N)[None, :]
    at = rows.to(tl.int64)[:, None] * (2 * N) + cols[None, :]
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias + cols, mask=cols < 2 * N, other=0.0).to(tl.float32)[None, :]
    value, gated = tl.split(tl.reshape(y, [ROWS, WIDTH, 2]))
    half = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    into = rows.to(tl.int64)[:, None] * N + half[None, :]
    y = value * _gelu(gated, FAST)
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    tl.store(out + into, y.to(out.dtype.element_ty), mask=(rows < M)[:, None] & (half < N)[None, :])


def gate(x: Tensor, bias: Tensor, *, quant: Tensor | None = None) -> Tensor:
    """As `reference.gate`."""
    m, n = x.shape[0], x.shape[1] // 2
    out = torch.empty((m, n), dtype=x.dtype if quant is None else FP8, device=x.device)
    rows, width = 16, 128
    grid = (triton.cdiv(m, rows), triton.cdiv(n, width))
    _gate[grid](
        x, bias, out, x if quant is None else quant, m, n, quant is not None, x.is_cuda, FP8_MAX,
        rows, width, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _to_int8(x, out, scale, K, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    value = tl.load(x + row * K + cols, mask=cols < K, other=0.0).to(tl.float32)
    by = tl.maximum(tl.max(tl.abs(value), 0), 1e-12 * 127) / 127
    value = value / by
    whole = tl.floor(value + 0.5)  # halves up: no two of a row are likely to show it
    tl.store(out + row * K + cols, whole.to(tl.int8), mask=cols < K)
    tl.store(scale + row, by)


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.to_int8`, but for halves, which it rounds up."""
    m, k = x.shape
    out = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    _to_int8[(m,)](x, out, scale, k, triton.next_power_of_2(k), num_warps=4)
    return out, scale


@triton.jit
def _from_int32(sums, row_scale, column_scale, out, M, N, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + cols[None, :]
    value = tl.load(sums + at, mask=mask, other=0).to(tl.float32)
    value *= tl.load(row_scale + rows, mask=rows < M, other=0.0)[:, None]
    value *= tl.load(column_scale + cols, mask=cols < N, other=0.0)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


def from_int32(sums: Tensor, row_scale: Tensor, column_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.from_int32`."""
    m, n = sums.shape
    out = torch.empty((m, n), dtype=dtype, device=sums.device)
    rows, width = 16, 128
    grid = (triton.cdiv(m, rows), triton.cdiv(n, width))
    _from_int32[grid](sums, row_scale, column_scale, out, m, n, rows, width, num_warps=4)
    return out


@triton.jit
def _attend_text(q, k, v, out, N, T, C, ROW, PICTURE, SCALE, HEAD: tl.constexpr, ROWS: tl.constexpr,
                 TURNS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Blocks of queries of one head to all keys, which fit into one tile and stay there."""
    head, b = tl.program_id(1), tl.program_id(2)
    cols = head * HEAD + tl.arange(0, HEAD)
    words = tl.arange(0, WIDTH)
    there = (words < T)[:, None]
    text = b.to(tl.int64) * PICTURE + words[:, None] * ROW + cols[None, :]
    keys = tl.load(k + text, mask=there, other=0.0).T
    values = tl.load(v + text, mask=there, other=0.0)
    for turn in range(TURNS):
        rows = (tl.program_id(0) * TURNS + turn) * ROWS + tl.arange(0, ROWS)
        at = (b * N + rows).to(tl.int64)[:, None] * C + cols[None, :]
        queries = tl.load(q + at, mask=(rows < N)[:, None], other=0.0)
        scores = tl.dot(queries, keys) * SCALE
        scores = tl.where((words < T)[None, :], scores, -float("inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        y = tl.dot(weights.to(values.dtype), values) / tl.sum(weights, 1)[:, None]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=(rows < N)[:, None])


def attend_text(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, tiles: tuple[int, int, int] = (64, 1, 4)
) -> Tensor:
    """As `reference.attend_text`, for at most 128 words; ``k`` and ``v`` may be views.

    ``tiles``: queries at a time, times, warps.
    """
    b, n, c = q.shape
    out = torch.empty_like(q)
    head = c // heads
    rows, turns, warps = tiles
    _attend_text[(triton.cdiv(n, rows * turns), heads, b)](
        q, k, v, out, n, k.shape[1], c, k.stride(1), k.stride(0), head**-0.5 * math.log2(math.e),
        head, rows, turns, triton.next_power_of_2(k.shape[1]), num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _interleave(phases, bias, out, H, W, C, ROWS: tl.constexpr, LANES: tl.constexpr):
    b = tl.program_id(2)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * LANES + tl.arange(0, LANES)
    y, x = pixel // (2 * W), pixel % (2 * W)
    i, j = y % 2, x % 2
    source = (b * (H + 1) + y // 2 + i).to(tl.int64) * (W + 1) + x // 2 + j
    mask = (pixel < 4 * H * W)[:, None] & (cols < C)[None, :]
    value = tl.load(
        phases + (source * 4 + 2 * j + i)[:, None] * C + cols[None, :], mask=mask, other=0.0
    ).to(tl.float32)
    value += tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    at = (b * 4 * H * W + pixel).to(tl.int64)[:, None] * C + cols[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


def interleave(phases: Tensor, size: tuple[int, int], bias: Tensor) -> Tensor:
    """As `reference.interleave`."""
    (h, w), b, c = size, len(phases), phases.shape[-1] // 4
    out = torch.empty((b, 4 * h * w, c), dtype=phases.dtype, device=phases.device)
    rows = 64
    grid = (triton.cdiv(4 * h * w, rows), triton.cdiv(c, LANES), b)
    _interleave[grid](phases, bias, out, h, w, c, rows, LANES, num_warps=4)
    return out


# ---------------------------------------------------------------- the rest


@triton.jit
def _softmax(x, out, N: tl.constexpr, WIDTH: tl.constexpr):
    """One row, read twice: once for its maximum and its sum, once to be written."""
    row = tl.program_id(0).to(tl.int64) * N
    top = tl.full([WIDTH], -float("inf"), tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for at in range(0, N, WIDTH):
        cols = at + tl.arange(0, WIDTH)
        value = tl.load(x + row + cols, mask=cols < N, other=-float("inf"))
        higher = tl.maximum(top, value)
        total = total * tl.exp(tl.where(top == higher, 0.0, top - higher)) + tl.where(
            cols < N, tl.exp(value - higher), 0.0
        )
        top = higher
    peak = tl.max(top, 0)
    norm = tl.sum(total * tl.exp(top - peak), 0)
    for at in range(0, N, WIDTH):
        cols = at + tl.arange(0, WIDTH)
        value = tl.load(x + row + cols, mask=cols < N, other=-float("inf"))
        tl.store(
            out + row + cols, (tl.exp(value - peak) / norm).to(out.dtype.element_ty), mask=cols < N
        )


def softmax(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.softmax`."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    width = min(4096, triton.next_power_of_2(x.shape[-1]))
    _softmax[(x.numel() // x.shape[-1],)](x, out, x.shape[-1], width, num_warps=8)
    return out


@triton.jit
def _to_uint8(x, out, N, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + at, mask=at < N, other=0.0).to(tl.float32) / 2 + 0.5
    value = tl.clamp(value, 0.0, 1.0) * 255.0
    whole = tl.floor(value)
    rest = value - whole
    odd = whole - 2 * tl.floor(whole / 2)  # halves go to the even neighbour, as torch rounds
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    tl.store(out + at, (whole + tl.where(up, 1.0, 0.0)).to(tl.uint8), mask=at < N)


def to_uint8(x: Tensor) -> Tensor:
    """As `reference.to_uint8`."""
    out = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    size = 1024
    _to_uint8[(triton.cdiv(x.numel(), size),)](x, out, x.numel(), size, num_warps=4)
    return out


@triton.jit
def _advance(latents, clean, output, network_in, noise, table, index, guidance, N, SIZE_1,
             GUIDED: tl.constexpr, NOISY: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = at < N
    step = table + tl.load(index) * 9
    x = tl.load(latents + at, mask=there, other=0.0)
    before = tl.load(clean + at, mask=there, other=0.0)
    said = tl.load(output + at, mask=there, other=0.0).to(tl.float32)
    if GUIDED:
        told = tl.load(output + N + at, mask=there, other=0.0).to(tl.float32)
        said += tl.load(guidance + at // SIZE_1, mask=there, other=0.0) * (told - said)
    now = tl.load(step + 1) * x + tl.load(step + 2) * said
    x = tl.load(step + 3) * x + tl.load(step + 4) * now + tl.load(step + 5) * before
    if NOISY:
        x += tl.load(step + 6) * tl.load(noise + at, mask=there, other=0.0)
    tl.store(latents + at, x, mask=there)
    tl.store(clean + at, now, mask=there)
    scaled = (x * tl.load(step + 8)).to(network_in.dtype.element_ty)
    tl.store(network_in + at, scaled, mask=there)
    if GUIDED:
        tl.store(network_in + N + at, scaled, mask=there)


def advance(
    latents: Tensor,
    clean: Tensor,
    output: Tensor,
    network_in: Tensor,
    noise: Tensor | None,
    table: Tensor,
    index: Tensor,
    guidance: Tensor | None,
) -> None:
    """As `reference.advance`."""
    size = 1024
    _advance[(triton.cdiv(latents.numel(), size),)](
        latents, clean, output, network_in, latents if noise is None else noise, table, index,
        latents if guidance is None else guidance, latents.numel(), latents[0].numel(),
        guidance is not None, noise is not None, size, num_warps=4,
    )  # fmt: skip
