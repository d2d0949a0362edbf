"""Checks of semantic hits: some are asked of the provider all the same, and the answers compared.

What the request says and its own answer repeats (a number, a colour, a product …) has to stand in
the answer that was served, too; and the two answers have to be near each other as texts. Answers
to the same request differ, too, so nothing else in them counts. Where a judge is configured
(`packshot.gateway.cache.judge`), it decides what this leaves: whether the answers say the same. It
cannot make up for a number that is missing, and what it does not decide is left to a person, whose
verdict goes before all (``packshot cache audit``). The test that turns a tier off may be looked at
after every check (`packshot.gateway.cache.sequential`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from time import monotonic

import msgspec

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import CheckFailed, NoEmbedding, PackshotError, Saturated
from packshot.core.ids import new_id
from packshot.core.money import nanos_of
from packshot.gateway.cache.audit_log import AuditLog, Check, Count, Verdict
from packshot.gateway.cache.embed import Embedder
from packshot.gateway.cache.entry import Purge
from packshot.gateway.cache.flights import Hit
from packshot.gateway.cache.judge import Judge, Opinion
from packshot.gateway.cache.replay import text_of
from packshot.gateway.cache.request import cached_request, scope_of, spoken
from packshot.gateway.cache.sequential import exceeds
from packshot.gateway.cache.settings import AuditEntry
from packshot.gateway.cache.slots import LONGEST_TEXT, read
from packshot.gateway.dispatch import Answer, Dispatcher, Refused
from packshot.gateway.job import Job
from packshot.gateway.telemetry import Telemetry

__all__ = ["Auditor", "lacking", "verdict_of"]

DAY_US = 24 * 3600 * SECOND_US
TAG = "cache=audit"
"""By which the cost of checks is found in the ledger."""

LONGEST_NOTE = 300
RULED: dict[str, Verdict] = {"same": "same", "different": "false", "undecided": "open"}
"""A check's verdict by a judge's."""

FACTS = frozenset(
    {"quote", "number", "size", "sku", "colour", "material", "product", "place", "language"}
)
"""Slots of a request whose absence in an answer means that it is another's."""


def verdict_of(asked: str, served: str, fresh: str, cosine: float, same_above: float) -> Verdict:
    """Compare the answer ``served`` to the request ``asked`` with the ``fresh`` one.

    ``cosine`` is that of the two answers, -1 to 1.
    """
    return "same" if cosine >= same_above and not lacking(asked, served, fresh) else "false"


def lacking(asked: str, served: str, fresh: str) -> list[str]:
    """Return what the request says, its own answer repeats, and the served answer has not."""
    missing = (_facts(asked) & _facts(fresh)) - _facts(served)
    return sorted(f"{kind} {value}" for kind, value in missing)


def _facts(text: str) -> set[tuple[str, str]]:
    slots = read(text[:LONGEST_TEXT]).slots
    return {(slot.type, slot.value) for slot in slots if slot.type in FACTS}


class Auditor:
    """One worker's `Shadow`. Its calls are booked on the caller's key, with the tag cache=audit."""

    def __init__(
        self,
        entry: AuditEntry,
        log: AuditLog,
        dispatcher: Dispatcher,
        embedder: Embedder,
        telemetry: Telemetry,
        *,
        judge: Judge | None = None,
        clock: Clock = wall_us,
    ) -> None:
        self.entry = entry
        self._judge = judge
        self.log = log
        self._dispatcher = dispatcher
        self._embedder = embedder
        self._telemetry = telemetry
        self._clock = clock
        self._random = random.Random()
        self._off: frozenset[str] = frozenset()
        self._day = 0
        self._spent = 0

    def wants(self, job: Job, hit: Hit) -> bool:
        """Tell whether this hit is to be checked: by chance, within the day's budget."""
        del job
        day = self._clock() // DAY_US
        if day != self._day:
            self._day, self._spent = day, 0
        most = nanos_of(self.entry.eur_per_day)
        return (
            self._random.random() < self.entry.share
            and self._spent + hit.entry.cost <= most
            and most > 0
        )

    async def check(self, job: Job, hit: Hit) -> None:
        """Ask the provider, compare, and turn the route's tier off where it is too often wrong."""
        said = spoken(cached_request(job, 2.0))
        scent = hit.entry.scent
        if said is None or scent is None:
            return
        fresh = await self._ask(job)
        old, new = text_of(job.surface, hit.entry.body), text_of(job.surface, fresh)
        if not (old and new):
            return
        try:
            rows = await self._embedder.embed([old, new])
        except (NoEmbedding, Saturated):
            return  # who makes the vectors has counted it; the hit stays unchecked
        cosine = float(rows[0] @ rows[1])
        verdict, note = await self._decide(said[1], old, new, cosine)
        check = Check(
            0,
            self._clock(),
            scope_of(job.owner),
            job.route.id,
            hit.similarity or 0.0,
            said[1],
            scent.text,
            old,
            new,
            cosine,
            verdict,
            note=note,
        )
        self._telemetry.checked(job.route.id, verdict)
        await self._weigh(await asyncio.to_thread(self.log.add, check))

    async def _decide(
        self, asked: str, served: str, fresh: str, cosine: float
    ) -> tuple[Verdict, str]:
        """Return the verdict, and how it came about."""
        missing = await asyncio.to_thread(lacking, asked, served, fresh)
        if missing:
            return "false", f"not in the answer: {', '.join(missing)[:LONGEST_NOTE]}"
        judge = self._judge
        if judge is None:
            near = cosine >= self.entry.same_above
            return ("same", "") if near else ("false", "the answers have little in common")
        said = Opinion("undecided", "the day's money for checks is spent")
        if self._spent + judge.dearest <= nanos_of(self.entry.eur_per_day):
            said = await judge.ask(asked, fresh, served)
            self._spent += said.cost
        return RULED[said.verdict], f"{judge.name}: {said.verdict}. {said.reason}"

    async def _ask(self, job: Job) -> bytes:
        """Return the provider's own answer, b"" where there is none."""
        fields = {
            name: raw
            for name, raw in job.fields.items()
            if name not in {"stream", "stream_options"}
        }
        copy = msgspec.structs.replace(
            job,
            id=new_id(),
            fields=fields,
            stream=False,
            tags=(*job.tags, TAG),
            deadline=max(job.deadline, monotonic() + 30.0),
            cache=b"",
        )
        try:
            got = await self._dispatcher.answer(copy)
        except (Refused, PackshotError):
            return b""  # a provider in trouble, a budget that is used up: there is no check
        self._spent += max(0, copy.cost)
        return got.body if isinstance(got, Answer) and got.status == 200 else b""

    async def _weigh(self, count: Count) -> None:
        entry = self.entry
        if count.off or not exceeds(count.false, count.checked, entry.limit, entry.alpha):
            return
        self._off |= {count.route}
        await asyncio.to_thread(self.log.turn, count.route, self._clock())
        said = (
            f"semantic_cache: {count.false} of {count.checked} checked hits of route "
            f"{count.route!r} were false, more than {entry.limit:.2%}: its semantic tier is off; "
            "see `packshot cache audit`, which turns it on again"
        )
        self._telemetry.error(None, CheckFailed(said))

    def is_off(self, route: str) -> bool:
        """Tell whether a route is answered from the exact tier only."""
        return route in self._off

    def off(self) -> Sequence[str]:
        """Return the routes whose tier is off."""
        return sorted(self._off)

    async def tick(self) -> None:
        """Hear of what other workers, or a person, turned off and on."""
        counts = await asyncio.to_thread(self.log.counts)
        self._off = frozenset(count.route for count in counts if count.off)

    async def forget(self, what: Purge) -> None:
        """Throw away the checks of what was purged."""
        await asyncio.to_thread(self.log.forget, what)

    async def aclose(self) -> None:
        """Let go of the file."""
        await asyncio.to_thread(self.log.close)
