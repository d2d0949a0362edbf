"""`packshot prices apply`: what it shows, books, and books once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.cli.apply import NOTHING
from packshot.ledger.stores import open_store
from tests.cli.conftest import Packshot
from tests.ledger.reports.worlds import DAY, entry

ADD = ("prices", "add", "acme/m", "--unit", "second", "--price", "2", "--source", "deal")
SINCE = ("--since", "2025-11-01")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a ledger with two calls of a second each that had no price, and one that had."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "state" / "packshot" / "ledger.db"
    file.parent.mkdir(parents=True)
    store = open_store(str(file))
    rows = [entry(n, "chat", 0, provider="acme", model="m", priced=False) for n in (1, 2)]
    store.append([*rows, entry(3, "chat", 5, provider="openai", model="gpt-4o")])
    assert DAY  # 2025-11-08
    store.close()
    return file


def test_what_has_no_price_says_how_to_give_one(packshot: Packshot, ledger: Path) -> None:
    said = packshot("prices", "apply", *SINCE).out
    assert "acme     m            2 2025-11-08 no price" in said
    assert "booked: 0.000000 EUR for 0 attempts" in said
    assert "packshot prices add --since" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_dry_run_shows_what_a_run_books_once(packshot: Packshot, ledger: Path) -> None:
    assert packshot(*ADD, *SINCE).code == 0
    dry = packshot("prices", "apply", *SINCE, "--dry-run").out
    assert "would be booked: 4.000000 EUR for 2 attempts" in dry
    assert packshot("cost", "unpriced", *SINCE, "--json").json != []
    done = packshot("prices", "apply", *SINCE, "--json").json
    (group,) = done["groups"]
    assert (group["attempts"], group["amount"], done["dry_run"]) == (2, 4 * 10**9, False)
    assert group["price"] == "deal: acme/m@2025-11-01"
    assert packshot("prices", "apply", *SINCE).out == NOTHING + "\n"
    assert json.loads(packshot("cost", "unpriced", *SINCE, "--json").out) == []
    store = open_store(str(ledger))
    assert store.query("SELECT SUM(amount), COUNT(*) FROM entries") == [(4 * 10**9 + 5, 5)]
    assert store.verify() == []
    store.close()


def test_only_what_was_asked_for_is_booked(packshot: Packshot, ledger: Path) -> None:
    packshot(*ADD, *SINCE)
    assert packshot("prices", "apply", *SINCE, "--provider", "fal").out == NOTHING + "\n"
    assert packshot("prices", "apply", "--last", "1h").out == NOTHING + "\n"
    assert packshot("prices", "apply", *SINCE, "--team", "red", "--json").json["groups"]


def test_an_empty_ledger_has_nothing(
    packshot: Packshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert packshot("prices", "apply").out == NOTHING + "\n"
