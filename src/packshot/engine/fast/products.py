"""Who multiplies matrices: for each shape the algorithm that was fastest here, of those there are.

As with `attention`, what was measured is kept (`tuning`), so that the next process computes alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from packshot.engine.fast.cublaslt import Problem
from packshot.engine.fast.graphs import fastest
from packshot.engine.fast.reference import FP8

if TYPE_CHECKING:
    from packshot.engine.fast.cublaslt import CublasLt, Plan

__all__ = ["TORCH", "Chosen", "Multiplier", "Scales", "Tuned"]

_SCALED_MM: Any = vars(torch)["_scaled_mm"]
"""torch's product in fp8 has no public name yet."""

MAX_PLANS = 4096
"""Problems that are solved by the library; further ones are left to torch."""

ALIGNMENT = 256
"""Bytes, of the matrices that the library's list is for."""

Scales = tuple[Tensor, Tensor]
"""What undoes the rounding to fp8 of inputs and of a matrix: fp32 scalars."""

Chosen = dict[tuple[int, ...], int]
"""Places in the library's list by rows, outputs, inputs, bits of an input, and whether it adds."""


class Multiplier(Protocol):
    """Multiplies [M,in] by matrices [out,in]."""

    def times(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype, scales: Scales | None = None
    ) -> Tensor:
        """Return [M,out] in ``dtype``; fp8 comes with ``scales``."""
        ...

    def add(self, sums: Tensor, x: Tensor, weight: Tensor, scales: Scales | None = None) -> bool:
        """Add the product to ``sums`` [M,out]; tell whether that could be done in one pass."""
        ...


class Torch:
    """As torch has it."""

    def times(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype, scales: Scales | None = None
    ) -> Tensor:
        """As `Multiplier.times`."""
        if scales is None:
            return F.linear(x, weight)
        if not x.is_cuda:
            return (x.float() @ weight.float().T * (scales[0] * scales[1])).to(dtype)
        return _SCALED_MM(x, weight.t(), *scales, out_dtype=dtype, use_fast_accum=True)

    def add(self, sums: Tensor, x: Tensor, weight: Tensor, scales: Scales | None = None) -> bool:
        """As `Multiplier.add`: not in fp8."""
        if scales is None:
            sums.addmm_(x, weight.t())
        return scales is None


TORCH = Torch()


class Tuned:
    """By cuBLASLt, each shape by the algorithm that was fastest when it was first met.

    Args:
        library: of the device of all matrices.
        rehearsing: whether nothing is to be measured yet; see `launch.rehearsal`.
        chosen: what was measured before; it is added to.
    """

    def __init__(
        self, library: CublasLt, rehearsing: Callable[[], bool], chosen: Chosen | None = None
    ) -> None:
        self._library = library
        self._rehearsing = rehearsing
        self.chosen: Chosen = {} if chosen is None else chosen
        self._plans: dict[Problem, Plan | None] = {}

    def times(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype, scales: Scales | None = None
    ) -> Tensor:
        """As `Multiplier.times`."""
        out = torch.empty((len(x), len(weight)), dtype=dtype, device=x.device)
        if not self._into(out, x, weight, scales, adds=False):
            return TORCH.times(x, weight, dtype, scales)
        return out

    def add(self, sums: Tensor, x: Tensor, weight: Tensor, scales: Scales | None = None) -> bool:
        """As `Multiplier.add`."""
        return self._into(sums, x, weight, scales, adds=True) or TORCH.add(sums, x, weight, scales)

    def _into(
        self, sums: Tensor, x: Tensor, weight: Tensor, scales: Scales | None, *, adds: bool
    ) -> bool:
        """Solve a problem; tell whether the library can."""
        outputs, inputs = weight.shape
        plan = self._plan(Problem(len(x), outputs, inputs, x.dtype, sums.dtype, adds))
        if plan is None or not all(map(_whole, (sums, x, weight))):
            return False
        if self._rehearsing():
            return True  # the run after the rehearsal measures
        run = partial(self._library.run, plan, x=x, weight=weight, sums=sums, scales=scales)
        bits = 8 if x.dtype == FP8 else 8 * x.itemsize
        key = (len(x), outputs, inputs, bits, int(adds))
        choice = self.chosen.get(key, -1)
        if not 0 <= choice < len(plan.algorithms):
            before = sums.clone()  # what is measured adds, too
            places = range(len(plan.algorithms))
            best, _ = fastest({place: partial(run, place) for place in places}, sums.device)
            sums.copy_(before)
            if best is None:
                return False
            choice = self.chosen[key] = best
        run(choice)
        return True

    def _plan(self, problem: Problem) -> Plan | None:
        """Return how a problem is solved; None where it is left to torch."""
        if problem not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                return None
            made = self._library.plan(problem)
            self._plans[problem] = made if made.algorithms else None
        return self._plans[problem]


def _whole(x: Tensor) -> bool:
    """Tell whether a tensor lies as the library assumes."""
    return x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0
