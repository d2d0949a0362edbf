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
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter

from packshot.core.errors import (
    InvalidRequest,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
)
from packshot.core.types import Usage
from packshot.gateway.attempt import Attempt
from packshot.gateway.job import Job
from packshot.gateway.keys import Key
from packshot.gateway.money import Money
from packshot.gateway.plan import Target
from packshot.gateway.retry import NEXT, backoff_s
from packshot.gateway.settings import ServerEntry
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.wire.upstream import Call, Reply
from packshot.providers.base import Exchange, Failure, Relay
from packshot.providers.exchanges import EXCHANGES

__all__ = ["Answer", "Dispatcher", "Refused", "Stream"]

MAX_ERROR_BYTES = 256 << 10
"""Of a refusal's body; what is longer is no provider's error."""

LEAST_S = 0.05
"""No attempt is begun with less than this left of the deadline."""


class Refused(Exception):  # noqa: N818 - what happened; it never leaves the gateway
    """No attempt of a job had an answer; ``failure`` is what the caller hears."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its body, settled already."""

    body: bytes
    usage: Usage | None


@dataclass(slots=True, eq=False)
class Stream:
    """An answer that has begun: ``first`` is what goes to the caller at once."""

    attempt: Attempt
    reply: Reply
    relay: Relay
    exchange: Exchange
    first: bytes


class Dispatcher:
    """Makes the attempts of one worker's jobs."""

    def __init__(self, money: Money, telemetry: Telemetry, server: ServerEntry) -> None:
        self._money = money
        self._telemetry = telemetry
        self._server = server
        self._random = random.Random()

    async def answer(self, job: Job) -> Answer | Stream:
        """Return the first answer that begins.

        Raises:
            Refused: there was none.
            BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: the ledger refused a hold.
            InvalidRequest: the first target's API cannot express the request.
        """
        failure: Failure | None = None
        for nth, target in enumerate(_ordered(job)):
            if nth and not _fits(job, target, failure):
                continue
            if nth:
                job.fallbacks += 1
                self._telemetry.fallback(job, target)
            got = await self._on_target(job, target, last=nth + 1 == len(job.route.targets))
            if not isinstance(got, Failure):
                return got
            failure = got
            if NEXT[failure.kind] == "stop" or failure.code == "deadline":
                break
        raise Refused(failure or Failure("bad_request", 0, "the route has no target for this"))

    async def _on_target(
        self, job: Job, target: Target, *, last: bool
    ) -> Answer | Stream | Failure:
        provider = target.provider
        retry = provider.entry.network.retry
        allowed = job.owner.names_of(provider.name)
        tried: list[Key] = []
        retries = 0
        failure: Failure | None = None
        provider.budget.deposit()
        while True:
            now = monotonic()
            if job.attempts >= self._server.max_attempts or now + LEAST_S > job.deadline:
                return _ran_out(job, failure)
            key = provider.keys.choose(
                target.model, now, allowed=allowed, tried=tried, session=job.session
            )
            if key is None:
                wait = provider.keys.ready_in(target.model, now, allowed)
                if not (last and self._worth_waiting(job, target, wait, now, failure)):
                    return _no_key(target, failure, wait)
                await asyncio.sleep(wait or 0.0)
                tried.clear()
                continue
            got = await self._attempt(job, target, key)
            if not isinstance(got, Failure):
                return got
            failure = got
            step = NEXT[got.kind]
            if step == "key":
                tried.append(key)
                continue
            if step != "again" or retries >= retry.max_retries:
                return got
            wait = max(backoff_s(retry, retries, self._random), got.retry_after_s or 0.0)
            now = monotonic()
            if wait > self._server.max_wait_s or now + wait + LEAST_S > job.deadline:
                return got
            if not provider.budget.withdraw(now):
                self._telemetry.budget_spent(provider.name)
                return got
            retries += 1
            job.retries += 1
            self._telemetry.retry(job, target, got.kind)
            # Another key first, where one is well: the trouble may be this one's.
            tried = [key] if len(provider.keys) > 1 else []
            if (
                tried
                and provider.keys.choose(target.model, now, allowed=allowed, tried=tried) is None
            ):
                tried = []
            await asyncio.sleep(wait)

    def _worth_waiting(
        self, job: Job, target: Target, wait: float | None, now: float, failure: Failure | None
    ) -> bool:
        """Tell whether to wait for a key that cools down, where there is no other target."""
        if wait is None or failure is None or failure.kind != "rate_limit":
            return False
        if wait > self._server.max_wait_s or now + wait + LEAST_S > job.deadline:
            return False
        if not target.provider.budget.withdraw(now):
            self._telemetry.budget_spent(target.provider.name)
            return False
        job.retries += 1
        return True

    async def _attempt(self, job: Job, target: Target, key: Key) -> Answer | Stream | Failure:
        provider = target.provider
        exchange = EXCHANGES.get((job.surface, provider.row.api))
        if exchange is None or job.surface not in provider.row.surfaces:
            return Failure("not_found", 0, f"{provider.name} does not serve {job.surface}")
        put_in = self._limit(job, target)
        try:
            body = exchange.request(job.fields, target.model, put_in)
        except InvalidRequest as error:
            if job.attempts == 0:
                raise
            return Failure("bad_request", 0, str(error))
        hold = None
        if job.surface != "count_tokens":
            limit = job.output_limit or put_in
            limit = None if limit is None else limit * job.choices
            hold = self._money.hold(job, target, key.name, limit, job.deadline - monotonic())
        attempt = Attempt(job, target, key, hold, self._money, self._telemetry)
        call = Call(target.path(exchange.path), key.header, body, job.deadline, provider.timeouts)
        upstream = provider.upstream
        assert upstream is not None, "the gateway is started before it is called"
        sent = perf_counter()
        stream: Stream | None = None
        try:
            reply = await upstream.send(call)
            target.answered(perf_counter() - sent)
            if not (job.stream and reply.status < 300):
                return await self._whole(attempt, reply, exchange)
            begun = await self._begin(attempt, reply, exchange)
            if isinstance(begun, Stream):
                stream = begun
            return begun
        except UpstreamError as error:
            failure = _failure_of(error, provider.name)
            attempt.fail(failure, sent=error.sent)
            return failure
        except CancelledError:
            attempt.abandon("the caller hung up", sent=True)
            raise
        finally:
            job.upstream_s += perf_counter() - sent
            if stream is None and not attempt.ended:
                attempt.abandon("an error of the gateway's own", sent=True)

    async def _whole(self, attempt: Attempt, reply: Reply, exchange: Exchange) -> Answer | Failure:
        """Read the whole answer, good or bad."""
        if reply.status < 300:
            data = await reply.read(self._server.max_reply_bytes)
            if b"content-encoding" in reply.headers:
                raise UpstreamBroken("the answer came compressed, unasked", sent=True, began=True)
            body, usage = exchange.reply(data, attempt.job.model)
            attempt.succeed(usage)
            return Answer(body, usage)
        data = await reply.read(MAX_ERROR_BYTES)
        failure = exchange.failure(reply.status, reply.headers, data)
        attempt.fail(failure, sent=True)
        return failure

    async def _begin(self, attempt: Attempt, reply: Reply, exchange: Exchange) -> Stream | Failure:
        """Wait for the first event: until it is there, another attempt can still take over."""
        relay = exchange.relay(attempt.job.fields, attempt.job.model)
        try:
            while True:
                data = await reply.chunk()
                first = relay.feed(data) if data else b""
                if relay.failure is not None:
                    attempt.fail(relay.failure, sent=True)
                    reply.abort()
                    return relay.failure
                if first or relay.done:
                    return Stream(attempt, reply, relay, exchange, first)
                if not data:
                    raise UpstreamBroken(
                        "the stream ended before its first event", sent=True, began=True
                    )
        except BaseException:
            reply.abort()
            raise

    def _limit(self, job: Job, target: Target) -> int | None:
        """Return the limit of output tokens to put in where the caller named none."""
        if job.output_limit is not None or job.surface in {"embeddings", "count_tokens"}:
            return None
        needed = target.provider.row.api == "anthropic" or self._money.capped(job)
        if not needed:
            return None
        return target.entry.max_output_tokens or self._server.default_max_output_tokens


def _ordered(job: Job) -> Sequence[Target]:
    """Return the route's targets in the order to try: as listed, or by expected waiting time."""
    targets = job.route.targets
    if not job.route.fastest or len(targets) < 2:
        return targets
    return sorted(targets, key=lambda target: target.latency_s * (target.in_flight + 1))


def _fits(job: Job, target: Target, failure: Failure | None) -> bool:
    """Tell whether a fallback can do what the request needs, and would do better."""
    if not job.owner.may_use(target.provider.name, target.model):
        return False
    provider = target.provider
    exchange = EXCHANGES.get((job.surface, provider.row.api))
    if exchange is None or job.surface not in provider.row.surfaces:
        return False
    lacks = set(target.entry.lacks)
    for need in exchange.needs(job.fields):
        if need in lacks or need not in provider.row.supports:
            return False
    if failure is None or failure.kind != "context" or job.target is None:
        return True
    return target.entry.context_tokens > job.target.entry.context_tokens > 0


def _failure_of(error: UpstreamError, provider: str) -> Failure:
    if isinstance(error, UpstreamTimeout):
        return Failure("timeout", 0, f"{provider} did not answer in time")
    if error.began:
        return Failure("garbage", 0, f"{provider} broke off, or its answer was not understood")
    return Failure("network", 0, f"{provider} could not be reached, or hung up")


def _ran_out(job: Job, failure: Failure | None) -> Failure:
    if failure is not None and job.attempts >= 1 and monotonic() + LEAST_S <= job.deadline:
        return failure
    said = f"the deadline passed after {job.attempts} attempts"
    if failure is not None:
        said = f"{said}; the last one: {failure.message}"
    return Failure("timeout", 0, said, code="deadline")


def _no_key(target: Target, failure: Failure | None, wait: float | None) -> Failure:
    if failure is not None:
        if failure.kind == "rate_limit" and wait is not None:
            return Failure("rate_limit", 429, failure.message, failure.code, "", wait)
        return failure
    if wait is None:
        return Failure("auth", 0, f"no key of {target.provider.name} may be used for this call")
    return Failure(
        "overloaded", 0, f"every key of {target.provider.name} rests for now", retry_after_s=wait
    )
