"""The fake provider: what the official SDKs see of it, its books, and its process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.ledger.prices.usage import usage_from
from packshot.providers.fake import (
    Fake,
    Fault,
    Settings,
    Truth,
    limited,
)
from packshot.providers.fake_tls import self_signed, server_context
from tests.providers.bare import APIS, ASK, Seen, ask, usage_said

TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


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


# ---- the process


@pytest.mark.parametrize("stream", [False, True])
def test_tls_with_a_certificate_of_its_own(tmp_path: Path, stream: bool) -> None:
    async def run() -> None:
        certificate, key = self_signed(tmp_path)
        async with Fake(tls=server_context(certificate, key)) as fake:
            assert fake.url.startswith("https://")
            trusting = ssl.create_default_context(cafile=certificate)
            for context, fault in ((trusting, ""), (trusting, "reset"), (None, "stranger")):
                fake.next(Fault(ending="reset", at=-1) if fault == "reset" else Fault())
                client = openai.AsyncOpenAI(
                    base_url=fake.url + "/v1",
                    api_key="k1",
                    max_retries=0,
                    http_client=openai.DefaultAsyncHttpxClient(verify=context or True),
                )
                async with client:
                    call = client.chat.completions.create(model="m", messages=ASK, stream=stream)
                    if fault:
                        with pytest.raises(openai.APIConnectionError):
                            await call
                    else:
                        assert await call
            assert len(fake.truth) == 2

    asyncio.run(run())


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


def test_a_process_of_its_own_takes_orders_and_leaves_its_records(tmp_path: Path) -> None:
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
        for wrong in ({"status": 500}, [{"statu": 500}]):
            status, said = post(port, "/fake/next", wrong)
            assert (status, b"/fake/next takes a list" in said) == (400, True)
        assert told[1].billed == told[1].said
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()
    left = msgspec.json.decode((tmp_path / "truth.json").read_bytes(), type=list[Truth])
    assert left == told


def test_a_port_in_use_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "packshot.providers.fake", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == f"error: cannot listen on port {port}: Address already in use\n"


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
