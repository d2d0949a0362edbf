"""Requests of a chat, sent through the translation and held to the types of Anthropic's client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from pydantic import TypeAdapter

from packshot.providers.translate import ChatToAnthropic

CHAT = ChatToAnthropic()
SDK = TypeAdapter(MessageCreateParamsNonStreaming)
HELLO = [{"role": "user", "content": "Hi"}]


def fields_of(**fields: object) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(msgspec.json.encode(fields), type=dict[str, msgspec.Raw])


def sent(limit: int | None = None, **fields: object) -> Any:
    whole = {"model": "route", "messages": HELLO} | fields
    body = CHAT.request(fields_of(**whole), "claude-haiku-4-5", limit)
    out = msgspec.json.decode(body)
    exhaust(SDK.validate_python({k: v for k, v in out.items() if k != "stream"}))
    return out


def exhaust(value: object) -> None:
    """Go through everything: the SDK's lists are held to their types only as they are read."""
    if isinstance(value, dict):
        for inner in value.values():
            exhaust(inner)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for inner in value:
            exhaust(inner)


def turns(*messages: dict[str, Any], **fields: object) -> Any:
    return sent(messages=list(messages), **fields)["messages"]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def call(name: str = "look", arguments: str = '{"at": 1.50}', of: str = "c1") -> dict[str, object]:
    return {"id": of, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(*calls: dict[str, object], **fields: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls) or None} | fields


def result(content: object = "blue", of: str = "c1") -> dict[str, object]:
    return {"role": "tool", "tool_call_id": of, "content": content}


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at it.",
        "parameters": {"type": "object", "properties": {"at": {"type": "number"}}},
    },
}
LOOK = {
    "name": "look",
    "description": "Look at it.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "number"}}},
}
