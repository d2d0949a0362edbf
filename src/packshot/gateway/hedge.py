"""Hedging: a second attempt beside one that is slow to begin; whichever answers first is taken.

It is for the tail of latencies and costs money twice, so a route asks for it (``hedge_after_ms``),
and at most a twentieth of the calls get it (J. Dean and L. A. Barroso, "The Tail at Scale",
Communications of the ACM 56(2), 2013, hedge after the 95th percentile, for the same share).
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from packshot.core.errors import PackshotError

__all__ = ["HUNG_UP", "SLOWER", "HedgeBudget", "race"]

T = TypeVar("T")
Attempt: TypeAlias = Coroutine[Any, Any, T]

SHARE = 0.05
"""Of the calls of hedged routes may have a second attempt."""

SAVED = 10.0
"""The most second attempts that a calm saves up."""

SLOWER = "another attempt was faster"
HUNG_UP = "the caller hung up"


class HedgeBudget:
    """Second attempts are at most `SHARE` of the calls, and one."""

    def __init__(self) -> None:
        self._left = 1.0

    def deposit(self) -> None:
        """Note a call that may be hedged."""
        self._left = min(self._left + SHARE, SAVED)

    def withdraw(self) -> bool:
        """Take a second attempt out; false where none is left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


async def race(
    first: Attempt[T],
    second: Callable[[], Attempt[T] | None],
    after_s: float,
    *,
    good: Callable[[T], bool],
    drop: Callable[[T, str], None],
) -> T:
    """Return the first good result; where there is none, what became of ``first``.

    ``second`` is asked for another attempt after ``after_s`` seconds, and may have none. Whoever is
    not taken is cancelled, `SLOWER` being the reason, before this returns; ``drop`` gets the good
    result of one that came to its end in the same moment, and the reason. An error of the second
    that says only that it cannot be made (a budget is spent) leaves the first alone.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(first)]
    reason = SLOWER
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if not tasks[0].done() and (made := second()) is not None:
            tasks.append(loop.create_task(made))
        await _until_good(tasks, good)
    except CancelledError:
        reason = HUNG_UP
        raise
    finally:
        reason = await _end(tasks, reason)
        taken = next((task for task in tasks if _is_good(task, good)), None)
        if reason == HUNG_UP:
            taken = None
        for task in tasks:
            if task is not taken and _is_good(task, good):
                drop(task.result(), reason)
    if reason == HUNG_UP:
        raise CancelledError  # while the slower one was being ended
    if taken is None and len(tasks) > 1 and not tasks[1].cancelled():
        error = tasks[1].exception()
        if error is not None and not isinstance(error, PackshotError):
            raise error
    return (taken or tasks[0]).result()


async def _end(tasks: list[asyncio.Task[T]], reason: str) -> str:
    """Cancel what still runs, and wait for it, even if we are cancelled ourselves: nobody else
    would end what has been answered. Return the reason, which is `HUNG_UP` then.
    """
    for task in tasks:
        task.cancel(reason)
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except CancelledError:
            reason = HUNG_UP
    return reason


async def _until_good(tasks: list[asyncio.Task[T]], good: Callable[[T], bool]) -> None:
    """Wait for a good result, for an error of the first, or for all."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when="FIRST_COMPLETED")
        if any(_is_good(task, good) for task in done):
            return
        if tasks[0] in done and tasks[0].exception() is not None:
            return


def _is_good(task: asyncio.Task[T], good: Callable[[T], bool]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and good(task.result())
