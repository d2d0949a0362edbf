"""`packshot ledger`: check, backup, restore, rebuild, drain."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packshot.cli.ledger import app
from packshot.core.errors import InvalidRequest, LedgerUnavailable, OutputError, PackshotError
from packshot.ledger.stores import open_store
from tests.ledger.stores.worlds import attempts

Ledger = Callable[..., tuple[int, str]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of 30 entries that the commands find without being told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "state" / "packshot" / "ledger.db"
    file.parent.mkdir(parents=True)
    store = open_store(str(file))
    store.append(attempts(30))
    store.close()
    return file


@pytest.fixture
def ledger() -> Ledger:
    """Return a function that runs `packshot ledger`; an error of ours is raised."""

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, PackshotError):
            raise done.exception
        return done.exit_code, done.output

    return run


def test_verify(file: Path, ledger: Ledger) -> None:
    assert ledger("verify") == (0, "ok: 30 entries, 0 findings\n")
    with sqlite3.connect(file) as raw:
        raw.execute("UPDATE rollups SET amount = amount + 1")
    raw.close()
    code, said = ledger("verify")
    assert code == 5
    assert "rollups: " in said
    assert "packshot ledger rebuild" in said
    code, said = ledger("verify", "--json")
    facts = json.loads(said)
    assert code == 5
    assert facts["entries"] == 30
    assert {each["check"] for each in facts["findings"]} == {"rollups"}
    assert ledger("rebuild")[0] == 0
    assert ledger("verify")[0] == 0


def test_backup_and_restore(file: Path, ledger: Ledger, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup.db")
    code, said = ledger("backup", backup, "--json")
    assert (code, json.loads(said)) == (0, {"file": backup, "entries": 30})
    with pytest.raises(OutputError, match="--force"):
        ledger("restore", backup)
    assert ledger("restore", backup, "--force")[1] == f"restored 30 entries of {backup}\n"
    assert "30 entries" in ledger("restore", backup, "--store", str(tmp_path / "new.db"))[1]
    assert ledger("verify", "--store", str(tmp_path / "new.db"))[0] == 0
    assert file.exists()


def test_a_store_that_is_not_there(ledger: Ledger, tmp_path: Path) -> None:
    for words in (("verify",), ("backup", str(tmp_path / "b.db"))):
        with pytest.raises(LedgerUnavailable, match="nothing has been booked there yet"):
            ledger(*words, "--store", str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


def test_drain_once_brings_in_what_a_worker_left(
    file: Path, ledger: Ledger, tmp_path: Path
) -> None:
    pytest.importorskip("packshot.ledger.drain")
    from packshot.ledger.journal import Journal

    journal = Journal(tmp_path / "state" / "packshot" / "journal", "w")
    for row in attempts(7):
        journal.append(row.event)
    journal.close()
    code, said = ledger("drain", "--once", "--json")
    assert (code, json.loads(said)) == (0, {"moved": 7})
    assert ledger("verify")[1] == "ok: 37 entries, 0 findings\n"
    assert ledger("drain", "--once")[1].startswith("0 settled")
    assert file.exists()


CONFIG = """
ledger:
  prices:
    - {provider: local, model: "", unit: gb_month, price: 30, since: 2020-01-01, source: ours}
  storage:
    - {folder: ./out, team: shop}
"""


def test_accrue_books_each_day_of_what_is_stored_once(
    file: Path, ledger: Ledger, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="--scan"):
        ledger("accrue")
    (tmp_path / "packshot.yaml").write_text(CONFIG)
    with pytest.raises(OutputError, match="measured"):
        ledger("accrue")
    (tmp_path / "out").mkdir()
    picture = tmp_path / "out" / "a.png"
    picture.write_bytes(bytes(1_000_000))
    os.utime(picture, (0, 0))
    code, said = ledger("accrue", "--json")
    facts = json.loads(said)
    assert (code, facts["days"]) == (0, 1)
    assert 1_000_000_000 * 0.03 / 31 - 1 <= facts["amount"] <= 1_000_000_000 * 0.03 / 28 + 1
    assert ledger("accrue")[1] == "0 days of 1 folders booked: 0.000000000 EUR\n"
    assert ledger("accrue", "--scan", "out", "--bucket", "b", "--since", "2020-01-01")[
        1
    ].startswith("2")
    with pytest.raises(InvalidRequest, match="--since"):
        ledger("accrue", "--since", "then")
    assert ledger("verify")[0] == 0
    with sqlite3.connect(file) as raw:
        booked = raw.execute(
            "SELECT model, team, count(*), min(seq) > 30 FROM entries WHERE account = 'storage'"
            " GROUP BY 1, 2"
        ).fetchall()
    raw.close()
    assert booked[0][:2] == ("b", "")
    assert booked[0][2] > 400, "it goes on until all days are booked"
    assert booked[1] == ("out", "shop", 1, 1)


def test_a_drain_books_storage_beside_and_goes_on_where_it_cannot(
    file: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packshot.yaml").write_text(CONFIG)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def once(self: object, stop: object, beside: Callable[[], object]) -> None:
        beside()
        beside()

    monkeypatch.setattr("packshot.ledger.drain.Drain.run", once)
    said = ledger("drain")[1]
    assert said.count("storage is not booked yet") == 1
    (tmp_path / "out").mkdir()
    assert "warning" not in ledger("drain")[1]
    with sqlite3.connect(file) as raw:
        assert raw.execute("SELECT count(*) FROM entries WHERE account = 'storage'").fetchone() == (
            1,
        )
    raw.close()
