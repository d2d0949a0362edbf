"""Anthropic's API passed on: answers, streams, usage, and what a request needs."""

from __future__ import annotations

import msgspec
import pytest
from anthropic.types import Message, RawContentBlockDeltaEvent, RawMessageStartEvent
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, UpstreamBroken
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.providers.anthropic import AnthropicCountTokens, AnthropicMessages, AnthropicRelay
from packshot.providers.failures import failure_of

MESSAGES = AnthropicMessages()


def fields_of(**fields: object) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(msgspec.json.encode(fields), type=dict[str, msgspec.Raw])


def event(name: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        msgspec.json.encode({"type": name} | fields),
    )


COUNTS = {"input_tokens": 10, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
HEAD = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5-20251001",
    "stop_reason": None,
    "stop_sequence": None,
}
START = event(
    "message_start", message=HEAD | {"content": [], "usage": COUNTS | {"output_tokens": 1}}
)
TEXT = (
    event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + event("ping")
    + event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi \n\n data:"})
    + event("content_block_stop", index=0)
)
END = event(
    "message_delta",
    delta={"stop_reason": "end_turn", "stop_sequence": None},
    usage={"output_tokens": 12},
) + event("message_stop")
STREAM = START + TEXT + END
USED = Usage("caption", input_tokens=15, cached_tokens=3, written_tokens=2, output_tokens=12)


def test_a_request_has_the_model_of_the_target_and_the_limit_that_the_api_wants():
    raw = b'{"model":"r","messages":[],"max_tokens":5}'
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    assert MESSAGES.request(fields, "claude", 9) == raw.replace(b'"r"', b'"claude"')
    del fields["max_tokens"]
    assert MESSAGES.request(fields, "c", 9) == b'{"model":"c","messages":[],"max_tokens":9}'
    assert MESSAGES.request(fields, "c", None) == b'{"model":"c","messages":[]}'


def test_an_answer_passes_as_it_came_and_says_what_it_used():
    message = HEAD | {"content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
    body = msgspec.json.encode(message | {"usage": COUNTS | {"output_tokens": 12}})
    passed, usage = MESSAGES.reply(body, "r")
    assert passed is body
    assert usage == USED
    assert Message.model_validate_json(passed).usage.input_tokens == 10
    wrong = msgspec.json.encode(message | {"usage": COUNTS | {"output_tokens": -1}})
    assert MESSAGES.reply(wrong, "r") == (wrong, None)
    silent = msgspec.json.encode(message)
    assert MESSAGES.reply(silent, "r") == (silent, None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"type":"error"}', b"<html>"])
def test_a_200_that_is_no_message_is_broken(body):
    with pytest.raises(UpstreamBroken):
        MESSAGES.reply(body, "m")
    with pytest.raises(UpstreamBroken):
        AnthropicCountTokens().reply(body, "m")


def test_a_count_of_tokens_is_free():
    exchange = AnthropicCountTokens()
    fields = fields_of(model="r", messages=[])
    assert exchange.request(fields, "c", 9) == b'{"model":"c","messages":[]}'
    assert exchange.reply(b'{"input_tokens":7}', "r") == (b'{"input_tokens":7}', Usage("caption"))
    assert failure_of(404, {}, b"").kind == "not_found"
    assert exchange.needs(fields) == []
    with pytest.raises(InvalidRequest, match="not streamed"):
        exchange.relay(fields, "r")


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_stream_passes_as_it_came_and_its_last_count_holds(size):
    relay = MESSAGES.relay(fields_of(stream=True), "r")
    out = b"".join(relay.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size))
    assert out == STREAM
    assert (relay.done, relay.failure, relay.usage) == (True, None, USED)
    events = parse(out)
    assert RawMessageStartEvent.model_validate_json(events[0].data).message.id == "msg_1"
    delta = RawContentBlockDeltaEvent.model_validate_json(events[3].data).delta
    assert delta.type == "text_delta"


def test_a_stream_that_is_cut_has_used_what_it_said_at_its_start():
    relay = AnthropicRelay()
    relay.feed(START + TEXT)
    assert not relay.done
    assert relay.usage
    assert (relay.usage.input_tokens, relay.usage.output_tokens) == (15, 1)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (
            event("error", error={"type": "overloaded_error", "message": "Overloaded"}),
            "overloaded",
            503,
        ),
        (event("error", error={"type": "rate_limit_error", "message": "m"}), "rate_limit", 429),
        (b"event: error\ndata: gone\n\n", "server", 502),
        (b"event: content_block_delta\ndata: {\n\n", "garbage", 502),
        (b"data: hello\n\n", "garbage", 502),
    ],
)
@pytest.mark.parametrize("size", [3, 10_000])
def test_an_error_in_a_stream_is_a_failure_and_not_handed_on(error, kind, status, size):
    relay = AnthropicRelay()
    stream = START + TEXT + error + STREAM
    out = b"".join(relay.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    assert out == START + TEXT
    assert relay.failure
    assert (relay.failure.kind, relay.failure.status) == (kind, status)
    assert not relay.done


def test_an_error_may_be_the_first_event():
    relay = AnthropicRelay()
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    assert relay.feed(error) == b""
    assert relay.failure


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_is_the_same_however_it_is_cut(data, line):
    stream = STREAM.replace(b"\n", line) + b": after\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    relay = AnthropicRelay()
    parts = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    got = b"".join(relay.feed(stream[start:end]) for start, end in parts)
    # A CR that ends a piece ends the event: the LF that follows is no part of what was passed.
    assert parse(got + b"\n\n") == parse(STREAM)
    assert (relay.done, relay.usage, relay.failure) == (True, USED, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [{"role": "user", "content": "image"}]}, []),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["vision"]),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, ["files"]),
        ({"messages": [{"role": "assistant", "content": "The"}]}, ["prefill"]),
        ({"tools": [{"name": "a"}]}, ["tools"]),
        ({"tools": []}, []),
        ({"output_config": {"format": {"type": "json_schema"}}}, ["json"]),
        ({"output_config": {"effort": "low"}}, []),
        ({"messages": 3}, []),
    ],
)
def test_what_a_request_needs(fields, expected):
    assert MESSAGES.needs(fields_of(**fields)) == expected
