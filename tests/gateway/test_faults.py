"""The fault matrix can fail: a caller that goes to the provider directly is not taken for a
gateway, and books that are off by a nano-euro are not taken for right."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from packshot.core.types import Usage
from packshot.providers.fake import Fake
from tests.gateway.caller import Caller
from tests.gateway.faults import (
    CASES,
    KEYS,
    Api,
    Case,
    Report,
    check_books,
    hang_ups,
    run_case,
)

NAMED = {case.name: case for case in CASES}


@dataclass
class Booked:
    outcome: str
    amount: int


def direct(case: Case, api: Api, *, stream: bool) -> Report:
    """Run a row with nothing between caller and provider."""

    async def run() -> Report:
        async with Fake(case.settings) as fake:
            models: dict[Api, str] = {"openai": "m", "anthropic": "m"}
            caller = Caller(fake.port, models, key=KEYS[0], limit_s=1)
            return await run_case(case, caller, fake, api=api, stream=stream)

    return asyncio.run(run())


def nanos(usage: Usage) -> int:
    return usage.input_tokens + 4 * usage.output_tokens


def test_no_row_stands_there_twice() -> None:
    assert len(NAMED) == len(CASES) > 80


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name", ["nothing wrong", "slow drip", "context length", "content filter", "bad request"]
)
def test_what_needs_no_gateway_is_right_without_one(name: str, api: Api, stream: bool) -> None:
    report = direct(NAMED[name], api, stream=stream)
    assert report.saw.status in {200, 400}


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "name",
    [
        "429 once, seconds",
        "401, one key",
        "500, once",
        "reset, once",
        "close at event 2",
        "torn at event 4",
        "no end marker",
    ],
)
def test_what_needs_one_is_wrong_without_it(name: str, api: Api) -> None:
    with pytest.raises((AssertionError, ConnectionResetError)):
        direct(NAMED[name], api, stream=True)


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize("billed", ["all", "sent", "nothing"])
def test_books_of_a_caller_who_left(api: Api, billed: str) -> None:
    case = hang_ups(4, billed)[-1]
    report = direct(case, api, stream=True)
    (truth,) = report.truths
    assert truth.end == "hung_up"
    cost = nanos(truth.billed) if truth.billed else 0
    check_books(report, [Booked("unknown", cost)], nanos)
    check_books(report, [Booked("unknown", cost + 1)], nanos)
    check_books(report, [Booked("failed_billed", cost)], nanos, drained=True)
    with pytest.raises(AssertionError):
        check_books(report, [Booked("unknown", cost - 1)], nanos)
    with pytest.raises(AssertionError):
        check_books(report, [Booked("failed_billed", cost + 1)], nanos, drained=True)
    with pytest.raises(AssertionError):
        check_books(report, [], nanos)


def test_books_of_an_answer_are_exact() -> None:
    report = direct(NAMED["nothing wrong"], "openai", stream=False)
    assert report.truths[0].billed is not None
    cost = nanos(report.truths[0].billed)
    check_books(report, [Booked("succeeded", cost)], nanos)
    for wrong in (Booked("succeeded", cost + 1), Booked("unknown", cost), Booked("failed_free", 0)):
        with pytest.raises(AssertionError):
            check_books(report, [wrong], nanos)
