"""Stored bytes cost by the day, exactly, and once."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest, LedgerCorrupt
from packshot.ledger.accrual import DAY_US, GB, Stored, accrue
from packshot.ledger.records import Stamped
from packshot.ledger.reports.period import day_of
from packshot.ledger.stores import open_store


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


def test_negative_bytes() -> None:
    with pytest.raises(InvalidRequest):
        day(date(2026, 1, 1), -1)
