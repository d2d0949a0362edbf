"""What is read of a request before it is routed."""

from __future__ import annotations

import json

import msgspec
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.access import VirtualKey
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.job import (
    PER_ATTACHMENT,
    PER_DOCUMENT,
    WITH_TOOLS,
    Job,
    input_bound,
    is_open_ended,
    open_fields,
    whole_number,
)
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import GatewaySettings, ProviderEntry


def bound(messages: object) -> int:
    return input_bound(open_fields(json.dumps({"messages": messages}).encode()), 100)


def test_words_cost_no_more_than_their_bytes() -> None:
    assert bound([{"role": "user", "content": "an image of a file and a document"}]) == 100
    parts = [{"type": "text", "text": "image"}]
    assert (
        bound([{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": []}]) == 100
    )
    assert input_bound({}, 100) == 100


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video"])
def test_what_is_pointed_to_counts(kind: str) -> None:
    assert bound([{"role": "user", "content": [{"type": kind}] * 3}]) == 100 + 3 * PER_ATTACHMENT


def test_an_escaped_name_hides_nothing() -> None:
    body = b'{"messages": [{"content": [{"\\u0074ype": "im\\u0061ge_url"}]}]}'
    assert input_bound(open_fields(body), 100) == 100 + PER_ATTACHMENT


def test_pictures_in_a_tool_s_result_count() -> None:
    result = {"type": "tool_result", "content": [{"type": "image"}, {"type": "text"}]}
    assert bound([{"role": "user", "content": [result]}]) == 100 + PER_ATTACHMENT


@pytest.mark.parametrize(
    "messages", [[{"content": {"type": "image"}}], [{"content": 3}], {"a": {}}]
)
def test_a_strange_shape_may_be_anything(messages: object) -> None:
    assert bound(messages) >= 100 + PER_ATTACHMENT


@pytest.mark.parametrize("text", ["0", "-1", "1.5", '"5"', "true", "9" * 100_000, "[]", "1e3"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(InvalidRequest, match="max_tokens must be a whole number from 1 to 50"):
        whole_number({"max_tokens": msgspec.Raw(text.encode())}, "max_tokens", 50)


def test_a_whole_number() -> None:
    assert whole_number({"n": msgspec.Raw(b"50")}, "n", 50) == 50
    assert whole_number({"n": msgspec.Raw(b"null")}, "n", 50) is None
    assert whole_number({}, "n", 50) is None


@pytest.mark.parametrize("kind", ["file", "document", "container_upload"])
def test_a_document_may_have_hundreds_of_pages(kind: str) -> None:
    assert bound([{"role": "user", "content": [{"type": kind}]}]) == 100 + PER_DOCUMENT
    result = {"type": "tool_result", "content": [{"type": kind}]}
    assert bound([{"role": "user", "content": [result]}]) == 100 + PER_DOCUMENT


@pytest.mark.parametrize("name", ["tools", "functions", "response_format"])
def test_what_a_provider_adds_where_there_are_tools_counts(name: str) -> None:
    assert input_bound(open_fields(b'{"%s": []}' % name.encode()), 100) == 100 + WITH_TOOLS


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"web_search_options": {}}, True),
        ({"plugins": [{"id": "web"}]}, True),
        ({"models": ["openai/o1-pro"]}, True),
        ({"tools": [{"type": "web_search_20250305"}]}, True),
        ({"tools": [{"type": "function"}, {"type": "code_execution"}]}, True),
        ({"tools": "web_search"}, True),
        ({"tools": [{"type": "function"}, {"name": "look"}, {"type": "bash_20250124"}]}, False),
        ({"tools": None, "plugins": None}, False),
        ({}, False),
    ],
)
def test_what_a_provider_does_by_itself_has_no_bound(body: dict[str, object], found: bool) -> None:
    assert is_open_ended(open_fields(json.dumps(body).encode())) is found


def asked(path: str, **fields: object) -> Job:
    body = json.dumps({"model": "any/m", **fields}).encode()
    plan = build_plan(GatewaySettings(providers={"any": ProviderEntry(kind="ollama")}))
    return make_job(DOORS[path], plan, VirtualKey("k"), {}, body, 0.0)


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        ("/v1/chat/completions", {"max_tokens": 9}, 9),
        ("/v1/chat/completions", {"max_tokens": 9, "max_completion_tokens": None}, 9),
        ("/v1/chat/completions", {"max_tokens": 9, "max_completion_tokens": 5}, 9),
        ("/v1/chat/completions", {"max_tokens": None, "max_completion_tokens": 5}, 5),
        ("/v1/messages", {"max_tokens": 9_000, "max_completion_tokens": 1}, 9_000),
        ("/v1/messages", {"max_tokens": 9_000, "thinking": {"budget_tokens": 2_000}}, 9_000),
        ("/v1/messages", {"max_tokens": 9_000, "thinking": {"budget_tokens": 64_000}}, 73_000),
        ("/v1/messages", {"thinking": {"type": "adaptive"}}, None),
        ("/v1/messages", {"thinking": None}, None),
        ("/v1/messages", {}, None),
    ],
)
def test_the_limit_of_what_comes_out(
    path: str, fields: dict[str, object], limit: int | None
) -> None:
    assert asked(path, **fields).output_limit == limit


@pytest.mark.parametrize(
    ("thinking", "said"),
    [
        ({"budget_tokens": 64_000}, "wants max_tokens"),
        ({"budget_tokens": 10**30}, "at most"),
        ({"budget_tokens": -1}, "at most"),
        ({"budget_tokens": "many"}, "its budget a number"),
        ("hard", "must be an object"),
    ],
)
def test_what_is_no_budget_to_think(thinking: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        asked("/v1/messages", thinking=thinking)


def test_a_list_of_other_models_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="models is not passed on"):
        asked("/v1/chat/completions", models=["openai/o1-pro"])


def test_a_body_of_a_million_empty_objects_is_refused() -> None:
    """They hold no member, and took half a second to look through."""
    body = b'{"messages": [{"content": [' + b"{}," * 900_000 + b"{}]}]}"
    with pytest.raises(InvalidRequest, match="more than 200000 objects"):
        open_fields(body)
