"""What a run knows of itself: a SQLite file in its folder, from which any crash goes on.

A **work** is what is to be made: the digest of all that decides a picture, from the brief to the
last parameter of the recipe. Items that ask for the same work share it. Its life::

    todo ──► made ──► delivered          made: the picture is in the run's folder, and paid for
      └────────┴────► quarantined        quarantined: it failed too often, and the reason is kept

Every step is one transaction, out of this process when it returns: no crash of it, nor SIGKILL,
loses one. A power cut may lose the last moments, as of the ledger in its default mode: what was
made then is made again, and found in the store. A work's row outlives the plan that it came from:
parameters that change and change back find their pictures again.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from packshot.core.clock import wall_us
from packshot.core.databases import write_ahead
from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.ids import new_id
from packshot.core.money import Nanos
from packshot.core.types import NOTHING_READ, EmbeddingUse
from packshot.studio.batch.items import Item

__all__ = ["Attempt", "Counts", "Delivered", "Made", "Row", "RunState", "Todo", "Trouble"]

Trouble: TypeAlias = Literal["failed", "lost", "abandoned"]
"""How an attempt ended without a picture: the work failed; its worker was lost (crash, hang); or
the run was stopped, or died, meanwhile, which says nothing against the work."""

T = TypeVar("T")

FORMAT = 2
PAGE = 512
"""Rows that are in memory at once."""

NEVER = 1e18
"""When a work without a deadline is due: last."""

DATED = 10_000
"""Works with a deadline that are looked at, the first due first: those behind wait for their
turn, which comes while these are made."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, row INTEGER NOT NULL, work BLOB NOT NULL, copies INTEGER NOT NULL,
    named INTEGER NOT NULL, content BLOB NOT NULL, due REAL NOT NULL DEFAULT 1e18)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_row ON items (row);
CREATE TABLE IF NOT EXISTS works (
    work BLOB PRIMARY KEY, plan INTEGER NOT NULL, row INTEGER NOT NULL, item TEXT NOT NULL,
    state TEXT NOT NULL, turn INTEGER NOT NULL DEFAULT 0, made BLOB, delivered BLOB,
    reason TEXT NOT NULL DEFAULT '', due REAL NOT NULL DEFAULT 1e18) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS works_in_line ON works (plan, state, due, turn, row);
CREATE TABLE IF NOT EXISTS attempts (
    render TEXT PRIMARY KEY, work BLOB NOT NULL, at INTEGER NOT NULL,
    ended TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    cost INTEGER NOT NULL DEFAULT 0, booked INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_of_work ON attempts (work);
CREATE INDEX IF NOT EXISTS attempts_open ON attempts (ended) WHERE ended = '';
CREATE INDEX IF NOT EXISTS attempts_unbooked ON attempts (booked)
    WHERE ended = 'made' AND booked = 0;
CREATE TABLE IF NOT EXISTS captions (
    mark BLOB PRIMARY KEY, content BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    place TEXT PRIMARY KEY, mark TEXT NOT NULL, digest TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""


MIGRATION = """
ALTER TABLE items ADD COLUMN due REAL NOT NULL DEFAULT 1e18;
ALTER TABLE works ADD COLUMN due REAL NOT NULL DEFAULT 1e18;
DROP INDEX works_to_do;
PRAGMA user_version = 2;
"""
"""From format 1, which knew no deadlines."""


class Made(msgspec.Struct, frozen=True, gc=False):
    """A finished picture in the run's folder: its ``file`` there, and what is known of it.

    ``usage`` is not among it: it was booked when the picture was made, on ``render``.
    ``embeddings`` is what its texts' cache had, and saved.
    """

    render: str
    file: str
    name: str
    sha256: str
    size: int
    seed: int
    caption: str
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()
    embeddings: EmbeddingUse = NOTHING_READ
    tags: tuple[str, ...] = ()


class _Read(msgspec.Struct):
    """Of a `Made`, the one thing that is added up."""

    embeddings: EmbeddingUse = NOTHING_READ


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """Where a picture went: its key in the store. ``new`` is false where the store had it."""

    key: str
    new: bool


@dataclass(frozen=True, slots=True)
class Todo:
    """A work whose turn has come: ``turn`` counts the times that it was put back, ``due`` is the
    earliest deadline of its items in seconds after the run began, `NEVER` without one.
    """

    work: bytes
    item: Item
    turn: int
    made: Made | None
    due: float = NEVER


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a work, under the id ``render`` of the ledger; ``number`` counts from 1."""

    work: bytes
    render: str
    number: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the plan: items, how many of them repeat another's work, and works by state."""

    items: int
    works: int
    todo: int
    made: int
    delivered: int
    quarantined: int

    @property
    def repeated(self) -> int:
        """Items whose picture another item's is."""
        return self.items - self.works

    @property
    def left(self) -> int:
        """Works that are not done with."""
        return self.todo + self.made


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the manifest: an item, in how many rows it came, and what became of its work."""

    item: Item
    copies: int
    work: bytes
    state: str
    made: Made | None
    delivered: Delivered | None
    reason: str
    cost: Nanos


class RunState:
    """The state of the run in ``folder``. Safe to use from any thread of the one process that runs.

    Raises:
        InvalidRequest: another process runs it, or it was written by a newer packshot.
        OutputError: the folder cannot be written, or what is there is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._guard = _locked(folder)
        try:
            self._base = _opened(folder / "run.db")
        except BaseException:
            os.close(self._guard)
            raise

    def close(self) -> None:
        """Let go of the run."""
        with self._lock:
            self._base.close()
            os.close(self._guard)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            try:
                self._base.execute("COMMIT")
            except sqlite3.Error as error:
                self._base.execute("ROLLBACK")
                raise OutputError(f"cannot write {self.folder / 'run.db'}: {error}") from error

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(sql, values).fetchall()

    # -------------------------------------------------------------------------- the plan

    @property
    def plan(self) -> int:
        """The number of the plan in force; 0 before the first."""
        return int(self.noted("plan") or 0)

    def noted(self, name: str) -> str:
        """Return what was noted under a name, "" where nothing was."""
        rows = self._rows("SELECT value FROM meta WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else ""

    def note(self, name: str, value: str) -> None:
        """Keep a short text under a name."""
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def replan(self, rows: Iterable[tuple[int, bytes, Item]], source: str) -> None:
        """Take these (row, work, item) as the plan; all of them, or none where ``rows`` raises.

        ``source`` says what they were read from, so that the same need not be read again.

        Raises:
            InvalidRequest: two rows were given the same id.
        """
        plan = self.plan + 1
        encode = msgspec.msgpack.Encoder().encode
        with self._transaction() as base:
            base.execute("DELETE FROM items")
            base.executemany(
                "INSERT INTO items VALUES (?, ?, ?, 1, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET copies = copies + 1,"
                " named = max(named, excluded.named), due = min(due, excluded.due)",
                (
                    (item.id, row, work, item.named, encode(item), item.deadline_s or NEVER)
                    for row, work, item in rows
                ),
            )
            twice = base.execute(
                "SELECT id, copies FROM items WHERE copies > 1 AND named ORDER BY row"
            ).fetchmany(6)
            if twice:
                named = ", ".join(f"{name!r} ({copies} times)" for name, copies in twice[:5])
                more = " and more" if len(twice) > 5 else ""
                raise InvalidRequest(
                    f"these ids come more than once: {named}{more}. Give each row an id of its own,"
                    " or leave the column out: what is asked for twice is rendered once"
                )
            base.execute(
                "INSERT INTO works (work, plan, row, item, state)"
                " SELECT work, ?, min(row), id, 'todo' FROM items WHERE true GROUP BY work"
                " ON CONFLICT (work) DO UPDATE SET plan = excluded.plan, row = excluded.row,"
                " item = excluded.item, turn = 0, due = excluded.due",
                (plan,),
            )
            base.execute(
                "UPDATE works SET due = first.due FROM (SELECT work, min(due) AS due FROM items"
                " WHERE due < ? GROUP BY work) AS first WHERE works.work = first.work",
                (NEVER,),
            )
            for name, value in (("plan", str(plan)), ("source", source)):
                base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def counts(self) -> Counts:
        """Return how far the plan has come."""
        states = dict(
            self._rows(
                "SELECT state, count(*) FROM works WHERE plan = ? GROUP BY state", (self.plan,)
            )
        )
        ((items,),) = self._rows("SELECT coalesce(sum(copies), 0) FROM items")
        by = {name: int(states.get(name, 0)) for name in ("todo", "made", "delivered")}
        gone = int(states.get("quarantined", 0))
        return Counts(int(items), sum(by.values()) + gone, **by, quarantined=gone)

    def release(self) -> int:
        """Give what is quarantined another chance; return how many works that are."""
        with self._transaction() as base:
            base.execute(
                "UPDATE attempts SET ended = 'abandoned' WHERE work IN"
                " (SELECT work FROM works WHERE plan = ? AND state = 'quarantined')",
                (self.plan,),
            )
            done = base.execute(
                "UPDATE works SET state = CASE WHEN made IS NULL THEN 'todo' ELSE 'made' END,"
                " reason = '', turn = 0 WHERE plan = ? AND state = 'quarantined'",
                (self.plan,),
            )
            return done.rowcount

    # -------------------------------------------------------------------------- works

    def waiting(self, state: Literal["todo", "made"]) -> Iterator[Todo]:
        """Yield the works in a state: the first due first, then by row, put back ones last.

        What is put back meanwhile comes again; a work must have left the state, or been put back,
        before the next one is asked for beyond the page in memory.
        """
        plan, last = self.plan, (-1.0, -1, -1, b"")
        while True:
            rows = self._rows(
                "SELECT w.work, i.content, w.turn, w.row, w.made, w.due FROM works w"
                " JOIN items i ON i.id = w.item WHERE w.plan = ? AND w.state = ?"
                " AND (w.due, w.turn, w.row, w.work) > (?, ?, ?, ?)"
                " ORDER BY w.due, w.turn, w.row, w.work LIMIT ?",
                (plan, state, *last, PAGE),
            )
            if not rows:
                return
            for work, content, turn, row, made, due in rows:
                last = (due, turn, row, work)
                yield Todo(
                    work,
                    msgspec.msgpack.decode(content, type=Item),
                    turn,
                    _read(made, Made),
                    float(due),
                )

    def dated(self) -> list[tuple[bytes, float]]:
        """Return works that wait and have a deadline with it, the first due first; see `DATED`."""
        return self._rows(
            "SELECT work, due FROM works WHERE plan = ? AND state = 'todo' AND due < ?"
            " ORDER BY due, turn, row, work LIMIT ?",
            (self.plan, NEVER, DATED),
        )

    def todo(self, work: bytes) -> Todo | None:
        """Return one work that is to be made, None where it is not any more."""
        rows = self._rows(
            "SELECT i.content, w.turn, w.due FROM works w JOIN items i ON i.id = w.item"
            " WHERE w.work = ? AND w.state = 'todo'",
            (work,),
        )
        for content, turn, due in rows:
            return Todo(work, msgspec.msgpack.decode(content, type=Item), turn, None, float(due))
        return None

    def begin(self, work: bytes) -> Attempt:
        """Note that a work is tried, before it costs anything."""
        render = new_id()
        with self._transaction() as base:
            base.execute(
                "INSERT INTO attempts (render, work, at) VALUES (?, ?, ?)",
                (render, work, wall_us()),
            )
            ((number,),) = base.execute(
                "SELECT count(*) FROM attempts WHERE work = ? AND ended <> 'abandoned'", (work,)
            )
        return Attempt(work, render, int(number))

    def made(self, attempt: Attempt, made: Made) -> None:
        """Note that an attempt's picture is in the run's folder."""
        with self._transaction() as base:
            base.execute(
                "UPDATE works SET state = 'made', made = ? WHERE work = ? AND state = 'todo'",
                (msgspec.msgpack.encode(made), attempt.work),
            )
            base.execute("UPDATE attempts SET ended = 'made' WHERE render = ?", (attempt.render,))

    def unmade(self, work: bytes) -> None:
        """Note that a work's picture is not in the run's folder after all."""
        with self._transaction() as base:
            base.execute(
                "UPDATE works SET state = 'todo', made = NULL WHERE work = ? AND state = 'made'",
                (work,),
            )

    def ended(self, attempt: Attempt, trouble: Trouble, reason: str) -> None:
        """Note how an attempt ended without a picture; its work is put back to the end."""
        with self._transaction() as base:
            base.execute(
                "UPDATE attempts SET ended = ?, reason = ? WHERE render = ?",
                (trouble, reason, attempt.render),
            )
            if trouble != "abandoned":
                base.execute("UPDATE works SET turn = turn + 1 WHERE work = ?", (attempt.work,))

    def charge(self, render: str, cost: Nanos, *, delivered: bool = False) -> None:
        """Add what was booked on a render, in nano-EUR; ``delivered``: its delivery is booked."""
        with self._transaction() as base:
            base.execute(
                "UPDATE attempts SET cost = cost + ?, booked = max(booked, ?) WHERE render = ?",
                (cost, delivered, render),
            )

    def unbooked(self) -> list[str]:
        """Return the renders that are delivered, and whose delivery may not be in the ledger."""
        rows = self._rows(
            "SELECT a.render, w.made FROM attempts a JOIN works w ON w.work = a.work"
            " WHERE a.ended = 'made' AND a.booked = 0 AND w.state = 'delivered'"
        )
        return [
            str(render)
            for render, made in rows
            if msgspec.msgpack.decode(made, type=Made).render == render
        ]

    def abandon(self) -> int:
        """End the attempts that a dead process left open; return how many that were."""
        with self._transaction() as base:
            done = base.execute(
                "UPDATE attempts SET ended = 'abandoned', reason = 'the run died' WHERE ended = ''"
            )
            return done.rowcount

    def deliver(self, work: bytes, delivered: Delivered) -> None:
        """Note that a picture is in the store, whole."""
        with self._transaction() as base:
            base.execute(
                "UPDATE works SET state = 'delivered', delivered = ?, reason = ''"
                " WHERE work = ? AND state = 'made'",
                (msgspec.msgpack.encode(delivered), work),
            )

    def quarantine(self, work: bytes, reason: str) -> None:
        """Take a work out of the run, and keep why."""
        with self._transaction() as base:
            base.execute(
                "UPDATE works SET state = 'quarantined', reason = ?"
                " WHERE work = ? AND state IN ('todo', 'made')",
                (reason, work),
            )

    # -------------------------------------------------------------------------- captions

    def caption(self, mark: bytes) -> bytes | None:
        """Return a caption by the digest of all that decides it, None where there is none yet."""
        rows = self._rows("SELECT content FROM captions WHERE mark = ?", (mark,))
        return bytes(rows[0][0]) if rows else None

    def keep_caption(self, mark: bytes, content: bytes) -> None:
        """Keep a caption."""
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO captions VALUES (?, ?)", (mark, content))

    # -------------------------------------------------------------------------- what was read

    def digest_of(self, place: str, mark: str) -> str:
        """Return the digest of a file that was read before, "" where its mark is another."""
        rows = self._rows("SELECT digest FROM files WHERE place = ? AND mark = ?", (place, mark))
        return str(rows[0][0]) if rows else ""

    def keep_digest(self, place: str, mark: str, digest: str) -> None:
        """Keep a file's digest; ``mark`` changes when the file does."""
        with self._lock:  # within `replan` it is a part of it
            self._base.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (place, mark, digest)
            )

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the place and mark of every file that was read."""
        last = ""
        while found := self._rows(
            "SELECT place, mark FROM files WHERE place > ? ORDER BY place LIMIT ?", (last, PAGE)
        ):
            yield from found
            last = found[-1][0]

    # -------------------------------------------------------------------------- the end

    def rows(self) -> Iterator[Row]:
        """Yield every item of the plan, in the order of the file, with what became of it."""
        last = (-1, "")
        while True:
            found = self._rows(
                "SELECT i.row, i.id, i.content, i.copies, i.work,"
                " w.state, w.made, w.delivered, w.reason,"
                " (SELECT coalesce(sum(cost), 0) FROM attempts a WHERE a.work = i.work)"
                " FROM items i JOIN works w ON w.work = i.work"
                " WHERE (i.row, i.id) > (?, ?) ORDER BY i.row, i.id LIMIT ?",
                (*last, PAGE),
            )
            if not found:
                return
            for row, name, content, copies, work, state, made, delivered, reason, cost in found:
                last = (row, name)
                yield Row(
                    msgspec.msgpack.decode(content, type=Item),
                    copies,
                    work,
                    state,
                    _read(made, Made),
                    None
                    if delivered is None
                    else msgspec.msgpack.decode(delivered, type=Delivered),
                    reason,
                    int(cost),
                )

    def settle(self, costs: Iterable[tuple[str, Nanos]]) -> None:
        """Take what the ledger has of each render instead of what was added up here."""
        with self._transaction() as base:
            base.executemany(
                "UPDATE attempts SET cost = ? WHERE render = ?",
                ((cost, render) for render, cost in costs),
            )

    def embeddings(self) -> EmbeddingUse:
        """Return what all pictures of the plan took from the cache of embeddings."""
        total, last = NOTHING_READ, b""
        while found := self._rows(
            "SELECT work, made FROM works"
            " WHERE plan = ? AND work > ? AND made IS NOT NULL ORDER BY work LIMIT ?",
            (self.plan, last, PAGE),
        ):
            last = found[-1][0]
            for _, made in found:
                total += msgspec.msgpack.decode(made, type=_Read).embeddings
        return total

    def reasons(self) -> list[tuple[str, int]]:
        """Return why works are quarantined, and how many each, the most first."""
        return [
            (str(reason), int(count))
            for reason, count in self._rows(
                "SELECT reason, count(*) FROM works WHERE plan = ? AND state = 'quarantined'"
                " GROUP BY reason ORDER BY 2 DESC, 1 LIMIT 20",
                (self.plan,),
            )
        ]


def _read(content: bytes | None, kind: type[T]) -> T | None:
    return None if content is None else msgspec.msgpack.decode(content, type=kind)


def _locked(folder: Path) -> int:
    """Return an open file that only one process at a time has; it ends with the process."""
    path = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = os.pread(file, 32, 0).decode(errors="replace").strip() or "another"
        os.close(file)
        raise InvalidRequest(
            f"process {who} is at work on this batch ({folder}): wait for it, or give another --out"
        ) from error
    os.truncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def _opened(path: Path) -> sqlite3.Connection:
    try:
        base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        write_ahead(base)
        base.execute("PRAGMA synchronous = NORMAL")
        ((found,),) = base.execute("PRAGMA user_version").fetchall()
        if found > FORMAT:
            raise InvalidRequest(
                f"{path} is of format {found}, this packshot knows {FORMAT}: use the newer one"
            )
        if found == 1:
            base.executescript(f"BEGIN; {MIGRATION} COMMIT;")
        base.executescript(SCHEMA)
        base.execute(f"PRAGMA user_version = {FORMAT}")
    except sqlite3.Error as error:
        raise OutputError(f"cannot open {path}: {error}") from error
    return base
