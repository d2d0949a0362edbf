"""What the checks of semantic hits found: a file that workers write and people judge.

Counts are kept apart from the checks themselves, of which only the last are kept: the rate of false
hits is that of all checks since the route's tier was last turned on.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from packshot.core.databases import write_ahead
from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.gateway.cache.entry import Purge
from packshot.state.sqlite_file import opened, transaction

__all__ = ["AuditLog", "Check", "Count", "Verdict"]

Verdict: TypeAlias = Literal["same", "false", "open"]
"""``open`` is a check that nobody could decide yet; it counts when a person has."""

LONGEST_TEXT = 8_000
"""Characters that are kept of each text."""

BUSY_S = 2
"""So long another process may hold the file before a call gives up."""

VERSION = 2
TABLES = (
    (
        "CREATE TABLE checks (number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER, scope TEXT,"
        " route TEXT, similarity REAL, asked TEXT, kept TEXT, served TEXT, fresh TEXT,"
        " cosine REAL, verdict TEXT, judge TEXT, note TEXT NOT NULL DEFAULT '')"
    ),
    (
        "CREATE TABLE counts (route TEXT PRIMARY KEY, checked INTEGER NOT NULL,"
        " false INTEGER NOT NULL, off INTEGER NOT NULL DEFAULT 0)"
    ),
    f"PRAGMA user_version = {VERSION}",
)
FROM_1 = (
    "ALTER TABLE checks ADD COLUMN note TEXT NOT NULL DEFAULT ''",
    f"PRAGMA user_version = {VERSION}",
)


class Check(NamedTuple):
    """A hit: the request ``asked`` was given the answer ``served``, made for the request ``kept``;
    the provider would have said ``fresh``. ``similarity`` is that of the requests, ``cosine`` that
    of the answers. ``judge`` is the person who judged it, "" for none yet, and ``note`` says how
    the machine came to its verdict. ``at`` is in µs since 1970.
    """

    number: int
    at: int
    scope: str
    route: str
    similarity: float
    asked: str
    kept: str
    served: str
    fresh: str
    cosine: float
    verdict: Verdict
    judge: str = ""
    note: str = ""


class Count(NamedTuple):
    """Checks of a route since its tier was last turned on; ``off`` is when it was turned off, in µs
    since 1970, 0 while it is on.
    """

    route: str
    checked: int
    false: int
    off: int


class AuditLog:
    """The file ``path``, of its owner alone, with the last ``keep`` checks. It blocks.

    Raises:
        StateUnavailable: the file cannot be used.
    """

    def __init__(self, path: Path, keep: int = 1000) -> None:
        self.path = path
        self._keep = keep
        self._lock = threading.Lock()
        with self._told():
            self._file = opened(path, BUSY_S)
            write_ahead(self._file)
            self._file.execute("PRAGMA secure_delete = ON")
        with self._writing():
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            for statement in {0: TABLES, 1: FROM_1}.get(version, ()):
                self._file.execute(statement)

    def add(self, check: Check) -> Count:
        """Keep a check, and return the counts of its route; its number is given here."""
        texts = [each[:LONGEST_TEXT] for each in check[5:9]]
        with self._writing():
            self._file.execute(
                "INSERT INTO checks (at, scope, route, similarity, asked, kept, served, fresh,"
                " cosine, verdict, judge, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*check[1:5], *texts, *check[9:]),
            )
            self._file.execute(
                "DELETE FROM checks WHERE number <= (SELECT max(number) FROM checks) - ?",
                (self._keep,),
            )
            self._file.execute(
                "INSERT INTO counts (route, checked, false) VALUES (?1, ?2, ?3) ON CONFLICT (route)"
                " DO UPDATE SET checked = checked + ?2, false = false + ?3",
                (check.route, check.verdict != "open", check.verdict == "false"),
            )
            return self._count(check.route)

    def judge(self, number: int, verdict: Verdict, judge: str) -> Count:
        """Note what a person found, which counts instead; return the counts of the route.

        Raises:
            InvalidRequest: there is no such check.
        """
        with self._writing():
            row = self._file.execute(
                "SELECT route, verdict FROM checks WHERE number = ?", (number,)
            ).fetchone()
            if row is None:
                raise InvalidRequest(f"there is no check {number}: it is gone, or never was")
            self._file.execute(
                "UPDATE checks SET verdict = ?, judge = ? WHERE number = ?",
                (verdict, judge, number),
            )
            change = (verdict == "false") - (row[1] == "false")
            self._file.execute(
                "UPDATE counts SET checked = checked + ?1,"
                " false = max(0, min(checked + ?1, false + ?2)) WHERE route = ?3",
                (row[1] == "open", change, row[0]),
            )
            return self._count(row[0])

    def turn(self, route: str, off: int) -> None:
        """Turn a route's semantic tier off, at ``off`` (µs since 1970), or with 0 on again.

        Its counts begin anew then.
        """
        with self._writing():
            if off:
                self._file.execute("UPDATE counts SET off = ? WHERE route = ?", (off, route))
            else:
                self._file.execute("DELETE FROM counts WHERE route = ?", (route,))

    def counts(self) -> list[Count]:
        """Return the counts of all routes."""
        with self._told():
            rows = self._file.execute("SELECT route, checked, false, off FROM counts ORDER BY 1")
            return [Count(*row) for row in rows]

    def checks(self, route: str | None, limit: int, *, false: bool, open_: bool) -> list[Check]:
        """Return the last checks, the newest first: those found ``false``, or that no person has
        judged, where these are asked for (what nobody could decide before the rest).
        """
        with self._told():
            rows = self._file.execute(
                "SELECT * FROM checks WHERE (?1 IS NULL OR route = ?1)"
                " AND (NOT ?2 OR verdict = 'false') AND (NOT ?3 OR judge = '')"
                " ORDER BY (?3 AND verdict = 'open') DESC, number DESC LIMIT ?4",
                (route, false, open_, limit),
            )
            return [Check(*row) for row in rows]

    def undecided(self) -> dict[str, int]:
        """Return how many checks of each route nobody could decide yet."""
        with self._told():
            rows = self._file.execute(
                "SELECT route, count(*) FROM checks WHERE verdict = 'open' GROUP BY route"
            )
            return dict(rows.fetchall())

    def forget(self, what: Purge) -> int:
        """Throw away the checks of a scope, of a route, or all; return how many that was."""
        if what.by not in {"all", "scope", "route"}:
            return 0
        column = {"all": "?1", "scope": "scope", "route": "route"}[what.by]
        with self._writing():
            gone = self._file.execute(
                f"DELETE FROM checks WHERE {column} = ?1",  # noqa: S608 - of the table above
                (what.value,),
            ).rowcount
        with self._told():
            self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _count(self, route: str) -> Count:
        row = self._file.execute(
            "SELECT route, checked, false, off FROM counts WHERE route = ?", (route,)
        ).fetchone()
        return Count(*row) if row else Count(route, 0, 0, 0)

    @contextmanager
    def _writing(self) -> Generator[None]:
        with self._told(), transaction(self._file):
            yield

    @contextmanager
    def _told(self) -> Generator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise StateUnavailable(f"{self.path} cannot be used: {error}") from error
