"""OpenAI's chat request as far as it can be said to another API; what is not here is refused.

Unknown fields are errors (`forbid_unknown_fields`), so that nothing is dropped in silence. Fields
that are read and not used are harmless, and say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

__all__ = [
    "Assistant",
    "Content",
    "FilePart",
    "Format",
    "ImagePart",
    "Message",
    "NamedChoice",
    "Part",
    "System",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolResult",
    "User",
]

Json: TypeAlias = dict[str, Any]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """An object without other fields."""


class TextPart(Strict, tag="text", tag_field="type"):
    """``cache_control`` is Anthropic's own, which callers of several providers put here."""

    text: str
    cache_control: Json | None = None


class _Url(Strict):
    url: str
    detail: str | None = None  # how closely to look; Anthropic looks as it does


class ImagePart(Strict, tag="image_url", tag_field="type"):
    image_url: _Url
    cache_control: Json | None = None


class _File(Strict):
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class FilePart(Strict, tag="file", tag_field="type"):
    file: _File
    cache_control: Json | None = None


class AudioPart(msgspec.Struct, tag="input_audio", tag_field="type"):
    """Here to be refused by its name."""


class RefusalPart(Strict, tag="refusal", tag_field="type"):
    refusal: str


Part: TypeAlias = TextPart | ImagePart | FilePart | AudioPart | RefusalPart
Content: TypeAlias = str | list[Part]


class System(Strict, tag="system", tag_field="role"):
    content: str | list[TextPart]
    name: str | None = None


class Developer(Strict, tag="developer", tag_field="role"):
    content: str | list[TextPart]
    name: str | None = None


class User(Strict, tag="user", tag_field="role"):
    content: Content
    name: str | None = None


class _Call(Strict):
    name: str
    arguments: str
    parsed_arguments: Any = None  # of the SDK's own streams


class ToolCall(Strict):
    """``index`` stands in calls that were put together from a stream."""

    id: str
    function: _Call | None = None
    type: str = "function"
    custom: Json | None = None
    index: int | None = None


class Assistant(Strict, tag="assistant", tag_field="role"):
    """``thinking_blocks`` are this gateway's, back from an earlier answer.

    ``annotations``, ``parsed``, ``reasoning`` and ``reasoning_content`` came with an answer and are
    nothing that a model is told again.
    """

    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Json | None = None
    audio: Json | None = None
    thinking_blocks: list[Json] | None = None
    annotations: list[Json] | None = None
    parsed: Any = None
    reasoning: Any = None
    reasoning_content: str | None = None


class ToolResult(Strict, tag="tool", tag_field="role"):
    """``name`` is redundant: the id says whose result it is."""

    tool_call_id: str
    content: Content
    name: str | None = None


class Function(msgspec.Struct, tag="function", tag_field="role"):
    """Here to be refused by its name."""


Message: TypeAlias = System | Developer | User | Assistant | ToolResult | Function


class _Function(Strict):
    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Strict):
    type: str
    function: _Function | None = None
    custom: Json | None = None
    cache_control: Json | None = None


class _Name(Strict):
    name: str


class NamedChoice(Strict):
    type: str
    function: _Name | None = None
    custom: Json | None = None
    allowed_tools: Json | None = None


class _Schema(Strict):
    name: str
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


Limit = Annotated[int, msgspec.Meta(ge=1)]
