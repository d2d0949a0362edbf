"""The choice of a key: weights exact over time, keys that rest, sessions that stay."""

from __future__ import annotations

from collections import Counter
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.gateway.keys import LONGEST_ROUND, Key, Keys, turns_of


def keys(**weights: float) -> Keys:
    return Keys(Key("p", name, b"", weight) for name, weight in weights.items())


def test_weights_hold_within_one_percent_over_ten_thousand_calls() -> None:
    pool = keys(a=0.7, b=0.3)
    count = Counter(key.name for _ in range(10_000) if (key := pool.choose("m", 0.0)))
    assert count["a"] == pytest.approx(7_000, abs=1)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 300))
def test_no_key_is_ever_a_whole_call_from_its_share(weights: list[int], calls: int) -> None:
    pool = keys(**{f"k{i}": float(w) for i, w in enumerate(weights)})
    count = Counter(key.name for _ in range(calls) if (key := pool.choose("m", 0.0)))
    for i, weight in enumerate(weights):
        share = calls * weight / sum(weights)
        assert abs(count[f"k{i}"] - share) < len(weights)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([1, 2, 10]))
def test_the_turns_are_one_round_of_the_choice_that_is_made_call_by_call(
    weights: list[int], parts: int
) -> None:
    """The second pool has its names asked for, so that it weighs its keys anew at each call."""
    names = {f"k{nth}": weight for nth, weight in enumerate(weights)}
    turns = turns_of(tuple(keys(**{name: weight / parts for name, weight in names.items()})))
    if not any(weights):
        assert turns == ()
        return
    assert len(turns) == sum(weights) // gcd(*weights)
    plain = keys(**{name: float(weight) for name, weight in names.items()})
    asked = [plain.choose("m", 0.0, allowed=names) for _ in range(2 * len(turns))]
    # The last turn comes first: `Keys` counts down.
    assert [key.name for key in asked if key] == [key.name for key in reversed(turns)] * 2


def test_a_pool_goes_by_its_turns() -> None:
    pool = keys(a=0.5, b=0.3, c=0.2)
    names = [key.name for key in reversed(turns_of(tuple(pool)))]
    assert [key.name for _ in range(25) if (key := pool.choose("m", 0.0))] == (names * 3)[:25]


def test_a_key_that_is_ill_gives_its_turn_away_and_the_others_keep_theirs() -> None:
    pool = keys(a=0.5, b=0.3, c=0.2)
    a, b, c = pool
    a.cool(0.0, 60.0)
    count = Counter(key.name for _ in range(1_000) if (key := pool.choose("m", 1.0)))
    assert count["a"] == 0
    assert count[b.name] == pytest.approx(600, abs=2)
    assert count[c.name] == pytest.approx(400, abs=2)


def test_what_has_no_short_round_is_chosen_call_by_call() -> None:
    assert turns_of(tuple(keys(a=LONGEST_ROUND - 1, b=1))) != ()
    assert len(turns_of(tuple(keys(a=LONGEST_ROUND, b=LONGEST_ROUND)))) == 2
    assert turns_of(tuple(keys(a=LONGEST_ROUND, b=1))) == ()
    assert turns_of(tuple(keys(a=0.7, b=1e-9))) == ()
    assert turns_of((Key("p", "a", b""), Key("p", "b", b"", models=("gpt-*",)))) == ()


def test_a_key_that_cools_is_skipped_and_comes_back() -> None:
    pool = keys(a=1, b=1)
    (a, b) = pool
    a.cool(0.0, 20.0)
    assert {pool.choose("m", 19.9) for _ in range(5)} == {b}
    b.cool(0.0, None)
    assert pool.choose("m", 0.5) is None
    assert pool.ready_in("m", 0.5) == pytest.approx(0.5)
    assert {pool.choose("m", 21.0) for _ in range(4)} == {a, b}


def test_a_cooldown_without_a_delay_doubles_until_it_succeeds() -> None:
    (key,) = keys(a=1)
    waits = []
    for _ in range(8):
        key.cool(key.ready_at, None)
        waits.append(key.ready_at)
    gaps = [b - a for a, b in zip([0.0, *waits], waits, strict=False)]
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60]
    key.succeeded()
    assert key.cooled == 0


def test_named_keys_and_models_bound_the_choice() -> None:
    pool = Keys([Key("p", "prod", b"", 1), Key("p", "research", b"", 1, ("gpt-4o*",))])
    names = {key.name for _ in range(4) if (key := pool.choose("gpt-4o-mini", 0.0))}
    assert names == {"prod", "research"}
    assert pool.choose("o3", 0.0, allowed={"research"}) is None
    assert pool.ready_in("o3", 0.0, {"research"}) is None
    chosen = pool.choose("gpt-4o", 0.0, allowed={"research"})
    assert chosen is not None
    assert chosen.name == "research"


def test_a_session_keeps_its_key_until_that_is_unwell() -> None:
    pool = keys(a=1, b=1, c=1)
    session = b"conversation-17"
    first = pool.choose("m", 0.0, session=session)
    assert first is not None
    assert all(pool.choose("m", 0.0, session=session) is first for _ in range(50))
    first.cool(0.0, 10.0)
    second = pool.choose("m", 1.0, session=session)
    assert second not in {None, first}
    assert pool.choose("m", 11.0, session=session) is first


def test_sessions_spread_by_weight() -> None:
    pool = keys(a=3, b=1)
    count = Counter(
        key.name
        for nth in range(4_000)
        if (key := pool.choose("m", 0.0, session=str(nth).encode()))
    )
    assert count["a"] == pytest.approx(3_000, rel=0.05)


def test_what_was_learned_survives_a_reload_of_the_same_credential_only() -> None:
    old = Keys([Key("p", "a", b"x"), Key("p", "b", b"y")])
    for key in old:
        key.cool(0.0, 50.0)
    new = Keys([Key("p", "a", b"x"), Key("p", "b", b"changed")]).remember(old)
    chosen = new.choose("m", 1.0)
    assert chosen is not None
    assert chosen.name == "b"


def test_health_is_kept_for_a_bounded_number_of_models() -> None:
    (key,) = keys(a=1)
    for nth in range(1_000):
        key.breaker(f"model-{nth}")
    assert len(key.breakers) <= 257


def test_no_repr_shows_a_credential() -> None:
    assert "secret" not in repr(Key("p", "a", b"authorization: Bearer secret"))
