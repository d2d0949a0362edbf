"""The two clocks: the wall's, which dates entries and may step, and the one that only goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["HOUR_US", "SECOND_US", "Clock", "wall_us"]

Clock: TypeAlias = Callable[[], int]
"""Returns microseconds since 1970-01-01 UTC. Tests hand in their own."""

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US


def wall_us() -> int:
    """Return the wall clock in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
