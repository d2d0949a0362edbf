"""What the gateway tells of itself: counters, histograms, traces, one line of log per request."""

from __future__ import annotations

from packshot.gateway.job import Job
from packshot.gateway.keys import Key
from packshot.gateway.plan import Target
from packshot.providers.base import FailureKind

__all__ = ["Telemetry"]


class Telemetry:
    """Takes note; every method is cheap, and none of them raises or waits."""

    def attempt(self, job: Job, target: Target, key: Key, outcome: str) -> None:
        """Note an attempt's end."""

    def retry(self, job: Job, target: Target, why: FailureKind) -> None:
        """Note a retry of the same target."""

    def fallback(self, job: Job, target: Target) -> None:
        """Note that a job went on to its next target."""

    def opened(self, target: Target, key: Key) -> None:
        """Note that a breaker opened."""

    def budget_spent(self, provider: str) -> None:
        """Note that a retry was not made for want of budget."""

    def finished(self, job: Job | None, surface: str, status: int, seconds: float) -> None:
        """Note a request's end; ``job`` is None where it was refused before it became one."""

    def error(self, job: Job | None, error: BaseException) -> None:
        """Note a failure of our own, for the log: the caller hears only its request's id."""
