"""Matrices of the networks, as they are multiplied: in the networks' own type, or in fp8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.reference import FP8_MAX, to_fp8

__all__ = ["LAYER_NORM_SIGMAS", "Dense", "after_layer_norm"]

LAYER_NORM_SIGMAS = 32.0
"""How far from its mean a LayerNorm's value may lie before fp8 saturates.

Of C values at most one can lie sqrt(C) sigmas away. e4m3 is floating-point: room above costs nothing
until values fall under 2**-6 / 448 * 32 = 0.001 sigmas.
"""


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


def after_layer_norm(dense: Dense, norm: nn.LayerNorm) -> Dense:
    """Return ``dense`` in fp8, for what comes out of ``norm``: no calibration is needed."""
    gain, bias = norm.weight.abs().amax(), norm.bias.abs().amax()
    return dense.in_fp8(float(LAYER_NORM_SIGMAS * gain + bias))


