"""Hedging: whichever of two begins first is taken, the other is cancelled and booked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from packshot.core.errors import BudgetExceeded
from packshot.gateway.hedge import HUNG_UP, SLOWER, HedgeBudget, race
from packshot.providers.fake_script import NEVER, Fault, Settings
from tests.gateway.caller import Caller
from tests.gateway.world import World, world

MODEL = "gpt-4o-mini"
PROVIDER = """
  NAME:
    base_url: {NAME}/v1
    kind: openai
    keys: KEYS
    network: {retry: {max_retries: 0}}
"""
KEY = "[{name: a, value: env.KEY_A}]"
KEYS = "[{name: a, value: env.KEY_A}, {name: b, value: env.KEY_B}]"
SLOW = Settings(usual=Fault(head_after_s=NEVER))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.setenv("KEY_B", "k2")


def yaml(*names: str, keys: str = KEY, after_ms: int = 60) -> str:
    providers = "".join(PROVIDER.replace("NAME", name).replace("KEYS", keys) for name in names)
    others = ", ".join(f"{name}/{MODEL}" for name in names[1:])
    return (
        f"providers:{providers}routes:\n  - {{id: chat, primary: {names[0]}/{MODEL}, "
        f"fallbacks: [{others}], hedge_after_ms: {after_ms}}}\n"
    )


def caller(there: World) -> Caller:
    return Caller(int(there.url.rpartition(":")[2]), {"openai": "chat"})


@pytest.mark.parametrize("stream", [False, True])
def test_the_faster_is_taken(tmp_path: Path, stream: bool) -> None:
    with world(tmp_path, yaml("openai", "two"), openai=SLOW, two=Settings()) as there:
        made = caller(there)
        saw = asyncio.run(made(api="openai", stream=stream))
        assert saw.complete
        assert saw.text == there.fakes["two"].truth[0].text
        assert made.seen["x-packshot-provider"] == "two"
        assert made.seen["x-packshot-attempts"] == "2"
        assert int(made.seen["x-packshot-overhead-us"]) >= 0
        there.ended()
        assert [truth.end for truth in there.fakes["openai"].truth] == ["hung_up"]
        entries = {entry.provider: entry for entry in there.booked()}
        assert entries["two"].outcome == "succeeded"
        assert (entries["openai"].outcome, entries["openai"].reason) == ("unknown", SLOWER)
        assert entries["openai"].amount > 0
        keys = [key for each in there.worker.gateway.plan.providers.values() for key in each.keys]
        assert all(key.in_flight == 0 for key in keys)


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_may_still_be_the_faster(tmp_path: Path, stream: bool) -> None:
    late = Settings(usual=Fault(head_after_s=0.4))
    with world(tmp_path, yaml("one", "two"), one=late, two=SLOW) as there:
        made = caller(there)
        saw = asyncio.run(made(api="openai", stream=stream))
        assert saw.complete
        assert made.seen["x-packshot-provider"] == "one"
        there.ended()
        ends = {entry.provider: (entry.outcome, entry.reason) for entry in there.booked()}
        assert ends == {"one": ("succeeded", ""), "two": ("unknown", SLOWER)}


def test_one_that_begins_in_time_has_none_beside_it(tmp_path: Path) -> None:
    with world(
        tmp_path, yaml("one", "two", after_ms=5000), one=Settings(), two=Settings()
    ) as there:
        assert asyncio.run(caller(there)(api="openai", stream=True)).complete
        assert there.fakes["two"].truth == []
        assert [entry.outcome for entry in there.booked()] == ["succeeded"]


def test_another_key_of_the_only_target(tmp_path: Path) -> None:
    one = Settings(keys={"k1": None, "k2": None})
    with world(tmp_path, yaml("one", keys=KEYS), one=one) as there:
        there.fakes["one"].next(Fault(head_after_s=NEVER))
        assert asyncio.run(caller(there)(api="openai", stream=False)).complete
        assert {truth.key for truth in there.fakes["one"].truth} == {"k1", "k2"}


def test_few_calls_have_a_second(tmp_path: Path) -> None:
    late = Settings(usual=Fault(head_after_s=0.03))
    with world(tmp_path, yaml("one", "two", after_ms=5), one=late, two=late) as there:

        async def calls() -> None:
            for _ in range(60):
                assert (await caller(there)(api="openai", stream=False)).complete

        asyncio.run(calls())
        there.ended()
        assert 1 <= len(there.fakes["two"].truth) <= 1 + 0.05 * 60


def test_a_caller_who_leaves_ends_both(tmp_path: Path) -> None:
    with world(tmp_path, yaml("one", "two"), one=SLOW, two=SLOW) as there:

        async def leave() -> None:
            call = asyncio.create_task(caller(there)(api="openai", stream=True))
            while not there.fakes["two"].truth:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])

        asyncio.run(leave())
        there.ended()
        give_up = time.monotonic() + 10
        while len(entries := there.booked()) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert Counter((e.outcome, e.reason) for e in entries) == {("unknown", HUNG_UP): 2}


def test_where_both_fail_the_next_target_is_asked(tmp_path: Path) -> None:
    late = Settings(usual=Fault(head_after_s=0.2, status=500))
    with world(
        tmp_path, yaml("one", "two", "three"), one=late, two=late, three=Settings()
    ) as there:
        made = caller(there)
        assert asyncio.run(made(api="openai", stream=False)).complete
        assert made.seen["x-packshot-provider"] == "three"
        ends = Counter(entry.outcome for entry in there.booked())
        assert ends["succeeded"] == 1
        assert set(ends) == {"succeeded", "failed_free"}


# ------------------------------------------------------------------ the race itself


async def later(value: object, seconds: float) -> object:
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def run(
    one: object, other: object, *, first: float = 0.05, second: float = 0.0
) -> tuple[object, list[object]]:
    """Race two values; "bad" is not good. Return the result and what was dropped."""
    dropped: list[object] = []

    async def scene() -> object:
        return await race(
            later(one, first),
            lambda: later(other, second),
            0.01,
            good=lambda value: value != "bad",
            drop=lambda value, _: dropped.append(value),
        )

    return asyncio.run(scene()), dropped


def test_a_bad_second_waits_for_the_first() -> None:
    assert run("good", "bad") == ("good", [])


def test_a_bad_first_waits_for_the_second() -> None:
    assert run("bad", "good", first=0.02, second=0.05) == ("good", [])


def test_a_second_that_no_budget_allows_leaves_the_first_alone() -> None:
    assert run("good", BudgetExceeded("spent")) == ("good", [])


def test_a_mistake_of_our_own_in_the_second_is_heard() -> None:
    with pytest.raises(ZeroDivisionError):
        run("bad", ZeroDivisionError())


def test_an_error_of_the_first_is_the_error() -> None:
    with pytest.raises(BudgetExceeded):
        run(BudgetExceeded("spent"), "good", first=0.03, second=5.0)


def test_two_in_the_same_moment_are_one_answer() -> None:
    dropped: list[object] = []

    async def scene() -> object:
        gate = asyncio.Event()

        async def both(value: str) -> str:
            await gate.wait()
            return value

        asyncio.get_running_loop().call_later(0.05, gate.set)
        return await race(
            both("first"),
            lambda: both("second"),
            0.01,
            good=bool,
            drop=lambda value, _: dropped.append(value),
        )

    assert asyncio.run(scene()) == "first"
    assert dropped == ["second"]


def test_the_budget() -> None:
    budget = HedgeBudget()
    made = 0
    for _ in range(1000):
        budget.deposit()
        made += budget.withdraw()
    assert 49 <= made <= 51
