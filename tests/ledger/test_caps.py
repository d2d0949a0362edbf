"""Caps: what they admit, what they say, and their calendar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from packshot.core.clock import HOUR_US
from packshot.core.errors import BudgetExceeded, InvalidRequest, Unbounded, Unpriced
from packshot.ledger.caps import Cap, Caps
from packshot.ledger.records import Dimensions
from tests.ledger.desk import CHAT, Desk, used

DAY_US = 24 * HOUR_US
RED = Cap("team", "red", 50, "month")
BLUE = msgspec.structs.replace(CHAT, team="blue")


@pytest.fixture
def desk(tmp_path: Path, request: Any) -> Iterator[Desk]:
    """Return a worker with the caps that the test names, or a monthly one of 50 for team red."""
    made = Desk(tmp_path, getattr(request, "param", (RED,)))
    yield made
    made.ledger.close()


def test_exactly_what_the_cap_allows_is_admitted(desk: Desk) -> None:
    for _ in range(5):
        desk.ledger.hold(CHAT, 10)
    with pytest.raises(BudgetExceeded) as refused:
        desk.ledger.hold(CHAT, 1)
    assert "cap team:red is 0.000000 EUR per month; in 2026-11" in str(refused.value)
    assert desk.period("team:red@2026-11") == (0, 50)
    desk.ledger.hold(CHAT, 0)
    desk.ledger.hold(BLUE, 10**12)


def test_the_message_names_cap_period_limit_spent_and_held_and_what_was_asked(
    tmp_path: Path,
) -> None:
    eur = 10**9
    desk = Desk(tmp_path, [Cap("team", "red", 50 * eur, "month")])
    first = desk.ledger.hold(CHAT, 50 * eur)
    desk.ledger.post(first, used(30 * eur))
    desk.leases.settle("w", desk.journal.epoch, 2, {"team:red@2026-11": 30 * eur})
    with pytest.raises(BudgetExceeded) as refused:
        desk.ledger.hold(CHAT, 21 * eur)
    for part in ("team:red", "50.000000", "2026-11", "30.000000", "20.000000", "21.000000"):
        assert part in str(refused.value)
    desk.ledger.close()


def test_a_refusal_says_when_the_period_ends_if_that_would_help(tmp_path: Path) -> None:
    caps = [Cap("team", "red", 50, "day"), Cap("team", "blue", 50, "ever")]
    desk = Desk(tmp_path, caps)
    for dimensions in (CHAT, BLUE):
        desk.ledger.hold(dimensions, 50)
    until: list[int | None] = []
    for dimensions, amount in ((CHAT, 1), (CHAT, 51), (BLUE, 1)):
        with pytest.raises(BudgetExceeded) as refused:
            desk.ledger.hold(dimensions, amount)
        until.append(refused.value.until_us)
    midnight = desk.now - desk.now % DAY_US + DAY_US
    assert until == [midnight, None, None]
    desk.ledger.close()


def test_what_a_call_did_not_cost_is_free_again(desk: Desk) -> None:
    for left in (50, 40, 30, 20, 10):
        with pytest.raises(BudgetExceeded):
            desk.ledger.hold(CHAT, left + 1)
        desk.ledger.post(desk.ledger.hold(CHAT, left), used(10))
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 1)


def test_a_void_frees_all_of_it(desk: Desk) -> None:
    for _ in range(3):
        desk.ledger.void(desk.ledger.hold(CHAT, 50), "not made")
    desk.ledger.hold(CHAT, 50)


def test_a_cost_above_its_hold_is_booked_in_full_and_repaid_by_the_next_lease(desk: Desk) -> None:
    settled = desk.ledger.post(desk.ledger.hold(CHAT, 10), used(30))
    assert (settled.amount, settled.reason) == (30, "above its hold")
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 21)
    desk.ledger.hold(CHAT, 20)
    desk.leases.settle("w", desk.journal.epoch, 9, {"team:red@2026-11": 30})
    assert desk.period("team:red@2026-11") == (30, 20)


@pytest.mark.parametrize(
    "desk", [(RED, Cap("total", "", 20, "day"), Cap("team", "red", 100, "hour"))], indirect=True
)
def test_a_call_passes_every_cap_or_is_held_in_none(desk: Desk) -> None:
    assert desk.ledger.hold(CHAT, 15).held.caps == (
        "total@2026-11-25",
        "team:red@2026-11",
        "team:red@2026-11-25T12",
    )
    for _ in range(3):
        with pytest.raises(BudgetExceeded, match="total is"):
            desk.ledger.hold(CHAT, 6)
    desk.ledger.hold(CHAT, 5)
    desk.now += DAY_US
    desk.ledger.hold(CHAT, 20)
    desk.now += DAY_US
    with pytest.raises(BudgetExceeded, match="team:red is"):
        desk.ledger.hold(CHAT, 11)
    desk.ledger.hold(CHAT, 10)


@pytest.mark.parametrize(
    ("scope", "dimensions"),
    [
        ("total", Dimensions()),
        ("team", Dimensions(team="x")),
        ("virtual_key", Dimensions(virtual_key="x")),
        ("batch", Dimensions(batch="x")),
    ],
)
def test_each_scope_holds_its_own_and_no_other(tmp_path: Path, scope, dimensions) -> None:
    desk = Desk(tmp_path, [Cap(scope, "" if scope == "total" else "x", 1, "ever")])
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(dimensions, 2)
    if scope != "total":
        desk.ledger.hold(Dimensions(team="y", virtual_key="y", batch="y"), 2)
    desk.ledger.close()


def test_without_a_bound_nothing_passes_a_cap(desk: Desk) -> None:
    with pytest.raises(Unbounded, match="limit its output"):
        desk.ledger.hold(CHAT, None)
    assert desk.ledger.hold(BLUE, None).amount == 0


@pytest.mark.parametrize("desk", [(Cap("team", "red", 50, "month", "refuse"),)], indirect=True)
def test_a_cap_that_refuses_what_has_no_price(desk: Desk) -> None:
    with pytest.raises(Unpriced, match="prices add"):
        desk.ledger.hold(CHAT, None, priced=False)
    desk.ledger.hold(BLUE, None, priced=False)


def test_a_cap_that_allows_what_has_no_price(desk: Desk) -> None:
    assert desk.ledger.hold(CHAT, None, priced=False).amount == 0


def test_a_clock_that_steps_back_opens_no_earlier_period_and_resets_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 50, "hour")])
    desk.ledger.hold(CHAT, 50)
    desk.now += HOUR_US
    assert desk.ledger.hold(CHAT, 50).held.caps == ("team:red@2026-11-25T13",)
    desk.now -= 2 * HOUR_US
    with pytest.raises(BudgetExceeded, match="T13"):
        desk.ledger.hold(CHAT, 1)
    desk.now += 2 * HOUR_US
    with pytest.raises(BudgetExceeded, match="T13"):
        desk.ledger.hold(CHAT, 1)
    desk.ledger.close()


def test_a_hold_is_charged_to_the_period_that_it_was_made_in(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 50)
    desk.now += 10 * DAY_US
    desk.ledger.hold(CHAT, 50)
    assert desk.ledger.post(hold, used(40)).caps == ("team:red@2026-11",)
    with pytest.raises(BudgetExceeded, match="2026-12"):
        desk.ledger.hold(CHAT, 1)


def test_idle_money_is_given_back_by_ticks(desk: Desk) -> None:
    desk.ledger.post(desk.ledger.hold(CHAT, 50), used(10))
    desk.ledger.tick()
    assert desk.period("team:red@2026-11") == (0, 50)
    desk.ledger.tick()
    assert desk.period("team:red@2026-11") == (0, 10)
    desk.leases.settle("w", desk.journal.epoch, 2, {"team:red@2026-11": 10})
    assert desk.period("team:red@2026-11") == (10, 0)
    desk.ledger.hold(CHAT, 40)


def test_money_that_another_worker_wants_is_given_back_at_once(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path, [RED], "other")
    desk.ledger.post(desk.ledger.hold(CHAT, 50), used(10))
    with pytest.raises(BudgetExceeded):
        other.ledger.hold(CHAT, 40)
    desk.ledger.tick()
    other.ledger.hold(CHAT, 40)
    other.ledger.close()


def test_a_worker_that_ends_gives_back_what_is_free(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [RED])
    desk.ledger.post(desk.ledger.hold(CHAT, 50), used(10))
    desk.ledger.close()
    other = Desk(tmp_path, [RED], "other")
    other.ledger.hold(CHAT, 40)
    other.ledger.close()


def test_slices_of_periods_that_are_over_are_forgotten(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 50, "hour")])
    for _ in range(20):
        desk.ledger.void(desk.ledger.hold(CHAT, 5), "no")
        desk.now += HOUR_US
        desk.ledger.tick()
    assert desk.ledger._caps is not None
    assert len(desk.ledger._caps._slices) <= 2
    desk.ledger.close()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (("total", "x", 1, "day"), "has a name unless"),
        (("team", "", 1, "day"), "has a name unless"),
        (("team", "a,b", 1, "day"), "comma"),
        (("team", "a", -1, "day"), "negative"),
    ],
)
def test_caps_that_cannot_be_meant(fields, why) -> None:
    with pytest.raises(InvalidRequest, match=why):
        Cap(*fields)


def test_two_caps_on_the_same_thing(desk: Desk) -> None:
    with pytest.raises(InvalidRequest, match="two caps on team:red per month"):
        Caps([RED, Cap("team", "red", 60, "month")], desk.leases, "w", 1)


def test_a_cap_that_is_lowered_holds_at_once_and_what_was_free_of_it_is_given_back(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 5_000, "month")])
    desk.ledger.void(desk.ledger.hold(CHAT, 50), "not made")  # 50 are this worker's now
    desk.ledger.replace_caps([Cap("team", "red", 10, "month")])
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 11)
    desk.ledger.tick()
    assert desk.period("team:red@2026-11") == (0, 0)
    desk.ledger.hold(CHAT, 10)
    desk.ledger.close()


def test_caps_are_replaced_while_holds_are_open(desk: Desk) -> None:
    first = desk.ledger.hold(CHAT, 40)
    assert desk.ledger.capped("red", "", "")
    assert not desk.ledger.capped("blue", "", "")
    desk.ledger.replace_caps([Cap("team", "red", 45, "month"), Cap("team", "blue", 5, "day")])
    assert desk.ledger.capped("blue", "", "")
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(BLUE, 6)
    with pytest.raises(BudgetExceeded):
        desk.ledger.hold(CHAT, 6)
    desk.ledger.hold(CHAT, 5)
    desk.ledger.post(first, used(1))
    desk.ledger.hold(CHAT, 39)
    desk.ledger.replace_caps([])
    desk.ledger.hold(CHAT, 10**12)
