# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""How the kernels are started: overlapping the one before, or compiled ahead and not started."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from packshot.engine.devices import capability

__all__ = [
    "EARLY",
    "LANES",
    "await_inputs",
    "block_k",
    "in_bands",
    "launch",
    "processors",
    "rehearsal",
    "rehearsing",
]

LANES = 64  # channels that one program of a feature map handles: 128 bytes of a row in bf16
THREADS = 16  # that compile at a time
LEAST_BYTES, MOST_BYTES = 32, 128  # of a row in one multiplication; as shared memory is swizzled

EARLY = torch.cuda.is_available() and capability(torch.device("cuda")) >= (9, 0)
"""Whether this is a Hopper or later: kernels start early, and memory moves by the box."""

_EARLY = tl.constexpr(EARLY)
_rehearsing = False


@triton.jit
def await_inputs():
    """Wait for the kernel before this one, beside whose end this one was started.

    Programmatic dependent launch (CUDA's programming guide, from Hopper on); the next may start.
    """
    if _EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def processors() -> int:
    """Return how many multiprocessors the GPU has; a few where there is none, for tests."""
    if not torch.cuda.is_available():
        return 3
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@triton.jit
def in_bands(index, down, across, BAND: tl.constexpr):
    """Return the row and the column of a tile: in bands of rows, so that weights stay in L2."""
    band = index // (BAND * across)
    high = tl.minimum(down - band * BAND, BAND)
    rest = index % (BAND * across)
    return band * BAND + rest % high, rest // high


def block_k(inputs: int, size: int) -> int:
    """Return how many of the ``inputs`` of ``size`` bytes a product takes at a time: never all.

    Of a loop that is run once the compiler leaves no loop, and then ptxas 12.8 once took another
    register for the address of what the kernel multiplies next: an illegal access, found by
    compute-sanitizer and to be read in the machine code; ptxas 12.9 does not (benchmarks/LOG.md).

    Raises:
        ValueError: for 32 bytes or less, which the tensor cores take at once.
    """
    if inputs * size <= LEAST_BYTES:
        raise ValueError(f"a product over {inputs} inputs of {size} bytes has no loop")
    most = MOST_BYTES // size
    while most >= inputs:
        most //= 2
    return most


def launch(kernel: Any, grid: Sequence[int], *args: Any, **options: Any) -> None:
    """Start ``kernel``, whose first act is `await_inputs`; or compile it, in a `rehearsal`."""
    if EARLY:
        options["launch_pdl"] = True
    if _rehearsing:
        kernel.warmup(*args, grid=tuple(grid), **options)
    else:
        kernel[tuple(grid)](*args, **options)


@contextmanager
def rehearsal() -> Generator[None]:
    """Start nothing of what is launched inside, and have all of it compiled at the end.

    On many threads: one after the other takes a quarter of a second each, fifteen in all.
    """
    global _rehearsing  # noqa: PLW0603 (one process has one compiler)
    with ThreadPoolExecutor(THREADS) as pool, triton.AsyncCompileMode(pool):
        _rehearsing = True
        try:
            yield
        finally:
            _rehearsing = False


def rehearsing() -> bool:
    """Tell whether a `rehearsal` is under way."""
    return _rehearsing
