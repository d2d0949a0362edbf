"""cuBLASLt by its C interface, for what torch does not offer of it.

Of the algorithms that the library lists for a shape torch takes the first, and for few rows another
takes a quarter less; and torch has no product in fp8 that adds to what is there. Names and numbers
are those of cublasLt.h, the same in cuBLAS 12 and 13. The library is torch's own: nothing is
installed for it, and without it there is torch.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import RenderFailed
from packshot.engine.fast.reference import FP8

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CublasLt", "Plan", "Problem", "load", "version"]

ALGORITHMS = 32
"""That are asked for; the H100's list has eight."""

WORKSPACE = 32 << 20
"""Bytes that an algorithm may use: what cuBLAS recommends for a Hopper."""

COMPUTE_32F = 68
REAL_32F = 0
TYPES = {torch.bfloat16: 14, torch.float16: 2, torch.float32: REAL_32F, FP8: 28}

TRANSPOSE_A, TRANSPOSE_B, A_SCALE, B_SCALE, FAST_ACCUMULATION = 3, 4, 17, 18, 25
MOST_WORKSPACE, REDUCTIONS = 1, 3
IN_FP32 = 2
"""Sums that are split are put together in fp32, in an order that does not change."""


Attribute = ctypes.c_int8 | ctypes.c_int32 | ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Problem:
    """Sums [rows,outputs] (+)= x [rows,inputs] times weight [outputs,inputs], transposed."""

    rows: int
    outputs: int
    inputs: int
    of: torch.dtype
    """The type of ``x`` and of the weight; fp8 comes with scales."""
    to: torch.dtype
    adds: bool


class _Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A problem as the library has it, and the algorithms that solve it, its own choice first."""

    adds: bool
    operation: ctypes.c_void_p
    weight: ctypes.c_void_p
    x: ctypes.c_void_p
    sums: ctypes.c_void_p
    algorithms: tuple[_Algorithm, ...]


class CublasLt:
    """The library on one device. Its workspace serves one stream at a time.

    Raises:
        RenderFailed: from any method, where the library refuses; the number is its cublasStatus_t.
    """

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            self._do("cublasLtCreate", ctypes.byref(self._handle))
        weakref.finalize(self, library.cublasLtDestroy, self._handle)
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)

    def plan(self, problem: Problem) -> Plan:
        """Return how a problem can be solved: nowhere, where the plan has no algorithms.

        Matrices are columns to the library: it computes the transpose of all, weight times x.
        """
        operation = ctypes.c_void_p()
        self._do("cublasLtMatmulDescCreate", ctypes.byref(operation), COMPUTE_32F, REAL_32F)
        self._tell(operation, TRANSPOSE_A, ctypes.c_int32(1))
        self._tell(operation, TRANSPOSE_B, ctypes.c_int32(0))
        if problem.of == FP8:
            self._tell(operation, FAST_ACCUMULATION, ctypes.c_int8(1))
            for scale in (A_SCALE, B_SCALE):  # the list depends on whether there will be some
                self._tell(operation, scale, ctypes.c_void_p(self._workspace.data_ptr()))
        weight = self._layout(problem.of, problem.inputs, problem.outputs)
        x = self._layout(problem.of, problem.inputs, problem.rows)
        sums = self._layout(problem.to, problem.outputs, problem.rows)
        found = self._algorithms(operation, weight, x, sums)
        return Plan(problem.adds, operation, weight, x, sums, found)

    def run(
        self,
        plan: Plan,
        algorithm: int,
        x: Tensor,
        weight: Tensor,
        sums: Tensor,
        scales: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Queue a product on the current stream; ``scales`` are those of ``x`` and ``weight``."""
        if scales is not None:
            self._tell(plan.operation, B_SCALE, ctypes.c_void_p(scales[0].data_ptr()))
            self._tell(plan.operation, A_SCALE, ctypes.c_void_p(scales[1].data_ptr()))
        chosen = plan.algorithms[algorithm]
        into = ctypes.c_void_p(sums.data_ptr())
        self._do(
            "cublasLtMatmul", self._handle, plan.operation, ctypes.byref(ctypes.c_float(1)),
            ctypes.c_void_p(weight.data_ptr()), plan.weight,
            ctypes.c_void_p(x.data_ptr()), plan.x,
            ctypes.byref(ctypes.c_float(plan.adds)), into, plan.sums, into, plan.sums,
            ctypes.byref(chosen.algorithm), ctypes.c_void_p(self._workspace.data_ptr()),
            ctypes.c_size_t(chosen.workspace),
            ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
        )  # fmt: skip

    def _layout(self, dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._do(
            "cublasLtMatrixLayoutCreate", ctypes.byref(made), TYPES[dtype], ctypes.c_uint64(rows),
            ctypes.c_uint64(columns), ctypes.c_int64(rows),
        )  # fmt: skip
        return made

    def _algorithms(
        self,
        operation: ctypes.c_void_p,
        weight: ctypes.c_void_p,
        x: ctypes.c_void_p,
        sums: ctypes.c_void_p,
    ) -> tuple[_Algorithm, ...]:
        wishes = ctypes.c_void_p()
        self._do("cublasLtMatmulPreferenceCreate", ctypes.byref(wishes))
        try:
            for name, value in (
                (MOST_WORKSPACE, ctypes.c_uint64(WORKSPACE)),
                (REDUCTIONS, ctypes.c_uint32(IN_FP32)),
            ):
                self._do(
                    "cublasLtMatmulPreferenceSetAttribute", wishes, name, ctypes.byref(value),
                    ctypes.c_size_t(ctypes.sizeof(value)),
                )  # fmt: skip
            found, count = (_Algorithm * ALGORITHMS)(), ctypes.c_int()
            with suppress(RenderFailed):  # it has none for this
                self._do(
                    "cublasLtMatmulAlgoGetHeuristic", self._handle, operation, weight, x, sums,
                    sums, wishes, ALGORITHMS, found, ctypes.byref(count),
                )  # fmt: skip
        finally:
            self._do("cublasLtMatmulPreferenceDestroy", wishes)
        return tuple(each for each in found[: count.value] if each.state == 0)

    def _tell(self, operation: ctypes.c_void_p, name: int, value: Attribute) -> None:
        self._do(
            "cublasLtMatmulDescSetAttribute", operation, name, ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )  # fmt: skip

    def _do(self, name: str, *args: object) -> None:
        status: int = getattr(self._library, name)(*args)
        if status:
            raise RenderFailed(f"cuBLASLt refused {name} with status {status}.")


def load(device: torch.device) -> CublasLt | None:
    """Return the library on a device; None where there is none, as on a CPU."""
    library = _library() if device.type == "cuda" else None
    return None if library is None else CublasLt(library, device)


def version() -> int | None:
    """Return the library's version as it tells it, such as 130100; None where there is none."""
    library = _library()
    if library is None:
        return None
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    found: int = library.cublasLtGetVersion()
    return found


@cache
def _library() -> ctypes.CDLL | None:
    """Return what torch was built for, and has loaded already."""
    if torch.version.cuda is None:
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")
    except OSError:
        return None
