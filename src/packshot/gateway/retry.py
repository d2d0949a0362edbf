"""What follows a failed attempt: another key, the same target again, the next one, or the end."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

from packshot.gateway.settings import RetryEntry
from packshot.providers.base import FailureKind

__all__ = ["NEXT", "Next", "RetryBudget", "backoff_s"]

Next: TypeAlias = Literal["key", "again", "target", "larger", "stop"]
"""``key``: another key of this target at once. ``again``: this target once more, after a wait.
``target``: the next target. ``larger``: one with a larger context. ``stop``: the caller is told."""

NEXT: dict[FailureKind, Next] = {
    "rate_limit": "key",
    "quota": "key",
    "auth": "key",
    "context": "larger",
    "refusal": "stop",
    "bad_request": "stop",
    "not_found": "target",
    "overloaded": "again",
    "server": "again",
    "timeout": "again",
    "network": "again",
    "garbage": "again",
}
"""The caller's own mistakes and refusals are never routed around (DESIGN §4, invariant 6)."""

PERCENT = 0.20
"""Of the calls may be retries: Envoy's retry budget (circuit_breaker.proto, ``retry_budget``)."""

FLOOR = 3.0
"""Retries that a quiet gateway may make, too (``min_retry_concurrency``)."""

SAVED = 50.0
"""The most retries that a long calm saves up for the next trouble."""

CALM_S = 10.0
"""A budget that is spent is back at its floor after this long."""


class RetryBudget:
    """At most a fifth of the calls of one provider are retries; see `PERCENT`.

    Calls to the next target and to another key are none: they go where nobody is ill.
    """

    def __init__(self) -> None:
        self._left = FLOOR
        self._at = 0.0

    def deposit(self) -> None:
        """Note a caller's request."""
        left = self._left + PERCENT
        self._left = min(left, SAVED)

    def withdraw(self, now: float) -> bool:
        """Take one retry out; false where none is left."""
        if self._left < FLOOR:
            self._left = min(FLOOR, self._left + FLOOR * (now - self._at) / CALM_S)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def backoff_s(entry: RetryEntry, retry: int, random_of: random.Random) -> float:
    """Return the wait before retry number ``retry`` (from 0), in seconds: full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    top = min(entry.backoff_max_ms, entry.backoff_initial_ms * 2**retry)
    return random_of.uniform(0.0, top) / 1000.0
