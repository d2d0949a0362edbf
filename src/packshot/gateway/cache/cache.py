"""The response cache: exact answers first, then those of requests that mean the same.

::

    what the caller says → exact key → own memory → flight → store → similar requests → provider
                                                                                      └► keep

`ResponseCache.serve` is the whole of it. Nothing of it can fail a call: what cannot be read or kept
goes upstream. Whose answers a caller may get is in every key (`packshot.gateway.cache.request`).
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeAlias

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import StateUnavailable
from packshot.core.types import Usage
from packshot.gateway.answers import JSON
from packshot.gateway.cache.control import Control, control_of
from packshot.gateway.cache.entry import Entry, Purge, Scent
from packshot.gateway.cache.flights import Flights, Hit, Seat
from packshot.gateway.cache.replay import events_of, is_good, whole_of
from packshot.gateway.cache.request import CachedRequest, Unreadable, cached_request
from packshot.gateway.cache.settings import SemanticCacheEntry, threshold_of
from packshot.gateway.cache.store import Mark, MemoryStore, Store
from packshot.gateway.dispatch import Answer, Dispatcher, Refused, Stream
from packshot.gateway.job import Job
from packshot.gateway.telemetry import Telemetry
from packshot.ledger.avoided import AvoidedCosts, Group
from packshot.providers.base import Failure, Relay
from packshot.providers.failures import Answer as Said
from packshot.providers.failures import error_body
from packshot.providers.openai import asked_usage

__all__ = ["Deliver", "ResponseCache", "Rules", "SemanticTier", "Shadow"]

Deliver: TypeAlias = Callable[[Answer | Stream], Awaitable[int]]

EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")

MISS = b"x-packshot-cache: miss\r\n"

FALLBACK_TTL_S = 300
"""How long the answer of a fallback is kept at most: the primary's may be better."""

MOST_SAVED = 10**13
"""Nano-EUR that one hit is said to have saved at most: entries come from a store that others write,
and a number that is made up must not reach the end of the ledger's."""

MAX_TASKS = 1000
"""Entries on their way to the store, and checks under way; more are not begun."""

NOT_KEPT = Said(504, "invalid_request_error", "no answer to this is cached", "not_cached")
"""What a call hears that is to be answered from the cache only (RFC 9111, 5.2.1.7)."""

SWEEP_TICKS = 60
"""Ticks, which come once a second, between two looks for what is past its time."""

WAITED = "the deadline passed while an identical call was under way"


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a route; see `packshot.gateway.cache.settings`."""

    enabled: bool
    semantic: bool
    threshold: float
    ttl_s: int
    must_match: tuple[str, ...]
    also: frozenset[str]


class SemanticTier(Protocol):
    """Finds the entry of a request that means the same (`packshot.gateway.cache.semantic`)."""

    async def find(
        self, request: CachedRequest, rules: Rules, threshold: float
    ) -> tuple[str, float, Scent | None]:
        """Return the exact key of the nearest entry, "" for none, its cosine, and the request's
        own scent, None where it has none.
        """
        ...

    def learn(self, key: str, entry: Entry) -> None: ...

    def drop(self, what: Purge) -> None: ...

    async def aclose(self) -> None: ...


class Shadow(Protocol):
    """Checks some semantic hits (`packshot.gateway.cache.audit`)."""

    def wants(self, job: Job, hit: Hit) -> bool: ...

    async def check(self, job: Job, hit: Hit) -> None: ...

    def is_off(self, route: str) -> bool: ...

    def off(self) -> Sequence[str]: ...

    async def tick(self) -> None: ...

    async def forget(self, what: Purge) -> None: ...

    async def aclose(self) -> None: ...


class Kept(NamedTuple):
    """How a call is to be kept."""

    request: CachedRequest
    route: str
    rules: Rules
    control: Control
    scent: Scent | None = None


class ResponseCache:
    """One worker's cache. ``front`` is its memory, ``back`` what lies behind it, or None."""

    def __init__(
        self,
        entry: SemanticCacheEntry,
        dispatcher: Dispatcher,
        telemetry: Telemetry,
        front: MemoryStore,
        *,
        back: Store | None = None,
        tier: SemanticTier | None = None,
        clock: Clock = wall_us,
    ) -> None:
        self.entry = entry
        self.front = front
        self.back = back
        self.tier = tier
        self.shadow: Shadow | None = None
        self.avoided: AvoidedCosts | None = None
        """The ledger's, which hears what each hit saved."""
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._clock = clock
        self._flights = Flights()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mark: Mark = (0, 0)
        self._ticks = 0
        self._problem = ""
        self._usual = _rules(entry, "")
        self._rules = {route: _rules(entry, route) for route in entry.routes}

    async def serve(self, job: Job, deliver: Deliver) -> int:
        """Answer a job and return its status; ``deliver`` sends an answer to the caller.

        Raises:
            Refused: nothing is cached, and no attempt had an answer.
            InvalidRequest: what the caller says of the cache is not understood.
            BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: the ledger refused a hold.
        """
        control = control_of(job.said_of_cache)
        rules = self._rules.get(job.route.id, self._usual)
        try:
            how = Kept(self._request(job, control, rules), job.route.id, rules, control)
        except Unreadable as why:
            return await self._past(job, control, str(why), deliver)
        key = how.request.key
        while control.look:
            entry = self.front.look(key)
            if entry is not None:
                return await deliver(self._answer(job, Hit(key, entry)))
            told = await self._board(job, key)
            if isinstance(told, Seat):
                return await self._lead(job, how, told, deliver)
            if isinstance(told, Failure):
                job.cache = MISS
                raise Refused(told)
            if _suits(told, how):
                return await deliver(self._answer(job, told))
        return await self._ask(job, how, None, deliver)

    async def _board(self, job: Job, key: str) -> Hit | Failure | Seat:
        """Make the call oneself, or wait for another's."""
        began = perf_counter()
        try:
            return await self._flights.board(key, job.owner.id, job.deadline)
        except TimeoutError as error:
            raise Refused(Failure("timeout", 0, WAITED, code="deadline")) from error
        finally:
            job.upstream_s += perf_counter() - began

    def _request(self, job: Job, control: Control, rules: Rules) -> CachedRequest:
        if not control.keep and not control.only:
            raise Unreadable("no-store")
        if not rules.enabled:
            raise Unreadable("route")
        request = cached_request(job, self.entry.max_temperature)
        for kind in request.kinds:
            if not control.store and kind not in rules.also:
                raise Unreadable(kind)
        return request

    async def _past(self, job: Job, control: Control, why: str, deliver: Deliver) -> int:
        """Answer what is neither looked up nor kept."""
        job.cache = b"x-packshot-cache: bypass\r\nx-packshot-cache-why: %b\r\n" % why.encode()
        self._telemetry.cached(job, "bypass")
        if control.only:
            return await deliver(_not_kept(job))
        return await deliver(await self._dispatcher.answer(job))

    async def _lead(self, job: Job, how: Kept, seat: Seat, deliver: Deliver) -> int:
        """Look further, and make the call that all who ask the same wait for."""
        try:
            hit, scent = await self._behind(how)
            if hit is not None:
                seat.hit = hit
                self._flights.land(seat)
                answer = self._answer(job, hit)
                self._check(job, hit)
                return await deliver(answer)
            if how.control.only:
                seat.abandoned = True
                return await deliver(_not_kept(job))
            return await self._ask(job, how._replace(scent=scent), seat, deliver)
        except CancelledError:
            seat.abandoned = True
            raise
        except Refused as error:
            seat.failure = error.failure
            raise
        finally:
            self._flights.land(seat)

    async def _behind(self, how: Kept) -> tuple[Hit | None, Scent | None]:
        """Look in the store, then for similar requests; return the hit, and the request's scent."""
        request, control = how.request, how.control
        entry = await self._get(request.key)
        if entry is not None:
            return Hit(request.key, entry), None
        tier = self.tier
        if tier is None or control.exact or not how.rules.semantic or self._is_off(how.route):
            return None, None
        threshold = control.threshold or how.rules.threshold
        key, similarity, scent = await tier.find(request, how.rules, threshold)
        if not key:
            return None, scent
        entry = await self._get(key)
        # Said once more, where it counts: nothing of one scope is served to another.
        if entry is None or entry.scope != request.scope:
            tier.drop(Purge("key", key))
            return None, scent
        return Hit(key, entry, similarity), scent

    async def _get(self, key: str) -> Entry | None:
        entry = self.front.look(key)
        if entry is None and self.back is not None:
            entry = await self.back.get(key)
            if entry is not None:
                self.front.keep(key, entry)
        return entry

    async def _ask(self, job: Job, how: Kept, seat: Seat | None, deliver: Deliver) -> int:
        """Have the job answered by a provider, and keep what comes."""
        result = "miss" if how.control.look else "refresh"
        key = how.request.key.encode()
        job.cache = b"x-packshot-cache: %b\r\nx-packshot-cache-key: %b\r\n" % (result.encode(), key)
        self._telemetry.cached(job, result)
        got = await self._dispatcher.answer(job)
        if isinstance(got, Stream):
            record = Recorder(got.relay, got.first, self.entry.max_entry_kb << 10)
            got.relay = record
            status = await deliver(got)
            body = record.whole(job) if status == 200 else None
            self._keep(job, how, seat, body)
            return status
        self._keep(job, how, seat, got.body if got.status == 200 else None)
        return await deliver(got)

    def _keep(self, job: Job, how: Kept, seat: Seat | None, body: bytes | None) -> None:
        """Keep an answer, and give it to those who wait for it."""
        key = how.request.key
        if body is not None and is_good(job.surface, body):
            entry = self._entry(job, how, body)
            if entry.size <= self.entry.max_entry_kb << 10:
                self.front.keep(key, entry)
                if self.back is not None:
                    self._begin(self.back.put(key, entry))
                if self.tier is not None and entry.scent is not None:
                    self.tier.learn(key, entry)
            if seat is not None:
                seat.hit = Hit(key, entry)
        if seat is not None:
            self._flights.land(seat)

    def _entry(self, job: Job, how: Kept, body: bytes) -> Entry:
        ttl_s = how.control.ttl_s or how.rules.ttl_s
        if job.fallbacks:
            ttl_s = min(ttl_s, FALLBACK_TTL_S)
        now = self._clock()
        return Entry(
            body,
            how.request.scope,
            job.route.id,
            "" if job.target is None else job.target.name,
            now,
            now + ttl_s * SECOND_US,
            job.cost,
            tuple(sorted({*job.owner.tags, *job.tags})),
            how.scent,
        )

    def _answer(self, job: Job, hit: Hit) -> Answer:
        """Return a kept answer as this caller wants it."""
        entry = hit.entry
        age_s = max(0, self._clock() - entry.made_at) // SECOND_US
        kind = "exact" if hit.similarity is None else "semantic"
        job.cache = (
            b"x-packshot-cache: hit\r\nx-packshot-cache-kind: %b\r\nx-packshot-cache-key: %b\r\n"
            b"age: %d\r\nx-packshot-cache-saved-eur: %d.%09d\r\n"
            % (kind.encode(), hit.key.encode(), age_s, *divmod(entry.cost, 1_000_000_000))
        )
        if hit.similarity is not None:
            job.cache += b"x-packshot-cache-similarity: %.4f\r\n" % hit.similarity
        self._telemetry.cached(job, kind, entry.cost)
        if self.avoided is not None:
            saved = min(max(entry.cost, 0), MOST_SAVED)
            self.avoided.note(_group_of(job, kind, entry), saved)
        if not job.stream:
            return Answer(entry.body, 200, JSON)
        usage = job.surface == "chat" and asked_usage(job.fields)
        return Answer(events_of(job.surface, entry.body, usage=usage), 200, EVENTS)

    def off(self) -> Sequence[str]:
        """Return the routes whose semantic tier was turned off by its checks."""
        return [] if self.shadow is None else self.shadow.off()

    def _is_off(self, route: str) -> bool:
        return self.shadow is not None and self.shadow.is_off(route)

    def _check(self, job: Job, hit: Hit) -> None:
        if self.shadow is not None and hit.similarity is not None and self.shadow.wants(job, hit):
            self._begin(self.shadow.check(job, hit))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the calls."""
        if len(self._tasks) >= MAX_TASKS:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(self._told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - no caller waits for it; the log has it
            self._telemetry.error(None, error)

    # ------------------------------------------------------------ beside the calls
    async def purge(self, what: Purge) -> int:
        """Throw away what is kept; return how many entries that was, in the store behind.

        Raises:
            StateUnavailable: the store cannot be reached.
        """
        before = len(self.front)
        self._drop(what)
        if self.shadow is not None:
            await self.shadow.forget(what)
        return before - len(self.front) if self.back is None else await self.back.purge(what)

    async def tick(self) -> None:
        """Hear of what other workers kept and purged; now and then sweep what is past its time."""
        self._ticks += 1
        sweeps = self._ticks % SWEEP_TICKS == 1
        if sweeps:
            await self.front.sweep()
        if self.back is not None:
            await self._hear(self.back)
            if sweeps:
                await self.back.sweep()
        if self.shadow is not None:
            await self.shadow.tick()

    async def _hear(self, back: Store) -> None:
        """Follow what the store says; tell the log once where it cannot be used."""
        while True:
            news = await back.news(self._mark)
            for what in news.purges:
                self._drop(what)
            if self.tier is not None:
                for key, entry in news.entries:
                    self.tier.learn(key, entry)
            if news.mark == self._mark:
                break
            self._mark = news.mark
        if back.problem != self._problem:
            self._problem = back.problem
            if self._problem:
                self._telemetry.error(None, StateUnavailable(self._problem))

    def _drop(self, what: Purge) -> None:
        self.front.drop(what)
        if self.tier is not None:
            self.tier.drop(what)

    async def aclose(self) -> None:
        """Finish what is under way, and let go of the store."""
        while self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)
            for task in self._tasks:
                task.cancel()
        for each in (self.tier, self.shadow, self.back):
            if each is not None:
                await each.aclose()


class Recorder:
    """A stream's relay that keeps what it hands on, up to ``most`` bytes."""

    def __init__(self, inner: Relay, first: bytes, most: int) -> None:
        self._inner = inner
        self.usage: Usage | None = inner.usage
        """As `Relay.usage`, and so are the next two."""
        self.done: bool = inner.done
        self.failure: Failure | None = inner.failure
        self._parts = [first]
        self._left = most - len(first)

    def feed(self, data: bytes, /) -> bytes:
        """As `Relay.feed`."""
        inner = self._inner
        out = inner.feed(data)
        self.usage, self.done, self.failure = inner.usage, inner.done, inner.failure
        if out and self._left >= 0:
            self._left -= len(out)
            self._parts.append(out)
        return out

    def whole(self, job: Job) -> bytes | None:
        """Return the whole answer, None where it is too long, not whole, or not understood."""
        if self._left < 0 or not self.done or self.failure is not None:
            return None
        return whole_of(job.surface, b"".join(self._parts), self.usage)


def _rules(entry: SemanticCacheEntry, route: str) -> Rules:
    own = entry.routes.get(route)
    if own is None:
        return Rules(
            True,
            entry.semantic,
            threshold_of(entry, route),
            entry.ttl_seconds,
            entry.must_match,
            frozenset(entry.also),
        )
    return Rules(
        own.enabled,
        entry.semantic if own.semantic is None else own.semantic,
        threshold_of(entry, route),
        own.ttl_seconds or entry.ttl_seconds,
        entry.must_match if own.must_match is None else own.must_match,
        frozenset(entry.also if own.also is None else own.also),
    )


def _group_of(job: Job, kind: str, entry: Entry) -> Group:
    """Return what a hit's saving is booked on: the caller's names, and who sold the answer."""
    provider, _, model = entry.target.partition("/")
    for target in job.route.targets:
        if target.model == model and target.provider.name == provider:
            provider = target.provider.price_as
            break
    owner = job.owner
    return Group(
        kind, job.stage, provider, model, job.route.id, owner.id, owner.team, job.recipe, job.batch
    )


def _suits(hit: Hit, how: Kept) -> bool:
    """Tell whether a hit that another caller found is one for this caller, too."""
    if hit.similarity is None:
        return True
    threshold = how.control.threshold or how.rules.threshold
    return not how.control.exact and hit.similarity >= threshold


def _not_kept(job: Job) -> Answer:
    job.cache = job.cache or MISS
    return Answer(error_body(job.surface, NOT_KEPT), NOT_KEPT.status)
