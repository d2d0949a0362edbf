"""The fake provider: what the official SDKs see of it, every fault on the wire, and its books."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httptools
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.ledger.prices.usage import merged, usage_from
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

TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
ASK = [{"role": "user", "content": "a red mug"}]
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
FORMATS = {"openai": "openai-chat", "anthropic": "anthropic"}
APIS = ["openai", "anthropic"]


@dataclass
class Seen:
    """What a bare client got: whatever came, and how it ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    broken: str = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


async def ask(
    fake: Fake,
    api: str = "openai",
    *,
    stream: bool = False,
    key: str = "k1",
    hang_up_after: int | None = None,
    within_s: float = 5.0,
    **more: Any,
) -> Seen:
    """Send one request over a connection of its own, and read until something ends it."""
    body = {"model": "m", "messages": ASK, "stream": stream, "max_tokens": 100, **more}
    if stream and api == "openai":
        body.setdefault("stream_options", {"include_usage": True})
    data = json.dumps(body).encode()
    auth = f"authorization: Bearer {key}"
    if api == "anthropic":
        auth = f"x-api-key: {key}\r\nanthropic-version: 2023-06-01"
    head = f"POST {PATHS[api]} HTTP/1.1\r\nhost: x\r\n{auth}\r\nx-attempt-id: a1\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
    seen = Seen()
    parser = httptools.HttpResponseParser(seen)
    try:
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        while not seen.whole:
            got = await asyncio.wait_for(reader.read(65536), within_s)
            if not got:
                seen.broken = "closed"
                break
            parser.feed_data(got)
            seen.status = parser.get_status_code() if seen.headers else 0
            if hang_up_after is not None and len(parse(seen.body)) >= hang_up_after:
                seen.broken = "hung up"
                break
    except ConnectionResetError:
        seen.broken = "reset"
    except TimeoutError:
        seen.broken = "silence"
    except httptools.HttpParserError:
        seen.broken = "no http"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return seen


def usage_said(api: str, seen: Seen, *, stream: bool) -> Usage:
    """Read the usage out of an answer, as the gateway will."""
    if not stream:
        return usage_from(FORMATS[api], msgspec.json.decode(seen.body)["usage"])
    told: list[dict[str, Any] | None] = []
    for event in parse(seen.body):
        if event.data != b"[DONE]":
            data = msgspec.json.decode(event.data)
            told.append(data.get("usage") or data.get("message", {}).get("usage"))
    return usage_from(FORMATS[api], merged(told))


@contextlib.asynccontextmanager
async def clients(fake: Fake) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        openai.AsyncOpenAI(base_url=fake.url + "/v1", api_key="k1", max_retries=0) as one,
        anthropic.AsyncAnthropic(base_url=fake.url, api_key="k1", max_retries=0) as other,
    ):
        yield one, other


# ---- the official SDKs


def test_openai_sdk_chat_is_the_same_streamed_and_not() -> None:
    async def run() -> None:
        async with Fake(Settings(keys={"k1": None})) as fake, clients(fake) as (client, _):
            whole = await client.chat.completions.create(model="m", messages=ASK)
            stream = await client.chat.completions.create(
                model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            assert text
            assert chunks[-1].usage == whole.usage
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
            assert [each.billed for each in fake.truth] == [fake.truth[0].said] * 2

    asyncio.run(run())


def test_openai_sdk_stream_has_no_usage_unasked() -> None:
    async def run() -> None:
        async with Fake() as fake, clients(fake) as (client, _):
            stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
            assert all(chunk.usage is None for chunk in [chunk async for chunk in stream])
            assert fake.truth[0].billed

    asyncio.run(run())


def test_openai_sdk_tools_json_and_pictures() -> None:
    async def run() -> None:
        tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
        async with Fake() as fake, clients(fake) as (client, _):
            create = client.chat.completions.create
            called = await create(model="m", messages=ASK, tools=tools)
            call = called.choices[0].message.tool_calls[0]
            assert called.choices[0].finish_reason == "tool_calls"
            assert call.function.name == "weather"
            assert set(json.loads(call.function.arguments)) == {"city", "days"}
            result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
            after = await create(
                model="m",
                messages=[*ASK, called.choices[0].message.model_dump(), result],
                tools=tools,
            )
            assert after.choices[0].message.content
            stream = await create(model="m", messages=ASK, tools=tools, stream=True)
            pieces = [
                c.choices[0].delta.tool_calls[0].function.arguments
                async for c in stream
                if c.choices and c.choices[0].delta.tool_calls
            ]
            assert len(pieces) > 2
            assert "".join(pieces) == call.function.arguments
            answer = await create(model="m", messages=ASK, response_format={"type": "json_object"})
            assert "answer" in json.loads(answer.choices[0].message.content)
            picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
            looked = await create(
                model="m", messages=[{"role": "user", "content": [picture, picture]}]
            )
            assert looked.choices[0].message.content.startswith("pictures:2 ")

    asyncio.run(run())


def test_openai_sdk_embeddings_are_the_same_as_float_and_as_base64() -> None:
    async def run() -> None:
        async with Fake(Settings(dimensions=5)) as fake, clients(fake) as (client, _):
            floats = await client.embeddings.create(
                model="e", input=["a", "b"], encoding_format="float"
            )
            packed = await client.embeddings.create(model="e", input=["a", "b"])
            assert b"base64" in fake.truth[1].body
            assert [e.embedding for e in floats.data] == [e.embedding for e in packed.data]
            assert len(floats.data[0].embedding) == 5
            assert floats.data[0].embedding != floats.data[1].embedding
            short = await client.embeddings.create(model="e", input=[1, 2, 3], dimensions=2)
            assert len(short.data) == 1
            assert len(short.data[0].embedding) == 2
            assert short.usage.prompt_tokens == 3
            assert fake.truth[2].billed == Usage("caption", input_tokens=3)

    asyncio.run(run())


def test_anthropic_sdk_messages_tools_and_count() -> None:
    async def run() -> None:
        tools: Any = [{"name": "weather", "input_schema": TOOL}]
        async with Fake(Settings(keys={"k1": None})) as fake, clients(fake) as (_, client):
            whole = await client.messages.create(model="m", max_tokens=99, messages=ASK)
            async with client.messages.stream(model="m", max_tokens=99, messages=ASK) as stream:
                last = await stream.get_final_message()
            assert last.content[0].text == whole.content[0].text
            assert last.usage == whole.usage
            assert last.stop_reason == "end_turn"
            counted = await client.messages.count_tokens(model="m", messages=ASK)
            assert counted.input_tokens == fake.truth[0].said.input_tokens
            assert fake.truth[2].billed is None
            called = await client.messages.create(
                model="m", max_tokens=99, messages=ASK, tools=tools
            )
            assert called.stop_reason == "tool_use"
            async with client.messages.stream(
                model="m", max_tokens=99, messages=ASK, tools=tools
            ) as stream:
                streamed = await stream.get_final_message()
            assert streamed.content[0].input == called.content[0].input
            assert set(called.content[0].input) == {"city", "days"}

    asyncio.run(run())


def test_models_are_listed_for_both() -> None:
    async def run() -> None:
        async with Fake(Settings(models=("a", "b"))) as fake, clients(fake) as (one, other):
            assert [m.id for m in (await one.models.list()).data] == ["a", "b"]
            assert [m.id for m in (await other.models.list()).data] == ["a", "b"]
            with pytest.raises(openai.NotFoundError):
                await one.chat.completions.create(model="c", messages=ASK)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fault", "of_openai", "of_anthropic"),
    [
        (limited("seconds", 3), openai.RateLimitError, anthropic.RateLimitError),
        (Fault(status=429, code="quota"), openai.RateLimitError, anthropic.RateLimitError),
        (Fault(status=401, code="auth"), openai.AuthenticationError, anthropic.AuthenticationError),
        (Fault(status=402), openai.APIStatusError, anthropic.APIStatusError),
        (Fault(status=400, code="context"), openai.BadRequestError, anthropic.BadRequestError),
        (Fault(status=400, code="filter"), openai.BadRequestError, anthropic.BadRequestError),
        (Fault(status=500), openai.InternalServerError, anthropic.InternalServerError),
        (Fault(status=529), openai.InternalServerError, anthropic.InternalServerError),
    ],
)
def test_sdks_raise_what_they_raise_for_the_real_one(
    fault: Fault, of_openai: type[Exception], of_anthropic: type[Exception]
) -> None:
    async def run() -> None:
        async with Fake(Settings(keys={"k1": fault})) as fake, clients(fake) as (one, other):
            with pytest.raises(of_openai):
                await one.chat.completions.create(model="m", messages=ASK)
            with pytest.raises(of_anthropic):
                await other.messages.create(model="m", max_tokens=9, messages=ASK)
            assert [each.end for each in fake.truth] == ["refused", "refused"]
            assert [each.billed for each in fake.truth] == [None, None]
            assert [each.status for each in fake.truth] == [fault.status] * 2

    asyncio.run(run())


# ---- usage


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=400),
    api=st.sampled_from(APIS),
    stream=st.booleans(),
    limit=st.integers(1, 60),
    reply=st.sampled_from([0, 1024]),
)
def test_what_is_said_is_what_is_billed(
    text: str, api: str, stream: bool, limit: int, reply: int
) -> None:
    async def run() -> None:
        async with Fake(Settings(reply_bytes=reply)) as fake:
            messages = [{"role": "user", "content": text}]
            seen = await ask(fake, api, stream=stream, messages=messages, max_tokens=limit)
            assert seen.status == 200
            assert usage_said(api, seen, stream=stream) == fake.truth[0].billed == fake.billed()
            assert 1 <= fake.truth[0].billed.output_tokens <= limit

    asyncio.run(run())


def test_replies_are_as_long_as_asked_for() -> None:
    async def run() -> None:
        async with Fake(Settings(reply_bytes=4096)) as fake:
            seen = await ask(fake, max_tokens=10_000)
            assert len(seen.body) >= 4096

    asyncio.run(run())


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("says", ["absent", "double", "zero", "negative", "impossible"])
def test_a_usage_can_be_wrong(api: str, stream: bool, says: Any) -> None:
    async def run() -> tuple[Seen, Truth]:
        async with Fake() as fake:
            fake.next(Fault(usage=says))
            return await ask(fake, api, stream=stream), fake.truth[0]

    seen, truth = asyncio.run(run())
    assert seen.whole
    assert truth.billed == truth.said
    if says == "absent":
        assert b"_tokens" not in seen.body
    elif says in {"double", "zero"}:
        factor = 2 if says == "double" else 0
        said = usage_said(api, seen, stream=stream)
        assert said.output_tokens == factor * truth.billed.output_tokens
    else:
        with pytest.raises(InvalidRequest):
            usage_said(api, seen, stream=stream)


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


# ---- the process


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def run() -> bytes:
        async with Fake(Settings(usual=Fault(head_after_s=0.01))) as fake:
            reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
            for text in ("one", "two"):
                body = json.dumps({"model": text, "messages": ASK}).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n"
                last = "connection: close\r\n" if text == "two" else ""
                writer.write(f"{head}{last}\r\n".encode() + body)
            got = await asyncio.wait_for(reader.read(-1), 5)
            writer.close()
            return got

    got = asyncio.run(run())
    assert 0 < got.index(b'"model":"one"') < got.index(b'"model":"two"')


def run_fake(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "packshot.providers.fake", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().removeprefix("port "))


def post(port: int, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, json.dumps(body))
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_a_process_of_its_own_takes_orders_and_leaves_its_records(tmp_path: Any) -> None:
    process, port = run_fake("--truth", str(tmp_path / "truth.json"))
    chat = {"model": "m", "messages": ASK}
    try:
        assert post(port, "/fake/next", [{"status": 503}])[0] == 200
        assert post(port, "/v1/chat/completions", chat)[0] == 503
        assert post(port, "/v1/chat/completions", chat)[0] == 200
        assert post(port, "/fake/rules", [{"fault": {"status": 500}, "model": "m"}])[0] == 200
        assert post(port, "/v1/chat/completions", chat)[0] == 500
        told = msgspec.json.decode(post(port, "/fake/truth", {})[1], type=list[Truth])
        assert [each.status for each in told] == [503, 200, 500]
        assert told[1].billed == told[1].said
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()
    left = msgspec.json.decode((tmp_path / "truth.json").read_bytes(), type=list[Truth])
    assert left == told


def test_the_static_one_sends_what_was_asked_for() -> None:
    process, port = run_fake("--static", "--reply-bytes", "1024", "--static-events", "10")
    try:
        chat = {"model": "m", "messages": ASK}
        status, body = post(port, "/v1/chat/completions", chat)
        assert (status, len(body)) == (200, 1024)
        assert usage_from("openai-chat", json.loads(body)["usage"])
        _, streamed = post(port, "/v1/chat/completions", {**chat, "stream": True})
        events = parse(streamed)
        assert events[-1].data == b"[DONE]"
        assert len(events) == 10 + 3
        assert post(port, "/v1/chat/completions", chat)[1] == body
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()
