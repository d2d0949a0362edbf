"""What the fake provider answers: invented from the request alone, so that the same gets the same.

The seed is taken of the model and the messages as they were written, not of how they are asked
for: a request that is streamed says what the same request says in one piece.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast
from zlib import crc32

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import Usage, UsageDetail
from packshot.providers.fake_script import Settings

__all__ = [
    "Answer",
    "Asked",
    "Embedding",
    "Refused",
    "embedding_of",
    "read_embedding",
    "read_text",
    "say",
]

Finish: TypeAlias = Literal["stop", "length", "tool"]

WORDS = tuple(
    "a studio photo of the red mug on white linen with soft light from left 35 mm Käse 写真 📷 "
    "glass bottle oak table morning shadow matte ceramic steel clean edge two warm tones".split()
)
PICTURE_TOKENS = 85
"""Tokens that each picture takes (what OpenAI counts for one of low detail)."""

PIECE = 8
"""Characters of JSON that stand for one token."""

CONTEXT = 200_000
"""Tokens that fit in, of every model: 4 bytes of a request make one."""


class Refused(InvalidRequest):
    """The request is answered with an error: its status and its message."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class _Options(msgspec.Struct):
    include_usage: bool = False


class Asked(msgspec.Struct):
    """The fields that matter of a request for text, in both APIs."""

    model: str
    messages: msgspec.Raw
    system: msgspec.Raw = msgspec.Raw(b"")
    stream: bool = False
    stream_options: _Options | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class Embedding(msgspec.Struct):
    """The fields of a request for embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


@dataclass(slots=True)
class Answer:
    """What will be said: the text in pieces of one token each, or the arguments of a tool."""

    id: str
    created: int
    model: str
    pieces: list[str]
    tool: str
    finish: Finish
    reasoning: int
    usage: Usage


ASKED = msgspec.json.Decoder(Asked)
EMBEDDING = msgspec.json.Decoder(Embedding)
MESSAGES = msgspec.json.Decoder(list[dict[str, Any]])


def read_text(
    body: bytes | bytearray, settings: Settings, *, anthropic: bool, limited: bool = True
) -> tuple[Asked, Answer]:
    """Read a request for text and invent its answer.

    ``limited`` is whether Anthropic's API wants ``max_tokens``: where it only counts, it does not.

    Raises:
        Refused: a field is missing or wrong; as strict as the real ones where it is checked at all.
    """
    try:
        asked = ASKED.decode(body)
        messages = MESSAGES.decode(asked.messages)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Refused(400, f"the body is no request: {error}") from error
    if not messages:
        raise Refused(400, "messages: at least one message is required", "messages")
    if anthropic and limited and asked.max_tokens is None:
        raise Refused(400, "max_tokens: Field required", "max_tokens")
    if (asked.n or 1) != 1:
        raise Refused(400, f"n: this provider answers once, not {asked.n} times", "n")
    limit = asked.max_completion_tokens or asked.max_tokens
    if limit is not None and limit < 1:
        raise Refused(400, f"max_tokens: {limit} must be 1 or more", "max_tokens")
    _known(asked.model, settings)
    seed = crc32(bytes(asked.messages), crc32(asked.model.encode()))
    pictures = _pictures(messages)
    tokens = (len(asked.messages) + len(asked.system)) // 4 + seed % 8 + 1
    if tokens > CONTEXT:
        raise Refused(400, "", "messages")
    name, pieces = _say(asked, messages, seed, pictures, settings)
    reasoning = seed % 5 if limit is None or limit > 16 else 0
    finish: Finish = "tool" if name else "stop"
    if limit is not None and reasoning + len(pieces) > limit:
        pieces, finish = pieces[: limit - reasoning], "length"
    usage = _usage(
        seed, tokens + PICTURE_TOKENS * pictures, reasoning + len(pieces), settings, anthropic
    )
    made = 1_700_000_000 + seed % 1_000_000
    answer = Answer(f"{seed:08x}", made, asked.model, pieces, name, finish, reasoning, usage)
    return asked, answer


def say(answer: Answer, text: str) -> None:
    """Put ``text`` in place of what was invented, or of a tool's arguments; its usage follows."""
    answer.pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    answer.finish = "tool" if answer.tool else "stop"
    before = answer.usage
    answer.usage = Usage(
        "caption",
        input_tokens=before.input_tokens,
        cached_tokens=before.cached_tokens,
        written_tokens=before.written_tokens,
        output_tokens=answer.reasoning + len(answer.pieces),
        detail=before.detail,
    )


def _known(model: str, settings: Settings) -> None:
    if settings.models and model not in settings.models:
        raise Refused(404, f"the model '{model}' does not exist", "model")


def _usage(seed: int, into: int, out: int, settings: Settings, anthropic: bool) -> Usage:  # noqa: FBT001
    """Invent how much of the input came from a prompt cache, and was written to it."""
    cached = into * (seed % 4) // 8 if settings.cache else 0
    written = into * (seed // 4 % 3) // 8 if settings.cache and anthropic else 0
    long = written // 2 if seed // 12 % 2 else 0
    return Usage(
        "caption",
        input_tokens=into,
        cached_tokens=cached,
        written_tokens=written,
        output_tokens=out,
        detail=UsageDetail(written_long_tokens=long) if long else None,
    )


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return cast("list[dict[str, Any]]", content) if isinstance(content, list) else []


def _pictures(messages: list[dict[str, Any]]) -> int:
    kinds = [part.get("type") for message in messages for part in _parts(message)]
    return sum(kind in {"image_url", "image"} for kind in kinds)


def _say(
    asked: Asked, messages: list[dict[str, Any]], seed: int, pictures: int, settings: Settings
) -> tuple[str, list[str]]:
    """Return the tool that is called ("" for none), and the pieces of text or arguments."""
    wanted = asked.response_format or {}
    if (tool := _tool(asked, messages)) is not None:
        function = cast("dict[str, Any]", tool.get("function", tool))
        schema: Any = function.get("parameters") or function.get("input_schema")
        return str(function.get("name", "")), _cut(_value(schema, seed))
    if wanted.get("type") == "json_schema":
        return "", _cut(_value(wanted.get("json_schema", {}).get("schema", {}), seed))
    if wanted.get("type") == "json_object":
        return "", _cut({"answer": " ".join(_words(seed, 6)), "pictures": pictures})
    words = _words(seed, 8 + seed % 24)
    if pictures:
        words[:0] = [f"pictures:{pictures}"]
    while settings.reply_bytes > sum(map(len, words)) + len(words):
        words += words
    return "", [words[0], *(f" {word}" for word in words[1:])]


def _words(seed: int, count: int) -> list[str]:
    return [WORDS[(seed >> (at % 16)) * (2 * at + 1) % len(WORDS)] for at in range(count)]


def _tool(asked: Asked, messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the tool to call: the one that is named, else the first, and none after a result."""
    last = messages[-1]
    answered = last.get("role") == "tool" or any(
        p.get("type") == "tool_result" for p in _parts(last)
    )
    choice = asked.tool_choice
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not asked.tools or kind == "none" or (answered and kind not in {"any", "required"}):
        return None
    named = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
    for tool in asked.tools:
        if named is None or tool.get("function", tool).get("name") == named:
            return tool
    raise Refused(400, f"tool_choice: there is no tool {named!r}", "tool_choice")


def _value(schema: Any, seed: int, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON value
    """Invent a value that a JSON schema allows, as far as tests need one."""
    if not isinstance(schema, dict):
        return None
    told = cast("dict[str, Any]", schema)
    if told.get("enum"):
        return told["enum"][seed % len(told["enum"])]
    kind = told.get("type", "object" if "properties" in told else "string")
    if kind == "object":
        inner = cast("dict[str, Any]", told.get("properties", {}))
        return {
            name: _value(part, seed + at, depth + 1)
            for at, (name, part) in enumerate(inner.items())
        }
    if kind == "array":
        return [_value(told.get("items", {}), seed + at, depth + 1) for at in range(1 + seed % 2)]
    plain: dict[str, Any] = {
        "integer": seed % 100,
        "number": seed % 100 / 4,
        "boolean": seed % 2 == 0,
    }
    return plain.get(kind, " ".join(_words(seed, 3)))


def _cut(value: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    text = msgspec.json.encode(value).decode()
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def read_embedding(body: bytes | bytearray, settings: Settings) -> tuple[Embedding, Usage]:
    """Read a request for embeddings, and count its tokens.

    Raises:
        Refused: a field is missing or wrong.
    """
    try:
        asked = EMBEDDING.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Refused(400, f"the body is no request: {error}") from error
    if not asked.input:
        raise Refused(400, "input: must not be empty", "input")
    _known(asked.model, settings)
    inputs = _inputs(asked)
    tokens = sum(len(e) // 4 + 1 if isinstance(e, str) else len(e) for e in inputs)
    return asked, Usage("caption", input_tokens=tokens)


def _inputs(asked: Embedding) -> list[str | list[int]]:
    """Return what each vector is of: texts, or tokens."""
    given = asked.input
    if isinstance(given, str) or isinstance(given[0], int):
        return cast("list[str | list[int]]", [given])
    return cast("list[str | list[int]]", given)


def embedding_of(asked: Embedding, usage: Any, settings: Settings) -> bytes:  # noqa: ANN401 - JSON
    """Return the body of the answer; ``usage`` is what it says of its usage."""
    size = asked.dimensions or settings.dimensions
    data: list[dict[str, Any]] = []
    for index, each in enumerate(_inputs(asked)):
        seed = crc32(msgspec.json.encode(each))
        # Steps of 2⁻¹⁰ are the same in 32 and in 64 bits.
        vector = [((seed >> at % 20) * (at + 1) % 2048 - 1024) / 1024 for at in range(size)]
        packed = struct.pack(f"<{size}f", *vector)
        shown = b64encode(packed).decode() if asked.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return msgspec.json.encode(
        {"object": "list", "data": data, "model": asked.model, "usage": usage}
    )
