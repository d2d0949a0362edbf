"""The breaker: Envoy's figures, one probe at a time, and limits that are no illness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.gateway.health import CONSECUTIVE, EJECT_MAX_S, EJECT_S, PEERS, PROBE_S, Breaker


def fail(breaker: Breaker, now: float, times: int = 1) -> bool:
    opened = False
    for _ in range(times):
        breaker.begin(now)
        opened = breaker.failure(now)
    return opened


def test_five_failures_in_a_row_open_it_and_fewer_do_not() -> None:
    breaker = Breaker()
    assert not fail(breaker, 0.0, CONSECUTIVE - 1)
    breaker.begin(0.0)
    breaker.success(0.0)
    assert not fail(breaker, 0.0, CONSECUTIVE - 1)
    assert breaker.allows(0.0)
    assert fail(breaker, 0.0)
    assert not breaker.allows(EJECT_S - 0.01)


def test_one_probe_decides() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, CONSECUTIVE)
    assert breaker.allows(EJECT_S)
    breaker.begin(EJECT_S)
    assert not breaker.allows(EJECT_S + 1)
    assert breaker.failure(EJECT_S + 1)
    later = EJECT_S + 2 * EJECT_S
    assert not breaker.allows(later - 0.01), "twice as long as the first time"
    assert breaker.allows(later)
    breaker.begin(later)
    breaker.success(later)
    assert breaker.allows(later)


def test_a_probe_that_never_ends_is_followed_by_another() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, CONSECUTIVE)
    breaker.begin(EJECT_S)
    assert not breaker.allows(EJECT_S + PROBE_S - 1)
    assert breaker.allows(EJECT_S + PROBE_S + 1)


def test_calls_that_began_before_the_ejection_do_not_lengthen_it() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, CONSECUTIVE)
    for _ in range(20):
        assert not breaker.failure(1.0)
    assert breaker.allows(EJECT_S)


def test_a_probe_that_took_long_is_followed_by_another_within_a_minute() -> None:
    """A provider that is silent for an hour, and then back, is used within a minute."""
    breaker, now = Breaker(), 0.0
    fail(breaker, now, CONSECUTIVE)
    begun = EJECT_S
    for _ in range(60):
        assert breaker.allows(begun)
        breaker.begin(begun)
        now = begun + 50.0
        assert breaker.failure(now, begun)
        begun += EJECT_MAX_S
        assert not breaker.allows(begun - 0.01)


def test_a_call_from_before_the_ejection_is_no_probe() -> None:
    breaker = Breaker()
    fail(breaker, 1.0, CONSECUTIVE)
    probe = 1.0 + EJECT_S
    breaker.begin(probe)
    assert not breaker.failure(probe + 1, 0.5)
    breaker.neutral(0.5)
    assert not breaker.allows(probe + 2), "the probe is still under way"
    breaker.neutral(probe)
    assert breaker.allows(probe + 2)


def test_an_answer_to_a_call_from_before_the_ejection_does_not_end_it() -> None:
    """A long stream that began in better days comes to its end: that says nothing of today."""
    breaker = Breaker()
    fail(breaker, 10.0, CONSECUTIVE)
    breaker.success(11.0, began=1.0)
    assert not breaker.allows(12.0)
    probe = 10.0 + EJECT_S
    breaker.begin(probe)
    breaker.success(probe + 1.0, began=9.0)
    assert not breaker.allows(probe + 2.0), "the probe is still under way"
    breaker.success(probe + 3.0, began=probe)
    assert breaker.allows(probe + 3.0)


def test_a_share_of_failures_opens_it_between_successes() -> None:
    breaker = Breaker()
    opened = False
    for nth in range(60):
        breaker.begin(1.0)
        if nth % 5 == 4 and nth < 45:
            breaker.success(1.0)
        elif breaker.failure(1.0):
            opened = True
            break
    assert opened


def after(good: int, bad: int, now: float = 30.0) -> Breaker:
    """Return the breaker of a key after calls, no five of which failed in a row."""
    breaker = Breaker()
    for _ in range(bad):
        breaker.failure(now)
        breaker.success(now)
    for _ in range(good - bad):
        breaker.success(now)
    return breaker


def test_who_succeeds_less_than_its_peers_is_taken_out() -> None:
    ill, well = after(80, 20), [after(100, 0) for _ in range(PEERS - 1)]
    assert not ill.failure(31.0), "alone it is not bad enough"
    ill.success(31.0)
    assert ill.failure(31.0, None, [ill, *well])
    assert not ill.allows(31.0)
    assert ill.allows(31.0 + EJECT_S)


@pytest.mark.parametrize(
    "peers",
    [
        [after(100, 0) for _ in range(PEERS - 2)],
        [after(99, 0) for _ in range(PEERS - 1)],
        [after(90, 10) for _ in range(PEERS - 1)],
        [after(80, 20) for _ in range(PEERS - 1)],
        [after(80, 20), *(after(100, 0) for _ in range(PEERS - 2))],
        [after(100, 0, 11.0) for _ in range(PEERS - 1)],
    ],
    ids=["too few", "of too few calls", "hardly better", "no better", "not alone", "of long ago"],
)
def test_it_stays_where_its_peers_tell_nothing(peers: list[Breaker]) -> None:
    ill = after(80, 20)
    assert not ill.failure(31.0, None, [ill, *peers])


def test_a_failure_now_and_then_is_no_reason_though_the_peers_had_none() -> None:
    one, well = after(95, 9), [after(100, 0) for _ in range(PEERS)]
    assert not one.failure(31.0, None, [one, *well])


def test_a_rate_limit_is_neutral() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, CONSECUTIVE)
    breaker.begin(EJECT_S)
    breaker.neutral()
    assert breaker.allows(EJECT_S), "the probe said nothing: the next call is one"


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 40))))
def test_it_never_stays_open_for_ever(steps: list[tuple[bool, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for good, wait in steps:
        now += wait
        if breaker.allows(now):
            breaker.begin(now)
            if good:
                breaker.success(now)
            else:
                breaker.failure(now)
    assert breaker.allows(now + 300.0)
