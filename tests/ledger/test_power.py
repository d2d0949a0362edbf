"""The power goes at any moment: what was acknowledged in `power` is there after the restart."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.clock import wall_us
from packshot.core.errors import LedgerUnavailable
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal, RealFiles
from packshot.ledger.records import Dimensions, Held, Settled
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.power import PowerDisk

OWN = Dimensions(stage="chat", provider="openai")
Mode = Literal["process", "power"]


@dataclass
class Life:
    """What a worker did until the power went: each attempt's place in the journal, and the acks."""

    held: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    synced: int = 0


def held(attempt: str, padding: int) -> Held:
    return Held(attempt, 1, 50, 10**18, OWN, dispatched=True, key="k" * padding)


def settle(journal: Journal, attempt: str) -> None:
    journal.settle(
        lambda number: Settled(
            attempt, number, 1, 1, 2, "succeeded", "", OWN, account="chat", amount=5, payable=5
        )
    )


def live(disk: PowerDisk, mode: Mode, store: TableStore, rng: random.Random) -> Life:
    """Work until the power goes, or until there is no more to do, and stop in the middle of it."""
    life = Life()
    journals = disk.root / "journal"
    drain = Drain(journals, store, None, wall_us)
    try:
        journal = Journal(journals, "w", durability=mode, segment_bytes=3000, files=disk)
    except LedgerUnavailable:
        return life
    with suppress(LedgerUnavailable):  # the power
        open_ones: list[str] = []
        for number in range(rng.randrange(1, 60)):
            attempt = f"a{number}"
            journal.append(held(attempt, rng.choice((0, 0, 300, 5000))))
            life.held[attempt] = journal.seq
            open_ones.append(attempt)
            if mode == "power":
                journal.wait(journal.seq)
                life.acknowledged = journal.seq
            if rng.random() < 0.7:
                done = open_ones.pop(rng.randrange(len(open_ones)))
                settle(journal, done)
                life.settled[done] = journal.seq
                if mode == "power":
                    journal.wait(journal.seq)
                    life.acknowledged = journal.seq
            if rng.random() < 0.1:
                drain.step()
            if mode == "process" and rng.random() < 0.15:
                journal._sync()  # what its thread does every 50 ms
    disk.cut_at = 1
    journal._asked.set()
    life.synced = journal._synced
    journal._broken = journal._broken or "gone"
    journal._thread.join()
    os.close(journal._lock_file)
    os.close(journal._descriptor)
    for descriptor in journal._retired:
        os.close(descriptor)
    journal._sign.close()
    return life


def restart(folder: Path, store: TableStore, rng: random.Random) -> dict[str, tuple[str, int]]:
    """Start the worker again on what the disk has, and return what the store has in the end."""
    journals = folder / "journal"
    if rng.random() < 0.5:
        Drain(journals, store, None, wall_us).step()
    again = Journal(journals, "w")
    again.append(held("again", 0))
    settle(again, "again")
    again.close()
    drain = Drain(journals, store, None, wall_us)
    while drain.step():
        pass
    rows = store.query("SELECT attempt, outcome, amount FROM entries")
    assert len(rows) == len({row[0] for row in rows})
    assert {finding.check for finding in store.verify()} <= {"gaps"}
    return {attempt: (outcome, amount) for attempt, outcome, amount in rows}


def outlives(mode: Mode, seed: int, cut_at: int) -> int:
    """Work, cut the power at a call's number, restart; return how many promises were kept."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        root, after = Path(temporary) / "before", Path(temporary) / "after"
        root.mkdir()
        store = open_store(str(Path(temporary) / "ledger.db"))
        store.database._writer.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]
        try:
            disk = PowerDisk(root, cut_at)
            life = live(disk, mode, store, rng)
            disk.after(after, rng)
            stored = restart(after, store, rng)
        finally:
            store.close()
    safe = life.acknowledged if mode == "power" else life.synced
    assert stored["again"] == ("succeeded", 5)
    for attempt, seq in life.held.items():
        if seq <= safe:
            assert attempt in stored, f"hold {attempt} is lost"
    for attempt, seq in life.settled.items():
        if seq <= safe:
            assert stored[attempt] == ("succeeded", 5), f"the end of {attempt} is lost"
    return safe


@pytest.mark.parametrize("mode", ["power", "process"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), cut_at=st.integers(0, 250))
def test_what_was_acknowledged_outlives_the_power(mode: Mode, seed: int, cut_at: int) -> None:
    """In `process` what outlives it is what the journal had synced: 50 ms ago, or less."""
    outlives(mode, seed, cut_at)


def test_without_anybody_waiting_the_journal_syncs_by_itself(tmp_path: Path) -> None:
    """The bound of `process`: a group sync every 50 ms, without being asked."""
    synced = threading.Event()

    class Disk(RealFiles):
        @staticmethod
        def sync(descriptor: int) -> None:
            os.fdatasync(descriptor)
            synced.set()

    with patch.object(
        threading.Event, "wait", autospec=True, side_effect=threading.Event.wait
    ) as wait:
        journal = Journal(tmp_path, "w", files=Disk())
        synced.clear()
        journal.append(held("a", 0))
        assert synced.wait(60)
        journal.close()
    assert {call.args[1:] for call in wait.call_args_list if call.args[0] is journal._asked} == {
        (0.05,)
    }
