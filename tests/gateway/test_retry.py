"""Retries: full jitter within bounds, and a budget of a fifth."""

from __future__ import annotations

import random
from typing import get_args

from packshot.gateway.retry import FLOOR, NEXT, RetryBudget, backoff_s
from packshot.gateway.settings import RetryEntry
from packshot.providers.base import FailureKind


def test_every_kind_of_failure_has_a_next_step() -> None:
    assert set(NEXT) == set(get_args(FailureKind))


def test_what_the_caller_did_wrong_is_not_routed_around() -> None:
    assert {kind for kind, step in NEXT.items() if step == "stop"} == {"bad_request", "refusal"}


def test_jitter_is_full_and_bounded() -> None:
    entry = RetryEntry(5, 100, 400)
    drawn = [
        [backoff_s(entry, retry, random.Random(seed)) for seed in range(500)] for retry in range(4)
    ]
    for waits, top in zip(drawn, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert 0 <= min(waits) < 0.05 * top
        assert 0.95 * top < max(waits) <= top


def test_at_most_a_fifth_of_the_calls_are_retried() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(10_000):
        budget.deposit()
        retries += budget.withdraw(0.0)
    assert retries <= 0.2 * 10_000 + FLOOR


def test_a_quiet_gateway_has_its_floor_back_after_a_while() -> None:
    budget = RetryBudget()
    while budget.withdraw(0.0):
        pass
    assert not budget.withdraw(1.0)
    assert sum(budget.withdraw(60.0) for _ in range(10)) == int(FLOOR)
