"""Stored bytes cost by the day, exactly, and once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest, LedgerCorrupt, LedgerUnavailable, OutputError
from packshot.ledger import accrual
from packshot.ledger.accrual import DAY_US, GB, Daily, Stored, accrue, book_days
from packshot.ledger.drain import locked
from packshot.ledger.prices.rows import PriceRow
from packshot.ledger.records import Stamped
from packshot.ledger.reports.period import day_of
from packshot.ledger.settings import Settings, StorageRow
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore


def day(at: date, gigabytes: int = 1) -> Stored:
    return Stored(at, "s3", "pictures", gigabytes * GB * DAY_US, Decimal("0.028"))


@pytest.mark.parametrize(("month", "days"), [(1, 31), (2, 28), (11, 30)])
def test_the_days_of_a_month_cost_its_price(month: int, days: int) -> None:
    first = date(2026, month, 1)
    entries = accrue([day(first + timedelta(k)) for k in range(days)])
    assert abs(sum(each.amount for each in entries) - 28_000_000) <= days
    assert day_of(entries[-1].settled_at) == (first + timedelta(days - 1)).isoformat()
    assert {(each.account, each.outcome) for each in entries} == {("storage", "accrual")}
    assert entries[0].stored_bytes == GB


def test_a_second_run_books_nothing(tmp_path: Path) -> None:
    (entry,) = accrue([day(date(2026, 1, 31))])
    store = open_store(str(tmp_path / "l.db"))
    assert store.append([Stamped("a", 1, 1, entry)]) == 1
    assert store.append([Stamped("a", 1, 1, entry)]) == 0
    with pytest.raises(LedgerCorrupt):  # another journal cannot book it either
        store.append([Stamped("b", 1, 1, entry)])
    store.close()


@dataclass
class Rates:
    """Prices of a GB-month: 0.031 EUR, for the bucket "eu" twice that in USD from 2026-02-10 on."""

    shipped: tuple[PriceRow, ...] = (
        PriceRow("local", "", "gb_month", Decimal("0.031"), "EUR", date(2026, 1, 1), "us"),
        PriceRow("local", "", "gb_egress", Decimal(9), "EUR", date(2026, 1, 1), "us"),
    )
    own: tuple[PriceRow, ...] = (
        PriceRow("local", "eu", "gb_month", Decimal("0.062"), "USD", date(2026, 2, 10), "own"),
    )

    def rate(self, currency: str, day: date) -> Decimal | None:
        return {"EUR": Decimal(1), "USD": Decimal("0.5")}.get(currency)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TableStore]:
    made = open_store(str(tmp_path / "ledger.db"))
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    return tmp_path / "out"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def put(path: Path, size: int, when: str) -> Path:
    """Write a file of holes, last written at an instant."""
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, ns=(0, at(when) * 1000))
    return path


def days(store: TableStore) -> list[tuple[str, int, int]]:
    rows = store.query("SELECT attempt, stored_bytes, amount FROM entries ORDER BY seq")
    return [(attempt.split(":")[1], stored, amount) for attempt, stored, amount in rows]


def test_yesterday_is_booked_once_and_missed_days_are_made_up_for(store, folder) -> None:
    put(folder / "a.png", GB, "2026-01-01")
    put(folder / "deep" / "b.png", 2 * GB, "2026-01-30T12:00")
    (folder / "link.png").symlink_to(folder / "a.png")
    row, rates = StorageRow(folder), Rates()
    assert (row.provider, row.bucket) == ("local", "out")
    assert len(book_days(store, rates, row, at("2026-01-30T23:59:59"))) == 1
    assert book_days(store, rates, row, at("2026-01-30T23:59:59")) == []
    assert days(store) == [("2026-01-29", GB, 1_000_000)]
    for _ in range(2):  # three days later: the 30th to the 1st of a shorter month
        book_days(store, rates, row, at("2026-02-02T00:00"))
    assert days(store)[1:] == [
        ("2026-01-30", 2 * GB, 2_000_000),
        ("2026-01-31", 3 * GB, 3_000_000),
        ("2026-02-01", 3 * GB, round(3 * 31_000_000 / 28)),
    ]
    (folder / "a.png").unlink()
    book_days(store, rates, row, at("2026-02-03T09:00"))
    assert days(store)[-1][:2] == ("2026-02-02", 2 * GB)
    assert store.verify() == []


def test_a_clock_that_steps_back_books_nothing_twice(store, folder) -> None:
    put(folder / "a.png", GB, "2026-01-01")
    for when in ("2026-03-05T00:30", "2026-03-04T23:30", "2026-03-05T00:30", "2026-03-06T01:00"):
        book_days(store, Rates(), StorageRow(folder), at(when))
    assert [day for day, *_ in days(store)] == ["2026-03-04", "2026-03-05"]


def test_the_first_run_may_begin_earlier_and_the_next_not(store, folder) -> None:
    put(folder / "a.png", GB, "2026-03-03T12:00")
    row, now = StorageRow(folder), at("2026-03-05T08:00")
    assert book_days(store, Rates(), row, now, date(2026, 3, 6)) == []
    book_days(store, Rates(), row, now, date(2026, 3, 2))
    book_days(store, Rates(), row, now, date(2026, 2, 1))
    assert [each[:2] for each in days(store)] == [
        ("2026-03-02", 0),
        ("2026-03-03", GB // 2),
        ("2026-03-04", GB),
    ]


def test_two_that_book_the_same_day_book_it_once(store, folder, tmp_path, monkeypatch) -> None:
    """The second has looked before the first has written."""
    put(folder / "a.png", GB, "2026-01-01")
    other = open_store(str(tmp_path / "ledger.db"))
    measure = accrual.measured

    def slow(path: Path) -> list[tuple[int, int]]:
        monkeypatch.setattr(accrual, "measured", measure)
        assert len(book_days(other, Rates(), StorageRow(folder), at("2026-02-02T00:00"))) == 1
        return measure(path)

    monkeypatch.setattr(accrual, "measured", slow)
    assert book_days(store, Rates(), StorageRow(folder), at("2026-02-02T00:00")) == []
    assert len(days(store)) == 1
    assert store.verify() == []
    other.close()


def test_a_bucket_has_its_price_and_currency_from_its_day_on(store, folder) -> None:
    put(folder / "a.png", GB, "2026-01-01")
    row = StorageRow(folder, bucket="eu", team="shop")
    book_days(store, Rates(), row, at("2026-02-11T00:00"), date(2026, 2, 9))
    rows = store.query("SELECT amount, currency, rate, original, team, price FROM entries")
    assert [(r[0], r[1], r[2], r[4]) for r in rows] == [
        (round(31_000_000 / 28), "EUR", "1", "shop"),
        (round(62_000_000 / 28 / 2), "USD", "0.5", "shop"),
    ]
    assert rows[1][3].startswith("0.0022142857")
    assert rows[1][5].startswith("own: local/eu@2026-02-10: 0.062 USD/GB-month")


def test_what_has_no_price_or_cannot_be_seen_is_booked_later(store, folder, tmp_path) -> None:
    put(folder / "a.png", GB, "2026-01-01")
    with pytest.raises(InvalidRequest, match="packshot prices add"):
        book_days(store, Rates(), StorageRow(folder, "s3"), at("2026-02-02T00:00"))
    with pytest.raises(OutputError, match="measured"):
        book_days(store, Rates(), StorageRow(tmp_path / "gone"), at("2026-02-02T00:00"))
    yen = PriceRow("jp", "", "gb_month", Decimal(3), "JPY", date(2026, 1, 1), "x")
    with pytest.raises(InvalidRequest, match="JPY"):
        book_days(store, Rates(own=(yen,)), StorageRow(folder, "jp"), at("2026-02-02T00:00"))
    assert days(store) == []


def test_the_drain_s_daily_round(store, folder, tmp_path) -> None:
    put(folder / "a.png", GB, "2026-01-01")
    gone = StorageRow(tmp_path / "gone")
    now = [at("2026-02-02T10:00")]

    def daily(*rows: StorageRow) -> Daily:
        settings = Settings(str(tmp_path / "ledger.db"), tmp_path / "journal", storage=rows)
        return Daily(settings, Rates(), store, lambda: now[0])

    round_ = daily(StorageRow(folder))
    assert len(round_.due()) == 1
    assert round_.due() == []
    now[0] = at("2026-02-02T23:59:59")
    assert round_.due() == []
    now[0] = at("2026-02-03T00:00:01")
    assert len(round_.due()) == 1
    broken = daily(StorageRow(folder, bucket="b"), gone)
    with pytest.raises(OutputError):
        broken.due()
    assert broken.due() == [], "not before an hour is over"
    gone.folder.mkdir()
    now[0] += 3600 * 1_000_000
    assert [each.dimensions.model for each in broken.due()] == ["gone"]
    now[0] -= 40 * DAY_US
    assert broken.due() == [], "a clock that steps back by far books nothing again"
    with locked(tmp_path / "journal" / "drain.lock") as alone, pytest.MonkeyPatch.context() as p:
        assert alone
        p.setattr(accrual, "WAIT_S", 0.0)
        now[0] += 50 * DAY_US
        with pytest.raises(LedgerUnavailable, match="a drain"):
            broken.due()


def test_two_folders_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="bucket"):
        Settings(storage=(StorageRow(folder), StorageRow(folder)))
    with pytest.raises(InvalidRequest, match="provider"):
        StorageRow(folder, provider="")


def test_negative_bytes() -> None:
    with pytest.raises(InvalidRequest):
        day(date(2026, 1, 1), -1)
