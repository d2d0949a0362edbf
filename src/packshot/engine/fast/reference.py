"""What the fused kernels compute, in torch: their specification, and their stand-in on a CPU.

Feature maps are ``[B, P, C]``: P pixels, row by row, channels last. All sums are in fp32; what is
written has the type of the input, unless an operation says otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "FP8",
    "FP8_MAX",
    "GroupNorm",
    "advance",
    "ask",
    "ask_pays",
    "attend",
    "attends",
    "convolve",
    "convolve_pays",
    "from_int32",
    "gate",
    "geglu",
    "group_norm",
    "interleave",
    "join",
    "layer_norm",
    "rehearsal",
    "rehearsing",
    "softmax",
    "to_fp8",
    "to_int8",
    "to_uint8",
]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class GroupNorm(NamedTuple):
    """The parameters of a group normalisation: ``weight`` and ``bias`` [C]."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float


def join(x: Tensor, add: Tensor | None, bias: Tensor | None, skip: Tensor | None = None) -> Tensor:
    """Return [B,P,C (+ C of skip)]: ``x`` + ``add`` + ``bias`` [C], and beside them ``skip``."""
    y = x.float()
    if add is not None:
        y = y + add.float()
    if bias is not None:
        y = y + bias.float()
    y = y.to(x.dtype)
    return y if skip is None else torch.cat([y, skip], dim=-1)


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
    """Join as `join` does, and return that and its GroupNorm (arXiv:1803.08494), through SiLU.

    ``shift`` [B,C], its rows anywhere, is added before the norm. Where there is nothing to join,
    ``x`` itself is returned. With ``quant``, an fp32 scalar, the second is fp8 (e4m3, saturating):
    times ``quant``.
    """
    if add is not None or bias is not None or skip is not None:
        x = join(x, add, bias, skip)
    y = x.float() if shift is None else x.float() + shift.float()[:, None]
    y = y.transpose(1, 2)
    y = F.group_norm(y, norm.groups, norm.weight.float(), norm.bias.float(), norm.eps)
    y = (F.silu(y) if silu else y).transpose(1, 2).contiguous()
    return x, to_fp8(y, quant) if quant is not None else y.to(x.dtype)


def convolve(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    scale: Tensor | None = None,
) -> Tensor:
    """Return the convolution [B,P,N] of a map of ``size`` (h, w) with ``weight`` [N,3,3,C].

    Outside the map there are zeros. fp8 comes with ``scale`` [N] fp32, which undoes its scales.
    """
    image = x.float().view(len(x), *size, -1).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight.float().permute(0, 3, 1, 2), padding=1)
    y = y.permute(0, 2, 3, 1).flatten(1, 2)
    return (y if scale is None else y * scale).to(dtype)


def convolve_pays(pixels: int, channels: int, *, fp8: bool) -> bool:
    """Tell whether `convolve` is to be used for so many pixels; here where there is no other."""
    del pixels, channels
    return fp8


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
    """Add ``add`` to ``x`` [M,C] in place, and return the LayerNorm of that plus ``shift`` [C].

    With ``quant``, an fp32 scalar, the result is fp8 (e4m3, saturating): times ``quant``.
    """
    if add is not None:
        x += add
    y = x.float() if shift is None else x.float() + shift.float()
    y = F.layer_norm(y, x.shape[-1:], weight.float(), bias.float(), eps)
    return to_fp8(y, quant) if quant is not None else y.to(x.dtype)


def geglu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    quant: Tensor | None = None,
) -> Tensor:
    """Return value * gelu(gate) [M,N], both of them products of ``x`` [M,K] (arXiv:2002.05202).

    The rows of ``weight`` [2N,K] and ``bias`` [2N] alternate: a value's, its gate's. fp8 ``x`` and
    ``weight`` come with the fp32 scalar ``scale`` that undoes both their scales. With ``quant`` the
    result is fp8 too.
    """
    y = x.float() @ weight.float().T
    y = (y if scale is None else y * scale) + bias.float()
    out = y[:, 0::2] * F.gelu(y[:, 1::2])
    return to_fp8(out, quant) if quant is not None else out.to(bias.dtype)


def gate(x: Tensor, bias: Tensor, *, quant: Tensor | None = None) -> Tensor:
    """Return value * gelu(gate) [M,N] of ``x`` + ``bias``, whose columns alternate [M,2N].

    With ``quant`` the result is fp8.
    """
    y = x.float() + bias.float()
    out = y[:, 0::2] * F.gelu(y[:, 1::2])
    return to_fp8(out, quant) if quant is not None else out.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
    """Return the attention [B,heads,N,D] of queries to keys and values [B,heads,T,D].

    With ``quant`` the result is fp8.
    """
    y = F.scaled_dot_product_attention(q, k, v)
    return to_fp8(y, quant) if quant is not None else y


def attends(keys: int) -> bool:
    """Tell whether `attend` takes so many keys."""
    del keys
    return True


def ask(
    x: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: Tensor | None = None,
    quant: Tensor | None = None,
) -> Tensor:
    """Return the attention [B*N,heads*D] of ``x`` [B*N,C] times ``weight`` to few keys, as tokens.

    As `attend` has it; fp8 ``x`` and ``weight`` [heads*D,C] come with ``scale`` as for `geglu`.
    """
    b, heads, _, width = k.shape
    q = x.float() @ weight.float().T
    q = (q if scale is None else q * scale).to(k.dtype).view(b, -1, heads, width)
    return attend(q.transpose(1, 2), k, v, quant=quant).transpose(1, 2).reshape(len(x), -1)


def ask_pays(rows: int, channels: int, *, fp8: bool) -> bool:
    """Tell whether `ask` is to be used for so many rows; here where all tiers are tested."""
    del rows, channels, fp8
    return True


def interleave(phases: Tensor, size: tuple[int, int], bias: Tensor) -> Tensor:
    """Return the map [B,4hw,C] whose even and odd rows and columns lie apart in ``phases``.

    ``phases`` [B,(h+1)(w+1),4C]: channels (2j+i)*C … of pixel (y+i, x+j) are pixel (2y+i, 2x+j).
    ``size`` is (h, w); ``bias`` [C] is added.
    """
    (h, w), b, c = size, len(phases), phases.shape[-1] // 4
    split = phases.view(b, h + 1, w + 1, 2, 2, c)
    out = phases.new_empty((b, h, 2, w, 2, c))
    for i in (0, 1):
        for j in (0, 1):
            out[:, :, i, :, j] = split[:, i : i + h, j : j + w, j, i].float() + bias.float()
    return out.view(b, 4 * h * w, c)


def softmax(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the softmax over the last dimension of fp32 scores, as ``dtype``."""
    return x.softmax(dim=-1).to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Return levels 0 … 255 of pixels about [-1,1], clamped and rounded."""
    return ((x.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` [M,K] rounded to -127 … 127, and each row's fp32 scale [M], which undoes it."""
    scale = x.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    return (x.float() / scale[:, None]).round().to(torch.int8), scale


def from_int32(sums: Tensor, row_scale: Tensor, column_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``sums`` [M,N] times the scales of its row [M] and its column [N]."""
    return (sums.float() * row_scale[:, None] * column_scale).to(dtype)


def to_fp8(x: Tensor, quant: Tensor) -> Tensor:
    """Return ``x`` * ``quant`` in e4m3 (arXiv:2209.05433), its ends saturating."""
    return (x.float() * quant).clamp(-FP8_MAX, FP8_MAX).to(FP8)


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
    """Take one step in place: of ``latents`` and ``clean`` [n,P,4] fp32, into ``network_in``.

    ``output`` is the network's: [n,P,4], or with ``guidance`` [n] first the rows without the prompt
    and then those with it. ``table`` [steps,9] has a `samplers.Step` in each row; ``index`` [1]
    int32 is the row. ``noise`` [n,P,4] unit normals, or zeros where none is drawn.
    """
    _, skip, out, keep, now, before, amount, _, following = table[int(index)]
    said = output.float()
    if guidance is not None:
        without, told = said.chunk(2)
        said = without + guidance[:, None, None] * (told - without)
    estimate = skip * latents + out * said
    new = keep * latents + now * estimate + before * clean + amount * noise
    latents.copy_(new)
    clean.copy_(estimate)
    scaled = (new * following).to(network_in.dtype)
    network_in.copy_(scaled if guidance is None else torch.cat([scaled, scaled]))


def rehearsal() -> AbstractContextManager[None]:
    """Return a context in which kernels are made ready instead of run; here there is nothing to."""
    return nullcontext()


def rehearsing() -> bool:
    """Tell whether a `rehearsal` is under way."""
    return False
