"""What all three kinds of limits promise: never more than the limit in any window."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.state.limits import SLOTS, Ask, MemoryLimits, Rule, left_of
from tests.state.conftest import Clock, World

MINUTE = Rule(10)


@dataclass
class Taken:
    """An admitted request of the property test: when, and how much it came to in the end."""

    at: float
    key: str
    amount: int
    corrected: bool = False


def most_in_any_window(taken: list[Taken], per_s: float) -> int:
    """Return the largest sum of amounts within less than ``per_s``; it ends at one of them."""
    return max(
        (sum(t.amount for t in taken if end.at - per_s < t.at <= end.at) for end in taken),
        default=0,
    )


STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.floats(0.0, 200.0)),
        st.integers(0, 6),
        st.sampled_from(["take", "take", "take", "back"]),
    ),
    max_size=60,
)


@given(steps=STEPS, limit=st.integers(0, 12), per_s=st.sampled_from([1.0, 7.3, 60.0, 3600.0]))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_window_ever_has_more_than_the_limit(
    world: World, steps: list[tuple[float, int, str]], limit: int, per_s: float
) -> None:
    key, rule = uuid.uuid4().hex, Rule(limit, per_s)
    taken: list[Taken] = []
    for wait, amount, what in steps:
        world.clock.move(wait * per_s / 60)
        if what == "back":
            for old in [t for t in taken if not t.corrected][:1]:
                less = min(amount, old.amount)
                world.give_back([Ask(key, rule, less)], world.clock.now - old.at)
                old.amount -= less
                old.corrected = True
        else:
            refusal = world.take(Ask(key, rule, amount))
            if refusal is None:
                taken.append(Taken(world.clock.now, key, amount))
            elif refusal.retry_after_s < inf:
                assert refusal.retry_after_s <= per_s * (SLOTS + 1) / SLOTS + 0.01
    assert most_in_any_window(taken, per_s * (1 - 1e-9)) <= limit


def test_all_of_a_limit_at_once_then_nothing_then_all_again(world: World) -> None:
    rule = Rule(10)
    assert all(world.take(Ask("k", rule)) is None for _ in range(10))
    refusal = world.take(Ask("k", rule))
    assert refusal is not None
    assert refusal.remaining == 0
    assert 60 <= refusal.retry_after_s <= 61.01
    assert 60 <= refusal.reset_s <= 61.01
    world.clock.move(refusal.retry_after_s - 0.1)
    assert world.take(Ask("k", rule)) is not None
    world.clock.move(0.1)
    assert all(world.take(Ask("k", rule)) is None for _ in range(10))


def test_retry_after_is_when_enough_has_left_and_not_when_all_has(world: World) -> None:
    for amount in (3, 3, 3):
        assert world.take(Ask("k", MINUTE, amount)) is None
        world.clock.move(10)
    refusal = world.take(Ask("k", MINUTE, 4))
    assert refusal is not None
    assert 30 <= refusal.retry_after_s <= 31.01
    assert refusal.remaining == 1
    assert 50 <= refusal.reset_s <= 51.01
    world.clock.move(refusal.retry_after_s)
    assert world.take(Ask("k", MINUTE, 4)) is None


def test_a_steady_caller_gets_all_but_a_sixtieth(world: World) -> None:
    rule = Rule(60)
    admitted = 0
    for _ in range(2400):
        admitted += world.take(Ask("k", rule)) is None
        world.clock.move(0.25)
    assert 590 <= admitted <= 660  # ten minutes; the first window is full at once


def test_all_or_nothing(world: World) -> None:
    tokens, requests = Rule(1000), Rule(2)
    asks = [Ask("t", tokens, 400), Ask("r", requests)]
    assert world.take(*asks) is None
    assert world.take(*asks) is None
    refusal = world.take(*asks)
    assert refusal is not None
    assert refusal.ask == asks[0]
    assert world.take(Ask("t", tokens, 200)) is None
    refusal = world.take(Ask("t", tokens, 0), Ask("r", requests))
    assert refusal is not None
    assert refusal.ask.key == "r"


def test_what_was_refused_took_nothing(world: World) -> None:
    tokens, requests = Rule(1000), Rule(1)
    assert world.take(Ask("r", requests)) is None
    for _ in range(5):
        assert world.take(Ask("t", tokens, 300), Ask("r", requests)) is not None
    assert world.limits.peek([Ask("t", tokens)])[0].remaining == 1000
    assert world.take(Ask("t", tokens, 1000)) is None


def test_more_than_the_limit_never_has_room(world: World) -> None:
    refusal = world.take(Ask("k", MINUTE, 11))
    assert refusal is not None
    assert refusal.retry_after_s == inf
    assert refusal.remaining == 10
    refusal = world.take(Ask("none", Rule(0)))
    assert refusal is not None
    assert refusal.retry_after_s == inf


def test_less_is_given_back_and_more_is_taken(world: World) -> None:
    rule = Rule(1000)
    assert world.take(Ask("k", rule, 900)) is None
    world.give_back([Ask("k", rule, 600)])
    assert world.limits.peek([Ask("k", rule)])[0].remaining == 700
    world.give_back([Ask("k", rule, -900)])
    assert world.limits.peek([Ask("k", rule)])[0].remaining == 0
    assert world.take(Ask("k", rule, 1)) is not None
    world.clock.move(61.01)
    assert world.take(Ask("k", rule, 1000)) is None


def test_what_has_left_the_window_is_not_given_back_again(world: World) -> None:
    rule = Rule(1000)
    assert world.take(Ask("k", rule, 1000)) is None
    world.clock.move(62)
    assert world.take(Ask("k", rule, 1000)) is None
    world.give_back([Ask("k", rule, 900)], age_s=62)
    assert world.take(Ask("k", rule, 1)) is not None


def test_peek_says_what_is_left_and_until_when(world: World) -> None:
    rule = Rule(10)
    room = world.limits.peek([Ask("k", rule)])[0]
    assert (room.limit, room.remaining, room.reset_s) == (10, 10, 0.0)
    assert world.take(Ask("k", rule, 4)) is None
    room = world.limits.peek([Ask("k", rule)])[0]
    assert (room.limit, room.remaining) == (10, 6)
    assert 60 <= room.reset_s <= 61.01
    world.clock.move(62)
    assert world.limits.peek([Ask("k", rule)])[0].remaining == 10


@given(
    steps=st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.floats(0.0, 200.0)),
            st.sampled_from("abc"),
            st.integers(-3, 9),
            st.sampled_from(["take", "take", "back", "add"]),
        ),
        max_size=40,
    ),
    limits=st.fixed_dictionaries({key: st.integers(0, 12) for key in "abc"}),
)
@settings(deadline=None)
def test_left_is_what_peek_says_and_all_of_it_is_there_at_the_reset(
    steps: list[tuple[float, str, int, str]], limits: dict[str, int]
) -> None:
    clock = Clock()
    ours = MemoryLimits(clock)
    asks = [Ask(key, Rule(limit)) for key, limit in limits.items()]
    for wait, key, amount, what in steps:
        clock.move(wait)
        one = Ask(key, Rule(limits[key]), amount if what == "back" else abs(amount))
        if what == "take":
            ours.take_now([one])
        elif what == "add":
            ours.add([one])
        else:
            ours.give_back_now([one], wait)
        for some in ([one], asks):
            assert ours.left(some) == left_of(ours.peek(some))
    left = ours.left(asks)
    for nth, ask in enumerate(asks):
        (remaining, reset_ms), now = left[2 * nth : 2 * nth + 2], clock.now
        assert 0 <= remaining <= ask.rule.limit
        if remaining < ask.rule.limit:
            clock.now = now + reset_ms / 1000 - 0.01
            assert ours.left([ask])[0] < ask.rule.limit
        clock.now = now + reset_ms / 1000
        assert ours.left([ask]) == (ask.rule.limit, 0)
        clock.now = now


def test_keys_do_not_touch_each_other(world: World) -> None:
    assert world.take(Ask("a", MINUTE, 10)) is None
    assert world.take(Ask("b", MINUTE, 10)) is None
    assert world.take(Ask("a" * 5000 + "\0é", MINUTE, 10)) is None


def test_a_changed_limit_holds_at_once(world: World) -> None:
    assert world.take(Ask("k", Rule(10), 10)) is None
    assert world.take(Ask("k", Rule(12), 2)) is None
    assert world.take(Ask("k", Rule(12), 1)) is not None
    assert world.take(Ask("k", Rule(5), 0)) is not None


@pytest.mark.parametrize(("limit", "per_s"), [(-1, 60), (1, 0), (1, -1), (1, inf)])
def test_a_rule_that_cannot_be_counted_is_refused(limit: int, per_s: float) -> None:
    with pytest.raises(InvalidRequest, match="rate limit"):
        Rule(limit, per_s)


def test_memory_is_bounded_and_forgets_who_is_gone_first() -> None:
    clock = Clock()
    limits = MemoryLimits(clock, max_keys=100)
    for k in range(90):
        assert limits.take_now([Ask(f"old {k}", MINUTE)]) is None
    clock.move(62)
    for k in range(95):
        assert limits.take_now([Ask(f"new {k}", MINUTE)]) is None
    assert limits.evicted == 0
    assert len(limits._windows) == 95
    for k in range(1000):
        assert limits.take_now([Ask(f"flood {k}", MINUTE)]) is None
    assert len(limits._windows) <= 100
    assert limits.evicted > 800
