"""Several processes that open a new file at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from packshot.core import databases


def turn(path: Path, start, told) -> None:
    start.wait()
    file = sqlite3.connect(path, timeout=5)
    try:
        told.put(databases.write_ahead(file))
    except sqlite3.Error as error:
        told.put(str(error))
    file.close()


def test_all_of_them_get_their_log(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(3), context.Queue()
    rows = [context.Process(target=turns, args=(tmp_path, start, told)) for _ in range(3)]
    for each in rows:
        each.start()
    said = [told.get(timeout=60) for _ in range(3 * FILES)]
    for each in rows:
        each.join(10)
    assert set(said) == {"wal"}


FILES = 60


def turns(folder: Path, start, told) -> None:
    for number in range(FILES):
        turn(folder / f"{number}.db", start, told)


def test_a_file_that_stays_locked_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "PATIENCE_S", 0.05)
    path = tmp_path / "a.db"
    holder, other = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        databases.write_ahead(other)
    holder.execute("ROLLBACK")
    assert databases.write_ahead(other) == "wal"
    holder.close()
    other.close()
