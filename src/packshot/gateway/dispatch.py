"""From a job to an answer: keys, retries and fallbacks, until one attempt has begun to answer.

::

    for target in the route:             fallbacks, by class of failure
        for key that is well:            at once after a 429
            attempt                      hold → send → the answer's first byte
            again, after a wait          within one deadline and one retry budget

After the first byte to the caller nothing is tried again (DESIGN §4, invariant 5).
"""

from __future__ import annotations

import asyncio
import random
from asyncio import CancelledError
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

import msgspec

from packshot.core.errors import (
    InvalidRequest,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
)
from packshot.gateway.answers import JSON
from packshot.gateway.attempt import LATE, Attempt, hold_at_once, hold_for
from packshot.gateway.hedge import HUNG_UP, SLOWER, HedgeBudget, race
from packshot.gateway.job import Job
from packshot.gateway.keys import Key
from packshot.gateway.money import Money
from packshot.gateway.plan import Target
from packshot.gateway.retry import NEXT, backoff_s
from packshot.gateway.settings import ServerEntry
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.wire.upstream import Call, Reply
from packshot.providers.base import Exchange, Failure, Relay
from packshot.providers.failures import failure_of

__all__ = [
    "Answer",
    "Dispatcher",
    "Refused",
    "Stream",
    "Tries",
    "failure_from",
    "header_lines",
    "read_answer",
    "read_refusal",
]

MAX_ERROR_BYTES = 256 << 10
"""Of a refusal's body; what is longer is no provider's error."""

ELSEWHERE = "not_for_this_target"
"""The code of a failure that says only that this target cannot take this kind of request."""

NO_OUTPUT_TOKENS = frozenset({"embeddings", "images", "count_tokens"})
"""What is asked for where no limit of output tokens can be put in."""

EARLY_S = 0.002
"""Added to waits: a loop counts whole milliseconds, and whoever comes back too early for a key has
used up a retry for nothing."""

LEAST_S = 0.05
"""No attempt is begun with less than this left of the deadline."""


KEPT = 0.99
"""Of what is thought of a target's latency, each time it is passed by: who was slow once is asked
again, ten times slower after 230 calls, twice slower after 70."""


class Refused(Exception):
    """No attempt of a job had an answer; ``failure`` is what the caller hears."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Answer(msgspec.Struct, frozen=True, eq=False):
    """A whole answer, settled already; ``headers`` are beside those that the gateway adds."""

    body: bytes
    status: int = 200
    content: tuple[bytes, bytes] = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()


class Stream(msgspec.Struct, eq=False):
    """An answer that has begun: ``first`` is what goes to the caller at once."""

    attempt: Attempt
    reply: Reply
    relay: Relay
    first: bytes


class Tries:
    """What was tried of one target for one job."""

    __slots__ = ("allowed", "failure", "job", "last", "retries", "target", "tried")

    def __init__(self, job: Job, target: Target, *, last: bool) -> None:
        self.job = job
        self.target = target
        self.last = last
        owner = job.owner
        self.allowed = owner.names_of(target.provider.name) if owner.keys else None
        self.tried: list[Key] = []
        self.retries = 0
        self.failure: Failure | None = None

    def left_s(self) -> float:
        """Return the seconds until the deadline."""
        return self.job.deadline - monotonic()

    def key(self, now: float) -> Key | None:
        """Choose the next key."""
        return self.target.provider.keys.choose(
            self.target.model,
            now,
            allowed=self.allowed,
            tried=self.tried,
            session=self.job.session,
        )

    def ready_in(self) -> float | None:
        """Return the seconds until a key may be used; None where none ever may."""
        return self.target.provider.keys.ready_in(self.target.model, monotonic(), self.allowed)

    def ran_out(self) -> Failure:
        """Say that the deadline, or the number of attempts, is reached."""
        if self.failure is not None and self.left_s() >= LEAST_S:
            return self.failure
        said = f"the deadline passed after {self.job.attempts} attempts"
        if self.failure is not None:
            said = f"{said}; the last one: {self.failure.message}"
        return Failure("timeout", 0, said, code="deadline")

    def no_key(self, wait: float | None) -> Failure:
        """Say that no key may be used now."""
        failure, name = self.failure, self.target.provider.name
        if failure is not None:
            limited = failure.kind == "rate_limit" and wait is not None
            return replace(failure, retry_after_s=wait) if limited else failure
        if wait is None:
            return Failure("auth", 0, f"no key of {name} may be used for this call")
        if self.target.provider.keys.all_out(self.target.model, self.allowed):
            return Failure("auth", 0, f"every key of {name} is refused, or its account empty")
        said = f"every key of {name} rests for now"
        return Failure("overloaded", 0, said, retry_after_s=wait)


class Dispatcher:
    """Makes the attempts of one worker's jobs."""

    def __init__(self, money: Money, telemetry: Telemetry, server: ServerEntry) -> None:
        self._money = money
        self._telemetry = telemetry
        self._server = server
        self._random = random.Random()
        self._hedges = HedgeBudget()

    async def answer(self, job: Job) -> Answer | Stream:
        """Return the first answer that begins.

        Raises:
            Refused: there was none.
            BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: the ledger refused a hold.
            InvalidRequest: the first target's API cannot express the request.
        """
        failure: Failure | None = None
        targets = _ordered(job) if job.route.fastest else job.route.targets
        for nth, target in enumerate(targets):
            # The operator's own order begins with the primary, whatever the request needs.
            if (nth or job.route.fastest) and not _fits(job, target, failure):
                continue
            if nth:
                job.fallbacks += 1
                self._telemetry.fallback(job, target)
            last = nth + 1 == len(job.route.targets)
            if job.route.hedge_s and not nth:
                got = await self._hedged(job, target, last=last)
            else:
                got = await self._on_target(job, target, last=last)
            if not isinstance(got, Failure):
                return got
            if got.code == ELSEWHERE and failure is not None:
                continue  # it said nothing of the request itself: what was wrong before stands
            failure = got
            if NEXT[failure.kind] == "stop" or failure.code == "deadline":
                break
        raise Refused(failure or Failure("bad_request", 0, "the route has no target for this"))

    async def _hedged(self, job: Job, target: Target, *, last: bool) -> Answer | Stream | Failure:
        """Ask the first target, and another beside it if it is slow to begin."""
        self._hedges.deposit()
        waited, began = job.upstream_s, perf_counter()
        got = await race(
            self._on_target(job, target, last=last),
            lambda: self._beside(job, target),
            job.route.hedge_s,
            good=lambda found: not isinstance(found, Failure),
            drop=_drop,
        )
        # Two waited at the same time: the time that passed is what counts.
        job.upstream_s = min(job.upstream_s, waited + perf_counter() - began)
        return got

    def _beside(
        self, job: Job, target: Target
    ) -> Coroutine[Any, Any, Answer | Stream | Failure] | None:
        """Return one attempt of the next target, else of this one, with another key if it has one;
        None where there is no budget for it, or no key.
        """
        if job.attempts >= self._server.max_attempts or not job.attempts:
            return None
        others = (each for each in _ordered(job) if each is not target and _fits(job, each, None))
        other = next(others, target)
        tries = Tries(job, other, last=False)
        if other is target:
            tries.tried = [key for key in target.provider.keys if key.name == job.key]
        key = tries.key(monotonic())
        if key is None and tries.tried:
            tries.tried = []
            key = tries.key(monotonic())
        if key is None or tries.left_s() < LEAST_S or not self._hedges.withdraw():
            return None
        return self._attempt(job, other, key)

    async def _on_target(
        self, job: Job, target: Target, *, last: bool
    ) -> Answer | Stream | Failure:
        tries = Tries(job, target, last=last)
        target.provider.budget.deposit()
        while True:
            now = monotonic()
            if job.attempts >= self._server.max_attempts or job.deadline - now < LEAST_S:
                return tries.ran_out()
            key = tries.key(now)
            if key is None:
                wait = tries.ready_in()
                if not self._may_wait(tries, wait):
                    return tries.no_key(wait)
                await _wait(job, wait or 0.0)
                continue
            got = await self._attempt(job, target, key)
            if not isinstance(got, Failure):
                return got
            tries.failure = got
            step = NEXT[got.kind]
            if step == "key":
                tries.tried.append(key)
            elif step != "again" or not await self._again(tries, key):
                return got

    async def _again(self, tries: Tries, key: Key) -> bool:
        """Wait before a retry of the same target; false where there is to be none."""
        job, provider, failure = tries.job, tries.target.provider, tries.failure
        retry = provider.entry.network.retry
        if failure is None or tries.retries >= retry.max_retries:
            return False
        wait = max(backoff_s(retry, tries.retries, self._random), failure.retry_after_s or 0.0)
        ready = tries.ready_in()
        if ready is None or ready > wait:
            return False  # that was the failure that opened the last breaker: nothing to wait for
        if not self._affords(tries, wait):
            return False
        tries.retries += 1
        self._telemetry.retry(job, tries.target, failure.kind)
        # Another key first, where one is well: the trouble may be this one's.
        tries.tried = [key] if len(provider.keys) > 1 else []
        await _wait(job, wait)
        return True

    def _may_wait(self, tries: Tries, wait: float | None) -> bool:
        """Tell whether to wait for a key that cools down, where there is nowhere else to go."""
        if tries.failure is None or tries.failure.kind != "rate_limit":
            # A retry kept its last key for the end: there is no other, so it may have it again.
            if tries.tried:
                tries.tried = []
                return tries.ready_in() == 0.0
            return False
        most = tries.target.provider.entry.network.retry.max_retries
        if wait is None or not tries.last or tries.retries >= most:
            return False
        if not self._affords(tries, wait):
            return False
        tries.retries += 1
        self._telemetry.retry(tries.job, tries.target, "rate_limit")
        tries.tried = []
        return True

    def _affords(self, tries: Tries, wait: float) -> bool:
        """Take one retry out of the budget, if it and the deadline have room for it."""
        if wait > self._server.max_wait_s or tries.left_s() < wait + LEAST_S:
            return False
        provider = tries.target.provider
        if not provider.budget.withdraw(monotonic()):
            self._telemetry.budget_spent(provider.name)
            return False
        tries.job.retries += 1
        return True

    async def _attempt(self, job: Job, target: Target, key: Key) -> Answer | Stream | Failure:
        """Make one call; it is booked and ended on return, unless it is a stream that began."""
        ready = self._ready(job, target, key)
        if isinstance(ready, Failure):
            return ready
        call, exchange, limit = ready
        provider, hold = target.provider, None
        if job.surface != "count_tokens":
            hold = hold_at_once(self._money, job, target, key, limit)
            if hold is None:
                hold = await hold_for(self._money, job, target, key, limit)
            if hold is None:
                return Failure("timeout", 0, LATE, code="deadline")
        attempt = Attempt(job, target, key, hold, self._money, self._telemetry)
        sent, begun = perf_counter(), False
        try:
            reply = await (provider.upstream or provider.connections).send(call)
            target.answered(perf_counter() - sent)
            if reply.status >= 300:
                failure, _ = await read_refusal(reply)
                attempt.fail(failure, sent=True)
                return failure
            if not job.stream:
                data = await reply.read(self._server.max_reply_bytes)
                return self._whole(attempt, reply, exchange, data)
            got = await self._begin(attempt, reply, exchange)
            begun = isinstance(got, Stream)
            return got  # noqa: TRY300 - not in `else`: what `finally` does goes before it
        except UpstreamError as error:
            failure = failure_from(error, provider.name)
            attempt.fail(failure, sent=error.sent, began=error.began)
            return failure
        except CancelledError as cancelled:
            attempt.abandon(SLOWER if SLOWER in cancelled.args else HUNG_UP, sent=True)
            raise
        finally:
            job.upstream_s += perf_counter() - sent
            if not (begun or attempt.ended):
                attempt.abandon("an error of the gateway's own", sent=True)

    def _ready(
        self, job: Job, target: Target, key: Key
    ) -> tuple[Call, Exchange, int | None] | Failure:
        """Write the call; return it with its exchange and the limit of what may come out."""
        provider = target.provider
        exchange = provider.exchanges.get(job.surface)
        if exchange is None:
            said = f"{provider.name} does not serve {job.surface}"
            return Failure("not_found", 0, said, ELSEWHERE)
        limit, put_in = job.output_limit, None
        if limit is None:
            limit = put_in = self._limit(job, target)
        try:
            body = exchange.request(job.fields, target.model, put_in)
        except InvalidRequest as error:
            if job.attempts == 0:
                raise
            return Failure("not_found", 0, str(error), ELSEWHERE)
        if limit is not None:
            limit *= job.choices
        lines = header_lines(key, job) if job.headers else key.header
        call = Call(target.path(exchange.path), lines, body, job.deadline, provider.timeouts)
        return call, exchange, limit

    def _whole(
        self, attempt: Attempt, reply: Reply, exchange: Exchange, data: bytes
    ) -> Answer | Failure:
        """Take the whole of a good answer."""
        if b"content-encoding" in reply.headers:
            raise compressed()
        try:
            body, usage = exchange.reply(data, attempt.job.model)
        except UpstreamBroken:
            # Some send their errors, rate limits too, under the status 200.
            failure = failure_of(reply.status, reply.headers, data)
            # A whole answer's head comes after the work: trouble under 200 may be billed.
            attempt.fail(failure, sent=True, began=NEXT[failure.kind] == "again")
            return failure
        attempt.succeed(usage)
        if attempt.job.attempts > 1:
            attempt.lead()
        return Answer(body)

    async def _begin(self, attempt: Attempt, reply: Reply, exchange: Exchange) -> Stream | Failure:
        """Wait for the first event: until it is there, another attempt can still take over."""
        relay = exchange.relay(attempt.job.fields, attempt.job.model)
        try:
            first = data = await reply.chunk()
            while data:
                first = relay.feed(data)
                if first or relay.done or relay.failure is not None:
                    break
                data = await reply.chunk()
        except BaseException:
            reply.abort()
            raise
        if relay.failure is not None:
            reply.abort()
            # What was counted before the error (Anthropic's message_start) may be billed.
            attempt.fail(relay.failure, sent=True, began=relay.usage is not None)
            return relay.failure
        if not data:
            raise UpstreamBroken("the stream ended before its first event", sent=True, began=True)
        attempt.lead()
        return Stream(attempt, reply, relay, first)

    def _limit(self, job: Job, target: Target) -> int | None:
        """Return the limit of output tokens to put in where the caller named none."""
        if job.surface in NO_OUTPUT_TOKENS:
            return None
        needed = target.provider.row.api == "anthropic" or self._money.capped(job)
        if not needed:
            return None
        return target.entry.max_output_tokens or self._server.default_max_output_tokens


async def _wait(job: Job, seconds: float) -> None:
    """Wait on a provider's account: its trouble is no overhead of ours."""
    began = perf_counter()
    try:
        await asyncio.sleep(seconds + EARLY_S)
    finally:
        job.upstream_s += perf_counter() - began


def header_lines(key: Key, job: Job) -> bytes:
    """Return the header lines of a call: the key's, with the caller's own in place of some."""
    more = job.headers
    if not more:
        return key.header
    kept = [
        line
        for line in key.header.split(b"\r\n")
        if line and line.partition(b":")[0].lower() not in more
    ]
    return b"\r\n".join([*kept, *(name + b": " + value for name, value in more.items()), b""])


async def read_answer(reply: Reply, limit: int) -> bytes:
    """Return the whole body of a good answer; raise `UpstreamBroken` for a compressed one."""
    data = await reply.read(limit)
    if b"content-encoding" in reply.headers:
        raise compressed()
    return data


def compressed() -> UpstreamBroken:
    """Return the error for an answer that is compressed: nobody had asked for that."""
    return UpstreamBroken("the answer came compressed, unasked", sent=True, began=True)


async def read_refusal(reply: Reply) -> tuple[Failure, bytes]:
    """Read the whole body of a refusal; return what it says, and the body."""
    data = await reply.read(MAX_ERROR_BYTES)
    return failure_of(reply.status, reply.headers, data), data


def _drop(found: Answer | Stream | Failure, reason: str) -> None:
    """End an answer that came in the moment in which another was taken: its cost stays booked."""
    if isinstance(found, Stream):
        found.reply.abort()
        found.attempt.abandon(reason, sent=True)


def _ordered(job: Job) -> Sequence[Target]:
    """Return the route's targets in the order to try: as listed, or by expected waiting time."""
    targets = job.route.targets
    if not job.route.fastest or len(targets) < 2:
        return targets
    by_wait = sorted(targets, key=lambda target: target.latency_s * (target.in_flight + 1))
    for passed_by in by_wait[1:]:
        passed_by.latency_s *= KEPT
    return by_wait


def _fits(job: Job, target: Target, failure: Failure | None) -> bool:
    """Tell whether a fallback can do what the request needs, and would do better."""
    if not job.owner.may_use(target.provider.name, target.model, job.route.id):
        return False
    provider = target.provider
    exchange = provider.exchanges.get(job.surface)
    if exchange is None:
        return False
    lacks = set(target.entry.lacks)
    for need in exchange.needs(job.fields):
        if need in lacks or need not in provider.row.supports:
            return False
    if failure is None or failure.kind != "context" or job.target is None:
        return True
    return target.entry.context_tokens > job.target.entry.context_tokens > 0


def failure_from(error: UpstreamError, provider: str) -> Failure:
    """Say what went wrong on the way to a provider."""
    if isinstance(error, UpstreamTimeout):
        return Failure("timeout", 0, f"{provider} did not answer in time")
    if error.began:
        return Failure("garbage", 0, f"{provider} broke off, or its answer was not understood")
    return Failure("network", 0, f"{provider} could not be reached, or hung up")
