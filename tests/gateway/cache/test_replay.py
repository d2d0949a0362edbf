"""A whole answer told as a stream, and a stream put together: neither loses anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.sse import encode, parse
from packshot.core.types import Usage
from packshot.gateway.cache.replay import events_of, is_good, text_of, whole_of

TEXT = st.text(min_size=1, max_size=30)
CALL = st.fixed_dictionaries(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}),
    }
)
CHOICE = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": TEXT},
            optional={
                "reasoning_content": TEXT,
                "tool_calls": st.lists(CALL, min_size=1, max_size=3),
            },
        ),
        "logprobs": st.none() | st.just({"content": [{"token": "a", "logprob": -1.0}]}),
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls"]),
    }
)
BLOCK = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries(
        {"type": st.just("thinking"), "thinking": TEXT, "signature": TEXT},
    ),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXT}),
    st.fixed_dictionaries(
        {
            "type": st.just("tool_use"),
            "id": TEXT,
            "name": TEXT,
            "input": st.dictionaries(TEXT, st.integers() | TEXT, min_size=1, max_size=3),
        }
    ),
)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


@given(st.lists(CHOICE, min_size=1, max_size=3))
def test_a_chat_comes_back_as_it_was(rows: list[dict[str, Any]]) -> None:
    choices = [{"index": at, **row} for at, row in enumerate(rows)]
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    body = json.dumps({**answer, "choices": choices, "usage": USAGE}).encode()
    assert is_good("chat", body)
    stream = events_of("chat", body, usage=True)
    assert stream.endswith(b"data: [DONE]\n\n")
    whole = whole_of("chat", stream, None)
    assert whole is not None
    assert json.loads(whole) == json.loads(body)
    plain = [json.loads(each.data) for each in parse(events_of("chat", body, usage=False))[:-1]]
    assert not any("usage" in chunk for chunk in plain)
    assert all(chunk["choices"] for chunk in plain)


@given(st.lists(BLOCK, min_size=1, max_size=4))
def test_a_message_comes_back_as_it_was(blocks: list[dict[str, Any]]) -> None:
    usage = {"input_tokens": 5, "output_tokens": 7}
    answer = {"id": "x", "type": "message", "role": "assistant", "model": "m", "content": blocks}
    ended = {"stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
    body = json.dumps({**answer, **ended}).encode()
    assert is_good("messages", body)
    whole = whole_of("messages", events_of("messages", body, usage=False), None)
    assert whole is not None
    assert json.loads(whole) == json.loads(body)


def chunk(**choice: Any) -> bytes:
    body = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
    return encode(json.dumps(body).encode())


def test_usage_stands_in_where_the_stream_had_none() -> None:
    stream = chunk(delta={"content": "a"}) + chunk(delta={}, finish_reason="stop")
    usage = Usage("caption", input_tokens=5, cached_tokens=2, output_tokens=7)
    whole = json.loads(whole_of("chat", stream, usage) or b"")
    assert whole["usage"]["prompt_tokens"] == 5
    assert whole["usage"]["total_tokens"] == 12
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"data: nonsense\n\n",
        chunk(delta={"audio": {"id": "a"}}),
        chunk(delta={"tool_calls": [{"index": 3, "function": {}}]}),
        encode(b"[]"),
    ],
)
def test_what_is_not_known_is_not_put_together(stream: bytes) -> None:
    assert whole_of("chat", stream, None) is None


def answer_of(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        ("chat", b"nonsense"),
        ("chat", b'{"choices": []}'),
        ("chat", answer_of(content="")),
        ("chat", answer_of(content="a", refusal="no")),
        ("chat", answer_of(content="a").replace(b"stop", b"content_filter")),
        ("chat", answer_of(content="a").replace(b'"index": 0, ', b"")),
        ("chat", b'{"choices": [3]}'),
        ("messages", b'{"content": [{"type": "text", "text": "a"}], "stop_reason": "refusal"}'),
        ("messages", b'{"content": [], "stop_reason": "end_turn"}'),
        ("messages", b'{"content": [{"type": "text"}], "stop_reason": "end_turn"}'),
        ("embeddings", b'{"data": []}'),
    ],
)
def test_what_is_no_good_answer_is_not_kept(surface: Any, body: bytes) -> None:
    assert not is_good(surface, body)


def test_the_text_of_an_answer() -> None:
    assert text_of("chat", answer_of(content="a")) == "a"
    assert text_of("messages", b'{"content": [{"type": "text", "text": "a"}]}') == "a"
    assert text_of("chat", b"{}") == ""
