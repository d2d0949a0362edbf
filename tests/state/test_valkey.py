"""Limits that replicas share: slow, stopped, flushed or restarted, Valkey fails no request."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from packshot.state import valkey as valkey_module
from packshot.state.limits import Ask, Refusal, Rule
from packshot.state.valkey import FAILURES, ValkeyLimits
from tests.state.conftest import new_valkey

DAY = 86_400


@pytest.fixture
def server() -> Iterator[Any]:
    """Start a Valkey that the test may stop."""
    with new_valkey() as server:
        yield server


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait half a second for answers: a busy machine is no silent server."""
    assert valkey_module.ANSWER_S < 0.05
    monkeypatch.setattr(valkey_module, "ANSWER_S", 0.5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look every 10 ms whether it is back, instead of every second."""
    monkeypatch.setattr(valkey_module, "PROBE_S", 0.01)


def address(server: Any) -> str:
    return f"valkey://127.0.0.1:{server.port}/0"


async def until_closed(limits: ValkeyLimits) -> None:
    async with asyncio.timeout(30):
        while limits.is_open:  # noqa: ASYNC110 - an event for tests alone is not worth it
            await asyncio.sleep(0.01)


async def admitted(limits: ValkeyLimits, rule: Rule, tries: int) -> int:
    answers = [await limits.take([Ask("k", rule)]) for _ in range(tries)]
    return sum(answer is None for answer in answers)


def test_two_replicas_admit_exactly_the_limit(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_module, "ANSWER_S", 10.0)

    async def run() -> None:
        replicas = [ValkeyLimits(address(server), 2) for _ in range(2)]
        rule, tokens = Rule(100, DAY), Rule(10**12, DAY)
        asks = [Ask("k", rule), Ask("t", tokens, 10**6)]
        answers = await asyncio.gather(
            *(replicas[k % 2].take(asks) for k in range(250)), return_exceptions=False
        )
        assert sum(answer is None for answer in answers) == 100
        refused = next(answer for answer in answers if isinstance(answer, Refusal))
        assert refused.ask.key == "k"
        assert refused.remaining == 0
        assert 0 < refused.retry_after_s <= DAY * 61 / 60 + 1
        assert [r.fallbacks for r in replicas] == [0, 0]
        for replica in replicas:
            await replica.aclose()

    asyncio.run(run())


def test_a_silent_server_is_asked_five_times_and_no_more(
    server: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: each process then has its share; when Valkey is back, the limit is one again."""

    async def run() -> None:
        limits = ValkeyLimits(address(server), replicas=4)
        rule = Rule(100, DAY)
        assert await limits.take([Ask("k", rule)]) is None
        os.kill(server._process.pid, signal.SIGSTOP)
        try:
            assert await admitted(limits, rule, FAILURES) == FAILURES
            assert limits.is_open
            with monkeypatch.context() as patch:
                patch.setattr(limits, "_run", None)  # to ask again would be an error
                assert await admitted(limits, rule, 100) == 25 - 1 - FAILURES
            assert limits.fallbacks == FAILURES + 100
            assert limits.peek([Ask("k", rule)])[0].remaining == 0
        finally:
            os.kill(server._process.pid, signal.SIGCONT)
        await until_closed(limits)
        assert await admitted(limits, rule, 10) == 0  # its share of this window is used
        assert await limits.take([Ask("other", rule)]) is None
        assert not limits.is_open
        await limits.aclose()

    asyncio.run(run())


def test_after_a_call_without_an_answer_the_limit_is_one_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken meanwhile is told to Valkey; the other processes' share is not lost."""

    async def run() -> None:
        limits, other = (ValkeyLimits(address(server), replicas=4) for _ in range(2))
        rule = Rule(100, DAY)
        assert await admitted(limits, rule, 40) == 40
        with monkeypatch.context() as patch:

            async def silent(_: object) -> list[int]:
                raise TimeoutError

            patch.setattr(limits, "_run", silent)
            assert await limits.take([Ask("k", rule, 1)]) is not None  # above its share of 25
            assert await limits.take([Ask("new", rule, 20)]) is None
        assert not limits.is_open
        assert await limits.take([Ask("k", rule)]) is None
        assert await other.take([Ask("new", rule, 81)]) is not None
        assert await other.take([Ask("new", rule, 80)]) is None
        assert await admitted(limits, rule, 100) == 59
        for each in (limits, other):
            await each.aclose()

    asyncio.run(run())


def test_nobody_listens(quick: None) -> None:
    async def run() -> None:
        limits = ValkeyLimits("redis://127.0.0.1:1/0", replicas=2)
        assert await admitted(limits, Rule(10, DAY), 50) == 5
        assert limits.is_open
        await limits.give_back([Ask("k", Rule(10, DAY), 3)])
        assert await admitted(limits, Rule(10, DAY), 50) == 3
        await limits.aclose()

    asyncio.run(run())


def test_flushed_and_restarted_it_counts_anew(server: Any, quick: None) -> None:
    async def run() -> None:
        limits = ValkeyLimits(address(server))
        rule = Rule(10, DAY)
        assert await admitted(limits, rule, 20) == 10
        client = server.client()
        client.flushall()
        client.script_flush()
        client.close()
        assert await admitted(limits, rule, 20) == 10
        port = server.port
        server.stop()
        assert not any([await limits.take([Ask("else", rule)]) for _ in range(FAILURES + 1)])
        assert limits.is_open
        server._desired_port = port
        server.start()
        assert server.port == port
        await until_closed(limits)
        assert await limits.take([Ask("new", rule)]) is None
        assert limits.peek([Ask("new", rule)])[0].remaining == 9
        await limits.aclose()

    asyncio.run(run())


def test_a_caller_that_hangs_up_does_not_mix_up_answers(server: Any) -> None:
    """The connection of a cancelled call is not used for the next one."""

    async def run() -> None:
        limits = ValkeyLimits(address(server))
        for _ in range(30):
            call = asyncio.ensure_future(limits.take([Ask("gone", Rule(5, DAY), 1)]))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert await limits.take([Ask("k", Rule(10**6, DAY), 1)]) is None
        assert limits.peek([Ask("k", Rule(10**6, DAY))])[0].remaining == 10**6 - 30
        await limits.aclose()

    asyncio.run(run())


def test_every_window_leaves_valkey_by_itself(server: Any) -> None:
    async def run() -> None:
        limits = ValkeyLimits(address(server))
        await limits.take([Ask("k", Rule(10, 60)), Ask("t", Rule(10, 3600), 5)])
        await limits.aclose()

    asyncio.run(run())
    client = server.client()
    lives = {key: client.pttl(key) for key in client.keys("*")}
    client.close()
    assert len(lives) == 2
    assert all(0 < life <= 3600 * 1000 * 62 / 60 for life in lives.values())
