"""SQLite under the ledger: one file, durable at every commit, one writer, any number of readers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from packshot.core.databases import write_ahead
from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.private import make_private_file
from packshot.ledger.stores.database import Row, Table, Transaction

__all__ = ["SqliteDatabase"]

BUSY_MS = 5000
"""Milliseconds to wait for another process that writes (RELIABILITY §5)."""

CACHE_KIB = 64 << 10
"""The writer's page cache: the ends of all indexes, and a batch, stay in memory."""

CHECKPOINT_PAGES = 8000
"""Pages of 4 KiB in the log before they are moved into the file."""

SETTINGS = ("mmap_size = 0", "foreign_keys = ON", "synchronous = EXTRA")
"""Of every connection. EXTRA is FULL, and syncs the folder once the rollback journal is deleted by
which a new file gets its write-ahead log: a journal that came back after a loss of power would undo
that, and the log with it (tests/ledger/stores/test_sqlite_power.py)."""

CORRUPT = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}
OURS = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE}
"""A statement that is wrong: a bug of the caller's, no state of the disk."""


class SqliteDatabase:
    """A SQLite file in WAL mode. The writing connection checkpoints too; readers cannot write."""

    dialect = "sqlite"

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._writing = threading.RLock()
        self._reading = threading.RLock()
        self._writer: sqlite3.Connection | None = None
        with self._errors(), ExitStack() as unless_whole:
            if not read_only:
                with suppress(OSError):  # SQLite says better why it cannot be
                    make_private_file(self.path)
                self._writer = unless_whole.enter_context(closing(self._connect("rwc")))
                self._set_up(self._writer)
            self._reader = self._connect("ro")
            unless_whole.pop_all()

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Write: committed and on the disk when the block ends."""
        if self._writer is None:
            raise LedgerUnavailable(f"{self.path} was opened for reading only")
        with self._writing, self._errors(), _transaction(self._writer, "BEGIN IMMEDIATE"):
            yield _Statements(self._writer)

    @contextmanager
    def snapshot(self) -> Generator[Transaction]:
        """Read: the same state until the block ends."""
        with self._reading, self._errors(), _transaction(self._reader, "BEGIN"):
            yield _Statements(self._reader)

    def version(self, within: Transaction) -> int:
        """Return the number of the last migration applied."""
        return within.query("PRAGMA user_version")[0][0]

    def set_version(self, within: Transaction, version: int) -> None:
        """Record it."""
        within.execute(f"PRAGMA user_version = {version:d}")

    def damage(self) -> list[str]:
        """Return what SQLite's own check of pages and indexes finds."""
        with self.snapshot() as look:
            return [str(row[0]) for row in look.query("PRAGMA quick_check") if row[0] != "ok"]

    def copy_to(self, file: Path) -> None:
        """Write the state of this instant to a new file while others go on writing."""
        with self._reading, self._errors(), closing(sqlite3.connect(file)) as target:
            # In one step: a copy in several starts anew whenever somebody writes between two.
            self._reader.backup(target, pages=-1)
            # One file that is whole by itself, readable from a medium that cannot be written.
            target.execute("PRAGMA journal_mode = DELETE")

    def seal(self) -> None:
        """Make of a new file, which nobody else has open, one that is whole by itself."""
        with self._writing, self._errors():
            self._reader.close()
            if self._writer is not None:
                self._writer.execute("PRAGMA journal_mode = DELETE")

    def close(self) -> None:
        """Release the connections; the last to leave moves the log into the file."""
        with self._errors():
            self._reader.close()
            if self._writer is not None:
                self._writer.close()

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_MS / 1000,
            cached_statements=64,
        )
        try:
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, writer: sqlite3.Connection) -> None:
        writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        mode = write_ahead(writer)
        if mode != "wal":
            raise LedgerUnavailable(
                f"{self.path} cannot use a write-ahead log (SQLite says {mode!r}):"
                " put the ledger on a local disk that can be written"
            )

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Say what SQLite's errors mean for the ledger."""
        try:
            yield
        except OverflowError as error:
            raise LedgerCorrupt(f"{self.path}: a number exceeds 64 bits: {error}") from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
            if code in OURS:
                raise
            if code in CORRUPT:
                raise LedgerCorrupt(f"{self.path}: {error}") from error
            raise LedgerUnavailable(
                f"{self.path}: {error}; nothing was acknowledged. The folder must exist, have"
                " space and be writable, and one process alone may write"
            ) from error


class _Statements:
    """A connection within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._connection.execute(sql, parameters)

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        places = ", ".join("?" * len(table.columns))
        self._connection.executemany(
            f"INSERT INTO {table.name} ({', '.join(table.columns)})"  # noqa: S608 - names of ours
            f" VALUES ({places}) {table.on_conflict}",
            rows,
        )


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Generator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # Also where the commit itself failed. On some errors SQLite has rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
