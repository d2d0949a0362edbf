"""Fields of a chat and what becomes of them at Anthropic."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import Inexpressible, InvalidRequest
from packshot.providers.translate_reply import FINISH_REASONS
from packshot.providers.translate_request import (
    ANSWER_TOOL,
    DEFAULT_OUTPUT_LIMIT,
    HINTS,
    NEUTRAL,
    READ,
    THINKING_TOKENS,
)
from tests.providers.chat import (
    CHAT,
    HELLO,
    LOOK,
    TOOL,
    assistant,
    call,
    fields_of,
    result,
    sent,
    text,
    user,
)

# ---------------------------------------------------------------- the plain things


def test_the_least_request():
    assert sent() == {
        "model": "claude-haiku-4-5",
        "max_tokens": DEFAULT_OUTPUT_LIMIT,
        "messages": [user([text("Hi")])],
    }


@pytest.mark.parametrize(
    ("fields", "limit", "expected"),
    [
        ({}, 50, 50),
        ({"max_tokens": 7}, 50, 7),
        ({"max_completion_tokens": 8}, None, 8),
        ({"max_tokens": None}, 50, 50),
    ],
)
def test_the_limit_is_the_callers_then_the_configurations(fields, limit, expected):
    assert sent(limit, **fields)["max_tokens"] == expected


def test_what_has_an_equivalent():
    got = sent(
        temperature=0.5,
        top_p=0.9,
        stop=["END", "\nYou:"],
        user="u1",
        stream=True,
        service_tier="default",
        max_tokens=9,
    )
    del got["messages"], got["model"]
    assert got == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["END", "\nYou:"],
        "metadata": {"user_id": "u1"},
        "stream": True,
        "service_tier": "standard_only",
    }
    assert sent(stop="END")["stop_sequences"] == ["END"]
    assert sent(safety_identifier="s")["metadata"] == {"user_id": "s"}
    assert sent(safety_identifier="s", user="u")["metadata"] == {"user_id": "u"}


PLAIN = sent()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"store": False},
        {"logprobs": False, "top_logprobs": 0},
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"logit_bias": {}},
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"metadata": {"a": "b"}},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"prediction": {"type": "content", "content": "x"}},
        {"stream_options": {"include_usage": True}},
        {"service_tier": "auto"},
        {"temperature": 1, "top_p": 1.0},
        {"stop": []},
        {"seed": None, "audio": None, "anything": None},
        {"response_format": {"type": "text"}},
        {"reasoning_effort": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"parallel_tool_calls": False},
    ],
)
def test_hints_and_defaults_change_nothing(fields):
    assert sent(**fields) == PLAIN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("seed", 1),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"1": 5}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("store", True),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("moderation", {}),
        ("top_k", 5),
        ("unheard_of", 0),
        ("temperature", 1.5),
        ("top_p", 1.1),
        ("stop", "\n"),
        ("stop", ["a", " "]),
        ("reasoning_effort", "high"),
    ],
)
def test_what_cannot_be_said_is_an_error_with_its_name(field, value):
    limit = {"max_tokens": 1024} if field == "reasoning_effort" else {}
    with pytest.raises(Inexpressible, match=f"^{field}: ") as caught:
        sent(**{field: value} | limit)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "Hi"),
        ("messages", []),
        ("messages", [{"role": "system", "content": "only"}]),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "video"}]}]),
        ("messages", [{"role": "user", "content": "a", "colour": "blue"}]),
        ("messages", [{"role": "user"}]),
        ("temperature", "hot"),
        ("max_tokens", 0),
        ("stop", 3),
        ("stream", "yes"),
        ("tools", {"a": 1}),
        ("tool_choice", "maybe"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("reasoning_effort", "much"),
    ],
)
def test_what_is_malformed_is_named(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field}"):
        sent(**{field: value})


@given(
    st.dictionaries(
        st.sampled_from(
            ["messages", "tools", "stop", "user", "tool_choice", "response_format", "x"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "type", "text", "function", "name"]),
                    inner | st.sampled_from(["user", "assistant", "tool", "text", "function"]),
                    max_size=3,
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_comes_is_sent_or_refused(fields):
    try:
        body = CHAT.request(fields_of(**fields), "m", None)
    except InvalidRequest:
        return
    assert msgspec.json.decode(body)["model"] == "m"


# ---------------------------------------------------------------- tools


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
            {"type": "tool", "name": "look"},
        ),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_tools_and_their_choice(fields, expected):
    got = sent(tools=[TOOL], **fields)
    assert got["tools"] == [LOOK]
    assert got.get("tool_choice") == expected


def test_a_tool_without_parameters_and_a_strict_one():
    bare = {"type": "function", "function": {"name": "go"}}
    strict = {"type": "function", "function": {"name": "at", "strict": True, "parameters": {}}}
    empty = {"type": "object", "properties": {}}
    assert sent(tools=[bare, strict])["tools"] == [
        {"name": "go", "input_schema": empty},
        {"name": "at", "input_schema": empty, "strict": True},
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        (
            {"tools": [{"type": "function", "function": {"name": ANSWER_TOOL}}]},
            "tools[0].function.name",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice",
        ),
    ],
)
def test_tools_that_are_not_there_are_named(fields, field):
    with pytest.raises(Inexpressible) as caught:
        sent(**fields)
    assert caught.value.field == field


def test_a_choice_without_its_tool_is_refused():
    with pytest.raises(InvalidRequest, match="no tools"):
        sent(tool_choice="required")
    with pytest.raises(InvalidRequest, match="no tool 'x'"):
        sent(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})


def test_a_conversation_that_used_tools_has_them_though_none_may_be_used():
    got = sent(messages=[*HELLO, assistant(call()), result()])
    empty = {"type": "object", "properties": {}}
    assert got["tools"] == [{"name": "look", "input_schema": empty}]
    assert got["tool_choice"] == {"type": "none"}


# ---------------------------------------------------------------- JSON and thinking

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}


def schema(**fields: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA} | fields}


def test_a_strict_schema_is_the_output_format():
    got = sent(response_format=schema(strict=True), tools=[TOOL])
    assert got["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert got["tools"] == [LOOK]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (
            {"type": "json_object"},
            {"type": "object", "properties": {}, "additionalProperties": True},
        ),
        (schema(), SCHEMA),
        (schema(strict=False, description="d"), SCHEMA),
    ],
)
def test_other_json_is_the_input_of_a_tool_that_must_be_called(wanted, expected):
    got = sent(response_format=wanted)
    assert [tool["name"] for tool in got["tools"]] == [ANSWER_TOOL]
    assert got["tools"][0]["input_schema"] == expected
    assert got["tool_choice"] == {
        "type": "tool",
        "name": ANSWER_TOOL,
        "disable_parallel_tool_use": True,
    }


def test_json_that_is_not_strict_does_not_go_with_tools():
    with pytest.raises(Inexpressible, match=r"^response_format"):
        sent(response_format={"type": "json_object"}, tools=[TOOL])
    with pytest.raises(Inexpressible, match=r"^response_format"):
        sent(response_format=schema(schema={"type": "array"}))


@pytest.mark.parametrize(
    ("effort", "limit", "budget"),
    [("low", 4096, 1024), ("medium", 16_000, 4096), ("high", 8192, 4096), ("low", 1025, 1024)],
)
def test_effort_is_a_budget_to_think(effort, limit, budget):
    got = sent(reasoning_effort=effort, max_tokens=limit)
    assert got["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert budget < got["max_tokens"]


def test_thinking_does_not_go_with_a_forced_tool_or_a_temperature():
    with pytest.raises(Inexpressible, match=r"^reasoning_effort"):
        sent(reasoning_effort="low", response_format={"type": "json_object"})
    with pytest.raises(Inexpressible, match=r"^temperature"):
        sent(reasoning_effort="low", temperature=0.2)


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


def test_thinking_goes_on_between_tool_calls_if_it_comes_back():
    back = assistant(call(), thinking_blocks=[THOUGHT])
    got = sent(messages=[*HELLO, back, result()], tools=[TOOL], reasoning_effort="low")
    assert got["messages"][1]["content"][0] == THOUGHT
    assert "thinking" in got
    without = {"messages": [*HELLO, assistant(call()), result()], "tools": [TOOL]}
    assert "thinking" not in sent(**without, reasoning_effort="low")
    later = {"messages": [*without["messages"], user("go on")], "tools": [TOOL]}
    assert "thinking" in sent(**later, reasoning_effort="low")
    with pytest.raises(InvalidRequest, match="thinking_blocks"):
        sent(messages=[*HELLO, assistant(call(), thinking_blocks=[{"type": "text"}])], tools=[TOOL])


PAGE = (Path(__file__).parents[2] / "docs" / "gateway-translation.md").read_text(encoding="utf-8")


def test_the_page_names_every_field_and_every_value():
    request, answer = PAGE.split("## The answer")
    for field in READ | HINTS | NEUTRAL.keys():
        assert f"`{field}`" in request
    for effort, tokens in THINKING_TOKENS.items():
        assert f"`{effort}`" in request
        assert str(tokens) in request
    assert str(DEFAULT_OUTPUT_LIMIT) in request
    for reason, word in FINISH_REASONS.items():
        rows = [line.split("|") for line in answer.splitlines() if line.startswith("| ")]
        assert any(f"`{reason}`" in row[1] and f"`{word}`" in row[2] for row in rows)
