"""Feature maps for a GPU: what the fast UNet and the fast decoder share.

A bias, and the end of a residual branch, is not added where it arises but with the next pass over
the data, which is mostly a normalisation: a `Map` carries such debts along.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.dense import LAYER_NORM_SIGMAS, TINY, Dense
from packshot.engine.fast.products import TORCH, Multiplier
from packshot.engine.fast.reference import FP8, FP8_MAX, GroupNorm, to_fp8
from packshot.engine.networks import blocks

__all__ = [
    "Convolution",
    "Fp8",
    "Kernels",
    "Map",
    "Resnet",
    "Upsample",
    "each",
    "group_norm_of",
    "linear_of",
]

M = TypeVar("M", bound=nn.Module)


def each(modules: nn.Module, kind: type[M]) -> list[M]:
    """Return the modules of a list, which must be of one kind."""
    if not isinstance(modules, nn.ModuleList):
        raise TypeError(f"{type(modules).__name__} is no list of modules.")
    found: list[M] = []
    for module in modules:
        if not isinstance(module, kind):
            raise TypeError(f"expected {kind.__name__}, got {type(module).__name__}.")
        found.append(module)
    return found


def linear_of(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the matrix [out,in] and the bias [out] of a layer that sees one pixel at a time."""
    return layer.weight.flatten(1).contiguous(), _bias_of(layer)


def group_norm_of(norm: nn.GroupNorm) -> GroupNorm:
    """Return a normalisation as data."""
    return GroupNorm(norm.weight, norm.bias, norm.num_groups, norm.eps)


def _bias_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise TypeError(f"{layer} has no bias; SDXL's have.")
    return layer.bias


class Kernels(Protocol):
    """The fused operations; `reference` says what each computes, `kernels` is the fast one."""

    def join(
        self, x: Tensor, add: Tensor | None, bias: Tensor | None, skip: Tensor | None = None
    ) -> Tensor: ...
    def group_norm(
        self, x: Tensor, norm: GroupNorm, *, silu: bool, add: Tensor | None = None,
        bias: Tensor | None = None, skip: Tensor | None = None, shift: Tensor | None = None,
        quant: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    def convolve(
        self, x: Tensor, weight: Tensor, size: tuple[int, int], dtype: torch.dtype, *,
        scale: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip
    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, add: Tensor | None = None,
        shift: Tensor | None = None, quant: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip
    def geglu(
        self, x: Tensor, weight: Tensor, bias: Tensor, *, scale: Tensor | None = None,
        quant: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip
    def gate(self, x: Tensor, bias: Tensor, *, quant: Tensor | None = None) -> Tensor: ...
    def to_int8(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def from_int32(
        self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, dtype: torch.dtype
    ) -> Tensor: ...
    def convolve_pays(self, pixels: int, channels: int, *, fp8: bool) -> bool: ...
    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor: ...
    def attends(self, keys: int) -> bool: ...
    def ask(
        self, x: Tensor, weight: Tensor, k: Tensor, v: Tensor, *, scale: Tensor | None = None,
        quant: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip
    def ask_pays(self, rows: int, channels: int, *, fp8: bool) -> bool: ...
    def interleave(self, phases: Tensor, size: tuple[int, int], bias: Tensor) -> Tensor: ...
    def softmax(self, x: Tensor, dtype: torch.dtype) -> Tensor: ...
    def to_uint8(self, x: Tensor) -> Tensor: ...
    def advance(
        self, latents: Tensor, clean: Tensor, output: Tensor, network_in: Tensor,
        noise: Tensor, table: Tensor, index: Tensor, guidance: Tensor | None,
    ) -> None: ...  # fmt: skip
    def rehearsal(self) -> AbstractContextManager[None]: ...
    def rehearsing(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Map:
    """A feature map [B,P,C] of ``size`` (h, w) as a sum: ``main`` + ``add`` + ``bias`` [C]."""

    size: tuple[int, int]
    main: Tensor
    add: Tensor | None = None
    bias: Tensor | None = None

    def settle(self, kernels: Kernels) -> Tensor:
        """Add up, once for all who hold this map, and return [B,P,C]."""
        if self.add is not None or self.bias is not None:
            self.main = kernels.join(self.main, self.add, self.bias)
            self.add = self.bias = None
        return self.main

    def normed(
        self, kernels: Kernels, norm: GroupNorm, *, silu: bool, skip: Tensor | None = None,
        quant: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Settle, and return that (beside ``skip``), and it through ``norm``."""
        y, h = kernels.group_norm(
            self.main, norm, silu=silu, add=self.add, bias=self.bias, skip=skip, quant=quant
        )
        if skip is None:
            self.main, self.add, self.bias = y, None, None
        return y, h


@dataclass(frozen=True, slots=True, eq=False)
class Fp8:
    """A convolution's weight [C',3,3,C] in e4m3; inputs come times ``quant``.

    ``scale`` [C'] undoes both scales.
    """

    weight: Tensor
    quant: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """A convolution as data. Its ``bias`` [C'] is for whoever reads the result to add.

    ``own``: whether `Kernels.convolve` computes it, where that pays; ``fp8`` is for that.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    own: bool = False
    fp8: Fp8 | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Convolution:
        """Take a network's."""
        padding = 1 if conv.padding == (1, 1) else 0
        return cls(conv.weight, _bias_of(conv), conv.stride[0], padding)

    def owned(self) -> Convolution:
        """Return this for our own kernel, which takes 3x3 taps and channels by the 64."""
        return replace(self, own=all(c % 64 == 0 for c in self.weight.shape[:2]))

    def after(self, norm: GroupNorm) -> Convolution:
        """Return this in fp8, for what comes out of ``norm`` and SiLU; a scale for each output."""
        if not self.own:
            return self
        gain, bias = norm.weight.abs().amax().float(), norm.bias.abs().amax().float()
        quant = FP8_MAX / (LAYER_NORM_SIGMAS * gain + bias).clamp(min=TINY)
        rows = self.weight.permute(0, 2, 3, 1)
        top = rows.abs().amax(dim=(1, 2, 3), keepdim=True).float().clamp(min=TINY)
        rounded = to_fp8(rows, FP8_MAX / top).contiguous()
        return replace(self, fp8=Fp8(rounded, quant, (top / FP8_MAX).flatten() / quant))

    def quant(self, kernels: Kernels, pixels: int) -> Tensor | None:
        """Return what inputs of so many pixels are to be brought to fp8 with; None: as they are."""
        if self.fp8 is None or not kernels.convolve_pays(pixels, self.weight.shape[1], fp8=True):
            return None
        return self.fp8.quant

    def __call__(self, kernels: Kernels, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map [B,P,C] of ``size`` (h, w) to [B,P',C'], without the bias."""
        b, p, c = x.shape
        if x.dtype == FP8 and self.fp8 is not None:
            scale = self.fp8.scale
            return kernels.convolve(x, self.fp8.weight, size, self.weight.dtype, scale=scale)
        if self.own and kernels.convolve_pays(b * p, c, fp8=False):
            return kernels.convolve(x, self.weight.permute(0, 2, 3, 1), size, x.dtype)
        image = x.view(b, *size, c).permute(0, 3, 1, 2)
        y = F.conv2d(image, self.weight, None, self.stride, self.padding)
        return y.permute(0, 2, 3, 1).flatten(1, 2)


class Resnet:
    """`networks.blocks.ResnetBlock`; the second normalisation takes the first bias along.

    ``own``: whether `Kernels.convolve` runs here.
    """

    def __init__(
        self, block: blocks.ResnetBlock, by: Multiplier = TORCH, *, own: bool = False
    ) -> None:
        self.norms = (group_norm_of(block.norm1), group_norm_of(block.norm2))
        self.convs = (Convolution.of(block.conv1), Convolution.of(block.conv2))
        if own:
            self.convs = (self.convs[0].owned(), self.convs[1].owned())
        self.shortcut: Dense | None = None
        self.bias = self.convs[1].bias
        if isinstance(block.conv_shortcut, nn.Conv2d):
            weight, bias = linear_of(block.conv_shortcut)
            self.shortcut, self.bias = Dense(weight, by), self.bias + bias

    def in_fp8(self) -> None:
        """Turn the convolutions that are ours to fp8; nothing has to be calibrated for it."""
        first, second = self.convs
        self.convs = (first.after(self.norms[0]), second.after(self.norms[1]))

    def __call__(
        self, kernels: Kernels, x: Map, shift: Tensor | None, skip: Tensor | None = None
    ) -> Map:
        """Map [B,P,C] (beside ``skip``) to [B,P,C'].

        ``shift`` [B,C'] has the first convolution's bias in it; None is that alone.
        """
        first, second = self.convs
        pixels = x.main.shape[0] * x.main.shape[1]
        quant, quant_2 = first.quant(kernels, pixels), second.quant(kernels, pixels)
        y, h = x.normed(kernels, self.norms[0], silu=True, skip=skip, quant=quant)
        h = first(kernels, h, x.size)
        if shift is None:
            shift = first.bias.expand(len(h), -1)
        _, h = kernels.group_norm(h, self.norms[1], silu=True, shift=shift, quant=quant_2)
        h = second(kernels, h, x.size)
        if self.shortcut is not None:
            y = self.shortcut(y.flatten(0, 1)).view(*y.shape[:2], -1)
        return Map(x.size, y, h, self.bias)


class Upsample:
    """`networks.blocks.Upsample` as one 2x2 convolution of all four phases of its output."""

    def __init__(self, upsample: blocks.Upsample) -> None:
        self.conv = Convolution.of(upsample.conv)
        weight = blocks.phased(self.conv.weight)
        self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, kernels: Kernels, x: Map, size: tuple[int, int]) -> Map:
        """Map [B,P,C] to ``size``; where that is no doubling, by the plain way."""
        y = x.settle(kernels)
        image = y.view(len(y), *x.size, -1).permute(0, 3, 1, 2)
        if size == (2 * x.size[0], 2 * x.size[1]):
            phases = F.conv2d(image, self.weight, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
            return Map(size, kernels.interleave(phases, x.size, self.conv.bias))
        image = F.interpolate(image, size=size, mode="nearest")
        y = image.permute(0, 2, 3, 1).reshape(len(y), size[0] * size[1], -1)
        return Map(size, self.conv(kernels, y, size), bias=self.conv.bias)
