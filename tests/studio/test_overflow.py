"""Where a render goes: the decision on a virtual clock, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import (
    ContentFiltered,
    DeviceLost,
    DeviceMissing,
    HostedFailed,
    OutOfMemory,
    WorkerLost,
)
from packshot.studio.overflow import (
    HOME,
    Gauge,
    Limits,
    Load,
    Overflow,
    State,
    device_is_dead,
    late,
    place,
    step,
    wait_s,
)

LIMITS = Limits(when_wait_exceeds_s=20.0, back_below_s=10.0, dwell_s=30.0)
DEAD = Load(alive=False)


def line(waiting: int, seconds: float = 1.0) -> Load:
    return Load(True, waiting, seconds)


def test_the_wait_is_the_line_times_a_picture_shared_by_the_devices() -> None:
    assert wait_s(Load(True, 12, 2.5)) == 30.0
    assert wait_s(Load(True, 12, 2.5, devices=4)) == 7.5
    assert wait_s(Load(True, 12, 0.0)) == 0.0  # nothing is known yet, and nothing feared


def test_one_threshold_to_go_and_a_lower_one_to_return() -> None:
    state = step(HOME, line(20), 0.0, LIMITS)
    assert state == HOME
    state = step(state, line(21), 1.0, LIMITS)
    assert state == State("wait", 1.0)
    assert step(state, line(0), 30.9, LIMITS) == state  # not before the stay is over
    assert step(state, line(11), 100.0, LIMITS) == state  # nor between the thresholds
    state = step(state, line(10), 100.0, LIMITS)
    assert state == State("", 100.0)
    assert step(state, line(10**6), 129.0, LIMITS) == state
    assert step(state, line(10**6), 130.0, LIMITS) == State("wait", 130.0)


def test_a_dead_device_is_left_at_once_and_come_back_to_after_the_stay() -> None:
    state = step(State("", 100.0), DEAD, 100.1, LIMITS)
    assert state == State("device", 100.1)
    assert step(state, line(0), 130.0, LIMITS) == state
    assert step(state, line(0), 130.2, LIMITS) == State("", 130.2)
    waiting = State("wait", 5.0)
    assert step(waiting, DEAD, 6.0, LIMITS) == State("device", 5.0)


def test_a_deadline_sends_one_render_away_alone() -> None:
    load = line(5, 2.0)
    assert place(HOME, load, None) == ""
    assert place(HOME, load, 12.0) == ""
    assert place(HOME, load, 11.9) == "deadline"
    assert place(State("wait", 0.0), load, 1000.0) == "wait"


def test_of_a_known_line_those_go_that_would_end_too_late() -> None:
    dues = [("a", 4.0), ("b", 8.0), ("c", 8.0), ("d", 12.0), ("e", 12.0)]
    assert list(late(dues, 0.0, 4.0)) == ["c", "e"]  # a goes at 4, b at 8, d in c's place
    assert list(late(dues, 0.0, 4.0, busy_s=1.0)) == ["a", "c", "e"]
    assert list(late(dues, 100.0, 4.0)) == ["a", "b", "c", "d", "e"]


@given(
    st.lists(st.integers(1, 40), max_size=12).map(sorted),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([0.0, 1.0, 4.0]),
)
def test_what_stays_is_in_time_and_no_more_go_than_must(
    dues: list[int], now: float, busy_s: float
) -> None:
    """Of a line by deadlines, pictures alike: as many stay as any choice could keep in time."""
    line = list(enumerate(map(float, dues)))
    gone = set(late(line, now, 4.0, busy_s))
    ends = now + busy_s
    for at, due in line:
        if at not in gone:
            ends += 4.0
            assert ends <= due
    most = 0
    for stay in range(2 ** len(dues) if len(dues) <= 8 else 0):
        kept = [due for at, due in line if stay >> at & 1]
        if all(now + busy_s + 4.0 * (k + 1) <= due for k, due in enumerate(kept)):
            most = max(most, len(kept))
    assert len(dues) > 8 or len(dues) - len(gone) == most


LOADS = st.builds(
    Load,
    alive=st.booleans(),
    waiting=st.integers(0, 60),
    seconds=st.sampled_from([0.0, 0.5, 1.0]),
    devices=st.integers(1, 3),
)
LOOKS = st.lists(st.tuples(st.floats(0.0, 20.0), LOADS), min_size=1, max_size=60)
RULES = st.builds(
    lambda to, back, dwell: Limits(to, min(back, to), dwell),
    st.sampled_from([1.0, 10.0, 20.0]),
    st.sampled_from([0.5, 5.0, 20.0]),
    st.sampled_from([0.0, 5.0, 30.0, 100.0]),
)


@given(LOOKS, RULES)
def test_nothing_goes_back_and_forth_within_the_stay(
    looks: list[tuple[float, Load]], limits: Limits
) -> None:
    state, now = HOME, 0.0
    for passed, load in looks:
        now += passed
        before, state = state, step(state, load, now, limits)
        if bool(state.away) == bool(before.away):
            assert state.since == before.since
            continue
        assert state.since == now
        # Only a death may cut a stay short.
        assert now - before.since >= limits.dwell_s or state.away == "device"
        if not state.away:
            assert load.alive
            assert wait_s(load) <= limits.back_below_s
        elif state.away == "wait":
            assert wait_s(load) > limits.when_wait_exceeds_s
        else:
            assert not load.alive
    if not looks[-1][1].alive:
        assert state.away == "device"


@given(LOOKS)
def test_who_swings_between_the_thresholds_stays_where_it_is(
    looks: list[tuple[float, Load]],
) -> None:
    limits = replace(LIMITS, dwell_s=0.0)
    for state in (HOME, State("wait", 0.0)):
        now = state.since if state.since > -inf else 0.0
        at = state
        for number, (passed, _) in enumerate(looks):
            now += passed
            at = step(at, line(20 if number % 2 else 11), now, limits)
        assert at == state


@given(LOOKS, RULES)
def test_a_pool_that_is_well_again_is_come_back_to(
    looks: list[tuple[float, Load]], limits: Limits
) -> None:
    state, now = HOME, 0.0
    for passed, load in looks:
        now += passed
        state = step(state, load, now, limits)
    state = step(state, Load(), now + limits.dwell_s + 1.0, limits)
    assert state.away == ""


# ---------------------------------------------------------------- the gauge


def test_the_gauge_counts_the_line_and_averages_the_recent() -> None:
    gauge = Gauge(seconds=4.0, devices=2)
    gauge.entered(3)
    assert gauge.load() == Load(True, 3, 4.0, 2)
    gauge.left(1, 2.0)
    assert gauge.load() == Load(True, 2, 2.0, 2)
    gauge.left(1)  # it came to nothing, and says nothing of how long one takes
    assert gauge.load().seconds == 2.0
    for _ in range(30):
        gauge.entered()
        gauge.left(1, 5.0)
    assert gauge.load() == Load(True, 1, 5.0, 2)
    gauge.left(9, 10.0)
    assert gauge.load().waiting == 0


def test_the_gauge_hears_of_deaths_and_recoveries() -> None:
    gauge = Gauge()
    gauge.died()
    assert not gauge.load().alive
    gauge.recovered()
    assert gauge.load().alive
    gauge.died()
    gauge.left(1, 1.0)  # who makes a picture is alive
    assert gauge.load().alive


# ---------------------------------------------------------------- go


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Both:
    """What is rendered here and there, and what each of them raises."""

    def __init__(self, gauge: Gauge | None = None) -> None:
        self.gauge = gauge or Gauge()
        self.clock = Clock()
        self.overflow = Overflow(LIMITS, self.gauge, self.clock)
        self.own_raises: Exception | None = None
        self.hosted_raises: Exception | None = None
        self.calls: list[str] = []

    def own(self) -> str:
        self.calls.append("own")
        if self.own_raises is not None:
            raise self.own_raises
        return "own"

    def hosted(self, why: str) -> str:
        self.calls.append(why)
        if self.hosted_raises is not None:
            raise self.hosted_raises
        return "hosted"

    def go(self, left_s: float | None = None) -> str:
        return self.overflow.go(self.own, self.hosted, left_s)


def test_a_pool_that_is_well_renders_itself() -> None:
    both = Both()
    assert both.go() == "own"
    assert both.calls == ["own"]


def test_a_long_line_goes_there_and_returns() -> None:
    both = Both(Gauge(seconds=3.0))
    both.gauge.entered(7)
    assert (both.go(), both.calls) == ("hosted", ["wait"])
    both.gauge.left(7, 21.0)
    both.clock.now = 29.0
    assert both.go() == "hosted"
    both.clock.now = 30.0
    assert both.go() == "own"


def test_a_device_that_dies_under_a_render_loses_nothing() -> None:
    both = Both()
    both.own_raises = DeviceMissing("device 'cuda' was asked for")
    assert both.go() == "hosted"
    assert both.calls == ["own", "device"]
    both.calls.clear()
    assert both.go() == "hosted"
    assert both.calls == ["device"]  # it is not asked again while it is known to be dead
    both.gauge.recovered()
    both.own_raises = None
    both.clock.now = 40.0
    assert both.go() == "own"


def test_other_errors_of_ours_are_not_bought_out_of() -> None:
    both = Both()
    for error in (ValueError("a bug"), WorkerLost("the worker crashed")):
        both.own_raises = error
        with pytest.raises(type(error)):
            both.go()
    assert both.calls == ["own", "own"]


def test_an_outage_there_comes_back_to_a_pool_that_is_alive() -> None:
    both = Both(Gauge(seconds=30.0))
    both.gauge.entered(9)
    both.hosted_raises = HostedFailed("nobody answered")
    assert both.go() == "own"
    assert both.calls == ["wait", "own"]


def test_an_outage_there_and_no_device_here_is_an_error() -> None:
    both = Both()
    both.gauge.died()
    both.hosted_raises = HostedFailed("nobody answered")
    with pytest.raises(HostedFailed):
        both.go()
    assert both.calls == ["device"]


def test_what_the_filter_refused_is_not_routed_around() -> None:
    both = Both(Gauge(seconds=30.0))
    both.gauge.entered(9)
    both.hosted_raises = ContentFiltered("the filter")
    with pytest.raises(ContentFiltered):
        both.go()
    assert both.calls == ["wait"]


def test_a_deadline_is_the_renders_own() -> None:
    both = Both(Gauge(seconds=3.0))
    both.gauge.entered(2)
    assert both.go(5.0) == "hosted"
    assert both.go(60.0) == "own"
    assert both.calls == ["deadline", "own"]


def test_what_a_dead_device_says() -> None:
    class AcceleratorError(RuntimeError):
        """As torch calls it."""

    class OutOfMemoryError(AcceleratorError):
        """As torch calls it."""

    dead = (
        DeviceMissing("no GPU"),
        DeviceLost("the GPU's context is broken"),
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
    )
    well = (
        OutOfMemoryError("CUDA out of memory"),
        OutOfMemory("the device has no room"),
        RuntimeError("shapes"),
        ValueError("CUDA error"),
    )
    assert [device_is_dead(each) for each in (*dead, *well)] == [True] * 4 + [False] * 4
