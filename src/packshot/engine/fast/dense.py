"""Matrices of the networks, as they are multiplied: in the networks' own type, in fp8, in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.reference import FP8_MAX, to_fp8

__all__ = ["LAYER_NORM_SIGMAS", "Dense", "DenseInt8", "Product", "after_layer_norm"]

LAYER_NORM_SIGMAS = 32.0
"""How far from its mean a LayerNorm's value may lie before fp8 saturates.

Of C values at most one can lie sqrt(C) sigmas away. e4m3 is floating-point: room above costs nothing
until values fall under 2**-6 / 448 * 32 = 0.001 sigmas.
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
    """``weight`` [out,in]. For fp8: inputs come times ``quant``; the other two undo both scales."""

    weight: Tensor
    quant: Tensor | None = None
    scale_in: Tensor | None = None
    scale_weight: Tensor | None = None
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, *layers: nn.Linear) -> Dense:
        """Stack the weights of ``layers``, in their own type and without their biases."""
        return cls(torch.cat([layer.weight for layer in layers]) if layers[1:] else layers[0].weight)

    def in_fp8(self, largest: float) -> Dense:
        """Return the same in fp8, for inputs of at most ``largest``; one scale per tensor."""
        device = self.weight.device
        top = self.weight.abs().amax().float().clamp(min=1e-12)
        quant = torch.tensor(FP8_MAX / max(largest, 1e-12), device=device)
        return Dense(to_fp8(self.weight, FP8_MAX / top), quant, 1 / quant, top / FP8_MAX, self.weight.dtype)

    @property
    def scale(self) -> Tensor | None:
        """The product of both scales, for a kernel that applies one."""
        if self.scale_in is None or self.scale_weight is None:
            return None
        return self.scale_in * self.scale_weight

    def __call__(self, x: Tensor) -> Tensor:
        """Map [M,in] to [M,out], without a bias; fp8 gives ``dtype``."""
        if self.quant is None:
            return F.linear(x, self.weight)
        if not x.is_cuda:
            return ((x.float() @ self.weight.float().T) * self.scale).to(self.dtype)
        return torch._scaled_mm(  # noqa: SLF001 (torch's only fp8 product)
            x, self.weight.t(), self.scale_in, self.scale_weight,
            out_dtype=self.dtype, use_fast_accum=True,
        )  # fmt: skip

    def add_to(self, sums: Tensor, x: Tensor) -> Tensor | None:
        """Add the product to ``sums`` [M,out]; or return it, where that takes another pass."""
        if self.quant is not None:
            return self(x)
        sums.addmm_(x, self.weight.t())
        return None


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
        sums = torch._int_mm(rounded, self.weight.t())  # noqa: SLF001 (torch's only int8 product)
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


def after_layer_norm(dense: Dense, norm: nn.LayerNorm) -> Dense:
    """Return ``dense`` in fp8, for what comes out of ``norm``: no calibration is needed."""
    gain, bias = norm.weight.abs().amax(), norm.bias.abs().amax()
    return dense.in_fp8(float(LAYER_NORM_SIGMAS * gain + bias))


