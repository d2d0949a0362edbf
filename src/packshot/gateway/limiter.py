"""Requests and tokens per minute of a virtual key: taken before a call, corrected after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from time import monotonic

from packshot.core.errors import InvalidRequest, RateLimited
from packshot.gateway.access import VirtualKey
from packshot.gateway.answers import Headers
from packshot.gateway.job import Job
from packshot.state.limits import Ask, Limits, Refusal, Rule

__all__ = ["Limiter"]

BYTES_PER_TOKEN = 4
"""What a token has on average, for the estimate before a call; the count after it is exact."""

GUESS = 256
"""Output tokens that a call without a limit is taken to make, until it is known."""


@dataclass(frozen=True, slots=True)
class _Rate:
    """One limit of one virtual key, and the names of the headers that tell of it."""

    key: str
    rule: Rule
    of_tokens: bool
    one: Ask
    """For a single request."""
    limit: tuple[bytes, bytes]
    remaining: bytes
    reset: bytes


class Limiter:
    """Holds calls to the limits of their virtual keys."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rates: dict[str, tuple[VirtualKey, Sequence[_Rate]]] = {}

    async def take(self, job: Job) -> None:
        """Take a request, and the tokens that it may come to.

        Raises:
            RateLimited: a limit is used up; nothing was taken.
        """
        rates = self._of(job.owner)
        if not rates:
            return
        tokens = job.input_bound // BYTES_PER_TOKEN + (job.output_limit or GUESS) * job.choices
        asks = [Ask(rate.key, rate.rule, tokens) if rate.of_tokens else rate.one for rate in rates]
        refusal = await self._limits.take(asks)
        if refusal is not None:
            raise _refused(refusal)
        job.tokens_taken = tokens
        job.taken_at = monotonic()

    async def settle(self, job: Job) -> None:
        """Correct the tokens taken to those that were used; the first call counts."""
        surplus = job.tokens_taken - job.input_tokens - job.output_tokens
        if job.unmetered:
            surplus -= _unmetered(job)
        if not surplus or not job.tokens_taken:
            return
        job.tokens_taken = 0
        asks = [Ask(rate.key, rate.rule, surplus) for rate in self._of(job.owner) if rate.of_tokens]
        if asks:
            await self._limits.give_back(asks, monotonic() - job.taken_at)

    def headers(self, job: Job) -> Headers:
        """Return OpenAI's headers of what is left, as far as this process knows."""
        lines: Headers = []
        peek = self._limits.peek
        for rate in self._of(job.owner):
            room = peek(rate.key, rate.rule)
            lines += (
                rate.limit,
                (rate.remaining, b"%d" % room.remaining),
                (rate.reset, b"%dms" % ceil(room.reset_s * 1000)),
            )
        return lines

    def forget(self) -> None:
        """Let go of the limits of virtual keys: some may be gone."""
        self._rates = {}

    def _of(self, owner: VirtualKey) -> Sequence[_Rate]:
        found = self._rates.get(owner.id)
        # A call that began before its key was changed leaves nothing behind for those after it.
        if found is None or found[0] is not owner:
            limits = owner.limits
            rates = tuple(
                _rate(owner.id, what, limit)
                for what, limit in (
                    ("requests", limits.requests_per_minute),
                    ("tokens", limits.tokens_per_minute),
                )
                if limit is not None
            )
            found = self._rates[owner.id] = owner, rates
        return found[1]


def _rate(owner: str, what: str, limit: int) -> _Rate:
    name, key, rule = what.encode(), f"{owner}/{what}", Rule(limit, 60.0)
    return _Rate(
        key,
        rule,
        what == "tokens",
        Ask(key, rule),
        (b"x-ratelimit-limit-" + name, b"%d" % limit),
        b"x-ratelimit-remaining-" + name,
        b"x-ratelimit-reset-" + name,
    )


def _unmetered(job: Job) -> int:
    """Return what attempts count for whose use nobody said: what was taken for each, or no more
    than its bytes hold where a stream broke off. Money is booked by its bound just so.
    """
    most = job.tokens_taken * job.unmetered
    if not job.streamed:
        return most
    seen = (job.input_bound + job.streamed) // BYTES_PER_TOKEN
    return most - job.tokens_taken + min(job.tokens_taken, seen)


def _refused(refusal: Refusal) -> RateLimited | InvalidRequest:
    what = refusal.ask.key.rpartition("/")[2]
    if not isfinite(refusal.retry_after_s):
        return InvalidRequest(
            f"the call may come to {refusal.ask.amount} tokens, and the virtual key has "
            f"{refusal.ask.rule.limit} a minute: lower max_tokens or shorten the prompt"
        )
    return RateLimited(
        f"{refusal.ask.rule.limit} {what} per minute are used up; "
        f"come back in {refusal.retry_after_s:.1f} s",
        refusal.retry_after_s,
    )
