# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""Where numbers become something else: weights of an attention, bytes, the next step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from packshot.engine.fast.kernels.launch import await_inputs, launch

__all__ = ["advance", "softmax", "to_uint8"]


@triton.jit
def _softmax(x, out, N, WIDTH: tl.constexpr):
    """One row, read twice: once for its maximum and its sum, once to be written."""
    await_inputs()
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
    launch(_softmax, (x.numel() // x.shape[-1],), x, out, x.shape[-1], width, num_warps=8)
    return out


@triton.jit
def _to_uint8(x, out, N, SIZE: tl.constexpr):
    await_inputs()
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
    launch(_to_uint8, (triton.cdiv(x.numel(), size),), x, out, x.numel(), size, num_warps=4)
    return out


@triton.jit
def _advance(latents, clean, output, network_in, noise, table, index, guidance, N, SIZE_1,
             GUIDED: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    await_inputs()
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
    noise: Tensor,
    table: Tensor,
    index: Tensor,
    guidance: Tensor | None,
) -> None:
    """As `reference.advance`."""
    size = 1024
    launch(
        _advance, (triton.cdiv(latents.numel(), size),),
        latents, clean, output, network_in, noise, table, index,
        latents if guidance is None else guidance, latents.numel(), latents[0].numel(),
        guidance is not None, size, num_warps=4,
    )  # fmt: skip
