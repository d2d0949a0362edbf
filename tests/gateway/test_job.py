"""What is read of a request before it is routed."""

from __future__ import annotations

import json

import msgspec
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.job import PER_ATTACHMENT, input_bound, open_fields, whole_number


def bound(messages: object) -> int:
    return input_bound(open_fields(json.dumps({"messages": messages}).encode()), 100)


def test_words_cost_no_more_than_their_bytes() -> None:
    assert bound([{"role": "user", "content": "an image of a file and a document"}]) == 100
    parts = [{"type": "text", "text": "image"}]
    assert (
        bound([{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": []}]) == 100
    )
    assert input_bound({}, 100) == 100


@pytest.mark.parametrize("kind", ["image_url", "image", "file", "document", "input_audio", "video"])
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
