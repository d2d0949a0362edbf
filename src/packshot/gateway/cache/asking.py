"""How a store asks its server: in time, or not at all, and never with an error for a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from packshot.core.clock import SECOND_US, Clock
from packshot.gateway.cache.entry import Entry

__all__ = ["Asking", "Together"]

RETRY_US = SECOND_US
"""A server that is away is asked again after this time."""

BUSY_US = SECOND_US // 10
"""A server that answered so short a time ago is not away: it, or this process, has much to do."""

MOST_TOGETHER = 64
"""Keys that are asked for at once; more are asked for beside them."""

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


class Together:
    """Asks once for all keys that are wanted in one turn of the loop: of a crowd that each asked
    by itself, most would have their answers too late. ``ask`` returns what there is.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[dict[str, Entry]]]) -> None:
        self._ask = ask
        self._keys: set[str] = set()
        self._found: asyncio.Task[dict[str, Entry]] | None = None

    async def get(self, key: str) -> Entry | None:
        """Return what is kept under ``key``."""
        if self._found is None or len(self._keys) >= MOST_TOGETHER:
            self._keys = set()
            self._found = asyncio.get_running_loop().create_task(self._get(self._keys))
        self._keys.add(key)
        return (await asyncio.shield(self._found)).get(key)

    async def _get(self, keys: set[str]) -> dict[str, Entry]:
        if keys is self._keys:
            self._found = None  # this is the next turn
        return await self._ask(tuple(keys))
