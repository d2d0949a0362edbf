"""An event loop whose clock jumps: nothing is waited for, and an hour takes as long as its work."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

__all__ = ["Travel", "travel"]

T = TypeVar("T")


class Travel(asyncio.SelectorEventLoop):
    """With nothing to run, it is at once the time of the next timer. For work without sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(timers)._scheduled = False
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


def travel(work: Coroutine[Any, Any, T], patch: pytest.MonkeyPatch) -> T:
    """Run ``work`` in such a loop, with the gateway's clocks set to its time."""
    with asyncio.Runner(loop_factory=Travel) as runner:
        loop = runner.get_loop()
        for name in ("dispatch", "attempt"):
            patch.setattr(f"packshot.gateway.{name}.monotonic", loop.time)
        patch.setattr("packshot.gateway.dispatch.perf_counter", loop.time)
        return runner.run(work)
