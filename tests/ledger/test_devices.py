"""Device time is neither lost nor booked twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.ledger.devices import Timeline, apportion, divide, fit, used_until
from packshot.ledger.signs import BEAT_US

TIMES = st.integers(-50, 150)
SPANS = st.lists(st.tuples(TIMES, TIMES).map(lambda s: (min(s), max(s))), max_size=8)


@given(SPANS, st.integers(0, 100))
def test_shares_and_idle_are_the_wall_time(spans: list[tuple[int, int]], end: int) -> None:
    shares, idle = apportion(spans, 0, end)
    assert sum(shares) + idle == end
    assert idle == sum(all(not a <= t < b for a, b in spans) for t in range(end))
    for share, (a, b) in zip(shares, spans, strict=True):
        assert 0 <= share <= max(0, min(b, end) - max(a, 0))


def test_overlapping_spans_share_the_time() -> None:
    assert apportion([(0, 10), (5, 15)], 0, 20) == ((8, 7), 5)
    assert apportion([], 3, 9) == ((), 6)
    with pytest.raises(InvalidRequest):
        apportion([(2, 1)], 0, 5)


@given(st.integers(0, 10**9), st.integers(1, 64))
def test_a_batch_is_divided_over_its_pictures(total: int, parts: int) -> None:
    each = divide(total, parts)
    assert sum(each) == total
    assert max(each) - min(each) <= 1


def test_no_pictures() -> None:
    with pytest.raises(InvalidRequest):
        divide(1, 0)


@given(SPANS, st.integers(0, 100))
def test_time_that_is_given_away_as_it_passes_sums_up(spans: list[tuple[int, int]], end) -> None:
    """As `apportion`, but for what a division leaves over, and told of each event as it comes."""
    spans = [(max(a, 0), b) for a, b in spans if max(a, 0) < b]
    line, names, shares = Timeline(0), {}, [0] * len(spans)
    for at in range(end + 1):
        for k, (a, b) in enumerate(spans):
            if b == at:
                shares[k] = line.end(names.pop(k), at)
            elif a == at:
                names[k] = line.begin(at)
    assert line.busy == bool(names)
    for k, name in names.items():
        shares[k] = line.end(name, end)
    idle = line.take_idle(end)
    expected, idle_then = apportion(spans, 0, end)
    assert idle == idle_then
    assert sum(shares) + idle == end
    assert all(abs(a - b) <= 2 * len(spans) for a, b in zip(shares, expected, strict=True))


def test_a_clock_that_steps_back_gives_no_time_away() -> None:
    line = Timeline(100)
    name = line.begin(90)
    assert line.end(name, 50) == 0
    assert line.take_idle(99) == 0
    line.give_back(3)
    assert line.take_idle(110) == 13


@given(st.lists(st.integers(0, 10**6), max_size=9), st.integers(0, 10**7))
def test_parts_fit_into_their_whole(parts: list[int], whole: int) -> None:
    fitted, rest = fit(parts, whole)
    assert len(fitted) == len(parts)
    assert rest >= 0
    assert all(0 <= now <= part for now, part in zip(fitted, parts, strict=True))
    assert sum(fitted) + rest == whole


def test_what_a_dead_worker_used_of_each_device() -> None:
    spans = {"a": ("h100", 0), "b": ("h100", 0), "c": ("cpu", 100), "d": ("cpu", 10**9)}
    assert used_until(spans, 200) == {
        "a": (200 + BEAT_US) // 2,
        "b": (200 + BEAT_US) // 2,
        "c": 10**9 - 100 + BEAT_US // 2,  # "d" is younger than the sign: the worker lived then
        "d": BEAT_US // 2,
    }
