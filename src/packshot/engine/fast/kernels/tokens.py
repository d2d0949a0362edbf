# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""Tokens [M,C]: layer normalisation, the gated unit, rounding to int8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from packshot.engine.fast.kernels.launch import await_inputs, block_k, in_bands, launch, processors
from packshot.engine.fast.reference import FP8, FP8_MAX

__all__ = ["from_int32", "gate", "geglu", "layer_norm", "to_int8"]


@triton.jit
def _layer_norm(x, add, shift, weight, bias, out, quant, M, C, EPS, HAS_ADD: tl.constexpr,
                HAS_SHIFT: tl.constexpr, TO_FP8: tl.constexpr, LIMIT: tl.constexpr,
                ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    await_inputs()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    there = cols < C
    mask = (rows < M)[:, None] & there[None, :]
    at = rows.to(tl.int64)[:, None] * C + cols[None, :]
    value = tl.load(x + at, mask=mask, other=0.0)
    # All loads are on their way before the first sum: it would wait for them one after the other.
    by = tl.load(weight + cols, mask=there, other=0.0).to(tl.float32)[None, :]
    plus = tl.load(bias + cols, mask=there, other=0.0).to(tl.float32)[None, :]
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
    launch(
        _layer_norm, (triton.cdiv(m, rows),),
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
def _unit(sums, bias, first, scale, quant, N, HAS_SCALE: tl.constexpr, TO_FP8: tl.constexpr,
          FAST: tl.constexpr, LIMIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Return value * gelu(gate) of a tile whose columns, from ``first`` on, alternate."""
    if HAS_SCALE:
        sums *= tl.load(scale)
    cols = first + tl.arange(0, BN)
    sums += tl.load(bias + cols, mask=cols < 2 * N, other=0.0).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(sums, [BM, BN // 2, 2]))
    y = value * _gelu(gate, FAST)
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    return y


@triton.jit
def _gated_tile(index, x, weight, weight_2, bias, out, out_2, scale, quant, M, N, K: tl.constexpr,
                HAS_SCALE: tl.constexpr, TO_FP8: tl.constexpr, FAST: tl.constexpr,
                LIMIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BN_2: tl.constexpr,
                BK: tl.constexpr, BAND: tl.constexpr):  # fmt: skip
    """A tile may have BN_2 columns more, so that tiles fill the chip by no power of two."""
    WIDE: tl.constexpr = BN + BN_2
    m, n = in_bands(index, tl.cdiv(M, BM), tl.cdiv(2 * N, WIDE), BAND)
    sums = tl.zeros([BM, BN], tl.float32)
    if BN_2:
        sums_2 = tl.zeros([BM, BN_2], tl.float32)
    for k in range(0, K, BK):
        rows = x.load([m * BM, k])
        sums = tl.dot(rows, weight.load([n * WIDE, k]).T, sums)
        if BN_2:
            sums_2 = tl.dot(rows, weight_2.load([n * WIDE + BN, k]).T, sums_2)
    y = _unit(sums, bias, n * WIDE, scale, quant, N, HAS_SCALE, TO_FP8, FAST, LIMIT, BM, BN)
    out.store([m * BM, n * (WIDE // 2)], y.to(out.dtype))
    if BN_2:
        y = _unit(
            sums_2, bias, n * WIDE + BN, scale, quant, N, HAS_SCALE, TO_FP8, FAST, LIMIT, BM, BN_2
        )
        out_2.store([m * BM, n * (WIDE // 2) + BN // 2], y.to(out.dtype))


@triton.jit
def _geglu(x, weight, weight_2, bias, out, out_2, scale, quant, M, N, K: tl.constexpr, TILES,
           PROGRAMS, HAS_SCALE: tl.constexpr, TO_FP8: tl.constexpr, FAST: tl.constexpr,
           LIMIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BN_2: tl.constexpr,
           BK: tl.constexpr, BAND: tl.constexpr, MANY: tl.constexpr):  # fmt: skip
    """``x``, ``weight`` and ``out`` are tensor descriptors; BN counts values and gates.

    With MANY a program goes on to other tiles: the next comes while the last one is being ended.
    """
    await_inputs()
    if MANY:
        for index in tl.range(tl.program_id(0), TILES, PROGRAMS, flatten=True):
            _gated_tile(
                index, x, weight, weight_2, bias, out, out_2, scale, quant, M, N, K, HAS_SCALE,
                TO_FP8, FAST, LIMIT, BM, BN, BN_2, BK, BAND,
            )  # fmt: skip
    else:
        _gated_tile(
            tl.program_id(0), x, weight, weight_2, bias, out, out_2, scale, quant, M, N, K,
            HAS_SCALE, TO_FP8, FAST, LIMIT, BM, BN, BN_2, BK, BAND,
        )  # fmt: skip


Tiles = tuple[int, int, int, int, int, int]
"""Rows, columns, more columns, warps, stages, rows of tiles in a band."""


def _gated_tiles(m: int, k: int, *, fp8: bool) -> Tiles:
    """Return what was fastest on an H100; benchmarks/LOG.md.

    Of few rows, the odd width makes as many tiles as there are multiprocessors.
    """
    if k > 640 and m <= 1024:
        return 128, 256, 64, 8, 4, 8
    return 128, 256, 0, 8, 4 if fp8 or m < 16_384 else 3, 8


def geglu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    quant: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """As `reference.geglu`, for K and N whose rows are multiples of 16 bytes."""
    m, k = x.shape
    n = len(weight) // 2
    out = torch.empty((m, n), dtype=bias.dtype if quant is None else FP8, device=x.device)
    bm, bn, more, warps, stages, band = tiles or _gated_tiles(m, k, fp8=x.element_size() == 1)
    bk = block_k(k, x.element_size())
    tile = TensorDescriptor.from_tensor
    there = triton.cdiv(m, bm) * triton.cdiv(2 * n, bn + more)
    programs = there if more else min(there, processors())
    launch(
        _geglu, (programs,),
        tile(x, [bm, bk]), tile(weight, [bn, bk]), tile(weight, [more or bn, bk]), bias,
        tile(out, [bm, bn // 2]), tile(out, [bm, (more or bn) // 2]),
        x if scale is None else scale, x if quant is None else quant, m, n, k, there, programs,
        scale is not None, quant is not None, x.is_cuda, FP8_MAX, bm, bn, more, bk, band,
        there > programs, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _gate(x, bias, out, quant, M, N, TO_FP8: tl.constexpr, FAST: tl.constexpr, LIMIT: tl.constexpr,
          ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    await_inputs()
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
    launch(
        _gate, grid,
        x, bias, out, x if quant is None else quant, m, n, quant is not None, x.is_cuda, FP8_MAX,
        rows, width, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _to_int8(x, out, scale, K, WIDTH: tl.constexpr):
    await_inputs()
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
    launch(_to_int8, (m,), x, out, scale, k, triton.next_power_of_2(k), num_warps=4)
    return out, scale


@triton.jit
def _from_int32(sums, row_scale, column_scale, out, M, N, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    await_inputs()
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
    launch(_from_int32, grid, sums, row_scale, column_scale, out, m, n, rows, width, num_warps=4)
    return out
