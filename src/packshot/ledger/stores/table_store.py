"""The ledger's store, on either database: appending, asking, checking, making the sums anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from packshot.core.errors import LedgerCorrupt
from packshot.ledger.records import Settled, Stamped
from packshot.ledger.stores.base import Finding
from packshot.ledger.stores.database import Database, Row, Transaction
from packshot.ledger.stores.rollup import Sums
from packshot.ledger.stores.schema import COLUMNS, ENTRIES, JOURNALS, chained, row_of

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
        """Store settled attempts in one transaction; return how many were new.

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
    stored = within.query("SELECT worker, epoch, seq FROM journals")
    marks = {(worker, epoch): at for worker, epoch, at in stored}
    moved: dict[tuple[str, int], tuple[int, int]] = {}
    entries: list[Row] = []
    sums = Sums()
    for stamped in rows:
        event = stamped.event
        if not isinstance(event, Settled):
            raise LedgerCorrupt(f"only settled attempts are stored, got {event}")
        journal = (stamped.worker, stamped.epoch)
        if stamped.seq <= marks.get(journal, 0):
            continue
        if stamped.seq <= moved.get(journal, (0, 0))[0]:
            raise LedgerCorrupt(
                f"journal {journal}: record {stamped.seq} after {moved[journal][0]} in a batch:"
                " records of a journal come in order, each once"
            )
        seq += 1
        row = chained(before, row_of(seq, stamped.worker, stamped.epoch, event))
        before = row[-1]
        entries.append(row)
        sums.add(row)
        moved[journal] = (stamped.seq, event.number)
    if entries:
        within.insert(ENTRIES, entries)
        within.insert(JOURNALS, [(*journal, *mark) for journal, mark in moved.items()])
        sums.flush(within)
        within.execute("UPDATE head SET seq = ?, hash = ?", (seq, before))
    return len(entries)
