"""Caps: limits on what a team, a virtual key, a batch or everybody may spend per calendar period.

Spent plus held never exceeds a cap, whoever else spends from it: a call is admitted against a slice
of the cap that is this worker's alone (`packshot.ledger.leases`), by arithmetic in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from packshot.core.errors import BudgetExceeded, InvalidRequest, Unbounded, Unpriced
from packshot.core.money import Nanos, show_eur
from packshot.ledger.leases import Grant, Leases, Want
from packshot.ledger.periods import Per, end_of, label_of
from packshot.ledger.records import Dimensions

__all__ = ["Cap", "Caps", "Scope", "Slice"]

Scope: TypeAlias = Literal["total", "team", "virtual_key", "batch"]

SCOPES: dict[str, Scope] = {scope: scope for scope in get_args(Scope)}


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit in nano-EUR per calendar period; ``name`` is "" for the total.

    ``unpriced`` says whether a call without a known price may pass it.
    """

    scope: Scope
    name: str
    limit: Nanos
    per: Per
    unpriced: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.limit < 0:
            raise InvalidRequest(f"a cap must not be negative, got {self.limit} nano-EUR")
        if bool(self.name) == (self.scope == "total"):
            raise InvalidRequest(f"a cap has a name unless its scope is total, got {self}")
        if "," in self.name:
            raise InvalidRequest(f"the name of a cap has no comma, got {self.name!r}")

    @property
    def title(self) -> str:
        """Return what the cap is called, in periods and messages: "team:research"."""
        return f"{self.scope}:{self.name}" if self.name else self.scope


@dataclass(slots=True, eq=False)
class Slice:
    """This worker's part of one cap's period: ``free`` is what it holds less holds and charges.

    ``holds`` are open against it. ``used`` is true if any was made since the last tick. ``free``
    is below zero where a cost came above its hold; the next lease repays it.
    """

    cap: Cap
    period: str
    ends: int
    free: Nanos = 0
    holds: int = 0
    used: bool = False


class Caps:
    """The caps that a worker admits calls against. Callers hold one lock around every method.

    Raises:
        InvalidRequest: two caps on the same thing for the same kind of period.
    """

    def __init__(
        self,
        caps: Sequence[Cap],
        leases: Leases,
        worker: str,
        epoch: int,
        timezone: str = "UTC",
    ) -> None:
        self._leases = leases
        self._worker = worker
        self._epoch = epoch
        self._zone: tzinfo = UTC if timezone == "UTC" else ZoneInfo(timezone)
        self._slices: dict[str, Slice] = {}
        self._now: dict[Cap, Slice] = {}
        self._by: dict[tuple[Scope, str], list[Cap]] = {}
        self.replace(caps)

    def replace(self, caps: Sequence[Cap]) -> None:
        """Admit calls against these caps from now on; open holds stay with theirs."""
        by: dict[tuple[Scope, str], list[Cap]] = {}
        for cap in caps:
            beside = by.setdefault((cap.scope, cap.name), [])
            if any(cap.per == other.per for other in beside):
                raise InvalidRequest(f"two caps on {cap.title} per {cap.per}: keep one of them")
            beside.append(cap)
        self._by = by

    def applies(self, team: str, virtual_key: str, batch: str) -> bool:
        """Tell whether there is a cap on any of these, or on everything."""
        by = self._by
        return bool(by) and (
            ("total", "") in by
            or ("team", team) in by
            or ("virtual_key", virtual_key) in by
            or ("batch", batch) in by
        )

    def reserve(
        self, dimensions: Dimensions, amount: Nanos | None, at: int, *, priced: bool = True
    ) -> tuple[Slice, ...]:
        """Hold ``amount`` (None: no upper bound is known) in every cap that applies, or in none.

        Raises:
            BudgetExceeded, Unbounded, Unpriced: and nothing is held.
            LedgerUnavailable: the leases cannot be had.
        """
        applying = [self._current(cap, at) for cap in self._applying(dimensions)]
        if not priced:
            for part in applying:
                if part.cap.unpriced == "refuse":
                    raise Unpriced(
                        f"no price is known for {dimensions.provider}/{dimensions.model}"
                        f"{dimensions.device}, and the cap {part.cap.title} refuses such calls: "
                        "add one (packshot prices add), or let the cap allow unpriced calls"
                    )
        elif amount is None and applying:
            raise Unbounded(
                f"what the call to {dimensions.provider}/{dimensions.model} may cost has no upper "
                f"bound, and the cap {applying[0].cap.title} applies: limit its output"
            )
        bound = amount or 0
        held: list[Slice] = []
        try:
            for part in applying:
                self._hold(part, bound)
                held.append(part)
        except BaseException:
            self.settle(held, bound, 0)
            raise
        return tuple(held)

    def settle(self, parts: Iterable[Slice], held: Nanos, spent: Nanos) -> None:
        """End a hold of ``held``; what it did not cost is free again."""
        for part in parts:
            part.free += held - spent
            part.holds -= 1

    def charge(self, period: str, amount: Nanos) -> None:
        """Charge an amount that was never held (a correction) to a period by its name."""
        if period not in self._slices:
            self._slices[period] = Slice(_cap_of(period), period, 0)
        self._slices[period].free -= amount

    def tick(self, at: int) -> None:
        """Give back what is free and idle since the last tick, or wanted by another worker."""
        wanted = self._leases.wanted([p.period for p in self._slices.values() if p.free > 0])
        self._return(
            [
                part
                for part in self._slices.values()
                if not part.used or part.period in wanted or at >= part.ends
            ]
        )
        for part in list(self._slices.values()):
            part.used = False
            over = at >= part.ends and self._now.get(part.cap) is not part
            # What a correction took from a period that may be the present one is still owed.
            if over and not part.holds and (part.ends or not part.free):
                del self._slices[part.period]

    def close(self) -> None:
        """Give back all that is free."""
        self._return(list(self._slices.values()))

    def _applying(self, dimensions: Dimensions) -> list[Cap]:
        by = self._by.get
        return [
            *by(("total", ""), ()),
            *by(("team", dimensions.team), ()),
            *by(("virtual_key", dimensions.virtual_key), ()),
            *by(("batch", dimensions.batch), ()),
        ]

    def _current(self, cap: Cap, at: int) -> Slice:
        """Return the slice of the period that ``at`` is in, or of a later one that has begun.

        A clock that steps back opens no earlier period again.
        """
        part = self._now.get(cap)
        if part is not None and at < part.ends:
            return part
        period = f"{cap.title}@{label_of(cap.per, at, self._zone)}"
        part = self._slices.setdefault(period, Slice(cap, period, 0))
        part.cap = cap  # a correction may have come before
        part.ends = end_of(cap.per, at, self._zone)
        self._now[cap] = part
        return part

    def _hold(self, part: Slice, amount: Nanos) -> None:
        if amount > part.free and amount:
            need = amount - part.free
            want = Want(part.period, need, part.cap.limit)
            (grant,) = self._leases.take(self._worker, self._epoch, [want])
            if grant.amount < need:
                raise _exceeded(part, amount, grant)
            part.free += grant.amount
        part.free -= amount
        part.holds += 1
        part.used = True

    def _return(self, parts: Sequence[Slice]) -> None:
        amounts = {part.period: part.free for part in parts if part.free > 0}
        if amounts:
            self._leases.give_back(self._worker, self._epoch, amounts)
            for part in parts:
                part.free = min(part.free, 0)


def _cap_of(period: str) -> Cap:
    """Return a cap of nothing for a period whose own is not known here: it admits nothing."""
    scope, _, name = period.rpartition("@")[0].partition(":")
    return Cap(SCOPES[scope], name, 0, "ever")


def _exceeded(part: Slice, amount: Nanos, grant: Grant) -> BudgetExceeded:
    cap = part.cap
    return BudgetExceeded(
        f"cap {cap.title} is {show_eur(cap.limit)} EUR per {cap.per}; in "
        f"{part.period.rpartition('@')[2]} {show_eur(grant.spent)} EUR are booked and "
        f"{show_eur(grant.leased)} EUR held, and this call may cost {show_eur(amount)} EUR: "
        "wait for calls in flight or the next period, or raise the cap"
    )
