"""The official SDKs through the gateway: both of them, sync and async, streaming and not."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest

from packshot.providers.fake_script import Fault, Settings, limited
from tests.gateway.world import World, world

YAML = """
providers:
  openai:
    base_url: "{one}/v1"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
  anthropic:
    base_url: "{two}"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
"""
GPT, CLAUDE, TRANSLATED = "openai/gpt-4o-mini", "claude-haiku-4-5", "anthropic/claude-haiku-4-5"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
SCHEMA = {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}
HELLO = [{"role": "user", "content": "white sneaker on beach"}]
CASES: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    "tools": {
        "messages": HELLO,
        "tools": [{"type": "function", "function": {"name": "pick", "parameters": SCHEMA}}],
        "tool_choice": "required",
    },
    "vision": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            }
        ]
    },
    "json": {"messages": HELLO, "response_format": {"type": "json_object"}},
}
OF_ANTHROPIC: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO},
    "system": {"messages": HELLO, "system": "Be brief."},
    "tools": {
        "messages": HELLO,
        "tools": [{"name": "pick", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
    "vision": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    },
                ],
            }
        ]
    },
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("KEY_A", "secret-A")
    settings = Settings(bodies=True)
    with world(tmp_path, YAML, one=settings, two=settings) as made:
        yield made


def ask_openai(there: World, *, sync: bool, stream: bool, **asked: Any) -> Any:
    """Return the whole answer, however it came."""
    where = {"base_url": there.url + "/v1", "api_key": "none", "max_retries": 0}
    if sync:
        with openai.OpenAI(**where) as client:
            if not stream:
                return client.chat.completions.create(**asked)
            with client.chat.completions.stream(**asked) as events:
                return events.get_final_completion()

    async def run() -> Any:
        async with openai.AsyncOpenAI(**where) as client:
            if not stream:
                return await client.chat.completions.create(**asked)
            async with client.chat.completions.stream(**asked) as events:
                return await events.get_final_completion()

    return asyncio.run(run())


def ask_anthropic(there: World, *, sync: bool, stream: bool, **asked: Any) -> Any:
    """Return the whole answer, however it came."""
    where = {"base_url": there.url, "api_key": "none", "max_retries": 0}
    asked = {"max_tokens": 200, **asked}
    if sync:
        with anthropic.Anthropic(**where) as client:
            if not stream:
                return client.messages.create(**asked)
            with client.messages.stream(**asked) as events:
                return events.get_final_message()

    async def run() -> Any:
        async with anthropic.AsyncAnthropic(**where) as client:
            if not stream:
                return await client.messages.create(**asked)
            async with client.messages.stream(**asked) as events:
                return await events.get_final_message()

    return asyncio.run(run())


WAYS = [(sync, stream) for sync in (True, False) for stream in (False, True)]


@pytest.mark.parametrize("model", [GPT, TRANSLATED])
@pytest.mark.parametrize("case", CASES)
def test_openais_sdk(there: World, model: str, case: str) -> None:
    """Four ways to ask are one answer: the fake invents it from the request alone."""
    got = []
    for sync, stream in WAYS:
        more = {"stream_options": {"include_usage": True}} if stream else {}
        got.append(ask_openai(there, sync=sync, stream=stream, model=model, **CASES[case], **more))
    said = [answer.choices[0] for answer in got]
    if case == "tools":
        calls = [choice.message.tool_calls[0].function for choice in said]
        assert {(call.name, call.arguments) for call in calls} == {("pick", calls[0].arguments)}
        assert {choice.finish_reason for choice in said} == {"tool_calls"}
    else:
        assert len({choice.message.content for choice in said}) == 1
        assert said[0].message.content
        assert {choice.finish_reason for choice in said} == {"stop"}
    used = {(answer.usage.prompt_tokens, answer.usage.completion_tokens) for answer in got}
    assert len(used) == 1
    booked = there.booked()
    assert [entry.outcome for entry in booked] == ["succeeded"] * 4
    assert {(entry.input_tokens, entry.output_tokens) for entry in booked} == used
    there.ended()
    fake = there.fakes["one" if model == GPT else "two"]
    if case == "vision":
        assert all(PNG.encode() in truth.body for truth in fake.truth)
    if case == "system":
        assert all(b"Be brief." in truth.body for truth in fake.truth)


@pytest.mark.parametrize("case", OF_ANTHROPIC)
def test_anthropics_sdk(there: World, case: str) -> None:
    got = [
        ask_anthropic(there, sync=sync, stream=stream, model=CLAUDE, **OF_ANTHROPIC[case])
        for sync, stream in WAYS
    ]
    blocks = [[block.to_dict(exclude_none=True) for block in answer.content] for answer in got]
    kind = "tool_use" if case == "tools" else "text"
    assert [block["type"] for block in blocks[0]] == [kind]
    assert all(each == blocks[0] for each in blocks), blocks
    assert {answer.stop_reason for answer in got} == {kind if case == "tools" else "end_turn"}
    assert [entry.outcome for entry in there.booked()] == ["succeeded"] * 4
    assert len({(entry.input_tokens, entry.output_tokens) for entry in there.booked()}) == 1


@pytest.mark.parametrize("sync", [True, False])
def test_embeddings(there: World, *, sync: bool) -> None:
    where = {"base_url": there.url + "/v1", "api_key": "none", "max_retries": 0}
    asked = {"model": "text-embedding-3-small", "input": ["a", "b"]}

    async def run(coding: str) -> Any:
        async with openai.AsyncOpenAI(**where) as client:
            return await client.embeddings.create(**asked, encoding_format=coding)

    def once(coding: str) -> Any:
        if not sync:
            return asyncio.run(run(coding))
        with openai.OpenAI(**where) as client:
            return client.embeddings.create(**asked, encoding_format=coding)

    for floats, coded in zip(once("float").data, once("base64").data, strict=True):
        assert isinstance(coded.embedding, str)
        vector = np.frombuffer(base64.b64decode(coded.embedding), "<f4")
        assert floats.embedding == pytest.approx(vector.tolist(), abs=1e-6)


ERRORS = [
    (Fault(status=400), "BadRequestError"),
    (Fault(status=400, code="context"), "BadRequestError"),
    (Fault(status=404, code="not_found"), "NotFoundError"),
    (limited("seconds", 60), "RateLimitError"),
    (Fault(status=503), "InternalServerError"),
    (Fault(status=401), "InternalServerError"),
    (Fault(status=500), "InternalServerError"),
    (Fault(ending="close", at=6), "APIError"),
]


@pytest.mark.parametrize(("sync", "stream"), WAYS)
@pytest.mark.parametrize(("fault", "name"), ERRORS)
def test_errors_are_the_sdks_own(
    there: World, fault: Fault, name: str, *, sync: bool, stream: bool
) -> None:
    """A 401 of a provider is the gateway's trouble: no caller shall think that its own key is bad.

    A stream that is cut after its first byte has no status: `APIError` is the class of that.
    """
    there.fakes["one"].next(fault)
    there.fakes["two"].next(fault, fault)
    cut = name == "APIError"
    for model, sdk, ask in (
        (GPT, openai, ask_openai),
        (TRANSLATED, openai, ask_openai),
        (CLAUDE, anthropic, ask_anthropic),
    ):
        expected = getattr(sdk, "InternalServerError" if cut and not stream else name)
        with pytest.raises(expected) as raised:
            ask(there, sync=sync, stream=stream, model=model, messages=HELLO)
        if not (cut and stream):
            assert raised.value.response.headers["x-packshot-request-id"]
        elif sdk is openai:
            assert not isinstance(raised.value, openai.APIStatusError)
        for provider in there.worker.gateway.plan.providers.values():
            for key in provider.keys:
                key.ready_at, key.out = 0.0, ""
