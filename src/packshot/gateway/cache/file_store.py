"""The answers of a machine's workers in one SQLite file; they survive a restart.

Written in WAL mode and not synced at every entry: a power cut may lose the last ones. One thread
has the file. What cannot be written costs a hit and no error; it is tried again after a minute.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import StateUnavailable
from packshot.gateway.cache.entry import Entry, Purge, decoded, encoded
from packshot.gateway.cache.store import FORGOTTEN, Mark, News, rank
from packshot.state.blobs import Held, check_limit
from packshot.state.sqlite_file import opened, set_up, transaction

__all__ = ["FileStore"]

T = TypeVar("T")

BUSY_S = 1.0
"""How long another process may hold the file before a call gives up."""

ANSWER_S = 0.1
"""How long a call of the gateway waits for an entry; then it goes upstream."""

RETRY_S = 60
"""A file that failed is asked again after this time."""

MAX_WAITING = 1000
"""Entries that wait to be written; more are not kept."""

AT_ONCE = 200
"""Entries of one answer of `FileStore.news`."""

SWEPT_AT_ONCE = 200
LONGEST_LOG = 10_000
"""Purges that are remembered for workers that have not heard of them; they ask every second."""

VERSION = 1
TABLES = (
    (
        "CREATE TABLE entries (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL,"
        " scope TEXT NOT NULL, route TEXT NOT NULL, tags TEXT NOT NULL, scent INTEGER NOT NULL,"
        " until INTEGER NOT NULL, rank REAL NOT NULL, size INTEGER NOT NULL, value BLOB NOT NULL)"
    ),
    "CREATE INDEX entries_by_rank ON entries (rank)",
    "CREATE INDEX entries_by_end ON entries (until)",
    "CREATE INDEX entries_by_scope ON entries (scope)",
    "CREATE TABLE purges (seq INTEGER PRIMARY KEY AUTOINCREMENT, by TEXT, value TEXT)",
    "CREATE TABLE total (number INTEGER NOT NULL, size INTEGER NOT NULL, floor REAL NOT NULL)",
    "INSERT INTO total VALUES (0, 0, 0)",
    (
        "CREATE TRIGGER entry_in AFTER INSERT ON entries"
        " BEGIN UPDATE total SET number = number + 1, size = size + new.size; END"
    ),
    (
        "CREATE TRIGGER entry_out AFTER DELETE ON entries"
        " BEGIN UPDATE total SET number = number - 1, size = size - old.size; END"
    ),
    f"PRAGMA user_version = {VERSION}",
)
WHERE = {
    "all": "?1 = ?1",
    "key": "key = ?1",
    "tag": "instr(tags, char(10) || ?1 || char(10))",
    "route": "route = ?1",
    "scope": "scope = ?1",
}


class FileStore:
    """A `Store` of ``max_bytes`` in the file ``path``, of its owner alone; ``clock`` is in µs.

    Raises:
        StateUnavailable: the file cannot be opened, or is not one of ours.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Clock = wall_us) -> None:
        self.path = path
        self.max_bytes = check_limit(max_bytes)
        self.problem = ""
        self._clock = clock
        self._away_until = 0
        self._heard = -1
        """Up to which purge the worker has heard; later ones may mean what it puts."""
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "answers")
        with self._told():
            self._file = opened(path, BUSY_S)
            try:
                self._set_up()
            except BaseException:
                self._file.close()
                raise

    async def get(self, key: str) -> Entry | None:
        """As `Store.get`, in 0.1 s at the most."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._quiet(partial(self._get, key), None)
        except TimeoutError:
            return None

    async def put(self, key: str, entry: Entry) -> None:
        """As `Store.put`."""
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            await self._quiet(partial(self._put, key, entry), None)
        finally:
            self._waiting -= 1

    async def purge(self, what: Purge) -> int:
        """As `Store.purge`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.purge_now, what)

    async def sweep(self) -> int:
        """As `Store.sweep`."""
        return await self._quiet(self._sweep, 0)

    async def held(self) -> Held:
        """As `Store.held`."""
        return await self._quiet(self._held, Held(0, 0))

    async def news(self, mark: Mark) -> News:
        """As `Store.news`."""
        return await self._quiet(partial(self._news, mark), News(mark, (), ()))

    async def aclose(self) -> None:
        """Write what waits, and let go of the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()

    def purge_now(self, what: Purge) -> int:
        """As `Store.purge`, for a command line: it blocks."""
        with self._told(), transaction(self._file):
            gone = self._file.execute(
                f"DELETE FROM entries WHERE {WHERE[what.by]}",  # noqa: S608 - of the table above
                (what.value,),
            ).rowcount
            self._file.execute(
                "INSERT INTO purges (by, value) VALUES (?, ?)", (what.by, what.value)
            )
            self._file.execute(
                "DELETE FROM purges WHERE seq <= (SELECT max(seq) FROM purges) - ?", (LONGEST_LOG,)
            )
        with self._told():  # what was thrown away is in the file no more, nor in its log
            self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def close_now(self) -> None:
        """Let go of the file, for a command line."""
        self._file.close()
        self._thread.shutdown()

    async def _quiet(self, work: Callable[[], T], otherwise: T) -> T:
        """Do something in the thread; return ``otherwise`` where the file cannot be used."""
        if self._clock() < self._away_until:
            return otherwise
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except StateUnavailable as error:
            self.problem = str(error)
            self._away_until = self._clock() + RETRY_S * SECOND_US
            return otherwise
        self.problem = ""
        return found

    # ------------------------------------------------------------ in the thread
    def _get(self, key: str) -> Entry | None:
        with self._told():
            row = self._file.execute(
                "SELECT value, rank FROM entries WHERE key = ? AND until > ?", (key, self._clock())
            ).fetchone()
            if row is None or (entry := decoded(row[0])) is None:
                return None
            (floor,) = self._file.execute("SELECT floor FROM total").fetchone()
            if (now := rank(entry, floor)) > row[1]:
                self._file.execute("UPDATE entries SET rank = ? WHERE key = ?", (now, key))
            return entry

    def _put(self, key: str, entry: Entry) -> None:
        with self._told(), transaction(self._file):
            self._file.execute("DELETE FROM entries WHERE key = ?", (key,))
            if entry.size > self.max_bytes or entry.until <= self._clock():
                return
            if self._heard >= 0 and any(what.takes(key, entry) for what in self._since()):
                return
            floor = self._make_room(entry.size)
            tags = "".join(f"\n{tag}\n" for tag in entry.tags)
            row = (key, entry.scope, entry.route, tags, entry.scent is not None, entry.until)
            self._file.execute(
                "INSERT INTO entries (key, scope, route, tags, scent, until, rank, size, value)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, rank(entry, floor), entry.size, encoded(entry)),
            )

    def _make_room(self, size: int) -> float:
        """Throw away what is worth least until ``size`` more bytes fit; return the floor."""
        while True:
            held, floor = self._file.execute("SELECT size, floor FROM total").fetchone()
            if held + size <= self.max_bytes:
                return floor
            seq, floor = self._file.execute(
                "SELECT seq, rank FROM entries ORDER BY rank LIMIT 1"
            ).fetchone()
            self._file.execute("DELETE FROM entries WHERE seq = ?", (seq,))
            self._file.execute("UPDATE total SET floor = ?", (floor,))

    def _sweep(self) -> int:
        swept = 0
        while True:
            with self._told():
                gone = self._file.execute(
                    "DELETE FROM entries WHERE seq IN"
                    " (SELECT seq FROM entries WHERE until <= ? LIMIT ?)",
                    (self._clock(), SWEPT_AT_ONCE),
                ).rowcount
            swept += gone
            if gone < SWEPT_AT_ONCE:
                return swept

    def _held(self) -> Held:
        with self._told():
            return Held(*self._file.execute("SELECT number, size FROM total").fetchone())

    def _news(self, mark: Mark) -> News:
        with self._told():
            (last,) = self._file.execute("SELECT ifnull(max(seq), 0) FROM purges").fetchone()
            if not last - LONGEST_LOG <= mark[1] <= last:
                self._heard = last
                return News((0, last), (), FORGOTTEN)
            self._heard = mark[1]
            purges = self._since()
            rows = self._file.execute(
                "SELECT seq, key, value FROM entries"
                " WHERE seq > ? AND scent AND until > ? ORDER BY seq LIMIT ?",
                (mark[0], self._clock(), AT_ONCE),
            ).fetchall()
        self._heard = last
        entries = [(key, entry) for _, key, value in rows if (entry := decoded(value)) is not None]
        return News((rows[-1][0] if rows else mark[0], last), entries, purges)

    def _since(self) -> list[Purge]:
        """Return what was purged that this worker has not heard of."""
        rows = self._file.execute(
            "SELECT by, value FROM purges WHERE seq > ? ORDER BY seq", (self._heard,)
        )
        return [Purge(*row) for row in rows]

    def _set_up(self) -> None:
        self._file.execute("PRAGMA secure_delete = ON")
        set_up(self._file, self.path, TABLES, VERSION)

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateUnavailable(
                f"{self.path} cannot be used: {error}. It holds nothing that cannot be made again: "
                "where it is damaged, remove it"
            ) from error
