"""The shelf of a machine: one SQLite file that its processes share.

Written in WAL mode and not synced at every value: a power cut may lose the last ones and harms no
other. How long ago a value was used is known to the hour, so that reading seldom writes.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from packshot.core.errors import StateUnavailable
from packshot.state.blobs import OVERHEAD, Found, Held, check_key, check_limit, check_put
from packshot.state.sqlite_file import opened, set_up, transaction

__all__ = ["SqliteBlobs"]

BUSY_S = 2.0
"""How long another process may hold the file before a call gives up."""

USED_S = 3600.0
"""A use within this time of the last one that is noted is not noted."""

SWEPT_AT_ONCE = 100
"""Values that one transaction throws away, so that others come to their turn."""

VERSION = 1

TABLES = (
    (
        "CREATE TABLE blobs (key TEXT PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL,"
        " used REAL NOT NULL, until REAL NOT NULL)"
    ),
    "CREATE INDEX blobs_by_use ON blobs (used)",
    "CREATE INDEX blobs_by_end ON blobs (until)",
    "CREATE TABLE total (number INTEGER NOT NULL, size INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0, 0)",
    (
        "CREATE TRIGGER blob_in AFTER INSERT ON blobs"
        " BEGIN UPDATE total SET number = number + 1, size = size + new.size; END"
    ),
    (
        "CREATE TRIGGER blob_out AFTER DELETE ON blobs"
        " BEGIN UPDATE total SET number = number - 1, size = size - old.size; END"
    ),
    f"PRAGMA user_version = {VERSION}",
)


COUNTS = "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, number INTEGER NOT NULL)"
ADD = (
    "INSERT INTO counts VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET number = number + excluded.number"
)


class SqliteBlobs:
    """A shelf of ``max_bytes`` in the file ``path``, of its owner alone; ``clock`` is the wall's.

    Raises:
        StateUnavailable: the file cannot be opened, or is not one of ours.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.max_bytes = check_limit(max_bytes)
        self._clock = clock
        self._lock = threading.Lock()
        with self._told():
            self._file = opened(path, BUSY_S)
            try:
                set_up(self._file, path, TABLES, VERSION)
            except BaseException:
                self._file.close()
                raise

    def get(self, key: str) -> Found | None:
        """As `Blobs.get`."""
        check_key(key)
        with self._lock, self._told():
            now = self._clock()
            row = self._file.execute(
                "SELECT value, used, until FROM blobs WHERE key = ? AND until > ?", (key, now)
            ).fetchone()
            if row is None:
                return None
            value, used, until = row
            if now - used > USED_S:
                self._file.execute("UPDATE blobs SET used = ? WHERE key = ?", (now, key))
            return Found(value, until - now)

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As `Blobs.put`."""
        check_put(key, ttl_s)
        size = len(value) + OVERHEAD
        with self._lock, self._told(), transaction(self._file):
            self._file.execute("DELETE FROM blobs WHERE key = ?", (key,))
            if size > self.max_bytes:
                return
            self._make_room(size)
            now = self._clock()
            self._file.execute(
                "INSERT INTO blobs VALUES (?, ?, ?, ?, ?)", (key, value, size, now, now + ttl_s)
            )

    def delete(self, key: str) -> None:
        """As `Blobs.delete`."""
        check_key(key)
        with self._lock, self._told():
            self._file.execute("DELETE FROM blobs WHERE key = ?", (key,))

    def sweep(self) -> int:
        """As `Blobs.sweep`."""
        swept = 0
        while True:
            with self._lock, self._told():
                now = self._clock()
                gone = self._file.execute(
                    "DELETE FROM blobs WHERE key IN"
                    " (SELECT key FROM blobs WHERE until <= ? LIMIT ?)",
                    (now, SWEPT_AT_ONCE),
                ).rowcount
            swept += gone
            if gone < SWEPT_AT_ONCE:
                return swept

    def held(self) -> Held:
        """As `Blobs.held`."""
        with self._lock, self._told():
            return Held(*self._file.execute("SELECT number, size FROM total").fetchone())

    def count(self, counts: Mapping[str, int]) -> None:
        """As `Counting.count`."""
        with self._lock, self._told(), transaction(self._file):
            self._file.execute(COUNTS)  # files of before have no such table, and are as good
            self._file.executemany(ADD, counts.items())

    def counts(self) -> dict[str, int]:
        """As `Counting.counts`."""
        with self._lock, self._told(), transaction(self._file):
            self._file.execute(COUNTS)
            return dict(self._file.execute("SELECT name, number FROM counts").fetchall())

    def close(self) -> None:
        """Let go of the file; nothing can be asked afterwards."""
        with self._lock:
            self._file.close()

    def _make_room(self, size: int) -> None:
        """Throw away what was not used for longest, until ``size`` more bytes fit."""
        while True:
            (held,) = self._file.execute("SELECT size FROM total").fetchone()
            if held + size <= self.max_bytes:
                return
            self._file.execute(
                "DELETE FROM blobs WHERE key = (SELECT key FROM blobs ORDER BY used LIMIT 1)"
            )

    @contextmanager
    def _told(self) -> Generator[None]:
        """Turn what SQLite or the file system says into what the caller can do about it."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StateUnavailable(f"{self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            raise StateUnavailable(
                f"{self.path} is damaged ({error}). It holds nothing that cannot be made again: "
                "remove it"
            ) from error
        except OSError as error:
            raise StateUnavailable(f"{self.path} cannot be used: {error.strerror}") from error
