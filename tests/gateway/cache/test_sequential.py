"""Intervals against published values, and the sequential test against simulated traffic."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.sequential import (
    evidence,
    exact_interval,
    exceeds,
    wilson_interval,
)

LIMIT, ALPHA = 0.01, 0.05
COUNTS = st.tuples(st.integers(0, 400), st.integers(0, 400)).map(lambda t: (t[0], t[0] + t[1]))


def stopped_at(rng, rate, most, limit=LIMIT, alpha=ALPHA):
    """Return after how many checked hits the test turned the tier off, or None."""
    false = 0
    for checked in range(1, most + 1):
        if rng.random() < rate:  # the evidence rises with a false hit alone
            false += 1
            if exceeds(false, checked, limit, alpha):
                return checked
    return None


@pytest.mark.parametrize(
    ("false", "checked", "low", "high"),
    [
        # Clopper and Pearson, as R's binom.test gives them
        (0, 10, 0.0, 0.3084971),
        (1, 10, 0.0025286, 0.4450161),
        (5, 100, 0.0164319, 0.1128349),
        (50, 100, 0.3983211, 0.6016789),
        (10, 10, 0.6915029, 1.0),
        (0, 3000, 0.0, 0.0012289),
    ],
)
def test_exact_interval_is_that_of_the_books(false, checked, low, high):
    found = exact_interval(false, checked)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-7)


@given(COUNTS)
def test_intervals_hold_the_rate_and_lie_within_zero_and_one(counts):
    for interval in (exact_interval(*counts), wilson_interval(*counts)):
        assert 0 <= interval.low <= interval.rate + 1e-9
        assert interval.rate - 1e-9 <= interval.high <= 1


def test_exact_interval_covers_as_often_as_it_says():
    rng, rate, count = random.Random(3), 0.02, 300
    kept = sum(
        interval.low <= rate <= interval.high
        for _ in range(1000)
        for interval in [exact_interval(sum(rng.random() < rate for _ in range(count)), count)]
    )
    assert kept >= 940


def test_nothing_checked_says_nothing():
    assert exact_interval(0, 0).high == 1
    assert evidence(0, 0, LIMIT) == 0
    assert not exceeds(0, 0, LIMIT)


@pytest.mark.parametrize("rate", [LIMIT, LIMIT / 3])
def test_within_the_limit_it_stops_as_rarely_as_promised(rate):
    rng, runs = random.Random(17), 300
    stops = sum(stopped_at(rng, rate, 1500) is not None for _ in range(runs))
    # 300 runs of a chance of 5 %: more than 27 has a chance below 1 %
    assert stops <= 27


@pytest.mark.parametrize(("rate", "median"), [(0.1, 60), (0.05, 150), (0.5, 8)])
def test_above_the_limit_it_stops_and_soon(rate, median):
    rng = random.Random(5)
    stops = [stopped_at(rng, rate, 3000) for _ in range(100)]
    assert None not in stops
    assert sorted(stops)[50] <= median


@given(COUNTS)
def test_a_false_hit_is_evidence_for_it_and_a_right_one_against(counts):
    false, checked = counts
    here = evidence(false, checked, LIMIT)
    assert evidence(false + 1, checked + 1, LIMIT) > here
    assert evidence(false, checked + 1, LIMIT) < here


@given(st.integers(0, 60), st.floats(1e-4, 0.4))
def test_the_evidence_is_a_supermartingale_within_the_limit(checked, limit):
    """Its mean after one more hit is what it is now, at the limit; summed over all counts, 1."""
    total = sum(
        math.comb(checked, false)
        * limit**false
        * (1 - limit) ** (checked - false)
        * math.exp(evidence(false, checked, limit))
        for false in range(checked + 1)
    )
    assert total == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("false", "checked", "limit"), [(2, 1, 0.1), (-1, 1, 0.1), (0, 1, 0.0)])
def test_what_cannot_be_is_refused(false, checked, limit):
    with pytest.raises(InvalidRequest, match="expected"):
        evidence(false, checked, limit)
