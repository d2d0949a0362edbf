"""A migration that is killed anywhere leaves the schema before it or after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.stores import open_store
from packshot.ledger.stores.database import Database
from packshot.ledger.stores.migrations import STEPS, require_current
from packshot.ledger.stores.sqlite import SqliteDatabase
from tests.ledger.stores.worlds import attempts

ROOT = Path(__file__).parents[3]

KILLED = """
import os, signal, sys
from packshot.ledger.stores import open_store, postgres, sqlite
left = int(sys.argv[2])
for kind in (sqlite._Statements, postgres._Statements):
    def killing(self, sql, parameters=(), plain=kind.execute):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        plain(self, sql, parameters)
    kind.execute = killing
open_store(sys.argv[1]).close()
"""


def database_of(url: str) -> Database:
    if url.startswith("postgresql"):
        from packshot.ledger.stores.postgres import PostgresDatabase

        return PostgresDatabase(url)
    return SqliteDatabase(url)


def version_of(url: str) -> int:
    database = database_of(url)
    with database.snapshot() as look:
        version = database.version(look)
    database.close()
    return version


@pytest.mark.parametrize("after", [0, 1, 4, 7, 9, 11, 13])
def test_killed_in_a_migration(url: str, after: int) -> None:
    command = [sys.executable, "-c", KILLED, url, str(after)]
    done = subprocess.run(command, cwd=ROOT / "src", check=False, timeout=60)
    assert done.returncode == -9
    assert version_of(url) in {0, 1}
    store = open_store(url)
    store.append(attempts(5))
    assert store.verify() == []
    store.close()
    assert version_of(url) == len(STEPS[store.dialect])


def test_an_older_store_survives_kills_in_its_next_step(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement of the last step, with other processes that try at the same time."""
    monkeypatch.setitem(STEPS, "postgresql", STEPS["postgresql"][:-1])
    open_store(postgres_url).close()
    monkeypatch.undo()
    before = version_of(postgres_url)
    for after in range(len(STEPS["postgresql"][-1])):
        command = [sys.executable, "-c", KILLED, postgres_url, str(after)]
        both = [subprocess.Popen(command, cwd=ROOT / "src") for _ in range(2)]
        assert [each.wait(60) for each in both] == [-9, -9]
        assert version_of(postgres_url) == before
    store = open_store(postgres_url)
    assert store.append(attempts(5)) == 5
    assert store.verify() == []
    store.close()
    assert version_of(postgres_url) == before + 1 == len(STEPS["postgresql"])


def test_an_older_store_is_brought_up_with_what_it_holds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_steps = {dialect: list(steps) for dialect, steps in STEPS.items()}
    for dialect, steps in all_steps.items():
        monkeypatch.setitem(STEPS, dialect, steps[:1])
    # As it was written then: without sums by day, which a later step makes.
    monkeypatch.setattr("packshot.ledger.stores.rollup.days_of", lambda _: {})
    old = open_store(url)
    old.append(attempts(5))
    old.close()
    monkeypatch.undo()
    assert version_of(url) == 1
    database = database_of(url)
    with pytest.raises(LedgerUnavailable, match="open it once for writing"):
        require_current(database)
    database.close()
    new = open_store(url)
    new.append(attempts(5, first=6))
    assert new.verify() == []
    new.close()
    assert version_of(url) == len(STEPS[new.dialect]) > 1
