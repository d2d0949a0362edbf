"""Calendar periods: in UTC and elsewhere, over month ends and when clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.ledger.periods import DAY_US, FOR_EVER, end_of, label_of, over_by

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    UTC,
    BERLIN,
    ZoneInfo("America/New_York"),
    ZoneInfo("Asia/Kolkata"),
    ZoneInfo("Asia/Tokyo"),
]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_US


@pytest.mark.parametrize(
    ("per", "label", "end"),
    [
        ("hour", "2026-11-30T23", "2026-12-01T00:00+00:00"),
        ("day", "2026-11-30", "2026-12-01T00:00+00:00"),
        ("month", "2026-11", "2026-12-01T00:00+00:00"),
    ],
)
def test_the_last_hour_of_a_month(per, label, end) -> None:
    last = at("2026-12-01T00:00+00:00") - 1
    assert label_of(per, last) == label
    assert end_of(per, last) == at(end)
    assert label_of(per, last + 1) != label


def test_ever_never_ends() -> None:
    assert label_of("ever", 0) == label_of("ever", at("2100-01-01T00:00+00:00")) == "ever"
    assert end_of("ever", 0) == FOR_EVER


def test_a_month_ends_at_midnight_where_the_operator_is() -> None:
    instant = at("2026-11-30T23:30+00:00")
    assert label_of("month", instant) == "2026-11"
    assert label_of("month", instant, BERLIN) == "2026-12"
    assert end_of("month", instant, BERLIN) == at("2027-01-01T00:00+01:00")
    # Across the change of the clocks: midnight in summer time to midnight in winter time.
    assert end_of("month", at("2026-10-10T00:00+02:00"), BERLIN) == at("2026-11-01T00:00+01:00")


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first, second = at("2026-10-25T02:30+02:00"), at("2026-10-25T02:30+01:00")
    labels = [label_of("hour", instant, BERLIN) for instant in (first, second)]
    assert labels == ["2026-10-25T02+0200", "2026-10-25T02+0100"]
    assert end_of("hour", first, BERLIN) == at("2026-10-25T02:00+01:00")


def test_the_day_of_the_change_has_25_hours() -> None:
    start = at("2026-10-25T00:00+02:00")
    assert end_of("day", start, BERLIN) - start == 25 * HOUR_US


@given(
    st.integers(0, at("2100-01-01T00:00+00:00")),
    st.sampled_from(["hour", "day", "month"]),
    st.sampled_from(ZONES),
)
def test_a_period_is_one_label_up_to_its_end(instant, per, zone) -> None:
    label, end = label_of(per, instant, zone), end_of(per, instant, zone)
    assert instant < end
    assert label_of(per, end - 1, zone) == label
    assert label_of(per, end, zone) != label


@given(
    st.sampled_from(["hour", "day", "month"]), st.integers(0, 4 * 10**15), st.sampled_from(ZONES)
)
def test_a_name_tells_when_a_period_is_over_wherever_it_is(per, instant: int, zone) -> None:
    end = end_of(per, instant, zone)
    assert end <= over_by(label_of(per, instant, zone)) <= end + 3 * DAY_US


def test_what_has_no_end_is_never_over() -> None:
    assert over_by("ever") == FOR_EVER
    with pytest.raises(ValueError, match="never"):
        over_by("never")
