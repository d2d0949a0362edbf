"""What the files of things that can be made again have in common: SQLite, one owner, one version.

Written in WAL mode and not synced at every change: a power cut may lose the last ones.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from packshot.core.databases import write_ahead
from packshot.core.errors import StateUnavailable

__all__ = ["opened", "set_up", "transaction"]


def opened(path: Path, busy_s: float) -> sqlite3.Connection:
    """Return the file, made where it is not there, for its owner alone.

    ``busy_s``: how long another process may hold it before a call gives up. Raises what SQLite and
    the file system do.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)


def set_up(file: sqlite3.Connection, path: Path, tables: Sequence[str], version: int) -> None:
    """Make the tables where there are none; ``tables`` ends with setting ``user_version``.

    Raises:
        StateUnavailable: the file is of another version.
    """
    write_ahead(file)
    file.execute("PRAGMA synchronous = NORMAL")
    with transaction(file):  # of several processes that come first at once, one makes the tables
        (found,) = file.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in tables:
                file.execute(statement)
        elif found != version:
            raise StateUnavailable(
                f"{path} is of version {found}, expected {version}: another packshot "
                "made it. It holds nothing that cannot be made again: remove it"
            )


@contextmanager
def transaction(file: sqlite3.Connection) -> Generator[None]:
    """Do all of what is inside, or nothing of it."""
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the first error is the one to hear of
            file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")
