"""Messages of a chat as Anthropic's system prompt and turns."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from packshot.core.errors import Inexpressible, InvalidRequest
from tests.providers.chat import (
    CHAT,
    HELLO,
    TOOL,
    assistant,
    call,
    fields_of,
    result,
    sent,
    text,
    turns,
    user,
)


def test_system_and_developer_make_the_system_prompt():
    got = sent(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [text("And kind."), text(" ")]},
            *HELLO,
            {"role": "system", "content": "Now shout."},
        ]
    )
    assert got["system"] == [text("Be brief."), text("And kind."), text("Now shout.")]
    assert got["messages"] == [user([text("Hi")])]


def test_messages_of_one_side_are_one_turn_and_empty_ones_none():
    got = turns(
        user("a"), user([text("b")]), user(""), assistant(content="c"), assistant(), user("d")
    )
    assert got == [
        user([text("a"), text("b")]),
        {"role": "assistant", "content": [text("c")]},
        user([text("d")]),
    ]


def test_an_answer_that_was_begun_has_no_white_space_at_its_end():
    assert turns(user("a"), assistant(content="The "))[-1]["content"] == [text("The")]


def test_a_tools_use_and_results_are_blocks_and_the_input_stays_as_it_was_written():
    fields = fields_of(
        model="r",
        tools=[TOOL],
        messages=[
            user("look"),
            assistant(call(), call("look", "", "c2"), content="Looking."),
            result(),
            result([text("red"), text("dark")], "c2"),
            user("and?"),
        ],
    )
    body = CHAT.request(fields, "m", 5)
    assert b'"input":{"at": 1.50}' in body
    assert msgspec.json.decode(body)["messages"] == [
        user([text("look")]),
        {
            "role": "assistant",
            "content": [
                text("Looking."),
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1.5}},
                {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
            ],
        },
        user(
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": "blue"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [text("red"), text("dark")],
                },
                text("and?"),
            ]
        ),
    ]


def test_results_come_before_what_is_said():
    got = turns(user("a"), assistant(call()), user("wait"), result(), tools=[TOOL])
    assert [block["type"] for block in got[-1]["content"]] == ["tool_result", "text"]


def test_what_the_sdk_dumps_of_an_answer_comes_back():
    dumped = {
        "content": "Hi",
        "refusal": None,
        "role": "assistant",
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": "hm",
    }
    assert turns(user("a"), dumped, user("b"))[1]["content"] == [text("Hi")]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "user", "content": "a", "name": "Bob"}], "messages[0].name"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].role"),
        ([*HELLO, assistant(audio={"id": "a"})], "messages[1].audio"),
        (
            [*HELLO, assistant(function_call={"name": "f", "arguments": ""})],
            "messages[1].function_call",
        ),
        (
            [
                *HELLO,
                assistant({"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}),
            ],
            "messages[1].tool_calls[0]",
        ),
        ([assistant(content="Hello"), *HELLO], "messages[0]"),
        ([user([text("a"), {"type": "input_audio", "input_audio": {}}])], "messages[0].content[1]"),
        (
            [user([{"type": "file", "file": {"file_id": "f"}}])],
            "messages[0].content[0].file.file_id",
        ),
        (
            [user([{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,AAAA"}}])],
            "messages[0].content[0].image_url.url",
        ),
        (
            [user([{"type": "file", "file": {"file_data": "data:audio/mp3;base64,AAAA"}}])],
            "messages[0].content[0].file.file_data",
        ),
    ],
)
def test_what_a_message_cannot_say_is_named_with_its_path(messages, field):
    with pytest.raises(Inexpressible, match=f"^{re.escape(field)}: ") as caught:
        turns(*messages)
    assert caught.value.field == field


@pytest.mark.parametrize("arguments", ["{", "[]", "3", '{"a":1} x'])
def test_arguments_that_are_no_object_are_named(arguments):
    with pytest.raises(
        InvalidRequest, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments"
    ):
        turns(*HELLO, assistant(call(arguments=arguments)), tools=[TOOL])


# ---------------------------------------------------------------- pictures and files


def block_of(part: dict[str, object]) -> Any:
    return turns(user([part]))[0]["content"]


def picture(url: str, **detail: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url} | detail}


def file(data: str, **fields: object) -> dict[str, object]:
    return {"type": "file", "file": {"file_data": data} | fields}


def test_pictures_are_split_or_linked():
    data = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
    assert block_of(picture("data:image/png;base64,iVBORw0=", detail="high")) == [
        {"type": "image", "source": data}
    ]
    jpeg = block_of(picture("data:image/jpg;base64,/9j/"))[0]["source"]
    assert jpeg == {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}
    link = {"type": "url", "url": "https://x.test/a.png?b=1"}
    assert block_of(picture(link["url"])) == [{"type": "image", "source": link}]


@pytest.mark.parametrize(
    "url", ["ftp://x", "data:image/png,abc", "data:image/png;base64,<>", "x", ""]
)
def test_a_picture_that_is_nowhere_is_refused(url):
    with pytest.raises(InvalidRequest, match="must be https"):
        block_of(picture(url))


def test_files_are_documents():
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    assert block_of(file("data:application/pdf;base64,JVBE", filename="a.pdf")) == [
        {"type": "document", "source": pdf, "title": "a.pdf"}
    ]
    plain = {"type": "text", "media_type": "text/plain", "data": "hé"}
    assert block_of(file("data:text/plain;charset=utf-8;base64,aMOp")) == [
        {"type": "document", "source": plain}
    ]
    assert block_of(file("data:image/png;base64,iVBO"))[0]["type"] == "image"
    with pytest.raises(InvalidRequest, match="UTF-8"):
        block_of(file("data:text/plain;base64,/w=="))


def test_cache_marks_go_over():
    mark = {"type": "ephemeral"}
    assert block_of(text("a") | {"cache_control": mark}) == [text("a") | {"cache_control": mark}]
