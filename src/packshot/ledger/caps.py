"""Caps: limits on what a team, a virtual key, a batch or everybody may spend per calendar period.

Spent plus held never exceeds a cap, whoever else spends from it: a call is admitted against a slice
of the cap that is this worker's alone (`packshot.ledger.leases`), by arithmetic in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from packshot.core.errors import BudgetExceeded, InvalidRequest, Unbounded, Unpriced
from packshot.core.money import Nanos, show_eur
from packshot.ledger.leases import Grant, Leases, Want
from packshot.ledger.periods import FOR_EVER, Per, end_of, label_of
from packshot.ledger.records import Dimensions

__all__ = ["Cap", "Caps", "Scope", "Shortage", "Slice"]

Scope: TypeAlias = Literal["total", "team", "virtual_key", "batch"]

MAX_FOUND = 8_192
"""Teams, keys and batches together whose caps are remembered: callers make up batches."""

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


@dataclass(slots=True, eq=False)
class _Found:
    """The caps on a team, virtual key and batch, and this worker's slices of their periods."""

    slices: tuple[Slice, ...]
    until: int
    """When the first of these periods ends."""


@dataclass(slots=True, eq=False)
class _Line:
    """A cap, and this worker's slice of its present period."""

    cap: Cap
    now: Slice | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """A slice that has too little for a hold of ``amount``, and what would be enough."""

    part: Slice
    amount: Nanos
    want: Want


class Caps:
    """The caps that a worker admits calls against.

    Callers hold one lock around every method but `ask`, `wanted` and `give_back`: these talk to a
    database, and nobody who spends from what is there already shall wait for it.

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
        self.asking = threading.RLock()
        """One conversation with the table at a time; where both are taken, before callers' lock."""
        self._slices: dict[str, Slice] = {}
        self._taken_back: dict[str, Nanos] = {}
        """What was free of a cap that was lowered: `idle` hands it out, to be given back."""
        self._by: dict[Scope, dict[str, list[_Line]]] = {}
        self._found: dict[tuple[str, str, str], _Found] = {}
        """The caps on a team, virtual key and batch, looked for once."""
        self.replace(caps)

    def replace(self, caps: Sequence[Cap]) -> None:
        """Admit calls against these caps from now on; open holds stay with theirs."""
        by: dict[Scope, dict[str, list[_Line]]] = {scope: {} for scope in get_args(Scope)}
        for cap in caps:
            beside = by[cap.scope].setdefault(cap.name, [])
            if any(cap.per == other.cap.per for other in beside):
                raise InvalidRequest(f"two caps on {cap.title} per {cap.per}: keep one of them")
            beside.append(_Line(cap))
        now = {(line.cap.title, line.cap.per): line.now for line in self._lines()}
        self._by, self._found = by, {}
        for line in self._lines():
            line.now = now.get((line.cap.title, line.cap.per))
            if line.now is not None:
                self._lower(line.now, line.cap.limit)
                line.now.cap = line.cap

    def _lower(self, part: Slice, limit: Nanos) -> None:
        """Spend no more of a slice that was granted under a higher limit."""
        if limit < part.cap.limit and part.free > 0:
            self._taken_back[part.period] = self._taken_back.get(part.period, 0) + part.free
            part.free = 0

    def applies(self, team: str, virtual_key: str, batch: str) -> bool:
        """Tell whether there is a cap on any of these, or on everything."""
        by = self._by
        return (
            "" in by["total"]
            or team in by["team"]
            or virtual_key in by["virtual_key"]
            or batch in by["batch"]
        )

    def reserve(
        self, dimensions: Dimensions, amount: Nanos | None, at: int, *, priced: bool = True
    ) -> tuple[Slice, ...] | Shortage:
        """Hold ``amount`` (None: no upper bound is known) in every cap that applies, or in none.

        A `Shortage` says that nothing is held, since a slice has too little: `ask` for more of it,
        without the lock, then `add` what was granted, and try again.

        Raises:
            Unbounded, Unpriced: and nothing is held.
        """
        name = (dimensions.team, dimensions.virtual_key, dimensions.batch)
        found = self._found.get(name)
        if found is None or at >= found.until:
            found = self._applying(name, at)
        applying = found.slices
        if applying and (amount is None or not priced):
            _check(applying, dimensions, priced=priced)
        bound = amount or 0
        for part in applying:
            if bound > part.free and bound:
                return Shortage(part, bound, Want(part.period, bound - part.free, part.cap.limit))
        for part in applying:
            part.free -= bound
            part.holds += 1
            part.used = True
        return applying

    def ask(self, shortage: Shortage) -> Grant:
        """Ask the table that all workers share for more of a slice. It may wait for a database.

        Raises:
            LedgerUnavailable: the leases cannot be had.
        """
        with self.asking:
            (grant,) = self._leases.take(self._worker, self._epoch, [shortage.want])
        return grant

    def add(self, shortage: Shortage, grant: Grant) -> None:
        """Add what was granted to the slice.

        Raises:
            BudgetExceeded: it was less than the need.
        """
        # It may have been forgotten meanwhile, its period being over: it is given back from there.
        part = self._slices.setdefault(shortage.part.period, shortage.part)
        part.free += grant.amount
        part.used = True
        if grant.amount < shortage.want.need:
            raise _exceeded(shortage.part, shortage.amount, grant)

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

    def idle(self, at: int, wanted: Collection[str]) -> dict[str, Nanos]:
        """Take out what is free and was idle since the last call, or is wanted by another worker.

        It is nobody's then: `give_back` it without the lock, or `restore` it with.
        """
        taken = self._take_out(
            part
            for part in self._slices.values()
            if not part.used or part.period in wanted or at >= part.ends
        )
        present = {line.now.period for line in self._lines() if line.now is not None}
        for part in list(self._slices.values()):
            part.used = False
            over = at >= part.ends and part.period not in present
            # What a correction took from a period that may be the present one is still owed.
            if over and not part.holds and (part.ends or not part.free):
                del self._slices[part.period]
        return taken

    def everything(self) -> dict[str, Nanos]:
        """Take out all that is free: the end."""
        return self._take_out(self._slices.values())

    def periods(self) -> list[str]:
        """Return the periods that something is free in."""
        return [part.period for part in self._slices.values() if part.free > 0]

    def wanted(self, periods: Sequence[str]) -> set[str]:
        """Return which of them another worker waits for. It may wait for a database."""
        with self.asking:
            return self._leases.wanted(periods)

    def give_back(self, amounts: Mapping[str, Nanos]) -> None:
        """Return what was taken out to the table. It may wait for a database.

        Raises:
            LedgerUnavailable: it is still this worker's: `restore` it.
        """
        if amounts:
            with self.asking:
                self._leases.give_back(self._worker, self._epoch, amounts)

    def restore(self, amounts: Mapping[str, Nanos]) -> None:
        """Put back what could not be given back."""
        for period, amount in amounts.items():
            self.charge(period, -amount)

    def _lines(self) -> Iterator[_Line]:
        return (line for named in self._by.values() for some in named.values() for line in some)

    def _applying(self, name: tuple[str, str, str], at: int) -> _Found:
        """Find the caps on a team, virtual key and batch, with the slices of their periods."""
        by, (team, virtual_key, batch) = self._by, name
        lines = (
            *by["total"].get("", ()),
            *by["team"].get(team, ()),
            *by["virtual_key"].get(virtual_key, ()),
            *by["batch"].get(batch, ()),
        )
        slices = tuple(
            self._begin(line, at) if line.now is None or at >= line.now.ends else line.now
            for line in lines
        )
        if len(self._found) >= MAX_FOUND:
            self._found.clear()
        until = min((part.ends for part in slices), default=FOR_EVER)
        found = self._found[name] = _Found(slices, until)
        return found

    def _begin(self, line: _Line, at: int) -> Slice:
        """Return the slice of the period that ``at`` is in, which is a cap's present one now.

        It begins when the one before has ended: a clock that steps back opens no earlier one again.
        """
        cap = line.cap
        period = f"{cap.title}@{label_of(cap.per, at, self._zone)}"
        part = self._slices.setdefault(period, Slice(cap, period, 0))
        part.cap = cap  # a correction may have come before
        part.ends = end_of(cap.per, at, self._zone)
        line.now = part
        return part

    def _take_out(self, parts: Iterable[Slice]) -> dict[str, Nanos]:
        taken, self._taken_back = self._taken_back, {}
        for part in parts:
            if part.free > 0:
                taken[part.period] = taken.get(part.period, 0) + part.free
                part.free = 0
        return taken


def _check(applying: Sequence[Slice], dimensions: Dimensions, *, priced: bool) -> None:
    """Refuse a call that has no bound, or no price where a cap refuses such."""
    if priced:
        raise Unbounded(
            f"what the call to {dimensions.provider}/{dimensions.model} may cost has no upper "
            f"bound, and the cap {applying[0].cap.title} applies: limit its output"
        )
    for part in applying:
        if part.cap.unpriced == "refuse":
            raise Unpriced(
                f"no price is known for {dimensions.provider}/{dimensions.model}"
                f"{dimensions.device}, and the cap {part.cap.title} refuses such calls: "
                "add one (packshot prices add), or let the cap allow unpriced calls"
            )


def _cap_of(period: str) -> Cap:
    """Return a cap of nothing for a period whose own is not known here: it admits nothing."""
    scope, _, name = period.rpartition("@")[0].partition(":")
    return Cap(SCOPES[scope], name, 0, "ever")


def _exceeded(part: Slice, amount: Nanos, grant: Grant) -> BudgetExceeded:
    cap = part.cap
    anew = part.ends < FOR_EVER and amount <= cap.limit
    return BudgetExceeded(
        f"cap {cap.title} is {show_eur(cap.limit)} EUR per {cap.per}; in "
        f"{part.period.rpartition('@')[2]} {show_eur(grant.spent)} EUR are booked and "
        f"{show_eur(grant.leased)} EUR held, and this call may cost {show_eur(amount)} EUR: "
        "wait for calls in flight or the next period, or raise the cap",
        part.ends if anew else None,
    )
