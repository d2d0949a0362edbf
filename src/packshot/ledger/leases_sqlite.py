"""``caps.db``: the SQLite file of the leases, which several processes write.

It is apart from the store and keeps a rollback journal: a write-ahead log with two writers can
corrupt a file in SQLite before 3.51.3.
"""

from __future__ import annotations

import sqlite3

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.stores.sqlite import SqliteDatabase

__all__ = ["LeaseFile"]


class LeaseFile(SqliteDatabase):
    """A SQLite file with a rollback journal; a commit is on the disk when it returns."""

    def _set_up(self, writer: sqlite3.Connection) -> None:
        (mode,) = writer.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
        if mode != "truncate":
            raise LedgerUnavailable(
                f"{self.path} cannot use a rollback journal (SQLite says {mode!r}): put it on a "
                "local disk that can be written, and let no other program open it"
            )
