# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""Convolutions of 3x3 as one product over nine shifted views of the map, in bf16 or fp8.

A tile of pixels is a box of the map [B,H,W,C]; the box of a tap is that, shifted, and what lies
outside the map is zero: the memory unit of a Hopper sees to both, so that nothing is copied first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from packshot.engine.fast.kernels.launch import await_inputs, in_bands, launch

__all__ = ["convolve", "convolve_pays"]


@triton.jit
def _convolve(x, weight, weight_2, out, out_2, scale, DOWN, ACROSS, TILES, N, C,
              HAS_SCALE: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr,
              BN_2: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr):  # fmt: skip
    """``x``, ``weight`` and ``out`` are tensor descriptors; as in `_geglu`, BN_2 columns more."""
    await_inputs()
    WIDE: tl.constexpr = BN + BN_2
    columns = tl.cdiv(N, WIDE)
    tile, column = in_bands(tl.program_id(0), TILES, columns, BAND)
    first = column * WIDE
    b, rest = tile // (DOWN * ACROSS), tile % (DOWN * ACROSS)
    y, left = rest // ACROSS * BH, rest % ACROSS * BW
    blocks = tl.cdiv(C, BK)
    sums = tl.zeros([BH * BW, BN], tl.float32)
    if BN_2:
        sums_2 = tl.zeros([BH * BW, BN_2], tl.float32)
    for step in range(9 * blocks):
        tap, k = step // blocks, step % blocks * BK
        pixels = x.load([b, y + tap // 3 - 1, left + tap % 3 - 1, k])
        pixels = tl.reshape(pixels, [BH * BW, BK])
        sums = tl.dot(pixels, weight.load([first, tap * C + k]).T, sums)
        if BN_2:
            sums_2 = tl.dot(pixels, weight_2.load([first + BN, tap * C + k]).T, sums_2)
    if HAS_SCALE:
        cols = first + tl.arange(0, BN)
        sums *= tl.load(scale + cols, mask=cols < N, other=0.0)[None, :]
    out.store([b, y, left, first], tl.reshape(sums.to(out.dtype), [1, BH, BW, BN]))
    if BN_2:
        if HAS_SCALE:
            cols = first + BN + tl.arange(0, BN_2)
            sums_2 *= tl.load(scale + cols, mask=cols < N, other=0.0)[None, :]
        out_2.store([b, y, left, first + BN], tl.reshape(sums_2.to(out.dtype), [1, BH, BW, BN_2]))


Tiles = tuple[int, int, int, int, int]
"""Pixels, columns, more columns, warps, stages."""


def convolve_pays(pixels: int, channels: int, *, fp8: bool) -> bool:
    """Tell whether this was faster than cuDNN's bf16 on an H100; benchmarks/LOG.md.

    ``pixels`` are those of all maps of a batch.
    """
    return pixels >= 2048 if fp8 else channels <= 640 and 8192 <= pixels <= 32_768


def _tiles(pixels: int, n: int) -> Tiles:
    """Return what was fastest there: tiles whose width divides SDXL's 320, 640 and 1,280."""
    if n % 256 == 0 or (n % 128 == 0 and pixels <= 2048):
        return (128, 256, 0, 8, 3) if pixels >= 8192 else (128, 128, 0, 8, 4)
    return (64, 256, 64, 4, 3) if n % 640 == 0 or pixels <= 8192 else (128, 128, 32, 4, 4)


def convolve(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    scale: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """As `reference.convolve`; channels are multiples of 64."""
    (b, p, c), n, (h, w) = x.shape, len(weight), size
    out = torch.empty((b, p, n), dtype=dtype, device=x.device)
    pixels, bn, more, warps, stages = tiles or _tiles(b * p, n)
    bh, bw = _box(pixels, size)
    bk = 128 // x.element_size() if c * x.element_size() % 128 == 0 else 64
    down, across = triton.cdiv(h, bh), triton.cdiv(w, bw)
    tile = TensorDescriptor.from_tensor
    box, into, rows = x.view(b, h, w, c), out.view(b, h, w, n), weight.view(n, 9 * c)
    launch(
        _convolve, (b * down * across * triton.cdiv(n, bn + more),),
        tile(box, [1, bh, bw, bk]), tile(rows, [bn, bk]), tile(rows, [more or bn, bk]),
        tile(into, [1, bh, bw, bn]), tile(into, [1, bh, bw, more or bn]),
        x if scale is None else scale, down, across, b * down * across, n, c, scale is not None,
        bh, bw, bn, more, bk, 8, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _box(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of boxes of so many pixels that cover a map with least to spare.

    Of equals the widest.
    """
    h, w = size
    widths = [pixels >> bits for bits in range(pixels.bit_length()) if 8 <= pixels >> bits <= 128]
    boxes = [(pixels // width, width) for width in widths]
    return min(boxes, key=lambda box: -(-h // box[0]) * -(-w // box[1]))
