"""How a store asks its server: in time, or not at all, and never with an error for a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from packshot.core.clock import SECOND_US, Clock

__all__ = ["Asking"]

RETRY_US = SECOND_US
"""A server that is away is asked again after this time."""

BUSY_US = SECOND_US // 10
"""A server that answered so short a time ago is not away: it, or this process, has much to do."""

T = TypeVar("T")


class Asking:
    """``failures`` are the exceptions of a server that does not answer, or with an error.

    ``problem`` is "" while all is well. ``clock`` is in µs.
    """

    def __init__(self, clock: Clock, failures: tuple[type[BaseException], ...]) -> None:
        self.problem = ""
        self._clock = clock
        self._failures = failures
        self._away_until = 0
        self._answered_at = 0

    async def quiet(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return what ``call`` returns, None where it fails or the server is away."""
        if self._clock() < self._away_until:
            return None
        try:
            found = await call()
        except self._failures as error:
            now = self._clock()
            if not isinstance(error, TimeoutError) or now - self._answered_at >= BUSY_US:
                why = str(error) or "in time"
                self.problem = f"the store of answers does not answer: {why}"
                self._away_until = now + RETRY_US
            return None
        self._answered_at = self._clock()
        self.problem = ""
        return found
