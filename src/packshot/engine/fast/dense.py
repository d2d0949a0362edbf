"""Matrices of the networks, as they are multiplied: in the networks' own type, in fp8, in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from packshot.engine.fast.products import TORCH, Multiplier
from packshot.engine.fast.reference import FP8_MAX, to_fp8

__all__ = ["LAYER_NORM_SIGMAS", "Dense", "DenseFp8", "DenseInt8", "Product", "after_layer_norm"]

_INT_MM: Any = vars(torch)["_int_mm"]
"""torch's product in int8 has no public name yet."""

TINY = 1e-12

LAYER_NORM_SIGMAS = 32.0
"""How far from its mean a LayerNorm's value may lie before fp8 saturates.

Of C values at most one can lie sqrt(C) sigmas away. e4m3 is floating-point: room above costs
nothing until values fall under 2**-6 / 448 * 32 = 0.001 sigmas.
"""


class Product(Protocol):
    """A matrix that inputs are multiplied by."""

    @property
    def quant(self) -> Tensor | None:
        """What inputs are to be multiplied by and brought to fp8 with; None: as they are."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Map [M,in] to [M,out], without a bias."""
        ...

    def add_to(self, sums: Tensor, x: Tensor) -> Tensor | None:
        """Add the product to ``sums`` [M,out]; or return it, where that takes another pass."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``weight`` [out,in] in the network's own type."""

    weight: Tensor
    by: Multiplier = TORCH
    quant: None = None
    scale: None = None

    @classmethod
    def of(cls, *layers: nn.Linear, by: Multiplier = TORCH) -> Dense:
        """Stack the weights of ``layers``, without their biases."""
        weights = [layer.weight for layer in layers]
        return cls(torch.cat(weights) if weights[1:] else weights[0], by)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [M,in] to [M,out]."""
        return self.by.times(x, self.weight, x.dtype)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        """Add the product to ``sums``."""
        self.by.add(sums, x, self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class DenseFp8:
    """``weight`` [out,in] in e4m3, one scale per tensor; the result is ``dtype``.

    Inputs come times ``quant``; ``scales`` undo that and the weight's, and ``scale`` is their
    product, for a kernel that takes one.
    """

    weight: Tensor
    quant: Tensor
    scales: tuple[Tensor, Tensor]
    scale: Tensor
    dtype: torch.dtype
    by: Multiplier

    @classmethod
    def of(cls, dense: Dense, largest: float) -> DenseFp8:
        """Round a matrix, for inputs of at most ``largest``."""
        weight = dense.weight
        top = weight.abs().amax().float().clamp(min=TINY)
        quant = torch.tensor(FP8_MAX / max(largest, TINY), device=weight.device)
        rounded = to_fp8(weight, FP8_MAX / top)
        undo, undo_weight = 1 / quant, top / FP8_MAX
        scales = undo, undo_weight
        return cls(rounded, quant, scales, undo * undo_weight, weight.dtype, dense.by)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [M,in], fp8, to [M,out]."""
        return self.by.times(x, self.weight, self.dtype, self.scales)

    def add_to(self, sums: Tensor, x: Tensor) -> Tensor | None:
        """Add the product to ``sums``; or return it, where that takes another pass."""
        return None if self.by.add(sums, x, self.weight, self.scales) else self(x)


@dataclass(frozen=True, slots=True, eq=False)
class DenseInt8:
    """``weight`` [out,in] int8 with a scale per row, for chips without fp8.

    Inputs get a scale per row as they come; sums are int32 and exact.
    """

    weight: Tensor
    scale: Tensor
    kernels: Int8Kernels
    quant: None = None

    @classmethod
    def of(cls, dense: Dense, kernels: Int8Kernels) -> DenseInt8:
        """Round a matrix that is in its own type yet."""
        rounded, scale = kernels.to_int8(dense.weight)
        return cls(rounded, scale, kernels)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [M,in], M above 16, to [M,out] in the type of ``x``."""
        rounded, scale = self.kernels.to_int8(x)
        sums = _INT_MM(rounded, self.weight.t())
        return self.kernels.from_int32(sums, scale, self.scale, x.dtype)

    def add_to(self, sums: Tensor, x: Tensor) -> Tensor:
        """Return the product: it is added in the next pass."""
        del sums
        return self(x)


class Int8Kernels(Protocol):
    """The fused operations that int8 needs; see `reference`."""

    def to_int8(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def from_int32(
        self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, dtype: torch.dtype
    ) -> Tensor: ...


def after_layer_norm(dense: Dense, norm: nn.LayerNorm) -> DenseFp8:
    """Return ``dense`` in fp8, for what comes out of ``norm``: no calibration is needed."""
    gain, bias = norm.weight.abs().amax(), norm.bias.abs().amax()
    return DenseFp8.of(dense, float(LAYER_NORM_SIGMAS * gain + bias))
