"""Whatever is damaged behind the ledger's back is found, and called by its name."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from packshot.core.errors import LedgerCorrupt
from packshot.ledger.stores import open_store
from packshot.ledger.stores.verify import MOST
from tests.ledger.stores.worlds import attempt, attempts

LEGS = "amount = 7, payable = 7, depreciation = 0, storage = 0"

INVENTED = """
INSERT INTO rollups SELECT hour + 1, outcome, account, stage, provider, model, route, virtual_key,
  team, recipe, batch, device, bucket, 0, 0, 0, 0, 0, 0, 0, 0
FROM rollups LIMIT 1
"""

DAMAGE = {
    "an amount altered": (
        f"UPDATE entries SET {LEGS} WHERE seq = 5",  # noqa: S608
        {"chain", "rollups", "renders"},
    ),
    "a reason altered": ("UPDATE entries SET reason = 'x' WHERE seq = 5", {"chain"}),
    "a hash altered": ("UPDATE entries SET hash = zeroblob(32) WHERE seq = 5", {"chain"}),
    "legs that do not balance": (
        "UPDATE entries SET payable = payable + 1 WHERE seq = 5",
        {"balance", "chain"},
    ),
    "an entry taken out": (
        "DELETE FROM entries WHERE seq = 5",
        {"sequence", "chain", "gaps", "rollups", "renders"},
    ),
    "the last entries taken out": (
        "DELETE FROM entries WHERE seq > 15",
        {"chain", "gaps", "rollups", "renders"},
    ),
    "all entries taken out": ("DELETE FROM entries", {"chain", "gaps", "rollups", "renders"}),
    "a mark moved": ("UPDATE journals SET number = number + 1", {"gaps"}),
    "a mark lost": ("DELETE FROM journals", {"gaps"}),
    "a rollup altered": ("UPDATE rollups SET attempts = attempts + 1", {"rollups"}),
    "a day altered": ("UPDATE days SET amount = amount + 1", {"rollups"}),
    "a day lost": ("DELETE FROM days", {"rollups"}),
    "a rollup invented": (
        INVENTED,
        {"rollups"},
    ),
    "a render altered": ("UPDATE renders SET delivered = 1 - delivered", {"renders"}),
    "a render lost": ("DELETE FROM renders WHERE render LIKE '%-2'", {"renders"}),
}


@pytest.mark.parametrize(("damage", "checks"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_found(tmp_path: Path, damage: str, checks: set[str]) -> None:
    file = tmp_path / "ledger.db"
    store = open_store(str(file))
    store.append(attempts(20))
    assert store.verify() == []
    store.close()
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA ignore_check_constraints = ON")
        for verb in ("update", "delete"):
            raw.execute(f"DROP TRIGGER entries_no_{verb}")
        raw.execute(damage)
    raw.close()
    store = open_store(str(file), read_only=True)
    found = store.verify()
    store.close()
    # A check of SQLite's own names what its constraints forbid; that comes on top.
    assert {each.check for each in found} - {"files"} == checks


def test_a_number_left_out_of_a_journal_is_a_gap(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    store.append([attempt(1), attempt(2), attempt(4)])
    (finding,) = store.verify()
    assert finding.check == "gaps"
    assert finding.where == "a/1"
    store.close()


def test_a_correction_of_an_earlier_attempt_is_no_orphan(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    first = attempt(1)
    store.append([first, attempt(2, outcome="correction", corrects=first.event.attempt)])
    assert store.verify() == []
    store.close()


def test_a_million_symptoms_are_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    store.append([attempt(k, outcome="correction", corrects="nobody") for k in range(1, 60)])
    assert len(store.verify()) == MOST
    store.close()


def test_bytes_overwritten_in_the_file_are_no_silent_answer(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    store = open_store(str(file))
    store.append(attempts(400))
    store.close()
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
    file.write_bytes(data)
    store = open_store(str(file), read_only=True)
    try:
        found = store.verify()
    except LedgerCorrupt as error:
        found = [str(error)]
    assert found
    store.close()
