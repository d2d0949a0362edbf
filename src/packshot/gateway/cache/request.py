"""What a request is to the cache: an exact key, whether it is kept, and what it asks in words.

The key is SHA-256 over everything that an answer depends on, each part with its length before it,
and over nothing else: the caller's cache scope, route and targets, headers that go on, and each
member of the body but how it is to be delivered. Objects are read and written again with sorted
members, so that spaces and order do not count; letters keep their case. A body in which a name
stands twice in one object is not kept: which of the two a provider reads is not known here, and an
answer to the one would be served for the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

import msgspec

from packshot.gateway.cache.settings import Kind
from packshot.gateway.job import Job
from packshot.gateway.virtual_key import VirtualKey

__all__ = ["CachedRequest", "Unreadable", "cached_request", "scope_of", "spoken"]

VERSION = b"packshot-cache-1"
SURFACES = frozenset({"chat", "messages", "embeddings"})
DELIVERY = frozenset({"model", "stream", "stream_options", "metadata"})
"""Members on which the answer does not depend. The model is in the route."""
TOLD = frozenset({"user_id"})
"""Of the metadata, what is part of the key: whose request it is."""

WORDS = frozenset({"text", "input_audio", "refusal", "thinking", "redacted_thinking", "tool_use"})
"""Types of parts that name nothing outside of themselves."""

DECODE = msgspec.json.Decoder().decode
PLAIN = msgspec.json.Encoder().encode
SORTED = msgspec.json.Encoder(order="sorted").encode
INSTRUCTIONS = frozenset({"system", "developer"})
INSIDE = {
    "tool_result": "content",
    "image_url": "image_url",
    "image": "source",
    "document": "source",
    "file": "file",
}
SENT = frozenset({"base64", "text", "content"})
"""Types of Anthropic's sources that are in the request itself."""


class Unreadable(Exception):
    """The request is none that can be kept; the text says why, in a word."""


@dataclass(frozen=True, slots=True)
class CachedRequest:
    """``key`` is the exact key in hex, ``kinds`` are what it is of those that are not always kept.

    ``messages`` are decoded, ``parts`` what was hashed, for `spoken`.
    """

    key: str
    scope: str
    kinds: tuple[Kind, ...]
    messages: list[Any]
    parts: dict[bytes, bytes]


def scope_of(owner: VirtualKey) -> str:
    """Return whose answers a virtual key may get: its group's, else its own alone."""
    return f"group:{owner.cache_group}" if owner.cache_group else f"key:{owner.id}"


def cached_request(job: Job, max_temperature: float) -> CachedRequest:
    """Return what a job is to the cache.

    Raises:
        Unreadable: it is not to be kept, whatever anybody asks.
    """
    if job.surface not in SURFACES:
        raise Unreadable("surface")
    if job.open_ended:
        raise Unreadable("provider_tools")
    scope = scope_of(job.owner)
    route = job.route
    targets = "\n".join(target.name for target in route.targets)
    parts = {b"": f"{scope}\0{job.surface}\0{route.id}\0{targets}".encode()}
    for name, value in (job.headers or {}).items():
        parts[b"header " + name] = value
    messages: list[Any] = []
    try:
        for name, raw in job.fields.items():
            if name == "metadata":
                if whose := _whose(raw):
                    parts[b"metadata"] = whose
            elif name not in DELIVERY:
                value, parts[name.encode()] = _canonical(bytes(raw))
                if name == "messages":
                    messages = _rows(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreadable("ambiguous") from error
    return CachedRequest(
        _hash(parts), scope, _kinds(job, messages, max_temperature), messages, parts
    )


def spoken(request: CachedRequest) -> tuple[str, str] | None:
    """Return the partition (hex) and the text that is compared within it; None where there is none.

    The text is that of the last message, which is the user's; all else is the partition: system
    prompt, pictures by their bytes, tools, parameters, and whose request it is.
    """
    messages = request.messages
    last = _members(messages[-1]) if messages else {}
    if last.get("role") != "user":
        return None
    text, rest = last.get("content"), None
    if not isinstance(text, str):
        content = _rows(text)
        texts = [part for part in map(_members, content) if part.get("type") == "text"]
        if len(texts) != 1:
            return None
        text = texts[0].get("text")
        rest = [{**part, "text": None} if part is texts[0] else part for part in content]
    if not isinstance(text, str) or not text.strip():
        return None
    blank: list[Any] = [*messages[:-1], {**last, "content": rest}]
    return _hash({**request.parts, b"messages": SORTED(blank), b"spoken": b""}), text


def _members(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _rows(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _canonical(raw: bytes) -> tuple[Any, bytes]:
    """Return a member's value, and the one form of it."""
    if raw[:1] not in (b"{", b"["):
        return None, raw
    value = DECODE(raw)
    if PLAIN(value) != raw:
        # Spaces or escapes, or a name that stands twice: only the slow reader tells.
        json.loads(raw, object_pairs_hook=_once)
    return value, SORTED(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in one object twice")
    return found


def _whose(raw: msgspec.Raw) -> bytes:
    said, _ = _canonical(bytes(raw))
    kept = {name: value for name, value in _members(said).items() if name in TOLD}
    return SORTED(kept) if kept else b""


def _hash(parts: dict[bytes, bytes]) -> str:
    made = sha256(VERSION)
    for name in sorted(parts):
        value = parts[name]
        made.update(b"%d %b %d " % (len(name), name, len(value)))
        made.update(value)
    return made.hexdigest()


def _kinds(job: Job, messages: list[Any], max_temperature: float) -> tuple[Kind, ...]:
    found: list[Kind] = []
    rows = [_members(each) for each in messages]
    if sum(row.get("role") not in INSTRUCTIONS for row in rows) > 1:
        found.append("multi_turn")
    fields = job.fields
    if any(
        bytes(fields.get(name, b"null")) not in {b"null", b"[]"} for name in ("tools", "functions")
    ):
        found.append("tools")
    hot = fields.get("temperature")
    if hot is not None and not _within(bytes(hot), max_temperature):
        found.append("temperature")
    if any(_is_link(part) for row in rows for part in _rows(row.get("content"))):
        found.append("links")
    return tuple(found)


def _within(raw: bytes, most: float) -> bool:
    try:
        return raw == b"null" or float(raw) <= most
    except ValueError:
        return False


def _is_link(part: Any) -> bool:  # noqa: ANN401 - a part of a message may be anything
    """Tell whether a part of a message names something that may change behind its name."""
    if not isinstance(part, dict):
        return True
    part = cast("dict[str, Any]", part)
    kind = part.get("type")
    inner = part.get(INSIDE.get(str(kind), ""))
    if kind in WORDS or kind == "tool_result":
        return any(_is_link(each) for each in _rows(inner))
    if kind == "image_url":
        url = inner if isinstance(inner, str) else _members(inner).get("url")
        return not (isinstance(url, str) and url.startswith("data:"))
    said = _members(inner)
    if "file_id" in said:
        return True
    return not (said.get("type") in SENT or "file_data" in said)
