"""A backup of either store restores into either, whole or not at all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from packshot.core.errors import LedgerCorrupt, OutputError
from packshot.ledger.stores import open_store
from packshot.ledger.stores.backup import backup, restore
from packshot.ledger.stores.rollup import RENDERS, ROLLUPS
from packshot.ledger.stores.schema import ENTRIES, JOURNALS
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.stores.worlds import attempts


def content(store: TableStore) -> list[list[tuple]]:
    return [
        sorted(store.query(f"SELECT {', '.join(table.columns)} FROM {table.name}"))  # noqa: S608
        for table in (ENTRIES, JOURNALS, ROLLUPS, RENDERS)
    ]


def test_a_backup_is_the_store(store: TableStore, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    store.append([*attempts(30), *attempts(5, worker="b", epoch=3)])
    assert backup(store, file) == 35
    copy = open_store(str(file), read_only=True)
    assert content(copy) == content(store)
    assert copy.verify() == []
    copy.close()
    assert {f.name for f in tmp_path.iterdir() if f.name.startswith((".backup", "backup"))} == {
        "backup.db"
    }


def test_it_restores_into_either_store(
    tmp_path: Path, store: TableStore, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "backup.db"
    store.append(attempts(30))
    backup(store, file)
    store.append(attempts(10, first=31))
    for target in (str(tmp_path / "new.db"), request.getfixturevalue("postgres_url")):
        if store.dialect == "postgresql" and target.startswith("postgresql"):
            continue  # the fixture's database is the one that the store has
        assert restore(file, target) == 30
        again = open_store(target)
        assert again.verify() == []
        # The journals go on where the backup ends: what came later is sent again.
        assert again.append(attempts(10, first=31)) == 10
        assert again.query("SELECT max(seq) FROM entries") == [(40,)]
        again.close()


def test_entries_are_replaced_only_when_told_to(
    store: TableStore, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup.db"
    store.append(attempts(10))
    backup(store, file)
    before = content(store)
    store.append(attempts(10, first=11))
    with pytest.raises(OutputError, match=r"20 entries.*--force"):
        restore(file, url)
    assert store.query("SELECT count(*) FROM entries") == [(20,)]
    assert restore(file, url, force=True) == 10
    assert content(store) == before
    assert store.append(attempts(10, first=11)) == 10
    with (
        pytest.raises(LedgerCorrupt, match="append a correction"),
        store.database.transaction() as within,
    ):
        within.execute("DELETE FROM entries")


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    store = open_store(str(tmp_path / "ledger.db"))
    store.append(attempts(10))
    backup(store, file)
    store.close()
    copy = open_store(str(file))
    with copy.database.transaction() as within:
        within.execute("DROP TRIGGER entries_no_update")
        within.execute("UPDATE entries SET reason = 'altered' WHERE seq = 4")
    copy.close()
    with pytest.raises(LedgerCorrupt, match=r"nothing was restored.*chain, entry 4"):
        restore(file, str(tmp_path / "ledger.db"), force=True)
    same = open_store(str(tmp_path / "ledger.db"), read_only=True)
    assert same.verify() == []
    same.close()


def test_a_backup_is_whole_while_others_write(store: TableStore, url: str, tmp_path: Path) -> None:
    over = threading.Event()
    written: list[int] = []

    def write() -> None:
        writer = open_store(url)
        first = 1
        while not over.is_set() and first < 20_000:
            written.append(writer.append(attempts(20, first=first)))
            first += 20
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    counts = [backup(store, tmp_path / f"{k}.db") for k in range(4)]
    over.set()
    thread.join()
    assert counts == sorted(counts)
    for k, count in enumerate(counts):
        copy = open_store(str(tmp_path / f"{k}.db"), read_only=True)
        assert copy.verify() == []
        assert copy.query("SELECT count(*) FROM entries") == [(count,)]
        copy.close()
    assert store.query("SELECT count(*) FROM entries") == [(sum(written),)]


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(OutputError, match="never overwritten"):
        backup(store, file)
    with pytest.raises(OutputError, match="cannot be written"):
        backup(store, tmp_path / "nowhere" / "backup.db")
    assert file.read_text() == "mine"
    store.close()


def test_a_missing_backup_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no backup"):
        restore(tmp_path / "backup.db", str(tmp_path / "ledger.db"))
    assert list(tmp_path.iterdir()) == []


WRITER = textwrap.dedent("""
    import sys, time
    from packshot.ledger.stores import open_store
    from tests.ledger.stores.worlds import attempts
    store = open_store(sys.argv[1])
    first = 1 + store.query("SELECT count(*) FROM entries")[0][0]
    while True:
        store.append(attempts(20, first=first))
        first += 20
        time.sleep(0.01)
""")


@pytest.mark.slow
def test_killed_while_others_write_a_backup_is_whole_or_absent(
    store: TableStore, url: str, tmp_path: Path
) -> None:
    """`packshot ledger backup` itself, killed at any point, while another process writes."""
    rng = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    store.append(attempts(3000))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdout=subprocess.DEVNULL, env=environment
    )
    whole = 0
    try:
        for cycle in range(6):
            folder = tmp_path / str(cycle)
            folder.mkdir()
            file = folder / "backup.db"
            command = [sys.executable, "-m", "packshot", "ledger", "backup", str(file)]
            done = subprocess.Popen(
                [*command, "--store", url], stdout=subprocess.DEVNULL, env=environment
            )
            wait_for_part(folder, done)
            with suppress(subprocess.TimeoutExpired):
                # At once at first: a quiet machine is done with a backup in less than the rest.
                done.wait(rng.random() * 0.03 * cycle)
            done.kill()
            done.wait(30)
            if file.exists():
                whole += 1
                copy = open_store(str(file), read_only=True)
                assert copy.query("SELECT count(*) FROM entries")[0][0] >= 3000
                assert copy.verify() == []
                copy.close()
                assert list(folder.iterdir()) == [file]
            assert backup(store, folder / "next.db") >= 3000, "nothing is in the way of the next"
    finally:
        writer.kill()
        writer.wait(30)
    assert whole < 6, "none was killed half-way: kill earlier"
    assert store.verify() == []


def wait_for_part(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the backup has begun to write, or has ended."""
    while process.poll() is None and not any(folder.iterdir()):
        time.sleep(0.001)
