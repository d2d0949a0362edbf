"""OpenAI's API passed on: limits and usage go in, streams come out as they were."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from packshot.core.errors import InvalidRequest, UpstreamBroken
from packshot.core.sse import parse
from packshot.core.types import Usage, UsageDetail
from packshot.ledger.prices.usage import openai_chat
from packshot.providers.failures import failure_of
from packshot.providers.openai import OpenAIChat, OpenAIEmbeddings, OpenAIRelay
from packshot.providers.rows import ROWS, row_of

CHAT = OpenAIChat()


def fields_of(**fields: object) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(msgspec.json.encode(fields), type=dict[str, msgspec.Raw])


def sent(exchange: OpenAIChat, limit: int | None = None, model: str = "m", **fields: object) -> Any:
    return msgspec.json.decode(exchange.request(fields_of(**fields), model, limit))


def chunk(**delta: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None})


def event(fields: dict[str, object]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
    return b"data: " + msgspec.json.encode(head | fields) + b"\n\n"


COUNTS = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
USED = event({"choices": [], "usage": COUNTS})
DONE = b"data: [DONE]\n\n"
STREAM = chunk(role="assistant", content="") + chunk(content='"usage":{ [DONE] "error"') + chunk()


# ---------------------------------------------------------------- requests


def test_a_request_has_the_model_of_the_target_and_everything_else_as_it_came():
    raw = b'{"model":"route","messages":[{"role":"user","content":"a\\u00e9"}],"x":1.50}'
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    assert CHAT.request(fields, "gpt-4o-mini", None) == raw.replace(b"route", b"gpt-4o-mini")
    assert bytes(fields["model"]) == b'"route"', "the caller's fields serve the next target too"


@pytest.mark.parametrize(
    ("row", "model", "given", "limit", "expected"),
    [
        ("openai", "gpt-4o-mini", {}, 7, {"max_tokens": 7}),
        ("openai", "o3-mini", {}, 7, {"max_completion_tokens": 7}),
        ("openai", "gpt-5.1", {"max_tokens": 5}, 7, {"max_completion_tokens": 5}),
        ("openai", "gpt-4o", {"max_completion_tokens": 5}, 7, {"max_completion_tokens": 5}),
        ("openai", "gpt-4o", {"max_tokens": None}, 7, {"max_tokens": 7}),
        ("mistral", "mistral-small", {"max_completion_tokens": 5}, 7, {"max_tokens": 5}),
        ("ollama", "llama3.2", {"max_tokens": 5}, None, {"max_tokens": 5}),
        ("vllm", "m", {}, None, {}),
    ],
)
def test_a_limit_of_the_answer_goes_over_under_the_name_that_is_obeyed(
    row, model, given, limit, expected
):
    assert sent(OpenAIChat(ROWS[row]), limit, model, **given) == {"model": model} | expected


def test_two_limits_are_refused():
    with pytest.raises(InvalidRequest, match="max_completion_tokens mean the same"):
        sent(CHAT, max_tokens=1, max_completion_tokens=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}),
        (
            {"stream_options": {"include_obfuscation": False}},
            {"include_obfuscation": False, "include_usage": True},
        ),
    ],
)
def test_every_stream_is_asked_for_its_usage(options, expected):
    assert sent(CHAT, stream=True, **options)["stream_options"] == expected


def test_what_is_no_stream_or_knows_no_options_is_not_asked():
    assert "stream_options" not in sent(CHAT)
    mistral = OpenAIChat(ROWS["mistral"])
    assert "stream_options" not in sent(
        mistral, stream=True, stream_options={"include_usage": True}
    )


def test_stream_options_that_are_no_object_are_named():
    with pytest.raises(InvalidRequest, match="stream_options"):
        sent(CHAT, stream=True, stream_options=3)


def test_what_another_api_thought_stays_behind():
    said = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    ours = said | {"thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}
    text = {"role": "user", "content": '"thinking_blocks"'}
    got = sent(CHAT, messages=[text, ours, said])["messages"]
    assert got == [text, {"role": "assistant", "content": "a"}, said]
    assert sent(CHAT, messages=["thinking_blocks"])["messages"] == ["thinking_blocks"]


# ---------------------------------------------------------------- answers


def answer(**fields: object) -> bytes:
    message = {"role": "assistant", "content": "Hi"}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        | fields
    )


def test_an_answer_passes_as_it_came_and_says_what_it_used():
    body = answer(usage=COUNTS | {"prompt_tokens_details": {"cached_tokens": 3}})
    passed, usage = CHAT.reply(body, "route")
    assert passed is body
    assert usage == Usage("caption", input_tokens=9, cached_tokens=3, output_tokens=4)
    assert ChatCompletion.model_validate_json(passed).choices[0].message.content == "Hi"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": -1, "completion_tokens": 4},
        {"prompt_tokens": 1, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
        {"prompt_tokens": 1},
    ],
)
def test_usage_that_cannot_be_right_is_unknown_and_the_answer_is_the_callers(usage):
    body = answer(usage=usage)
    assert CHAT.reply(body, "m") == (body, None)


def test_tiers_and_sound_are_counted_as_the_price_book_counts_them():
    sound = COUNTS | {"prompt_tokens_details": {"audio_tokens": 2}}
    usage = CHAT.reply(answer(usage=sound, service_tier="flex"), "m")[1]
    assert usage == Usage(
        "caption",
        input_tokens=9,
        output_tokens=4,
        tier="flex",
        detail=UsageDetail(input_audio_tokens=2),
    )


COUNT = st.none() | st.integers(0, 30)


@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.fixed_dictionaries({}, optional={"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
    st.fixed_dictionaries({}, optional={"reasoning_tokens": COUNT, "audio_tokens": COUNT}),
    st.sampled_from([None, "default", "priority"]),
)
def test_the_short_way_counts_as_the_price_book_does(prompt, output, into, out, tier):
    raw = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": into,
        "completion_tokens_details": out,
    }
    try:
        expected = openai_chat(raw | {"service_tier": tier})
    except InvalidRequest:
        expected = None
    assert CHAT.reply(answer(usage=raw, service_tier=tier), "m")[1] == expected


def test_deepseeks_cache_is_counted_by_its_own_names():
    hits = COUNTS | {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 1}
    usage = OpenAIChat(ROWS["deepseek"]).reply(answer(usage=hits), "m")[1]
    assert usage == Usage("caption", input_tokens=9, cached_tokens=8, output_tokens=4)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"<html>", b'{"error":{"code":429}}'])
def test_a_200_that_is_no_answer_is_broken(body):
    with pytest.raises(UpstreamBroken):
        CHAT.reply(body, "m")
    with pytest.raises(UpstreamBroken):
        OpenAIEmbeddings().reply(body, "m")


def test_an_error_under_200_says_what_it_is():
    body = b'{"error":{"code":429,"message":"slow down"}}'
    failure = failure_of(200, {}, body)
    assert (failure.kind, failure.status) == ("rate_limit", 429)
    assert failure_of(200, {}, b"<html>").kind == "garbage"


@pytest.mark.parametrize("vector", [[0.1, 0.2], "zczMPQ=="])
def test_embeddings_pass_as_floats_and_as_base64(vector):
    body = msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }
    )
    exchange = OpenAIEmbeddings()
    assert exchange.reply(body, "m") == (body, Usage("caption", input_tokens=5))
    request = exchange.request(fields_of(model="r", input="a", max_tokens=3), "t", 9)
    assert msgspec.json.decode(request) == {"model": "t", "input": "a", "max_tokens": 3}
    assert exchange.needs(fields_of(input="a")) == ()
    if isinstance(vector, list):
        assert CreateEmbeddingResponse.model_validate_json(body).usage.prompt_tokens == 5
    with pytest.raises(InvalidRequest, match="not streamed"):
        exchange.relay({}, "m")


# ---------------------------------------------------------------- streams


def relayed(relay: OpenAIRelay, stream: bytes, size: int) -> bytes:
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    return b"".join(relay.feed(part) for part in parts)


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_stream_passes_as_it_came_without_the_usage_nobody_asked_for(size):
    relay = CHAT.relay(fields_of(stream=True), "m")
    assert relayed(relay, STREAM + USED + DONE, size) == STREAM + DONE
    assert relay.done
    assert relay.failure is None
    assert relay.usage == Usage("caption", input_tokens=9, output_tokens=4)


def test_who_asks_for_usage_gets_it():
    relay = CHAT.relay(fields_of(stream=True, stream_options={"include_usage": True}), "m")
    out = relay.feed(STREAM + USED) + relay.feed(DONE)
    assert out == STREAM + USED + DONE
    chunks = [ChatCompletionChunk.model_validate_json(each.data) for each in parse(out)[:-1]]
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 13


def test_usage_beside_content_is_read_and_stays():
    relay = OpenAIRelay(strip_usage=True)
    last = event({"choices": [{"index": 0, "delta": {}}], "usage": COUNTS})
    assert relay.feed(last) == last
    assert relay.usage is not None
    groq = OpenAIRelay("groq", strip_usage=True)
    own = event({"choices": [{"index": 0, "delta": {}}], "x_groq": {"id": "r", "usage": COUNTS}})
    assert groq.feed(own) == own
    assert groq.usage == Usage("caption", input_tokens=9, output_tokens=4)


def test_azures_first_chunk_without_choices_stays():
    first = event({"choices": [], "prompt_filter_results": []})
    assert OpenAIRelay(strip_usage=True).feed(first) == first


def test_comments_pass_and_nothing_follows_the_end():
    relay = OpenAIRelay()
    assert relay.feed(b": OPENROUTER PROCESSING\n\n") == b": OPENROUTER PROCESSING\n\n"
    assert relay.feed(DONE + STREAM) == DONE
    assert relay.feed(STREAM) == b""


ERROR = b'data: {"error":{"message":"at https://x.test/a","code":"server_error"}}\n\n'


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ERROR, "server"),
        (b'data: {"error": {"message": "Rate limit", "code": 429}}\n\n', "rate_limit"),
        (b'event: error\ndata: {"message":"busy","type":"overloaded_error"}\n\n', "overloaded"),
        (b"event: error\ndata: gone\n\n", "server"),
        (
            b'data: {"object":"error","message":"no","type":"BadRequestError","code":400}\n\n',
            "bad_request",
        ),
        (b'data: {"id": "c", "choi\n\n', "garbage"),
        (b"data: hello\n\n", "garbage"),
        (b'data: {"choices":[]} }\n\n', "garbage"),
    ],
)
@pytest.mark.parametrize("size", [3, 10_000])
def test_an_error_in_a_stream_is_a_failure_and_not_handed_on(error, kind, size):
    relay = OpenAIRelay()
    assert relayed(relay, STREAM + error + STREAM + DONE, size) == STREAM
    assert relay.failure is not None
    assert relay.failure.kind == kind
    assert "x.test" not in relay.failure.message
    assert not relay.done


def test_an_error_that_is_null_is_none():
    relay = OpenAIRelay()
    fine = event({"choices": [], "error": None})
    assert relay.feed(fine) == fine


def test_a_line_without_an_end_is_broken():
    relay = OpenAIRelay()
    with pytest.raises(UpstreamBroken):
        relay.feed(b"data: " + b"x" * 2_000_000)


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
def test_a_stream_is_the_same_however_it_is_cut(data, line, strip):
    stream = (b": hi\n\n" + STREAM + USED + b"event: x\n" + STREAM).replace(b"\n", line) + DONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    whole, pieces = OpenAIRelay(strip_usage=strip), OpenAIRelay(strip_usage=strip)
    expected = whole.feed(stream)
    got = b"".join(
        pieces.feed(stream[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    )
    assert got == expected
    assert (pieces.done, pieces.usage, pieces.failure) == (True, whole.usage, None)


# ---------------------------------------------------------------- needs


def user(*parts: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [{"role": "user", "content": '"image_url"'}]}, []),
        ({"messages": user({"type": "text", "text": "a"}), "tools": []}, []),
        ({"messages": user({"type": "image_url", "image_url": {"url": "u"}})}, ["vision"]),
        ({"messages": user({"type": "input_audio"}), "tools": [{}]}, ["tools", "audio"]),
        ({"messages": user({"type": "file"})}, ["files"]),
        ({"response_format": {"type": "json_object"}}, ["json"]),
        ({"response_format": {"type": "text"}}, []),
        ({"messages": [{"role": "assistant", "content": "The"}]}, ["prefill"]),
        ({"messages": "no"}, []),
    ],
)
def test_what_a_request_needs(fields, expected):
    assert CHAT.needs(fields_of(**fields)) == expected


def test_a_row_of_ones_own_is_served():
    row = row_of("openai", "http://127.0.0.1:8000/v1", name="local-llm")
    assert sent(OpenAIChat(row), 5, "qwen") == {"model": "qwen", "max_tokens": 5}
