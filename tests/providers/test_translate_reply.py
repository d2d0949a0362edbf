"""Anthropic's answers and streams as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from packshot.core.errors import UpstreamBroken
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.providers.translate import ChatToAnthropic
from packshot.providers.translate_reply import ChatRelay
from packshot.providers.translate_request import ANSWER_TOOL

CHAT = ChatToAnthropic()
COUNTS = {"input_tokens": 10, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
USED = Usage("caption", input_tokens=15, cached_tokens=3, written_tokens=2, output_tokens=12)
HEAD = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5-20251001",
    "stop_sequence": None,
}
TEXT = {"type": "text", "text": 'Hé "you"', "citations": None}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1.5, "s": '"x"'}}
THOUGHT = {"type": "thinking", "thinking": "Hm, hm.", "signature": "sig=="}
HIDDEN = {"type": "redacted_thinking", "data": "xyz"}


def message(*content: dict[str, Any], reason: str | None = "end_turn", **fields: Any) -> bytes:
    usage = COUNTS | {"output_tokens": 12, "service_tier": "standard"}
    whole = HEAD | {"content": list(content), "stop_reason": reason, "usage": usage} | fields
    Message.model_validate(whole)
    return msgspec.json.encode(whole)


def completion(*content: dict[str, Any], reason: str = "end_turn") -> ChatCompletion:
    return ChatCompletion.model_validate_json(
        CHAT.reply(message(*content, reason=reason), "route")[0], strict=True
    )


# ---------------------------------------------------------------- answers


def test_a_message_is_a_chat_completion():
    body, usage = CHAT.reply(message(TEXT), "prompt-rewrite")
    got = msgspec.json.decode(body)
    assert got.pop("created") > 1_700_000_000
    assert got == {
        "id": "msg_1",
        "object": "chat.completion",
        "model": "prompt-rewrite",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Hé "you"', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 15,
            "completion_tokens": 12,
            "total_tokens": 27,
            "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "service_tier": "default",
    }
    assert usage == USED


def test_tools_are_calls_whose_arguments_are_the_text_that_came():
    body = message(TEXT, CALL, reason="tool_use").replace(b'{"at":1.5', b'{"at": 1.50')
    said = ChatCompletion.model_validate_json(CHAT.reply(body, "m")[0]).choices[0]
    assert said.finish_reason == "tool_calls"
    assert said.message.content == 'Hé "you"'
    assert said.message.tool_calls
    call = said.message.tool_calls[0]
    assert (call.id, call.type) == ("toolu_1", "function")
    assert call.function.name == "look"
    assert call.function.arguments == '{"at": 1.50,"s":"\\"x\\""}'


def test_a_call_without_text_has_no_content():
    assert completion(CALL, reason="tool_use").choices[0].message.content is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_reasons_of_the_end(reason, expected):
    assert completion(TEXT, reason=reason).choices[0].finish_reason == expected
    end = [event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 1})]
    assert chunks_of(b"".join([START, *end, STOP]))[-1]["choices"][0]["finish_reason"] == expected


def test_the_answers_tool_is_the_content():
    tool = CALL | {"name": ANSWER_TOOL}
    said = completion(TEXT, tool, reason="tool_use").choices[0]
    assert said.finish_reason == "stop"
    assert said.message.tool_calls is None
    assert msgspec.json.decode(said.message.content or "") == CALL["input"]
    assert completion(tool, reason="max_tokens").choices[0].finish_reason == "length"


def test_thinking_can_be_read_and_sent_back():
    said = completion(THOUGHT, HIDDEN, TEXT).choices[0].message
    assert said.model_extra == {
        "reasoning_content": "Hm, hm.",
        "thinking_blocks": [THOUGHT, HIDDEN],
    }


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"type":"error"}', message(reason=None)]
)
def test_a_200_that_is_no_message_is_broken(body):
    with pytest.raises(UpstreamBroken):
        CHAT.reply(body, "m")


def test_usage_that_cannot_be_right_is_unknown():
    body = message(TEXT).replace(b'"output_tokens":12', b'"output_tokens":-12')
    assert CHAT.reply(body, "m")[1] is None


# ---------------------------------------------------------------- streams


def event(name: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": name} | fields)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    return b"".join(
        [
            event("content_block_start", index=index, content_block=start),
            *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
            event("content_block_stop", index=index),
        ]
    )


def piece(text: str) -> dict[str, str]:
    return {"type": "input_json_delta", "partial_json": text}


def words(text: str) -> dict[str, str]:
    return {"type": "text_delta", "text": text}


OPEN = {"content": [], "stop_reason": None, "usage": COUNTS | {"output_tokens": 1}}
START = event("message_start", message=HEAD | OPEN)
STOP = event("message_stop")
TWO_TOOLS = b"".join(
    [
        START,
        event("ping"),
        block(0, {"type": "text", "text": ""}, words("Let me "), words('"look".\n')),
        block(1, CALL | {"input": {}}, piece(""), piece('{"at"'), piece(": 1.50}")),
        event("something_new", x=1),
        block(2, CALL | {"id": "toolu_2", "name": "go", "input": {}}),
        event(
            "message_delta",
            delta={"stop_reason": "tool_use", "stop_sequence": None},
            usage={"output_tokens": 12},
        ),
        STOP,
    ]
)


def relayed(
    stream: bytes, *, size: int = 0, include_usage: bool = False
) -> tuple[bytes, ChatRelay]:
    relay = ChatRelay("route", include_usage=include_usage)
    step = size or len(stream)
    parts = [stream[at : at + step] for at in range(0, len(stream), step)]
    return b"".join(relay.feed(part) for part in parts), relay


def chunks_of(stream: bytes, **options: Any) -> list[Any]:
    out, relay = relayed(stream, **options)
    assert relay.done
    assert relay.failure is None
    assert out.endswith(b"}\n\ndata: [DONE]\n\n")
    events = parse(out)
    for each in events[:-1]:
        ChatCompletionChunk.model_validate_json(each.data, strict=True)
    return [msgspec.json.decode(each.data) for each in events[:-1]]


def test_a_stream_is_chunks_as_openai_writes_them():
    chunks = chunks_of(TWO_TOOLS)
    assert {(c["id"], c["object"], c["model"]) for c in chunks} == {
        ("msg_1", "chat.completion.chunk", "route")
    }
    assert len({c["created"] for c in chunks}) == 1
    assert all("usage" not in c for c in chunks)
    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Let me "},
        {"content": '"look".\n'},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1.50}"}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "toolu_2",
                    "type": "function",
                    "function": {"name": "go", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * 8 + ["tool_calls"]


def test_usage_comes_last_and_only_for_who_asks():
    *others, last = chunks_of(TWO_TOOLS, include_usage=True)
    assert all(c["usage"] is None for c in others)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 15
    assert last["usage"]["completion_tokens"] == 12
    assert relayed(TWO_TOOLS)[1].usage == USED
    options = {"include_usage": True}
    fields = {"stream_options": msgspec.Raw(msgspec.json.encode(options))}
    assert CHAT.relay(fields, "m").include_usage


def test_json_that_was_asked_for_streams_as_text():
    tool = CALL | {"name": ANSWER_TOOL, "input": {}}
    end = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3})
    chunks = chunks_of(START + block(0, tool, piece('{"a":'), piece("1}")) + end + STOP)
    deltas = [c["choices"][0]["delta"] for c in chunks[1:]]
    assert deltas == [{"content": '{"a":'}, {"content": "1}"}, {}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_thinking_streams_and_comes_whole_with_its_signature():
    start = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [
        {"type": "thinking_delta", "thinking": "Hm, "},
        {"type": "thinking_delta", "thinking": "hm."},
        {"type": "signature_delta", "signature": "sig=="},
    ]
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
    stream = START + block(0, start, *deltas) + block(1, HIDDEN) + block(2, TEXT) + end + STOP
    got = [c["choices"][0]["delta"] for c in chunks_of(stream)[1:-1]]
    assert got == [
        {"reasoning_content": "Hm, "},
        {"reasoning_content": "hm."},
        {"thinking_blocks": [THOUGHT]},
        {"thinking_blocks": [HIDDEN]},
        {"content": 'Hé "you"'},
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (event("error", error={"type": "overloaded_error", "message": "Overloaded"}), "overloaded"),
        (event("error", error={"type": "api_error", "message": "at https://x.test"}), "server"),
        (b"event: error\ndata: gone\n\n", "server"),
        (b"event: content_block_delta\ndata: {\n\n", "garbage"),
        (event("content_block_delta", index=0, delta=words("x")), "garbage"),
        (event("content_block_start", index=0), "garbage"),
        (STOP, "garbage"),
    ],
)
@pytest.mark.parametrize("size", [3, 0])
def test_a_stream_that_fails_never_says_done(error, kind, size):
    before = START + block(0, {"type": "text", "text": ""}, words("Hi"))
    out, relay = relayed(before + error + TWO_TOOLS, size=size)
    assert b"[DONE]" not in out
    assert [
        msgspec.json.decode(e.data)["choices"][0]["delta"].get("content") for e in parse(out)
    ] == [
        "",
        "Hi",
    ]
    assert relay.failure
    assert relay.failure.kind == kind
    assert "x.test" not in relay.failure.message
    assert not relay.done


def test_a_stream_must_begin_at_its_beginning():
    out, relay = relayed(block(0, TEXT) + STOP)
    assert out == b""
    assert relay.failure
    assert relay.failure.kind == "garbage"
    early = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    out, relay = relayed(early)
    assert out == b""
    assert relay.failure
    assert relay.failure.kind == "overloaded"


def test_nothing_goes_out_before_there_is_something_to_say():
    early = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    out, relay = relayed(START + event("ping") + early)
    assert out == b""
    assert relay.failure


def test_a_stream_that_is_cut_has_used_what_it_said():
    relay = relayed(TWO_TOOLS[: len(START) + 40])[1]
    assert not relay.done
    assert relay.usage
    assert relay.usage.input_tokens == 15


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_is_the_same_however_it_is_cut(data, line):
    stream = TWO_TOOLS.replace(b"\n", line)
    expected = chunks_of(TWO_TOOLS, include_usage=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    relay = ChatRelay("route", include_usage=True)
    parts = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    got = parse(b"".join(relay.feed(stream[start:end]) for start, end in parts))
    seen = [msgspec.json.decode(each.data) for each in got[:-1]]
    for each in (*seen, *expected):
        each.pop("created")
    assert seen == expected
    assert got[-1].data == b"[DONE]"
    assert relay.usage == USED


@given(st.lists(st.text(max_size=12), max_size=5), st.lists(st.text(max_size=12), max_size=5))
def test_every_text_arrives_as_it_was(texts, pieces):
    stream = START + block(0, {"type": "text", "text": ""}, *map(words, texts))
    stream += block(1, CALL | {"input": {}}, *map(piece, pieces))
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
    deltas = [c["choices"][0]["delta"] for c in chunks_of(stream + end + STOP)]
    assert "".join(d.get("content", "") for d in deltas) == "".join(texts)
    calls = [call for d in deltas for call in d.get("tool_calls", [])]
    said = "".join(call["function"]["arguments"] for call in calls)
    assert said == ("".join(pieces) or "{}")
