"""The messages of an OpenAI chat as Anthropic's system prompt and turns."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from packshot.core.errors import Inexpressible, InvalidRequest
from packshot.providers.chat_types import (
    Assistant,
    Content,
    Developer,
    FilePart,
    Function,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    System,
    TextPart,
    ToolCall,
    ToolResult,
    User,
)

__all__ = ["Turns", "turns_of"]

Json: TypeAlias = dict[str, Any]

MESSAGES = msgspec.json.Decoder(list[Message])
OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/\s]*=*\s*")


@dataclass(slots=True)
class Turns:
    """``called`` are the tools that the conversation used.

    ``thoughtless`` says that a turn is going on whose tool calls came without thinking: until the
    user speaks again, the model cannot think.
    """

    system: list[Json] = field(default_factory=list[Json])
    messages: list[Json] = field(default_factory=list[Json])
    called: set[str] = field(default_factory=set[str])
    thoughtless: bool = False


def turns_of(raw: msgspec.Raw | None) -> Turns:
    """Return system prompt and turns; consecutive messages of one side are one turn.

    Raises:
        Inexpressible: a message has something that Anthropic's API has no word for.
        InvalidRequest: it is not as OpenAI's API has it.
    """
    try:
        messages = MESSAGES.decode(raw if raw is not None else b"[]")
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"messages: {error}") from error
    turns = Turns()
    for at, message in enumerate(messages):
        _add(turns, message, f"messages[{at}]")
    _finish(turns)
    return turns


def _add(turns: Turns, message: Message, at: str) -> None:
    if isinstance(message, Function):
        raise Inexpressible(f"{at}.role", "functions are tools now: send role tool")
    if message.name and not isinstance(message, ToolResult):
        raise Inexpressible(f"{at}.name", "Anthropic's messages have no name; put it in the text")
    if isinstance(message, (System, Developer)):
        # There is one system prompt; what comes later in a conversation is added to it.
        turns.system += _blocks(message.content, f"{at}.content")
    elif isinstance(message, User):
        turns.thoughtless = False
        _say(turns, "user", _blocks(message.content, f"{at}.content"))
    elif isinstance(message, ToolResult):
        result: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        if content := _blocks(message.content, f"{at}.content"):
            alone = len(content) == 1 and set(content[0]) == {"type", "text"}
            result["content"] = content[0]["text"] if alone else content
        _say(turns, "user", [result])
    else:
        _say(turns, "assistant", _assistant(turns, message, at))


def _say(turns: Turns, role: str, blocks: list[Json]) -> None:
    if not blocks:
        return
    if turns.messages and turns.messages[-1]["role"] == role:
        turns.messages[-1]["content"] += blocks
    else:
        turns.messages.append({"role": role, "content": blocks})


def _finish(turns: Turns) -> None:
    if not turns.messages:
        raise InvalidRequest("messages: there must be one with content beside the system's")
    if turns.messages[0]["role"] != "user":
        raise Inexpressible("messages[0]", "Anthropic's conversations begin with the user")
    for turn in turns.messages:
        if turn["role"] == "user":  # results come first: the API wants them before any text
            turn["content"].sort(key=_is_said)
    last = turns.messages[-1]
    if last["role"] == "assistant" and last["content"][-1]["type"] == "text":
        last["content"][-1]["text"] = last["content"][-1]["text"].rstrip()


def _is_said(block: Json) -> bool:
    return block["type"] != "tool_result"


def _assistant(turns: Turns, message: Assistant, at: str) -> list[Json]:
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            raise Inexpressible(f"{at}.{name}", "Anthropic's API has no such thing")
    blocks: list[Json] = list(message.thinking_blocks or ())
    for block in blocks:
        if block.get("type") not in {"thinking", "redacted_thinking"}:
            raise InvalidRequest(f"{at}.thinking_blocks: {block.get('type')!r} is no thinking")
    blocks += _blocks(message.content or "", f"{at}.content")
    blocks += _blocks(message.refusal or "", f"{at}.refusal")
    calls = message.tool_calls or []
    for number, call in enumerate(calls):
        blocks.append(_tool_use(call, f"{at}.tool_calls[{number}]"))
        turns.called.add(blocks[-1]["name"])
    if calls:
        turns.thoughtless = not message.thinking_blocks
    return blocks


def _tool_use(call: ToolCall, at: str) -> Json:
    if call.function is None:
        raise Inexpressible(at, f"Anthropic has no tool calls of type {call.type!r}")
    arguments = call.function.arguments
    try:
        OBJECT.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{at}.function.arguments: not a JSON object: {error}") from error
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.function.name,
        "input": msgspec.Raw((arguments or "{}").encode()),
    }


def _blocks(content: Content | list[TextPart], at: str) -> list[Json]:
    """Return content as blocks; text that is empty or white space is none, as the API wants it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks: list[Json] = []
    for number, part in enumerate(content):
        blocks += _block(part, f"{at}[{number}]")
    return blocks


def _block(part: Part, at: str) -> list[Json]:
    if isinstance(part, RefusalPart):
        return _blocks(part.refusal, at)
    if isinstance(part, TextPart):
        blocks = _blocks(part.text, at)
    elif isinstance(part, ImagePart):
        blocks = [_image(part.image_url.url, f"{at}.image_url.url")]
    elif isinstance(part, FilePart):
        blocks = [_file(part, f"{at}.file")]
    else:
        raise Inexpressible(at, "Anthropic's models do not hear: input_audio cannot be sent")
    if blocks and part.cache_control:
        blocks[-1]["cache_control"] = part.cache_control
    return blocks


def _image(url: str, at: str) -> Json:
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = _data(url, at)
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if kind not in IMAGES:
        raise Inexpressible(at, f"Anthropic takes jpeg, png, gif and webp, not {kind!r}")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _file(part: FilePart, at: str) -> Json:
    file = part.file
    if file.file_data is None:
        raise Inexpressible(f"{at}.file_id", "the file lies at OpenAI; send it as file_data")
    kind, data = _data(file.file_data, f"{at}.file_data")
    if kind in IMAGES:
        return _image(file.file_data, f"{at}.file_data")
    if kind == "application/pdf":
        source: Json = {"type": "base64", "media_type": kind, "data": data}
    elif kind == "text/plain":
        text = _text(data, f"{at}.file_data")
        source = {"type": "text", "media_type": kind, "data": text}
    else:
        raise Inexpressible(f"{at}.file_data", f"Anthropic takes PDF and text, not {kind!r}")
    title = {"title": file.filename} if file.filename else {}
    return {"type": "document", "source": source} | title


def _data(url: str, at: str) -> tuple[str, str]:
    """Return media type and base64 data of a data URL."""
    head = DATA_URL.match(url)
    if head is None or not BASE64.fullmatch(url, head.end()):
        raise InvalidRequest(f"{at}: must be https://… or data:TYPE;base64,…, got {url[:24]!r}")
    return (head[1] or "text/plain").lower(), url[head.end() :]


def _text(data: str, at: str) -> str:
    try:
        return b64decode(data).decode("utf-8")
    except ValueError as error:
        raise InvalidRequest(f"{at}: is no text in UTF-8: {error}") from error
