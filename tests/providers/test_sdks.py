"""The official clients read what the exchanges write, whole and streamed."""

from __future__ import annotations

from collections.abc import Callable

import anthropic
import httpx2
import msgspec
import openai
import pytest

from packshot.providers.base import SURFACES, Exchange
from packshot.providers.exchanges import EXCHANGES, exchange_of
from packshot.providers.failures import answer_of, error_event
from packshot.providers.rows import ROWS

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    },
}
TEXT = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Look"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ing."}},
    {"type": "content_block_stop", "index": 0},
]
TOOL = [
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"at": 1}'},
    },
    {"type": "content_block_stop", "index": 1},
]
END = [
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 12},
    },
    {"type": "message_stop"},
]
ERROR = [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]


def wire(*events: dict[str, object]) -> bytes:
    lines = (
        b"event: %b\ndata: %b\n\n" % (str(each["type"]).encode(), msgspec.json.encode(each))
        for each in events
    )
    return b"".join(lines)


def served(exchange: Exchange, stream: bytes) -> Callable[[httpx2.Request], httpx2.Response]:
    """Answer as a gateway does that sends this stream through the exchange."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        fields = msgspec.json.decode(request.content, type=dict[str, msgspec.Raw])
        exchange.request(fields, "claude", 9)
        relay = exchange.relay(fields, "route")
        out = relay.feed(stream)
        if relay.failure is not None:
            out += error_event(exchange.surface, answer_of(relay.failure))
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, content=out, headers=headers, request=request)

    return answer


def openai_client(exchange: Exchange, stream: bytes) -> openai.OpenAI:
    transport = httpx2.MockTransport(served(exchange, stream))
    http = httpx2.Client(transport=transport)
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def anthropic_client(exchange: Exchange, stream: bytes) -> anthropic.Anthropic:
    http = httpx2.Client(transport=httpx2.MockTransport(served(exchange, stream)))
    return anthropic.Anthropic(
        api_key="k", base_url="http://gateway", http_client=http, max_retries=0
    )


HELLO = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def test_openais_client_puts_a_translated_stream_together():
    client = openai_client(EXCHANGES["chat", "anthropic"], wire(START, *TEXT, *TOOL, *END))
    with (
        client,
        client.chat.completions.stream(
            model="route", messages=HELLO, tools=TOOLS, stream_options={"include_usage": True}
        ) as stream,
    ):
        final = stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Looking."
    assert choice.message.tool_calls
    assert choice.message.tool_calls[0].function.arguments == '{"at": 1}'
    assert final.usage
    assert final.usage.total_tokens == 22


def test_what_openais_client_got_goes_back_as_it_dumps_it():
    exchange = EXCHANGES["chat", "anthropic"]
    client = openai_client(exchange, wire(START, *TEXT, *TOOL, *END))
    with client, client.chat.completions.stream(model="r", messages=HELLO, tools=TOOLS) as stream:
        said = stream.get_final_completion().choices[0].message.model_dump()
    result = {"role": "tool", "tool_call_id": "t1", "content": "blue"}
    fields = {"messages": [*HELLO, said, result], "tools": TOOLS}
    raw = msgspec.json.decode(msgspec.json.encode(fields), type=dict[str, msgspec.Raw])
    body = msgspec.json.decode(exchange.request(raw, "claude", 9))
    assert [block["type"] for block in body["messages"][1]["content"]] == ["text", "tool_use"]


def test_openais_client_raises_where_a_translated_stream_fails():
    client = openai_client(EXCHANGES["chat", "anthropic"], wire(START, *TEXT, *ERROR))
    with client:
        chunks = iter(client.chat.completions.create(model="r", messages=HELLO, stream=True))
        assert next(chunks).choices[0].delta.role == "assistant"
        with pytest.raises(openai.APIError, match="overloaded"):
            list(chunks)


def test_anthropics_client_puts_a_passed_stream_together():
    client = anthropic_client(EXCHANGES["messages", "anthropic"], wire(START, *TEXT, *TOOL, *END))
    with client, client.messages.stream(model="r", max_tokens=9, messages=HELLO) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert final.usage.output_tokens == 12


def test_anthropics_client_raises_where_a_passed_stream_fails():
    client = anthropic_client(EXCHANGES["messages", "anthropic"], wire(START, *TEXT, *ERROR))
    with client:
        events = client.messages.create(model="r", max_tokens=9, messages=HELLO, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="overloaded"):
            list(events)


def test_every_row_serves_what_it_says_and_nothing_else():
    for row in ROWS.values():
        for surface in SURFACES:
            found = exchange_of(surface, row)
            assert (found is not None) == (surface in row.surfaces)
            if found is not None:
                assert (found.surface, found.api) == (surface, row.api)
                assert exchange_of(surface, row) is found
