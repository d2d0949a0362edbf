"""The lag: right in small, bounded in large, and damage is told before anybody looks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.clock import SECOND_US, wall_us
from packshot.core.errors import LedgerUnavailable
from packshot.ledger import lag
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal
from packshot.ledger.lag import SAMPLE, Lag, lag_of, read_cursor
from packshot.ledger.records import Dimensions, Held, Settled
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.world import NOW

OWN = Dimensions(stage="denoise", device="cpu")
NONE = Lag(Decimal(0), 0)


def settle(journal: Journal, count: int = 1, at: int = NOW) -> None:
    for _ in range(count):
        journal.settle(
            lambda number: Settled(
                f"{journal.worker}-{number}", number, 1, 1, at, "succeeded", "", OWN
            )
        )


def hold(journal: Journal) -> None:
    journal.append(Held("open", 1, 50, 10**18, OWN, dispatched=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TableStore]:
    made = open_store(str(tmp_path / "ledger.db"))
    yield made
    made.close()


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(folder, "w")
    yield made
    made.close()


def test_where_nothing_was_booked_there_is_no_lag(tmp_path: Path) -> None:
    assert lag_of(tmp_path / "none", {}, NOW) == NONE


def test_it_is_the_age_of_the_oldest_attempt_that_is_not_stored(folder, store, journal) -> None:
    drain = Drain(folder, store, None, wall_us)
    hold(journal)
    assert lag_of(folder, store.marks(), NOW) == NONE, "a hold is no backlog"
    settle(journal, at=NOW - 9 * SECOND_US)
    assert lag_of(folder, store.marks(), NOW) == Lag(Decimal(9), 1)
    drain.step()
    assert lag_of(folder, store.marks(), NOW) == NONE
    settle(journal, at=NOW - 4 * SECOND_US)
    settle(journal, at=NOW - 2 * SECOND_US)
    other = Journal(folder, "v")
    settle(other, at=NOW - 5 * SECOND_US)
    assert lag_of(folder, store.marks(), NOW) == Lag(Decimal(5), 3)
    assert lag_of(folder, store.marks(), NOW - 6 * SECOND_US) == Lag(Decimal(0), 3)
    other.close()
    drain.step()
    assert lag_of(folder, store.marks(), NOW) == NONE


def test_without_a_cursor_the_store_s_marks_say_what_is_stored(folder, store, journal) -> None:
    settle(journal, 3)
    Drain(folder, store, None, wall_us).step()
    (folder / "drain.cursor").write_text("{broken")
    assert read_cursor(folder).offsets == {}
    assert lag_of(folder, store.marks(), NOW) == NONE


def test_a_large_backlog_is_not_read_but_measured(folder, store, journal, monkeypatch) -> None:
    drain = Drain(folder, store, None, wall_us)
    drain.step()
    settle(journal, 1, NOW - 70 * SECOND_US)
    settle(journal, 4000)
    read: list[int] = []
    whole = lag.scan

    def watched(data: bytes, *, sealed: bool):
        read.append(len(data))
        return whole(data, sealed=sealed)

    monkeypatch.setattr(lag, "scan", watched)
    found = lag_of(folder, store.marks(), NOW)
    assert found.seconds == 70
    assert found.attempts == pytest.approx(4001, rel=0.02)
    assert sum(read) == SAMPLE
    (file,) = folder.glob("*/*.journal")
    assert file.stat().st_size > 3 * SAMPLE
    drain.step()
    settle(journal, 2, NOW - 3 * SECOND_US)
    assert lag_of(folder, store.marks(), NOW) == Lag(Decimal(3), 2), "what is stored is not read"


def test_damage_is_told_before_and_after_the_drain_has_met_it(folder, store, journal) -> None:
    settle(journal, 3)
    (file,) = folder.glob("*/*.journal")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert lag_of(folder, store.marks(), NOW).damaged == 1
    drain = Drain(folder, store, None, wall_us)
    drain.step()
    assert lag_of(folder, store.marks(), NOW) == Lag(Decimal(0), 0, 1)
    os.close(journal._lock_file)  # dead
    drain.step()
    assert list(folder.glob("*/*.damaged"))
    assert lag_of(folder, store.marks(), NOW) == Lag(Decimal(0), 0, 1)
    journal._lock_file = os.open(os.devnull, os.O_RDONLY)  # the fixture closes it


def test_journals_that_cannot_be_read_are_an_error(folder, store, journal) -> None:
    (folder / "drain.cursor").mkdir()
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        lag_of(folder, store.marks(), NOW)
