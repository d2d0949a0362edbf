"""Waiting for what blocks, a disk or a database: in a thread, and not for ever.

A thread cannot be stopped. Where nobody waits for it any more, since the caller hung up or its time
is over, whatever it comes to is handed to ``late``.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Callable
from typing import TypeVar

from packshot.core.errors import LedgerUnavailable

__all__ = ["LONGEST_S", "Waits"]

T = TypeVar("T")

LONGEST_S = 10.0
"""Seconds that a call waits for the ledger or the key store (``server.ledger_wait_s``)."""

MOST = 1024
"""Waits of one worker under way or in line for a thread, those included that nobody waits for any
more; beyond it a call is refused at once."""


class Waits:
    """The waits of one worker; each takes a thread of the event loop's executor."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self.longest_s = longest_s
        self._out = 0

    async def run(
        self, work: Callable[[], T], late: Callable[[asyncio.Future[T]], object] | None = None
    ) -> T:
        """Return what ``work`` returns, or raise what it raises.

        Raises:
            LedgerUnavailable: it did not end in time, or too many wait.
        """
        if self._out >= MOST:
            raise LedgerUnavailable(f"{self._out} calls wait for the ledger, the most that may")
        self._out += 1
        future = asyncio.get_running_loop().run_in_executor(None, work)
        future.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({future}, timeout=self.longest_s)
        except CancelledError:
            future.add_done_callback(late or _heard)
            raise
        if not done:
            future.add_done_callback(late or _heard)
            raise LedgerUnavailable(f"no answer of the ledger within {self.longest_s:g} s")
        return future.result()

    def _ended(self, future: asyncio.Future[T]) -> None:
        del future
        self._out -= 1


def _heard(future: asyncio.Future[T]) -> None:
    """Take note of an error that nobody waits for."""
    if not future.cancelled():
        future.exception()
