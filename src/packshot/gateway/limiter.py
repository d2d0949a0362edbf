"""Requests and tokens per minute of a virtual key: taken before a call, corrected after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from math import isfinite
from time import monotonic

import msgspec

from packshot.core.errors import InvalidRequest, RateLimited
from packshot.gateway.access import VirtualKey
from packshot.gateway.job import Job
from packshot.state.limits import Ask, Limits, LocalLimits, MemoryLimits, Refusal, Rule, left_of

__all__ = ["Limiter", "Rates"]

BYTES_PER_TOKEN = 4
"""What a token has on average, for the estimate before a call; the count after it is exact."""

GUESS = 256
"""Output tokens that a call without a limit is taken to make, until it is known."""


class Rates(msgspec.Struct, frozen=True, eq=False):
    """The limits of one virtual key, ready to be asked for and told of."""

    owner: VirtualKey
    asks: tuple[Ask, ...]
    """One request, and one token: what is limited of them."""
    of_requests: tuple[Ask, ...]
    of_tokens: tuple[Ask, ...]
    lines: bytes
    """The header lines that tell what is left, with places for remaining and reset of each."""


class Limiter:
    """Holds calls to the limits of their virtual keys."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._local = limits if isinstance(limits, LocalLimits) else None
        self._left: Callable[[Sequence[Ask]], tuple[int, ...]] = (
            limits.left
            if isinstance(limits, MemoryLimits)
            else lambda asks: left_of(limits.peek(asks))
        )
        self._rates: dict[str, Rates] = {}

    def take(self, job: Job) -> Awaitable[None] | None:
        """Take a request, and the tokens that it may come to; what is returned is to be waited for.

        Raises:
            RateLimited: a limit is used up; nothing was taken.
        """
        owner = job.owner
        rates = self._rates.get(owner.id)
        # A call that began before its key was changed leaves nothing behind for those after it.
        if rates is None or rates.owner is not owner:
            rates = self.rates_of(owner)
        job.rates = rates
        asks = rates.of_requests
        tokens = job.input_bound // BYTES_PER_TOKEN + (job.output_limit or GUESS) * job.choices
        for one in rates.of_tokens:
            asks = (*asks, Ask(one.key, one.rule, tokens))
        if not asks:
            return None
        job.tokens_taken = tokens
        job.taken_at = monotonic()
        if self._local is None:
            return self._take(job, asks)
        refusal = self._local.take_now(asks)
        if refusal is not None:
            raise _refused(job, refusal)
        return None

    async def _take(self, job: Job, asks: Sequence[Ask]) -> None:
        refusal = await self._limits.take(asks)
        if refusal is not None:
            raise _refused(job, refusal)
        job.taken_at = monotonic()

    def settle(self, job: Job) -> Awaitable[None] | None:
        """Correct the tokens taken to those that were used; the first call counts. What is returned
        is to be waited for.
        """
        surplus = job.tokens_taken - job.input_tokens - job.output_tokens
        if job.unmetered:
            surplus -= _unmetered(job)
        rates = job.rates
        if not surplus or not job.tokens_taken or rates is None:
            return None
        job.tokens_taken = 0
        for one in rates.of_tokens:
            asks, age_s = (Ask(one.key, one.rule, surplus),), monotonic() - job.taken_at
            if self._local is None:
                return self._limits.give_back(asks, age_s)
            self._local.give_back_now(asks, age_s)
        return None

    def left(self, job: Job) -> tuple[bytes, tuple[int, ...]]:
        """Return OpenAI's header lines of what is left, and the numbers for the places in them, as
        far as this process knows.
        """
        rates = job.rates
        if rates is None or not rates.asks:
            return b"", ()
        return rates.lines, self._left(rates.asks)

    def forget(self) -> None:
        """Let go of the limits of virtual keys: some may be gone."""
        self._rates = {}

    def rates_of(self, owner: VirtualKey) -> Rates:
        """Return the limits of a virtual key."""
        found = self._rates.get(owner.id)
        if found is None or found.owner is not owner:
            found = self._rates[owner.id] = _rates(owner)
        return found


def _rates(owner: VirtualKey) -> Rates:
    given = {
        "requests": owner.limits.requests_per_minute,
        "tokens": owner.limits.tokens_per_minute,
    }
    asks = {
        what: Ask(f"{owner.id}/{what}", Rule(limit, 60.0))
        for what, limit in given.items()
        if limit is not None
    }
    lines = [
        f"x-ratelimit-limit-{what}: {ask.rule.limit}\r\nx-ratelimit-remaining-{what}: %d\r\n"
        f"x-ratelimit-reset-{what}: %dms\r\n"
        for what, ask in asks.items()
    ]
    requests, tokens = ((asks[what],) if what in asks else () for what in given)
    return Rates(owner, tuple(asks.values()), requests, tokens, "".join(lines).encode())


def _refused(job: Job, refusal: Refusal) -> RateLimited | InvalidRequest:
    job.tokens_taken = 0  # nothing was taken of any limit
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


def _unmetered(job: Job) -> int:
    """Return what attempts count for whose use nobody said: what was taken for each, or no more
    than its bytes hold where a stream broke off. Money is booked by its bound just so.
    """
    most = job.tokens_taken * job.unmetered
    if not job.streamed:
        return most
    seen = (job.input_bound + job.streamed) // BYTES_PER_TOKEN
    return most - job.tokens_taken + min(job.tokens_taken, seen)
