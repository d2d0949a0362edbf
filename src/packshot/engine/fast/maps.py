"""Feature maps for a GPU: what the fast UNet and the fast decoder share.

A bias, and the end of a residual branch, is not added where it arises but with the next pass over
the data, which is mostly a normalisation: a `Map` carries such debts along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.dense import Dense
from packshot.engine.fast.reference import Affine, GroupNorm
from packshot.engine.networks.blocks import ResnetBlock, phased

__all__ = ["Kernels", "Map", "Resnet", "Upsample", "convolve"]


class Kernels(Protocol):
    """The fused operations; `reference` says what each computes, `kernels` is the fast one."""

    def join(
        self, x: Tensor, add: Tensor | None, bias: Tensor | None, skip: Tensor | None = None
    ) -> Tensor: ...
    def group_norm(
        self, x: Tensor, norm: GroupNorm, *, add: Tensor | None = None, bias: Tensor | None = None,
        skip: Tensor | None = None, shift: Tensor | None = None,
    ) -> tuple[Tensor, Affine]: ...  # fmt: skip
    def affine(self, x: Tensor, norm: Affine, *, silu: bool) -> Tensor: ...
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
    def attend_text(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor: ...
    def interleave(self, phases: Tensor, size: tuple[int, int], bias: Tensor) -> Tensor: ...
    def softmax(self, x: Tensor, dtype: torch.dtype) -> Tensor: ...
    def to_uint8(self, x: Tensor) -> Tensor: ...
    def advance(
        self, latents: Tensor, clean: Tensor, output: Tensor, network_in: Tensor,
        noise: Tensor | None, table: Tensor, index: Tensor, guidance: Tensor | None,
    ) -> None: ...  # fmt: skip


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
        self, kernels: Kernels, norm: nn.GroupNorm, *, silu: bool, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Settle, and return that (beside ``skip``), and it through ``norm``."""
        y, by = kernels.group_norm(
            self.main, _group_norm(norm), add=self.add, bias=self.bias, skip=skip
        )
        if skip is None:
            self.main, self.add, self.bias = y, None, None
        return y, kernels.affine(y, by, silu=silu)


def _group_norm(norm: nn.GroupNorm) -> GroupNorm:
    return GroupNorm(norm.weight, norm.bias, norm.num_groups, norm.eps)


def convolve(conv: nn.Conv2d, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Convolve [B,P,C] of ``size`` without the bias; [B,P',C']."""
    b, _, c = x.shape
    image = x.view(b, *size, c).permute(0, 3, 1, 2)
    y = F.conv2d(image, conv.weight, None, conv.stride, conv.padding)
    return y.permute(0, 2, 3, 1).flatten(1, 2)


class Resnet:
    """`networks.blocks.ResnetBlock`; the second normalisation takes the first one's bias along."""

    def __init__(self, block: ResnetBlock) -> None:
        self.block = block
        self.shortcut: Dense | None = None
        self.bias = block.conv2.bias
        if isinstance(block.conv_shortcut, nn.Conv2d):
            self.shortcut = Dense(block.conv_shortcut.weight.flatten(1).contiguous())
            self.bias = block.conv2.bias + block.conv_shortcut.bias

    def __call__(
        self, kernels: Kernels, x: Map, shift: Tensor | None, skip: Tensor | None = None
    ) -> Map:
        """Map [B,P,C] (beside ``skip``) to [B,P,C']; ``shift`` [B,C'] has conv1's bias in it."""
        block = self.block
        y, h = x.normed(kernels, block.norm1, silu=True, skip=skip)
        h = convolve(block.conv1, h, x.size)
        if shift is None:
            shift = block.conv1.bias.expand(len(h), -1).contiguous()
        h, by = kernels.group_norm(h, _group_norm(block.norm2), shift=shift)
        h = convolve(block.conv2, kernels.affine(h, by, silu=True), x.size)
        if self.shortcut is not None:
            y = self.shortcut(y.flatten(0, 1)).view(*y.shape[:2], -1)
        return Map(x.size, y, h, self.bias)


class Upsample:
    """`networks.blocks.Upsample` as one 2x2 convolution of all four phases of its output."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.weight = phased(conv.weight).contiguous(memory_format=torch.channels_last)

    def __call__(self, kernels: Kernels, x: Map, size: tuple[int, int]) -> Map:
        """Map [B,P,C] to ``size``; where that is no doubling, by the plain way."""
        y = x.settle(kernels)
        image = y.view(len(y), *x.size, -1).permute(0, 3, 1, 2)
        if size == (2 * x.size[0], 2 * x.size[1]):
            phases = F.conv2d(image, self.weight, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
            return Map(size, kernels.interleave(phases, x.size, self.conv.bias))
        image = F.interpolate(image, size=size, mode="nearest")
        y = image.permute(0, 2, 3, 1).reshape(len(y), size[0] * size[1], -1)
        return Map(size, convolve(self.conv, y, size), bias=self.conv.bias)
