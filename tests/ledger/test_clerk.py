"""Corrections are made once: by two at a time, again, and after a death half-way; caps hear."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.core.types import Usage, UsageDetail
from packshot.ledger.clerk import Repriced, book_late, corrector, late, total_of
from packshot.ledger.leases import open_shared
from packshot.ledger.ledger import open_ledger
from packshot.ledger.prices.book import PriceBook, book_of
from packshot.ledger.records import Dimensions
from packshot.ledger.reports.invoice import Difference, correct
from packshot.ledger.reports.period import Period
from packshot.ledger.settings import CapRow, PriceEntry, Settings
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore
from packshot.ledger.wiring import bring_in
from tests.ledger.stores.conftest import postgres, postgres_url, url

__all__ = ["postgres", "postgres_url", "url"]

EVER = Period(0, 1 << 61)
CALL = Dimensions(stage="chat", provider="acme", model="m", team="red")
PRICE = PriceEntry("acme", "m", "output_token", Decimal("0.000001"), "2020-01-01", "test")
BATCH = PriceEntry(
    "acme", "m", "output_token", Decimal("0.0000005"), "2020-01-01", "test", tier="batch"
)


def settings_of(folder: Path, url: str, *prices: PriceEntry) -> Settings:
    return Settings(
        store=url,
        journal=folder / "journal",
        prices=prices,
        caps=(CapRow("total", Decimal(100)), CapRow("team", Decimal(50), "month", "red")),
    )


def book_unpriced(settings: Settings, *usages: Usage | None) -> None:
    """Post calls whose price is not known."""
    ledger = open_ledger(settings, PriceBook.load(), "w")
    for usage in usages:
        hold = ledger.hold(CALL, None, priced=False)
        outcome, reason = ("succeeded", "") if usage else ("unknown", "cut")
        ledger.post(hold, usage, outcome, reason)
    ledger.close()


def spent(settings: Settings) -> dict[str, int]:
    """Return what the caps have heard of."""
    shared = open_shared(settings.store)
    with shared.transaction() as within:
        rows = within.query("SELECT period, spent FROM cap_periods")
    shared.close()
    return {period.partition("@")[0]: int(amount) for period, amount in rows}


def run(settings: Settings, store: TableStore) -> list[Repriced]:
    book = book_of(settings)
    with corrector(settings, store, book) as ledger:
        return book_late(late(store, book, EVER), ledger)


@pytest.fixture
def store(url: str) -> Generator[TableStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def test_what_has_a_price_by_now_is_booked_once_and_caps_hear(
    tmp_path: Path, url: str, store: TableStore
) -> None:
    before = settings_of(tmp_path, url)
    used = Usage("caption", output_tokens=1000)
    book_unpriced(before, used, used, Usage("caption", output_tokens=1000, tier="batch"), None)
    bring_in(before, store)
    assert [group.why for group in run(before, store)] == ["no price", "usage unknown"]
    after = settings_of(tmp_path, url, PRICE)
    said = book_late(late(store, book_of(after), EVER), None)
    groups = run(after, store)
    assert groups == said  # a dry run tells what will be
    assert [(g.why, g.attempts, g.amount) for g in groups] == [
        ("", 2, 2_000_000),
        ("no price", 1, 0),  # of the tier batch nobody knows one: the standard price is none of it
        ("usage unknown", 1, 0),
    ]
    assert spent(after) == {"total": 2_000_000, "team:red": 2_000_000}
    assert [(g.why, g.amount) for g in run(after, store)] == [
        ("no price", 0),
        ("usage unknown", 0),
    ]
    (batch, _) = run(settings_of(tmp_path, url, PRICE, BATCH), store)
    assert (batch.attempts, batch.amount) == (1, 500_000)
    assert store.query("SELECT SUM(amount), COUNT(*) FROM entries") == [(2_500_000, 7)]
    assert store.verify() == []


def test_kinds_of_tokens_are_known_when_the_price_is(
    tmp_path: Path, url: str, store: TableStore
) -> None:
    before = settings_of(tmp_path, url)
    detail = UsageDetail(output_audio_tokens=400, searches=3)
    book_unpriced(before, Usage("caption", output_tokens=1000, detail=detail))
    bring_in(before, store)
    cent = Decimal("0.01")
    audio = PriceEntry("acme", "m", "output_audio_token", cent, "2020-01-01", "test")
    search = PriceEntry("acme", "m", "search", Decimal(1), "2020-01-01", "test")
    (group,) = run(settings_of(tmp_path, url, PRICE, audio, search), store)
    assert group.amount == 600 * 1000 + 400 * 10**7 + 3 * 10**9


def test_only_one_corrects_at_a_time(tmp_path: Path, url: str, store: TableStore) -> None:
    settings = settings_of(tmp_path, url)
    book = book_of(settings)
    other = open_store(url)
    elsewhere = settings_of(tmp_path / "another machine", url)
    with corrector(settings, store, book):
        with pytest.raises(LedgerUnavailable, match="another run"):
            run(settings, other)
        if store.dialect == "postgresql":
            with pytest.raises(LedgerUnavailable, match="another run"):
                run(elsewhere, other)
    assert run(settings, other) == []
    other.close()


KILLED = """
import sys, time
from pathlib import Path
from packshot.ledger.clerk import book_late, corrector, late
from packshot.ledger.prices.book import book_of
from packshot.ledger.stores import open_store
from tests.ledger.test_clerk import EVER, PRICE, settings_of
settings = settings_of(Path(sys.argv[1]), sys.argv[2], PRICE)
book, store = book_of(settings), open_store(sys.argv[2])
def told(done):
    print(done, flush=True)
    time.sleep(0.002)
with corrector(settings, store, book) as ledger:
    book_late(late(store, book, EVER), ledger, told)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_half_way_is_gone_on_with(
    tmp_path: Path, how: signal.Signals
) -> None:
    url = str(tmp_path / "ledger.db")
    before = settings_of(tmp_path, url)
    used = Usage("caption", output_tokens=1000)
    book_unpriced(before, *[used] * 400)
    store = open_store(url)
    bring_in(before, store)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 50:
                child.send_signal(how)
                break
        child.communicate(timeout=60)
    assert child.returncode == -how
    groups = run(settings_of(tmp_path, url, PRICE), store)
    assert 0 < groups[0].attempts < 400
    assert store.query("SELECT SUM(amount), COUNT(*) FROM entries") == [(400 * 10**6, 800)]
    assert spent(before) == {"total": 400 * 10**6, "team:red": 400 * 10**6}
    assert run(settings_of(tmp_path, url, PRICE), store) == []
    assert store.verify() == []
    store.close()


def test_caps_hear_of_an_invoice(tmp_path: Path, url: str, store: TableStore) -> None:
    settings = settings_of(tmp_path, url, PRICE)
    book = book_of(settings)
    ledger = open_ledger(settings, book, "w")
    ledger.post(ledger.hold(CALL, 2_000_000), Usage("caption", output_tokens=1000))
    ledger.close()
    bring_in(settings, store)
    ((at,),) = store.query("SELECT MIN(settled_at) FROM entries")
    day = at - at % (24 * 3600 * 10**6)
    dearer = [Difference(day, "m", 1_000_000, 1_500_000), Difference(day, "other", 0, 70)]
    with corrector(settings, store, book) as clerk:
        assert correct(store, clerk, "acme", dearer, "i", total_of(settings)) == 2
    assert spent(settings) == {"total": 1_500_070, "team:red": 1_500_000}
    assert store.verify() == []
