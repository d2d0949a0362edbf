"""What the gateway asks of the ledger: a hold before each attempt, and one end for each hold."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial
from time import monotonic

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import BudgetExceeded, Unbounded, Unpriced
from packshot.core.money import eur, nanos_of
from packshot.core.types import Usage
from packshot.gateway.job import Job
from packshot.gateway.plan import Target
from packshot.gateway.waits import LONGEST_S, Waits
from packshot.ledger.ledger import Hold, Ledger, MustWait
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.records import Dimensions, Outcome

__all__ = ["Money"]

MAX_DIMENSIONS = 8_192
"""Dimensions that are kept ready; beyond it all are made anew."""

MARGIN_S = 120
"""A hold outlives the deadline of its call by this much: the call always ends it first."""


class Money:
    """The books of one worker's gateway."""

    def __init__(
        self,
        ledger: Ledger,
        book: PriceBook,
        clock: Clock = wall_us,
        longest_s: float = LONGEST_S,
    ) -> None:
        self.ledger = ledger
        self.book = book
        self.waits = Waits(longest_s)
        self._clock = clock
        self._dimensions: dict[tuple[object, ...], Dimensions] = {}

    def capped(self, job: Job) -> bool:
        """Tell whether a cap applies to what the job spends: then it must have an upper bound."""
        if job.owner.max_cost_eur is not None:
            return True
        return self.ledger.capped(job.owner.team, job.owner.id, job.batch)

    def hold_at_once(self, job: Job, target: Target, key: str, limit: int | None) -> Hold | None:
        """Hold the most that one attempt can cost where nobody has to wait for it; None where
        somebody has, and nothing is held. It may go out on return.

        ``limit`` is the limit of output tokens, None for none.

        Raises:
            BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: do not make the call.
        """
        dimensions = self._of(job, target, key)
        bound, priced = self._bound(job, target, limit)
        expires_in_s = int(job.deadline - monotonic()) + MARGIN_S
        try:
            return self.ledger.hold(
                dimensions, bound, priced=priced, expires_in_s=expires_in_s, wait=False
            )
        except MustWait:
            return None
        except Unpriced as error:
            raise _unpriced(job, error) from error

    async def hold(self, job: Job, target: Target, key: str, limit: int | None) -> Hold:
        """Hold the same, and wait for the disk or the table of leases where that has to be; see
        `hold_at_once`.
        """
        hold = self.hold_at_once(job, target, key, limit)
        if hold is not None:
            return hold
        bound, priced = self._bound(job, target, limit)
        wanted = partial(
            self.ledger.hold,
            self._of(job, target, key),
            bound,
            priced=priced,
            expires_in_s=int(job.deadline - monotonic()) + MARGIN_S,
        )
        try:
            return await self.waits.run(wanted, self._not_wanted)
        except Unpriced as error:
            raise _unpriced(job, error) from error

    def _bound(self, job: Job, target: Target, limit: int | None) -> tuple[int | None, bool]:
        """Return the most that an attempt can cost, None for no bound, and whether its price is
        known.
        """
        window = target.entry.context_tokens
        try:
            bound = self.book.bound(
                target.provider.price_as,
                target.model,
                self._clock(),
                body_bytes=min(job.input_bound, window) if window else job.input_bound,
                max_output_tokens=0 if job.surface == "embeddings" else limit,
                images=job.images,
            )
            priced = bound is not None
        except Unbounded:
            bound, priced = None, True
        if job.open_ended and priced and self.capped(job):
            raise Unbounded(
                "what the provider is to do by itself (a search, code, an endpoint not known here) "
                "has no upper bound of its cost, and a budget applies: leave it out"
            )
        if job.owner.max_cost_eur is not None:
            _hold_to(job, job.owner.max_cost_eur, bound, priced=priced)
        return bound, priced

    async def flush(self) -> None:
        """Return when what was settled is as durable as was promised."""
        if self.ledger.durable:
            await self.waits.run(self.ledger.flush)

    def _not_wanted(self, future: asyncio.Future[Hold]) -> None:
        """Void a hold that came when its caller was gone, or had been told that there is none."""
        if not future.cancelled() and future.exception() is None:
            self.ledger.void(future.result(), "nobody waited for the hold", wait=False)

    def post(
        self, job: Job, hold: Hold, usage: Usage | None, outcome: Outcome, reason: str = ""
    ) -> None:
        """End a hold by what was used; without a usage, by all that was held."""
        settled = self.ledger.post(hold, usage, outcome, reason, wait=False)
        job.cost += settled.amount
        if usage is None:
            job.unmetered += 1
        else:
            job.input_tokens += usage.input_tokens
            job.output_tokens += usage.output_tokens

    def void(self, hold: Hold, reason: str) -> None:
        """End a hold of what cost nothing."""
        self.ledger.void(hold, reason, wait=False)

    def _of(self, job: Job, target: Target, key: str) -> Dimensions:
        plain = not (job.tags or job.render or job.batch or job.recipe)
        # The key itself and not its id: its team and tags may be others after a change.
        name = (job.owner, job.route.id, target.provider.price_as, target.model, key, job.stage)
        found = self._dimensions.get(name) if plain else None
        if found is None:
            found = Dimensions(
                render=job.render,
                recipe=job.recipe,
                stage=job.stage,
                provider=target.provider.price_as,
                model=target.model,
                route=job.route.id,
                virtual_key=job.owner.id,
                team=job.owner.team,
                batch=job.batch,
                tags=tuple(sorted({*job.owner.tags, *job.tags, f"key={key}"})),
            )
            if plain:
                if len(self._dimensions) >= MAX_DIMENSIONS:
                    self._dimensions.clear()  # of keys that are gone, or names that callers made up
                self._dimensions[name] = found
        return found


def _unpriced(job: Job, error: Unpriced) -> Unpriced:
    """Return the error for a model without a price, which may be a mistyped route or provider."""
    if job.route.id or job.route.targets[0].model != job.model:
        return error
    name, slash, _ = job.model.partition("/")
    what = "provider" if slash else "route"
    return Unpriced(f"{error}; no {what} is called {name[:100]!r}, if one was meant")


def _hold_to(job: Job, most: Decimal, bound: int | None, *, priced: bool) -> None:
    """Refuse an attempt that could take a call above what its virtual key lets one call cost.

    What its other attempts cost, or may yet cost, counts.
    """
    name = f"the virtual key {job.owner.id!r} has a max_cost_eur of {most}"
    if not priced:
        raise Unpriced(f"{name}, and no price is known for this model")
    if bound is None:
        raise Unbounded(f"{name}, and nothing bounds what this call costs: send max_tokens")
    most_now = job.cost + job.held + bound
    if most_now > nanos_of(most):
        raise BudgetExceeded(
            f"{name}, and this call could cost {eur(most_now)}: lower max_tokens or n, or "
            "shorten the prompt"
        )
