"""Every fault of the fake provider, as it arrives on the wire, and what it costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from packshot.core.sse import parse
from packshot.providers.delays import asked_delay
from packshot.providers.fake import (
    NEVER,
    Fake,
    Fault,
    Rule,
    Settings,
    Truth,
    limited,
    summed,
)
from tests.providers.bare import APIS, Seen, ask

# ---- faults on the wire


@pytest.mark.parametrize(
    ("delay", "asked"),
    [
        ("none", None),
        ("seconds", 7.0),
        ("ms", 7.0),
        ("gemini", 7.0),
        ("replicate", 7.0),
        ("absurd", 86_400.0),
    ],
)
def test_delays_are_read_as_they_were_meant(delay: Any, asked: float | None) -> None:
    async def run() -> Seen:
        async with Fake() as fake:
            fake.next(limited(delay, 7))
            return await ask(fake)

    seen = asyncio.run(run())
    headers = {name.encode(): value.encode() for name, value in seen.headers.items()}
    assert seen.status == 429
    assert asked_delay(headers, seen.body) == asked


def test_a_delay_may_be_a_date() -> None:
    async def run() -> Seen:
        async with Fake() as fake:
            fake.next(limited("date", 1000))
            return await ask(fake)

    seen = asyncio.run(run())
    assert seen.headers["retry-after"].endswith(" GMT")
    assert 900 < asked_delay({b"retry-after": seen.headers["retry-after"].encode()}) <= 1001


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "broken", "end"),
    [
        (Fault(ending="reset", at=-1), "reset", "cut"),
        (Fault(ending="close", at=-1), "closed", "cut"),
        (Fault(ending="close", at=3), "closed", "cut"),
        (Fault(ending="close", at=999), "closed", "cut"),
        (Fault(ending="torn", at=3), "closed", "cut"),
        (Fault(ending="reset", at=3), "reset", "cut"),
        (Fault(ending="bad_chunk", at=3), "no http", "cut"),
        (Fault(ending="stall", at=3), "silence", "hung_up"),
        (Fault(head_after_s=NEVER), "silence", "hung_up"),
        (Fault(first_after_s=NEVER), "silence", "hung_up"),
        (Fault(head_after_s=0.02, first_after_s=0.02, every_s=0.001), "", "done"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[6:-1],
)
def test_broken_answers(api: str, stream: bool, fault: Fault, broken: str, end: str) -> None:
    async def run() -> tuple[Seen, Truth]:
        async with Fake() as fake:
            fake.next(fault)
            seen = await ask(fake, api, stream=stream, within_s=0.2 if broken else 5)
            await fake.ended()
            return seen, fake.truth[0]

    seen, truth = asyncio.run(run())
    # A body with a length is whole when its last byte came, whatever follows.
    if fault.at == 999 and not stream:
        broken = ""
    assert seen.broken == broken
    assert seen.whole is not bool(broken)
    assert truth.end == end
    assert truth.status == (0 if fault.at < 0 or fault.head_after_s == NEVER else 200)
    if stream and fault.at == 3:
        assert truth.events == 3
        assert len(parse(seen.body)) == 3


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("ending", ["no_end", "error_event", "bad_json"])
def test_streams_that_end_well_for_http_only(api: str, ending: Any) -> None:
    async def run() -> tuple[Seen, Truth]:
        async with Fake() as fake:
            fake.next(Fault(ending=ending, at=4))
            seen = await ask(fake, api, stream=True)
            return seen, fake.truth[0]

    seen, truth = asyncio.run(run())
    events = parse(seen.body)
    last = events[-1].data
    ended = last == b"[DONE]" or b"message_stop" in last
    assert seen.whole
    assert ended is (ending == "bad_json")
    if ending == "error_event":
        assert len(events) == 5
        assert b"verloaded" in last
        assert truth.billed.output_tokens < truth.said.output_tokens
    if ending == "bad_json":
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(events[4].data)
        assert truth.billed == truth.said


@pytest.mark.parametrize("api", APIS)
def test_answers_in_one_piece_that_are_wrong_under_200(api: str) -> None:
    async def run() -> None:
        async with Fake() as fake:
            fake.next(Fault(ending="error_event"), Fault(ending="bad_json"), Fault(ending="no_end"))
            assert "error" in json.loads((await ask(fake, api)).body)
            half = await ask(fake, api)
            assert half.whole
            with pytest.raises(ValueError, match=r"."):
                json.loads(half.body)
            assert (await ask(fake, api)).broken == "closed"

    asyncio.run(run())


# ---- what is billed


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("hangup", ["all", "sent", "nothing"])
def test_a_client_that_hangs_up_pays_by_the_rule(api: str, hangup: Any) -> None:
    async def run() -> Truth:
        settings = Settings(hangup=hangup, usual=Fault(every_s=0.02), reply_bytes=400)
        async with Fake(settings) as fake:
            await ask(fake, api, stream=True, hang_up_after=5)
            await fake.ended()
            return fake.truth[0]

    truth = asyncio.run(run())
    assert truth.end == "hung_up"
    assert 5 <= truth.events < truth.events_of
    if hangup == "all":
        assert truth.billed == truth.said
    elif hangup == "sent":
        assert 0 < truth.billed.output_tokens < truth.said.output_tokens
        assert truth.billed.input_tokens == truth.said.input_tokens
    else:
        assert truth.billed is None


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=504, billed="all"),
        Fault(ending="reset", at=-1, billed="all"),
        Fault(ending="close", at=2, billed="all"),
        Fault(head_after_s=NEVER, billed="all"),
    ],
    ids=["504", "reset", "cut", "silence"],
)
def test_an_answer_that_never_came_can_be_billed(api: str, fault: Fault) -> None:
    async def run() -> Truth:
        async with Fake(Settings(hangup="nothing", cut="nothing")) as fake:
            fake.next(fault)
            await ask(fake, api, stream=True, within_s=0.2)
            await fake.ended()
            return fake.truth[0]

    truth = asyncio.run(run())
    assert truth.billed == truth.said
    assert truth.billed.output_tokens > 0


def test_usages_add_up() -> None:
    async def run() -> None:
        async with Fake(Settings(keys={"k1": None, "k2": None})) as fake:
            for key in ("k1", "k2", "k2"):
                await ask(fake, "anthropic", key=key, messages=[{"role": "user", "content": key}])
            one, two, three = (each.billed for each in fake.truth)
            assert fake.billed("k1") == one
            assert fake.billed("k2") == summed([two, three])
            assert fake.billed().input_tokens == sum(u.input_tokens for u in (one, two, three))

    asyncio.run(run())


# ---- who gets which fault


def test_keys_are_checked_and_each_has_its_own_fault() -> None:
    async def run() -> list[int]:
        keys = {"k1": None, "dead": Fault(status=402), "poor": Fault(status=429, code="quota")}
        async with Fake(Settings(keys=keys)) as fake:
            return [(await ask(fake, key=key)).status for key in ("k1", "dead", "poor", "who")]

    assert asyncio.run(run()) == [200, 402, 429, 401]


def test_queue_comes_before_rules_and_rules_count() -> None:
    async def run() -> list[int]:
        async with Fake() as fake:
            fake.rule(Rule(fault=Fault(status=503), key="k1", skip=1, times=2))
            fake.next(Fault(status=500))
            keys = ["k1", "k1", "k2", "k1", "k1", "k1"]
            return [(await ask(fake, key=key)).status for key in keys]

    assert asyncio.run(run()) == [500, 200, 200, 503, 503, 200]


def test_a_rule_can_flap_by_the_clock() -> None:
    now = [100.0]

    async def run() -> list[int]:
        async with Fake(clock=lambda: now[0]) as fake:
            fake.rule(Rule(fault=Fault(status=503), model="m", up_s=30, down_s=30))
            found = []
            for now[0] in (100.0, 129.0, 131.0, 159.0, 161.0, 191.0):
                found.append((await ask(fake)).status)
            return found

    assert asyncio.run(run()) == [200, 200, 503, 503, 200, 503]


def test_a_script_sees_the_request() -> None:
    async def run() -> None:
        async with Fake() as fake:
            fake.script = lambda truth: Fault(status=500) if truth.number == 1 else None
            assert [(await ask(fake)).status for _ in range(3)] == [200, 500, 200]
            assert fake.truth[0].attempt == "a1"
            assert json.loads(fake.truth[0].body)["model"] == "m"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("api", "wrong"),
    [
        ("openai", {"messages": []}),
        ("openai", {"n": 2}),
        ("openai", {"model": 3}),
        ("anthropic", {"max_tokens": None}),
        ("openai", {"messages": [{"role": "user", "content": "x" * 900_000}]}),
    ],
)
def test_requests_that_no_provider_takes(api: str, wrong: dict[str, Any]) -> None:
    async def run() -> None:
        async with Fake() as fake:
            seen = await ask(fake, api, **wrong)
            assert seen.status == 400
            assert "error" in json.loads(seen.body)
            assert fake.truth[0].billed is None

    asyncio.run(run())
