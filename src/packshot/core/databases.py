"""What all who keep a database share: how PostgreSQL is named, and a new file of SQLite opened."""

from __future__ import annotations

import sqlite3
import time

__all__ = ["POSTGRES", "write_ahead"]

POSTGRES = ("postgresql://", "postgres://")
"""What an address of PostgreSQL begins with; anything else is a path."""

PATIENCE_S = 5.0
PAUSE_S = 0.01


def write_ahead(file: sqlite3.Connection) -> str:
    """Turn a file to a write-ahead log, and return the mode that it is in then.

    Of several processes that do so at once with a new file SQLite refuses some without waiting,
    whatever their timeout is: a sixth of three, tried together. Raises what SQLite does.
    """
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return file.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(PAUSE_S)
