"""The clerk: whoever corrects what is booked does it through the ledger, each thing once.

What is to be corrected is found in the store, and a correction goes into a journal, as every entry
does, so that caps hear of it. Between the two no other run may look: a lock keeps others out until
what this one wrote is in the store. Killed in between, the journal has what was written; the next
run brings that in before it looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from zoneinfo import ZoneInfo

import msgspec

from packshot.core.errors import LedgerUnavailable
from packshot.core.money import Nanos
from packshot.ledger.corrections import reprice
from packshot.ledger.drain import DrainBusy, locked
from packshot.ledger.ledger import Ledger, Prices
from packshot.ledger.periods import label_of
from packshot.ledger.prices.book import Charge
from packshot.ledger.prices.usage import usage_of
from packshot.ledger.private import make_private_folder
from packshot.ledger.records import Dimensions, Settled
from packshot.ledger.reports.invoice import Corrector
from packshot.ledger.reports.period import Period, where
from packshot.ledger.reports.waste import UNCORRECTED
from packshot.ledger.settings import Settings
from packshot.ledger.stores.base import Store
from packshot.ledger.stores.database import Row
from packshot.ledger.stores.schema import COLUMNS
from packshot.ledger.stores.table_store import TableStore
from packshot.ledger.wiring import drain_of, local_ledger

__all__ = ["Late", "Repriced", "book_late", "corrector", "late", "total_of"]

PAGE = 1000
"""Entries read at once."""

WAIT_S = 30.0
"""Seconds to wait for another drain to come to an end."""

LOCK = 0x7061636B73686F74
"""PostgreSQL's advisory lock of those who correct ("packshot", as a number)."""

REASON = "repriced: its price is known by now"


@dataclass(frozen=True, slots=True)
class Late:
    """An unpriced entry and what it costs by now; ``charge`` None where nobody can say.

    ``why`` says so: "no price", or "usage unknown" of an attempt of which nothing was
    counted. An invoice settles such a one.
    """

    entry: Settled
    charge: Charge | None
    why: str = ""


@dataclass(slots=True)
class Repriced:
    """Late entries of one provider, model and device, and their sum in nano-EUR."""

    provider: str
    model: str
    device: str
    why: str
    attempts: int = 0
    amount: Nanos = 0
    first_at: int = 1 << 62
    price: str = ""


@contextmanager
def corrector(settings: Settings, store: TableStore, book: Prices) -> Generator[Ledger]:
    """Give a ledger to correct by; what is in journals is in ``store`` before, and after.

    Raises:
        LedgerUnavailable: another run corrects at this moment, or a drain takes too long.
    """
    try:
        make_private_folder(settings.journal)
    except OSError as error:
        raise LedgerUnavailable(f"{settings.journal} cannot be made: {error}") from error
    with locked(settings.journal / "corrections.lock") as alone, _alone_in(store) as shared:
        if not (alone and shared):
            raise LedgerUnavailable(
                "another run appends corrections at this moment; wait for its end, and look again"
            )
        _bring_in(settings, store)
        ledger = local_ledger(settings, book)
        try:
            yield ledger
        finally:
            ledger.close()
            _bring_in(settings, store)


def total_of(settings: Settings) -> Callable[[int], tuple[str, ...]]:
    """Return what names the periods of the caps on everything that an instant is in."""
    zone = ZoneInfo(settings.timezone) if settings.timezone != "UTC" else UTC
    whole = [cap for cap in settings.caps if cap.scope == "total"]
    return lambda at: tuple(f"total@{label_of(cap.per, at, zone)}" for cap in whole)


def late(
    store: Store, book: Prices, period: Period, only: Mapping[str, str] | None = None
) -> Iterator[Late]:
    """Yield the entries of a period that have no price and no correction, as they cost by now.

    The price is that of the day of the call, not of today.
    """
    condition, values = where(period, only or {}, "settled_at")
    after = (0, 0)
    while rows := store.query(
        # In the order of the index of what is unpriced, so that no page reads all entries.
        f"SELECT {', '.join(COLUMNS)} FROM entries WHERE priced = 0 AND {condition}"  # noqa: S608 - names of ours
        f" AND (settled_at, seq) > (?, ?) AND {UNCORRECTED}"
        f" ORDER BY settled_at, seq LIMIT {PAGE:d}",
        (*values, *after),
    ):
        found = [_entry(row) for row in rows]
        after = (found[-1].settled_at, int(rows[-1][0]))
        yield from (_late(book, entry) for entry in found)


def book_late(
    found: Iterator[Late],
    ledger: Corrector | None,
    told: Callable[[int], None] = lambda _: None,
) -> list[Repriced]:
    """Append a correcting entry for each that has a price by now; without a ledger, only say so.

    ``told`` hears how many are done. What was appended stays, also where this is stopped half-way;
    the next run goes on.
    """
    groups: dict[tuple[str, str, str, str], Repriced] = {}
    done = 0
    for each in found:
        of = each.entry.dimensions
        group = groups.setdefault(
            (of.provider, of.model, of.device, each.why),
            Repriced(of.provider, of.model, of.device, each.why),
        )
        if each.charge is not None:
            if ledger is not None:
                ledger.correct(_correction(each.entry, each.charge))
            group.amount += each.charge.amount
            group.price = each.charge.price
            done += 1
            told(done)
        group.attempts += 1
        group.first_at = min(group.first_at, each.entry.settled_at)
    return sorted(groups.values(), key=lambda group: (bool(group.why), -group.amount))


def _correction(entry: Settled, charge: Charge) -> Settled:
    # One id for one entry: should two ever be made, the store takes one and says so.
    made = reprice(entry, charge, REASON)
    return msgspec.structs.replace(made, attempt=f"reprice:{entry.attempt}")


def _late(book: Prices, entry: Settled) -> Late:
    of = entry.dimensions
    usage = usage_of(entry)
    at = entry.dispatched_at or entry.held_at or entry.settled_at
    charge = book.charge(usage, of.provider, of.model, at)
    if not charge.priced:
        return Late(entry, None, "no price")
    counted = usage.input_tokens or usage.output_tokens or usage.images or usage.requests
    if not charge.amount and not counted and not usage.stored_bytes:
        # Nothing at all would be a price of zero for a call of which nobody knows what it used.
        return Late(entry, None, "usage unknown")
    return Late(entry, charge)


def _entry(row: Row) -> Settled:
    """Return the record that a row of ``entries`` was made from."""
    named = dict(zip(COLUMNS, row, strict=True))
    own = {name: named[name] for name in Dimensions.__struct_fields__ if name != "tags"}
    tags = tuple(named["tags"].split(",")) if named["tags"] else ()
    fields = {
        name: named[name]
        for name in Settled.__struct_fields__
        if name not in {"dimensions", "priced", "caps"}
    }
    return Settled(
        dimensions=Dimensions(**own, tags=tags),
        priced=bool(named["priced"]),
        caps=tuple(named["caps"].split(",")) if named["caps"] else (),
        **fields,
    )


def _bring_in(settings: Settings, store: TableStore) -> None:
    """Drain once, whoever else drains: what is in a journal now is in the store on return."""
    drain = drain_of(settings, store)
    until = time.monotonic() + WAIT_S
    try:
        while True:
            try:
                drain.step()
            except DrainBusy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return
    finally:
        drain.close()


@contextmanager
def _alone_in(store: TableStore) -> Generator[bool]:
    """Keep those out who correct the same store from other machines."""
    if store.dialect != "postgresql":
        yield True
        return
    ((got,),) = store.query("SELECT pg_try_advisory_lock(?)", (LOCK,))
    try:
        yield bool(got)
    finally:
        if got:
            store.query("SELECT pg_advisory_unlock(?)", (LOCK,))
