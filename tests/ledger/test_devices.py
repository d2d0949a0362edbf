"""Device time is neither lost nor booked twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.ledger.devices import apportion, divide

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
