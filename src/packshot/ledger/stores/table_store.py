"""The ledger's store, on either database: appending, asking, checking, making the sums anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from packshot.core.errors import LedgerCorrupt
from packshot.ledger.records import Avoided, Settled, Stamped
from packshot.ledger.stores.base import Finding
from packshot.ledger.stores.database import Database, Row, Transaction
from packshot.ledger.stores.rollup import Sums
from packshot.ledger.stores.schema import (
    AVOIDED,
    COLUMNS,
    ENTRIES,
    JOURNALS,
    avoided_of,
    chained,
    row_of,
)

__all__ = ["PAGE", "TableStore", "derive", "head_of", "pages"]

PAGE = 10_000
"""Entries read at once when all of them are: some 10 MB."""

ALL = f"SELECT {', '.join(COLUMNS)}, hash FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - names of ours


class TableStore:
    """A `Store` (see there) on a database that has the tables."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dialect = database.dialect

    def append(self, rows: Sequence[Stamped]) -> int:
        """Store settled attempts and avoided costs in one transaction; return how many attempts
        were new.

        Raises:
            LedgerUnavailable: nothing is known to be stored; send the same rows again.
            LedgerCorrupt: an attempt was settled before, by another journal.
        """
        if not rows:
            return 0
        with self.database.transaction() as within:
            return _append(within, rows)

    def marks(self) -> dict[tuple[str, int], int]:
        """Return the sequence up to which each (worker, epoch) is stored."""
        rows = self.query("SELECT worker, epoch, seq FROM journals")
        return {(worker, epoch): seq for worker, epoch, seq in rows}

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a reading statement; sums are integers, quotients floats."""
        with self.database.snapshot() as look:
            return look.query(sql, parameters)

    def verify(self) -> list[Finding]:
        """Check everything that can be checked, on a snapshot, while others write."""
        from packshot.ledger.stores.verify import verify

        return verify(self.database)

    def rebuild(self) -> None:
        """Make the derived tables anew from the entries, in one transaction."""
        with self.database.transaction() as within:
            head_of(within)
            within.execute("DELETE FROM rollups")
            within.execute("DELETE FROM renders")
            within.execute("DELETE FROM days")
            derive(within)

    def close(self) -> None:
        """Release the connections."""
        self.database.close()


def head_of(within: Transaction) -> tuple[int, bytes]:
    """Return sequence and hash of the last entry, and keep other writers out until the end."""
    within.execute("UPDATE head SET seq = seq")  # the one lock that both databases have
    ((seq, before),) = within.query("SELECT seq, hash FROM head")
    return seq, before


def pages(look: Transaction) -> Iterator[list[Row]]:
    """Yield all entries in order, with their hashes, some thousand at a time."""
    last = 0
    while rows := look.query(ALL, (last, PAGE)):
        yield rows
        last = rows[-1][0]


def derive(within: Transaction) -> None:
    """Fill the derived tables, which are empty, from the entries."""
    sums = Sums()
    for rows in pages(within):
        for row in rows:
            sums.add(row)
        sums.flush(within)


def _append(within: Transaction, rows: Sequence[Stamped]) -> int:
    seq, before = head_of(within)
    stored = within.query("SELECT worker, epoch, seq, number FROM journals")
    marks = {(worker, epoch): (at, number) for worker, epoch, at, number in stored}
    moved: dict[tuple[str, int], tuple[int, int]] = {}
    entries: list[Row] = []
    sums = Sums()
    avoided: dict[Row, list[int]] = {}
    for stamped in rows:
        event = stamped.event
        journal = (stamped.worker, stamped.epoch)
        mark = marks.get(journal, (0, 0))
        if stamped.seq <= mark[0]:
            continue
        at, number = moved.get(journal, mark)
        if stamped.seq <= at:
            raise LedgerCorrupt(
                f"journal {journal}: record {stamped.seq} after {at} in a batch:"
                " records of a journal come in order, each once"
            )
        if isinstance(event, Avoided):
            _add_avoided(avoided, event)
            moved[journal] = (stamped.seq, number)
            continue
        if not isinstance(event, Settled):
            raise LedgerCorrupt(f"only settled and avoided costs are stored, got {event}")
        seq += 1
        row = chained(before, row_of(seq, stamped.worker, stamped.epoch, event))
        before = row[-1]
        entries.append(row)
        sums.add(row)
        moved[journal] = (stamped.seq, event.number)
    if moved:
        within.insert(JOURNALS, [(*journal, *mark) for journal, mark in moved.items()])
    if avoided:
        within.insert(AVOIDED, [(*key, *counts) for key, counts in avoided.items()])
    if entries:
        within.insert(ENTRIES, entries)
        sums.flush(within)
        within.execute("UPDATE head SET seq = ?, hash = ?", (seq, before))
    return len(entries)


def _add_avoided(avoided: dict[Row, list[int]], event: Avoided) -> None:
    sums = avoided.setdefault(avoided_of(event), [0, 0])
    sums[0] += event.hits
    sums[1] += event.amount
