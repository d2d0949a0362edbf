"""SQLite as the ledger sets it up, and what its troubles are called."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.stores import open_store
from packshot.ledger.stores.migrations import STEPS
from packshot.ledger.stores.sqlite import SqliteDatabase
from tests.ledger.stores.worlds import attempts


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 3),
        ("foreign_keys", 1),
        ("busy_timeout", 5000),
        ("mmap_size", 0),
    ],
)
def test_settings_that_durability_rests_on(tmp_path: Path, pragma: str, value: object) -> None:
    database = SqliteDatabase(tmp_path / "ledger.db")
    assert database._writer is not None
    for connection in (database._writer, database._reader):
        assert connection.execute(f"PRAGMA {pragma}").fetchall() in ([(value,)], [])
    database.close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    open_store(str(file)).close()
    newer = len(STEPS["sqlite"]) + 1
    with sqlite3.connect(file) as raw:
        raw.execute(f"PRAGMA user_version = {newer}")
    raw.close()
    before = file.read_bytes()
    for read_only in (False, True):
        with pytest.raises(LedgerCorrupt, match=r"newer packshot.*update packshot"):
            open_store(str(file), read_only=read_only)
    assert file.read_bytes() == before


def test_a_missing_folder_and_a_missing_file_are_unavailable(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="folder must exist"):
        open_store(str(tmp_path / "nowhere" / "ledger.db"))
    with pytest.raises(LedgerUnavailable):
        open_store(str(tmp_path / "ledger.db"), read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["no database", "a newer one", "a folder that is not there"])
def test_what_cannot_be_opened_is_not_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    file = tmp_path / "ledger.db"
    if wrong == "no database":
        file.write_bytes(b"this is no database, but long enough to be one\n" * 100)
    elif wrong == "a newer one":
        with closing(sqlite3.connect(file)) as raw:
            raw.execute("PRAGMA user_version = 1000")
    else:
        file = tmp_path / "nowhere" / "ledger.db"
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(path: Any, *args: Any, **more: Any) -> sqlite3.Connection:
        new = connect(path, *args, **more)
        if str(tmp_path) in str(path):  # a thread of another test may still be at work
            made.append(new)
        return new

    monkeypatch.setattr(sqlite3, "connect", noted)
    for read_only in (False, True):
        with pytest.raises((LedgerCorrupt, LedgerUnavailable)):
            open_store(str(file), read_only=read_only)
    assert made or wrong == "a folder that is not there"
    for each in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            each.execute("SELECT 1")


def test_what_is_no_database_is_corrupt(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(b"this is no database, but long enough to be one\n" * 100)
    with pytest.raises(LedgerCorrupt, match="not a database"):
        open_store(str(file))


def test_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    store.append(attempts(10))
    writer = store.database._writer  # type: ignore[attr-defined]
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    rows = attempts(2000, first=11)
    with pytest.raises(LedgerUnavailable, match="nothing was acknowledged"):
        store.append(rows)
    assert store.marks() == {("a", 1): 20}
    writer.execute("PRAGMA max_page_count = 1000000")
    assert store.append(rows) == 2000
    assert store.verify() == []
    store.close()


LIMITED = textwrap.dedent("""
    import resource, sys
    from packshot.core.errors import LedgerUnavailable
    from packshot.ledger.stores import open_store
    from tests.ledger.stores.worlds import attempts
    store = open_store(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    stored = refused = 0
    while refused < 3:
        try:
            stored += store.append(attempts(50, first=stored + 1))
        except LedgerUnavailable:
            refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    stored += store.append(attempts(50, first=stored + 1))
    store.close()
    print(stored)
""")


def test_a_file_that_the_kernel_lets_grow_no_more(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, file],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    store = open_store(file)
    assert store.query("SELECT count(*) FROM entries") == [(int(done.stdout),)]
    assert int(done.stdout) > 100
    assert store.verify() == []
    store.close()


def test_a_store_opened_for_reading_cannot_be_written(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    open_store(file).close()
    reader = open_store(file, read_only=True)
    with pytest.raises(LedgerUnavailable, match="reading only"):
        reader.append(attempts(1))
    with pytest.raises(LedgerUnavailable, match="readonly"):
        reader.query("DELETE FROM journals")
    reader.close()


def test_a_wrong_statement_is_the_callers_bug(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        store.query("SELECT colour FROM entries")
    store.close()


def _write(file: str, worker: str) -> None:
    store = open_store(file)
    for at in range(0, 200, 10):
        store.append(attempts(10, first=1 + at, worker=worker))
    store.close()


def test_processes_that_write_at_once_keep_one_chain(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = open_store(file, read_only=True)
    assert store.query("SELECT count(*) FROM entries") == [(400,)]
    assert store.verify() == []
    store.close()


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("settled_at BETWEEN ? AND ?", "entries_settled_at"),
        ("render = ? OR render = ?", "entries_render"),
        ("priced = 0 AND settled_at BETWEEN ? AND ?", "entries_unpriced"),
        ("attempt IN (?, ?)", "sqlite_autoindex_entries_1"),
    ],
)
def test_questions_of_the_reports_have_an_index(tmp_path: Path, where: str, index: str) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    plan = store.query(f"EXPLAIN QUERY PLAN SELECT * FROM entries WHERE {where}", ("0", "1"))  # noqa: S608
    assert index in str(plan)
    store.close()
