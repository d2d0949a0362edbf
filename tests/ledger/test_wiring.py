"""From settings to a ledger: names of workers, and a drain that hears of caps."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.errors import BudgetExceeded
from packshot.core.types import Usage
from packshot.ledger.drain import locked
from packshot.ledger.prices.book import book_of
from packshot.ledger.records import Dimensions
from packshot.ledger.settings import CapRow, Settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in, local_ledger

OWN = Dimensions(render="r", stage="denoise", device="cpu", team="shop")


def settings_in(folder: Path, *caps: CapRow) -> Settings:
    return Settings(str(folder / "ledger.db"), folder / "journal", caps=caps)


def test_two_commands_at_once_have_a_journal_each(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    book = book_of(settings)
    first, second = local_ledger(settings, book), local_ledger(settings, book)
    for ledger in (first, second):
        ledger.post(ledger.hold(OWN, 10**9), Usage("denoise", 3600.0, "cpu"))
        ledger.close()
    third = local_ledger(settings, book)
    third.close()
    assert sorted(path.name[:8] for path in settings.journal.glob("local-*")) == [
        "local-0.",
        "local-1.",
    ]
    store = open_store(settings.store)
    assert bring_in(settings, store) == 2
    assert store.query("SELECT sum(amount), count(*) FROM entries") == [(10**8, 2)]
    store.close()


def test_what_was_spent_stays_spent_for_the_next_command(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, CapRow("team", Decimal("0.06"), "ever", "shop"))
    book, store = book_of(settings), open_store(settings.store)
    ledger = local_ledger(settings, book)
    ledger.post(ledger.hold(OWN, 6 * 10**7), Usage("denoise", 3600.0, "cpu"))
    ledger.close()
    assert bring_in(settings, store) == 1
    ledger = local_ledger(settings, book)
    ledger.void(ledger.hold(OWN, 10**7), "not needed")
    with pytest.raises(BudgetExceeded, match="team:shop"):
        ledger.hold(OWN, 10**7 + 1)
    ledger.close()
    store.close()


def test_where_another_drain_works_there_is_nothing_to_do(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    local_ledger(settings, book_of(settings)).close()
    store = open_store(settings.store)
    with locked(settings.journal / "drain.lock"):
        assert bring_in(settings, store) == 0
    store.close()
