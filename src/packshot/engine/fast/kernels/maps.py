# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""Feature maps [B,P,C]: joining what is to be added, group normalisation, doubling.

The sums of a normalisation are taken where its input is written, and what it does to a channel is
a number times plus a number, applied with SiLU and the rounding to fp8 in one pass. A group of
few pixels is read once, by one program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from packshot.engine.fast.kernels.launch import LANES, await_inputs, launch
from packshot.engine.fast.reference import FP8, FP8_MAX, GroupNorm

__all__ = ["group_norm", "interleave", "join"]

SPLITS = 256  # strips of a feature map at most, whose sums are merged
STRIP = 128  # rows of a strip that are read at once
WHOLE = 32_768  # numbers of a group, with its masked lanes, that one program holds in registers


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
    await_inputs()
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
    launch(
        _join, (triton.cdiv(p, rows), triton.cdiv(c + beside, LANES), b),
        x, x if add is None else add, x if bias is None else bias, x if skip is None else skip, out,
        p, c, beside, add is not None, bias is not None, skip is not None, rows, LANES, num_warps=4,
    )  # fmt: skip
    return out


def group_norm(
    x: Tensor,
    norm: GroupNorm,
    *,
    silu: bool,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    quant: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.group_norm`: by one program for a group where that is small.

    Else by sums of strips, their merger, and one pass that applies it.
    """
    b, p, c = x.shape
    width = c if skip is None else c + skip.shape[-1]
    joins = (add is not None, bias is not None, skip is not None)
    read = (x, *(x if each is None else each for each in (add, bias, skip)))
    y = torch.empty((b, p, width), dtype=x.dtype, device=x.device) if any(joins) else x
    out = torch.empty((b, p, width), dtype=x.dtype if quant is None else FP8, device=x.device)
    size = width // norm.groups
    lanes, depth = triton.next_power_of_2(size), triton.next_power_of_2(p)
    moved, row = (x, 0) if shift is None else (shift, shift.stride(0))
    if lanes * depth <= WHOLE:
        launch(
            _group_norm, (norm.groups, b),
            *read, y, norm.weight, norm.bias, moved, out, x if quant is None else quant, p, c,
            width - c, row, norm.eps, size, *joins, shift is not None, silu, quant is not None,
            FP8_MAX, depth, lanes, num_warps=max(4, min(16, lanes * depth // 2048)),
        )  # fmt: skip
        return y, out
    turns = triton.next_power_of_2(max(1, p // (STRIP * SPLITS)))
    rows = STRIP
    if turns > 1:  # the sums of all turns are kept in registers: half the rows, twice the turns
        rows, turns = STRIP // 2, 2 * turns
    splits = triton.cdiv(p, rows * turns)
    sums = torch.empty((b, splits, 3, width), dtype=torch.float32, device=x.device)
    launch(
        _sums, (splits, triton.cdiv(width, LANES), b),
        *read, y, sums, p, c, width - c, splits, turns, *joins, rows, LANES, num_warps=4,
    )  # fmt: skip
    by = torch.empty((2, b, width), dtype=torch.float32, device=x.device)
    launch(
        _merge, (norm.groups, b),
        sums, norm.weight, norm.bias, moved, by[0], by[1], p, width, splits, rows * turns, size,
        row, norm.eps, triton.cdiv(splits, 64), shift is not None, lanes, 64, num_warps=4,
    )  # fmt: skip
    rows = 64
    launch(
        _affine, (triton.cdiv(p, rows), triton.cdiv(width, LANES), b),
        y, by[0], by[1], out, x if quant is None else quant, p, width, silu, quant is not None,
        FP8_MAX, rows, LANES, num_warps=4,
    )  # fmt: skip
    return y, out


@triton.jit
def _parameters(weight, bias, shift, b, SHIFT_ROW, cols, there, HAS_SHIFT: tl.constexpr,
                WIDTH: tl.constexpr):  # fmt: skip
    """Return what channels are multiplied by, what is added after, and before."""
    by = tl.load(weight + cols, mask=there, other=0.0).to(tl.float32)
    plus = tl.load(bias + cols, mask=there, other=0.0).to(tl.float32)
    moved = tl.zeros([WIDTH], tl.float32)
    if HAS_SHIFT:
        moved = tl.load(shift + b * SHIFT_ROW + cols, mask=there, other=0.0).to(tl.float32)
    return by, plus, moved


@triton.jit
def _ended(value, quant, SILU: tl.constexpr, TO_FP8: tl.constexpr, LIMIT: tl.constexpr):
    """Return normalised values through SiLU, and within fp8."""
    if SILU:
        value = value * tl.sigmoid(value)
    if TO_FP8:
        value = tl.clamp(value * tl.load(quant), -LIMIT, LIMIT)
    return value


@triton.jit(do_not_specialize=["SHIFT_ROW"])
def _group_norm(x, add, bias, skip, joined, weight, plus, shift, out, quant, P, C, CS, SHIFT_ROW,
                EPS, SIZE: tl.constexpr, HAS_ADD: tl.constexpr, HAS_BIAS: tl.constexpr,
                HAS_SKIP: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
                TO_FP8: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr,
                LANES: tl.constexpr):  # fmt: skip
    """One group of one picture, from joining to rounding.

    SIZE is known to the compiler, so that it loads by the 16 bytes.
    """
    await_inputs()
    group, b, lane = tl.program_id(0), tl.program_id(1), tl.arange(0, LANES)
    cols = group * SIZE + lane
    there = lane < SIZE
    by, offset, moved = _parameters(
        weight, plus, shift, b, SHIFT_ROW, cols, there, HAS_SHIFT, LANES
    )
    rows = tl.arange(0, ROWS)
    inside = (rows < P)[:, None] & there[None, :]
    row = (b * P + rows).to(tl.int64)[:, None]
    value = _joined(x, add, bias, skip, row, inside, cols, C, CS, HAS_ADD, HAS_BIAS, HAS_SKIP)
    at = row * (C + CS) + cols[None, :]
    if HAS_ADD or HAS_BIAS or HAS_SKIP:
        tl.store(joined + at, value, mask=inside)
    value = value.to(tl.float32) + moved[None, :]
    mean = tl.sum(tl.where(inside, value, 0.0)) / (P * SIZE)
    value = tl.where(inside, value - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(value * value) / (P * SIZE) + EPS)
    value = value * (by * rstd)[None, :] + offset[None, :]
    value = _ended(value, quant, SILU, TO_FP8, LIMIT)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["SPLITS", "TURNS"])
def _sums(x, add, bias, skip, out, sums, P, C, CS, SPLITS, TURNS, HAS_ADD: tl.constexpr,
          HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, ROWS: tl.constexpr,
          LANES: tl.constexpr):  # fmt: skip
    """Join, and the sums and sums of squares of a strip of rows.

    They are those of the differences to the strip's first row, so that nothing cancels; and they
    are taken across threads once, at the end.
    """
    await_inputs()
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


@triton.jit(do_not_specialize=["SPLITS", "STRIP", "SIZE", "SHIFT_ROW", "TURNS"])
def _merge(sums, weight, bias, shift, scale, offset, P, C, SPLITS, STRIP, SIZE, SHIFT_ROW, EPS,
           TURNS, HAS_SHIFT: tl.constexpr, WIDTH: tl.constexpr,
           DEPTH: tl.constexpr):  # fmt: skip
    """The strips of one group, merged in their order (Chan, Golub & LeVeque 1983)."""
    await_inputs()
    group, b = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    cols = group * SIZE + lane
    there = lane < SIZE
    by, plus, moved = _parameters(weight, bias, shift, b, SHIFT_ROW, cols, there, HAS_SHIFT, WIDTH)
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
    by *= rstd
    tl.store(scale + b * C + cols, by, mask=there)
    tl.store(offset + b * C + cols, plus + (moved - mean) * by, mask=there)


@triton.jit
def _affine(x, scale, offset, out, quant, P, C, SILU: tl.constexpr, TO_FP8: tl.constexpr,
            LIMIT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    await_inputs()
    b, rows = tl.program_id(2), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = (rows < P)[:, None] & (cols < C)[None, :]
    at = (b * P + rows).to(tl.int64)[:, None] * C + cols[None, :]
    by = tl.load(scale + b * C + cols, mask=cols < C, other=0.0)[None, :]
    plus = tl.load(offset + b * C + cols, mask=cols < C, other=0.0)[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * by + plus
    value = _ended(value, quant, SILU, TO_FP8, LIMIT)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _interleave(phases, bias, out, H, W, C, ROWS: tl.constexpr, LANES: tl.constexpr):
    await_inputs()
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
    launch(_interleave, grid, phases, bias, out, h, w, c, rows, LANES, num_warps=4)
    return out
