"""Corrections: nothing is changed, the sum is right, and caps hear of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import BudgetExceeded, InvalidRequest
from packshot.ledger.caps import Cap
from packshot.ledger.corrections import reprice, reverse
from packshot.ledger.drain import Drain
from packshot.ledger.records import Dimensions, Settled
from packshot.ledger.stores import open_store
from tests.ledger.desk import CHAT, Desk, Tokens, used
from tests.ledger.world import NOW

AMOUNTS = st.integers(0, 10**15)
CREDITS = st.sampled_from(["payable", "depreciation", "storage"])
PERIOD = "team:red@2026-11"


def row(amount: int, credit: str = "payable", *, priced: bool = True) -> Settled:
    legs = {credit: amount}
    return Settled(
        "a1", 7, NOW, NOW, NOW, "failed_billed", "cut", CHAT, 5, 1, 2, 3, 4,
        account="waste", amount=amount, priced=priced, currency="USD", original="3",
        rate="0.9", price="old", caps=(PERIOD,), **legs,
    )  # fmt: skip


@given(AMOUNTS, CREDITS)
def test_a_reversal_takes_back_every_leg(amount, credit) -> None:
    entry = row(amount, credit)
    back = reverse(entry, "invoice", lambda: NOW + 9)
    for leg in ("amount", "payable", "depreciation", "storage"):
        assert getattr(back, leg) == -getattr(entry, leg)
    assert (back.outcome, back.corrects, back.reason) == ("correction", "a1", "invoice")
    assert back.attempt != entry.attempt
    assert (back.account, back.dimensions, back.caps) == ("waste", CHAT, (PERIOD,))
    assert (back.seconds_us, back.input_tokens, back.output_tokens) == (0, 0, 0)
    assert back.settled_at == NOW + 9


@given(AMOUNTS, CREDITS, AMOUNTS, CREDITS)
def test_a_new_price_adds_the_difference(before, credit, after, new_credit) -> None:
    entry = row(before, credit)
    more = reprice(entry, Tokens(after, new_credit, price="new"))
    for leg in ("payable", "depreciation", "storage"):
        expected = after if leg == new_credit else 0
        assert getattr(entry, leg) + getattr(more, leg) == expected
    assert (more.amount, more.price, more.priced) == (after - before, "new", True)


def test_originals_are_exact_in_eur() -> None:
    assert reverse(row(1_234_567_890)).original == "-1.234567890"
    assert reverse(row(0)).original == "0"
    assert reverse(row(5)).currency == "EUR"


def test_what_still_has_no_price_cannot_be_repriced() -> None:
    with pytest.raises(InvalidRequest, match="still has no price"):
        reprice(row(0, priced=False), Tokens(0, priced=False))


def test_a_correction_is_one_more_row_and_frees_its_cap(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 50, "month")])
    booked = desk.ledger.post(desk.ledger.hold(CHAT, 50), used(50))
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 1)
    corrected = desk.ledger.correct(reprice(booked, Tokens(20)))
    assert corrected.number == 2
    desk.ledger.hold(CHAT, 30)
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 1)
    store = open_store(str(tmp_path / "ledger.db"))
    drain = Drain(desk.folder, store, desk.leases, lambda: NOW)
    drain.step()
    assert desk.period(PERIOD) == (20, 30)
    assert store.query("SELECT sum(amount), count(*) FROM entries") == [(20, 2)]
    assert store.verify() == []
    store.close()
    desk.ledger.close()


def test_another_process_corrects_and_the_cap_is_freed_once_it_is_drained(tmp_path: Path) -> None:
    caps = [Cap("team", "red", 50, "month")]
    desk, clerk = Desk(tmp_path, caps), Desk(tmp_path, (), "clerk")
    booked = desk.ledger.post(desk.ledger.hold(CHAT, 50), used(50))
    clerk.ledger.correct(reverse(booked))
    clerk.ledger.tick()
    clerk.ledger.close()
    store = open_store(str(tmp_path / "ledger.db"))
    Drain(desk.folder, store, desk.leases, lambda: NOW).step()
    assert desk.period(PERIOD) == (0, 0)
    desk.ledger.hold(CHAT, 50)
    store.close()
    desk.ledger.close()


def test_a_dearer_correction_is_owed_by_the_next_lease(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 50, "month"), Cap("team", "red", 90, "ever")])
    booked = row(10)
    desk.ledger.correct(reprice(booked, Tokens(40)))
    desk.ledger.tick()
    with pytest.raises(BudgetExceeded, match="team:red is"):
        desk.ledger.hold(CHAT, 21)
    desk.ledger.hold(CHAT, 20)
    desk.ledger.hold(Dimensions(team="blue"), 1000)
    desk.ledger.close()
