"""Leases: how the workers of all machines share a cap, each with a slice that is its own.

A worker takes a slice of what is left of a cap's period and admits calls against it in memory. The
table holds, by period, what is ``spent`` (in the store's entries) and ``leased`` (the sum of all
slices that are above zero); a slice is only given while ``spent + leased`` stays within the limit.
The drain moves what was charged from a worker's slice to ``spent``, exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packshot.core.databases import POSTGRES
from packshot.core.money import Nanos
from packshot.ledger.periods import over_by
from packshot.ledger.settings import Settings
from packshot.ledger.stores.database import Transaction

__all__ = ["Grant", "LeaseTable", "Leases", "Shared", "Want", "leases_of", "open_shared"]

SHARE = 100
"""A slice is this part of what is left, or the need where that is more (RELIABILITY §5.8)."""

LEASE_FILE = "caps.db"

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS cap_periods (
        period text PRIMARY KEY, cap bigint NOT NULL, spent bigint NOT NULL,
        leased bigint NOT NULL, wanted bigint NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS cap_leases (
        period text NOT NULL, worker text NOT NULL, epoch bigint NOT NULL, amount bigint NOT NULL,
        PRIMARY KEY (period, worker, epoch))""",
    """CREATE TABLE IF NOT EXISTS cap_marks (
        worker text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL,
        PRIMARY KEY (worker, epoch))""",
)


@dataclass(frozen=True, slots=True)
class Want:
    """A wish for a slice: at least ``need`` of ``period``, whose cap is ``limit`` (nano-EUR)."""

    period: str
    need: Nanos
    limit: Nanos


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer: ``amount`` is 0 where less than the need was left.

    ``spent`` and ``leased`` are those of all workers, after the grant.
    """

    amount: Nanos
    spent: Nanos
    leased: Nanos


class Leases(Protocol):
    """What the ledger and the drain ask of the table. All raise `LedgerUnavailable`."""

    def take(self, worker: str, epoch: int, wants: Sequence[Want]) -> list[Grant]:
        """Take slices; a want that is not granted is noted, for others to give back."""
        ...

    def give_back(self, worker: str, epoch: int, amounts: Mapping[str, Nanos]) -> None:
        """Return the unused part of slices, by period."""
        ...

    def wanted(self, periods: Sequence[str]) -> set[str]:
        """Return the periods of which somebody was refused a slice that is still not there."""
        ...

    def settle(
        self,
        worker: str,
        epoch: int,
        seq: int,
        charges: Mapping[str, Nanos],
        after: int | None = None,
    ) -> bool:
        """Move charges from a worker's slices to spent, once for all up to ``seq``.

        ``after`` is the mark that the charges count from, where another drain may move it. False
        where nothing was moved: ``seq`` is not above the mark, or ``after`` is not the mark.
        """
        ...

    def marks(self) -> dict[tuple[str, int], int]:
        """Return the sequence up to which each (worker, epoch) is settled."""
        ...

    def release(self, worker: str, epoch: int) -> None:
        """Free what a dead worker held, after its journal was drained."""
        ...

    def prune(self, before: int) -> int:
        """Delete the periods that were over before an instant and of which nobody holds a part.

        Return how many there were. What is charged to one after all makes it anew.
        """
        ...

    def close(self) -> None:
        """Release the connection."""
        ...


class Shared(Protocol):
    """A database that several processes write."""

    dialect: str

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Write: committed and durable when the block ends, rolled back when it raises."""
        ...

    def close(self) -> None:
        """Release the connections."""
        ...


def open_shared(url: str) -> Shared:
    """Open the database for a store's leases: PostgreSQL itself, or ``caps.db`` beside a file.

    Raises:
        LedgerUnavailable: it cannot be reached or written.
    """
    if url.startswith(POSTGRES):
        from packshot.ledger.stores.postgres import PostgresDatabase

        return PostgresDatabase(url)
    from packshot.ledger.leases_sqlite import LeaseFile

    return LeaseFile(Path(url).with_name(LEASE_FILE))


def leases_of(settings: Settings, *, anyway: bool = False) -> LeaseTable | None:
    """Open the table of the settings' leases; None where there are no caps, nor ever were.

    Caps that are in no file (the budgets of virtual keys that were issued) leave a table behind,
    so that the drain settles their leases, too. ``anyway`` opens it before there are any.

    Raises:
        LedgerUnavailable: it cannot be reached or written.
    """
    if anyway or settings.caps or _has_leases(settings.store):
        return LeaseTable(open_shared(settings.store))
    return None


def _has_leases(url: str) -> bool:
    """Tell whether there may be a table already: in PostgreSQL, to look is to open it."""
    return url.startswith(POSTGRES) or Path(url).with_name(LEASE_FILE).exists()


class LeaseTable:
    """`Leases` in a database, SQLite or PostgreSQL.

    Rows are locked by period in sorted order, so that two transactions never wait for each other.
    """

    def __init__(self, database: Shared) -> None:
        self.database = self._database = database
        # SQLite has locked the whole file already.
        self._lock = " FOR UPDATE" if database.dialect == "postgresql" else ""
        create_tables(database, SCHEMA)

    def take(self, worker: str, epoch: int, wants: Sequence[Want]) -> list[Grant]:
        """Take slices."""
        grants: dict[str, Grant] = {}
        with self._database.transaction() as within:
            for want in sorted(wants, key=lambda each: each.period):
                grants[want.period] = self._take(within, worker, epoch, want)
        return [grants[want.period] for want in wants]

    def give_back(self, worker: str, epoch: int, amounts: Mapping[str, Nanos]) -> None:
        """Return the unused part of slices."""
        with self._database.transaction() as within:
            for period in sorted(amounts):
                self._move(within, (period, worker, epoch), -amounts[period], 0)

    def wanted(self, periods: Sequence[str]) -> set[str]:
        """Return the periods that somebody waits for."""
        if not periods:
            return set()
        places = ", ".join("?" * len(periods))
        sql = f"SELECT period FROM cap_periods WHERE wanted > 0 AND period IN ({places})"  # noqa: S608
        with self._database.transaction() as within:
            return {row[0] for row in within.query(sql, periods)}

    def settle(
        self,
        worker: str,
        epoch: int,
        seq: int,
        charges: Mapping[str, Nanos],
        after: int | None = None,
    ) -> bool:
        """Move charges from slices to spent, exactly once."""
        upsert = (
            "INSERT INTO cap_marks VALUES (?, ?, ?) ON CONFLICT (worker, epoch)"
            " DO UPDATE SET seq = excluded.seq WHERE cap_marks.seq < excluded.seq"
        )
        marked: list[str | int] = [worker, epoch, seq]
        if after is not None:
            upsert += " AND cap_marks.seq = ?"
            marked.append(after)
        with self._database.transaction() as within:
            moved = within.query(f"{upsert} RETURNING seq", marked)
            if not moved:
                return False
            for period in sorted(charges):
                self._move(within, (period, worker, epoch), -charges[period], charges[period])
        return True

    def marks(self) -> dict[tuple[str, int], int]:
        """Return the sequence up to which each (worker, epoch) is settled."""
        with self._database.transaction() as within:
            rows = within.query("SELECT worker, epoch, seq FROM cap_marks")
        return {(worker, epoch): seq for worker, epoch, seq in rows}

    def release(self, worker: str, epoch: int) -> None:
        """Free what a dead worker held."""
        with self._database.transaction() as within:
            held = within.query(
                "SELECT period, amount FROM cap_leases WHERE worker = ? AND epoch = ?"
                " ORDER BY period",
                (worker, epoch),
            )
            for period, amount in held:
                self._move(within, (period, worker, epoch), -amount, 0)
            within.execute("DELETE FROM cap_leases WHERE worker = ? AND epoch = ?", (worker, epoch))

    def prune(self, before: int) -> int:
        """Delete what is over. An open hold is in a slice above zero, and keeps its period."""
        with self._database.transaction() as within:
            rows = within.query("SELECT period FROM cap_periods WHERE leased = 0 ORDER BY period")
            past = [period for (period,) in rows if over_by(period.rpartition("@")[2]) < before]
            gone = 0
            for period in past:
                # Looked at again once its row is locked: nobody takes a slice any more.
                _, _, leased, _ = self._period(within, period)
                if not leased:
                    within.execute("DELETE FROM cap_leases WHERE period = ?", (period,))
                    within.execute("DELETE FROM cap_periods WHERE period = ?", (period,))
                    gone += 1
        return gone

    def close(self) -> None:
        """Release the connection."""
        self._database.close()

    def _take(self, within: Transaction, worker: str, epoch: int, want: Want) -> Grant:
        limit, spent, leased, wanted = self._period(within, want.period)
        if limit != want.limit:
            within.execute(
                "UPDATE cap_periods SET cap = ? WHERE period = ?", (want.limit, want.period)
            )
        left = want.limit - spent - leased
        if left < want.need:
            if wanted != want.need:
                within.execute(
                    "UPDATE cap_periods SET wanted = ? WHERE period = ?", (want.need, want.period)
                )
            return Grant(0, spent, leased)
        amount = min(max(want.need, left // SHARE), left)
        self._move(within, (want.period, worker, epoch), amount, 0)
        return Grant(amount, spent, leased + amount)

    def _period(self, within: Transaction, period: str) -> tuple[Nanos, Nanos, Nanos, Nanos]:
        """Return a period's limit, spent, leased and wanted, with its row locked."""
        look = f"SELECT cap, spent, leased, wanted FROM cap_periods WHERE period = ?{self._lock}"  # noqa: S608
        rows = within.query(look, (period,))
        if not rows:
            within.execute(
                "INSERT INTO cap_periods VALUES (?, 0, 0, 0, 0) ON CONFLICT DO NOTHING", (period,)
            )
            rows = within.query(look, (period,))
        limit, spent, leased, wanted = rows[0]
        return limit, spent, leased, wanted

    def _move(
        self, within: Transaction, slice_of: tuple[str, str, int], lease: Nanos, spent: Nanos
    ) -> None:
        """Add to a worker's slice and to what is spent; ``leased`` follows the slice above zero.

        A slice below zero is a cost above its hold: it is in ``spent``, and must not seem free.
        """
        period = slice_of[0]
        self._period(within, period)
        rows = within.query(
            "SELECT amount FROM cap_leases WHERE period = ? AND worker = ? AND epoch = ?", slice_of
        )
        before = rows[0][0] if rows else 0
        after = before + lease
        within.execute(
            "INSERT INTO cap_leases VALUES (?, ?, ?, ?) ON CONFLICT (period, worker, epoch)"
            " DO UPDATE SET amount = excluded.amount",
            (*slice_of, after),
        )
        within.execute(
            "UPDATE cap_periods SET spent = spent + ?, leased = leased + ? WHERE period = ?",
            (spent, max(after, 0) - max(before, 0), period),
        )
        # Whoever was refused finds enough now, or somebody else has to give back more.
        within.execute(
            "UPDATE cap_periods SET wanted = 0"
            " WHERE period = ? AND wanted > 0 AND cap - spent - leased >= wanted",
            (period,),
        )


def create_tables(database: Shared, statements: Sequence[str]) -> None:
    """Make the tables that are missing, one process at a time."""
    with database.transaction() as within:
        if database.dialect == "postgresql":
            # "IF NOT EXISTS" alone lets two sessions collide in PostgreSQL's catalogue.
            within.query("SELECT pg_advisory_xact_lock(?)", (0x63617073,))
        for statement in statements:
            within.execute(statement)
