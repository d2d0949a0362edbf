"""Machines that share a store have workers of the same names, and are not taken for each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.core.types import Usage
from packshot.ledger import journal as journal_module
from packshot.ledger.homes import name_in
from packshot.ledger.ledger import open_ledger
from packshot.ledger.prices.book import book_of
from packshot.ledger.records import Dimensions
from packshot.ledger.settings import Settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in


def test_two_machines_that_start_in_one_second_lose_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module.time, "time", lambda: 1_764_000_000.0)
    machines = [Settings(store=postgres_url, journal=tmp_path / name) for name in ("a", "b")]
    of = Dimensions(stage="chat", provider="openai", model="gpt-4o-mini")
    store = open_store(postgres_url)
    for settings in machines:
        ledger = open_ledger(settings, book_of(settings), "gateway-0")
        ledger.post(ledger.hold(of, 10**9), Usage("caption", output_tokens=1))
        ledger.close()
        bring_in(settings, store)
    assert store.query("SELECT count(*) FROM entries") == [(2,)]
    assert store.verify() == []
    store.close()


def test_a_folder_keeps_its_name_and_of_many_at_once_one_makes_it(tmp_path: Path) -> None:
    settings = Settings(store="postgresql:///x", journal=tmp_path / "new" / "journal")
    with ThreadPoolExecutor(16) as pool:
        names = set(pool.map(lambda _: name_in(settings, "gateway-0"), range(64)))
    assert len(names) == 1
    assert names.pop().startswith("gateway-0.")
    assert [each.name for each in settings.journal.iterdir()] == ["home"]


def test_two_folders_of_one_file_are_told_apart(tmp_path: Path) -> None:
    store = str(tmp_path / "ledger.db")
    names = {
        name_in(Settings(store=store, journal=tmp_path / folder), "gateway-0")
        for folder in ("one", "two")
    }
    assert len(names) == 2


def test_where_the_server_counts_lives_no_name_is_needed(tmp_path: Path) -> None:
    settings = Settings(store="postgresql:///x", journal=tmp_path, durability="store")
    assert name_in(settings, "gateway-0") == "gateway-0"
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_else_wrote_there_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("../../etc")
    with pytest.raises(LedgerUnavailable, match="home"):
        name_in(Settings(store="postgresql:///x", journal=tmp_path), "gateway-0")
