"""Requests and tokens per minute of a virtual key: taken before a call, corrected after it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
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


class Limiter:
    """Holds calls to the limits of their virtual keys."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rules: dict[str, Sequence[tuple[str, Rule, bool]]] = {}

    async def take(self, job: Job) -> None:
        """Take a request, and the tokens that it may come to.

        Raises:
            RateLimited: a limit is used up; nothing was taken.
        """
        rules = self._of(job.owner)
        if not rules:
            return
        tokens = job.input_bound // BYTES_PER_TOKEN + (job.output_limit or GUESS) * job.choices
        asks = [Ask(key, rule, tokens if of_tokens else 1) for key, rule, of_tokens in rules]
        refusal = await self._limits.take(asks)
        if refusal is not None:
            raise _refused(refusal)
        job.tokens_taken = tokens
        job.taken_at = monotonic()

    async def settle(self, job: Job) -> None:
        """Correct the tokens taken to those that were used."""
        surplus = job.tokens_taken - job.input_tokens - job.output_tokens
        if surplus and job.tokens_taken:
            asks = [
                Ask(key, rule, surplus) for key, rule, of_tokens in self._of(job.owner) if of_tokens
            ]
            if asks:
                await self._limits.give_back(asks, monotonic() - job.taken_at)

    def headers(self, job: Job) -> Headers:
        """Return OpenAI's headers of what is left, as far as this process knows."""
        lines: Headers = []
        for key, rule, of_tokens in self._of(job.owner):
            room = self._limits.peek(key, rule)
            what = b"tokens" if of_tokens else b"requests"
            lines += [
                (b"x-ratelimit-limit-" + what, b"%d" % room.limit),
                (b"x-ratelimit-remaining-" + what, b"%d" % room.remaining),
                (b"x-ratelimit-reset-" + what, b"%.3fs" % room.reset_s),
            ]
        return lines

    def forget(self) -> None:
        """Read the limits of virtual keys anew: they may have changed."""
        self._rules = {}

    def _of(self, owner: VirtualKey) -> Sequence[tuple[str, Rule, bool]]:
        rules = self._rules.get(owner.id)
        if rules is None:
            per_minute = (
                (f"{owner.id}/requests", owner.limits.requests_per_minute, False),
                (f"{owner.id}/tokens", owner.limits.tokens_per_minute, True),
            )
            rules = tuple(
                (key, Rule(limit, 60.0), of_tokens)
                for key, limit, of_tokens in per_minute
                if limit is not None
            )
            self._rules[owner.id] = rules
        return rules


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
