"""Where settled attempts are kept for ever: SQLite, or PostgreSQL; one Protocol, one code on both.

`table_store` says what the ledger does with tables, `sqlite` and `postgres` how each database does
its part of it.
"""

from __future__ import annotations

from packshot.core.databases import POSTGRES
from packshot.ledger.stores.migrations import migrate, require_current
from packshot.ledger.stores.table_store import TableStore

__all__ = ["open_store"]


def open_store(url: str, *, read_only: bool = False) -> TableStore:
    """Open a store: the path of a SQLite file, or a ``postgresql://`` address.

    A store that is opened for writing is made where it is missing, and brought to this packshot's
    schema where it is older.

    Raises:
        LedgerUnavailable: it cannot be reached or written; or, read only, it is not there.
        LedgerCorrupt: it is no ledger, or of a newer packshot.
    """
    if url.startswith(POSTGRES):
        from packshot.ledger.stores.postgres import PostgresDatabase

        database = PostgresDatabase(url)
    else:
        from packshot.ledger.stores.sqlite import SqliteDatabase

        database = SqliteDatabase(url, read_only=read_only)
    try:
        if read_only:
            require_current(database)
        else:
            migrate(database)
    except BaseException:
        database.close()
        raise
    return TableStore(database)
