"""One caller's request on its way through the gateway."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.gateway.access import VirtualKey
from packshot.gateway.plan import Route, Target
from packshot.providers.base import Failure, Fields, Surface

if TYPE_CHECKING:
    from packshot.gateway.limiter import Rates

__all__ = [
    "Job",
    "input_bound",
    "is_open_ended",
    "known_of",
    "note_limits",
    "open_fields",
    "whole_number",
]

MOST_DIGITS = 18
"""Of a whole number: more is a joke, and costs time to read."""

PER_ATTACHMENT = 64_000
"""Tokens that one picture or document can cost beside the bytes that name it. The dearest known is
a picture of many tiles for a small model of OpenAI's: 2,833 + 5,667 a tile, at most 8 tiles."""

PER_DOCUMENT = 1_000_000
"""Tokens of a document beside the bytes that name it: a PDF may have hundreds of pages, at up to
3,000 tokens each, in a few bytes or behind a name. No more fits into the largest window."""

WITH_TOOLS = 1_024
"""Tokens that a provider adds of its own where there are tools: Anthropic's instructions have up to
735."""

MAX_CHOICES = 128
MAX_OUTPUT = 1 << 24

MAX_MEMBERS = 200_000
"""Objects, and members of them, in a body, those in quoted JSON included: a million would take
twenty times the body's memory, and half a second. No model's context holds as many."""

MEMBER = re.compile(rb'"\s*:')
FEW = 1 << 20
"""Bytes of a body that cannot have so many."""

FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
MAX_TAGS = 16


class Job(msgspec.Struct, eq=False):
    """What is known of a request, and what came of it so far.

    Times are `time.perf_counter` seconds except ``deadline``, which is `time.monotonic`'s.
    ``model`` is what the caller wrote. ``upstream_s`` is the time spent waiting for providers,
    ``cost`` nano-EUR of all attempts, ``target`` and ``key`` those of the last one.
    """

    id: str
    surface: Surface
    owner: VirtualKey
    route: Route
    fields: Fields
    model: str
    stream: bool
    began: float
    deadline: float
    stage: str
    render: str = ""
    recipe: str = ""
    batch: str = ""
    tags: tuple[str, ...] = ()
    session: bytes = b""
    headers: Mapping[bytes, bytes] | None = None
    """Of the caller's own, what goes on to the provider."""
    output_limit: int | None = None
    """Output tokens that the caller allows for each choice; None where no limit is set."""
    choices: int = 1
    input_bound: int = 0
    """Input tokens that the request cannot exceed."""
    images: int = 0
    """Pictures that are asked for."""
    open_ended: bool = False
    """The provider is to run tools of its own, so that nothing bounds the cost."""
    attempts: int = 0
    retries: int = 0
    fallbacks: int = 0
    upstream_s: float = 0.0
    first_byte_s: float = 0.0
    cost: int = 0
    held: int = 0
    """Nano-EUR that the attempts now under way may cost."""
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0
    """Attempts that were booked without a usage: nobody said what they used."""
    streamed: int = 0
    """Bytes of a stream that went to the caller."""
    rates: Rates | None = None
    """The limits of its virtual key, from when something was taken of them."""
    tokens_taken: int = 0
    taken_at: float = 0.0
    target: Target | None = None
    key: str = ""
    replayed: bool = False
    """The answer is that of an earlier call with the same idempotency key."""
    failure: Failure | None = None
    """Why the last attempt that failed did."""
    cache: bytes = b""
    """The header lines that tell what the response cache did."""
    said_of_cache: bytes | None = None
    """What the caller says of the response cache."""


def open_fields(body: bytes) -> Fields:
    """Return the members of a JSON object, undecoded.

    Raises:
        InvalidRequest: it is no JSON object, or has too many objects or members.
    """
    if len(body) > FEW and (
        body.count(b"{") > MAX_MEMBERS
        or any(True for _ in islice(MEMBER.finditer(body), MAX_MEMBERS, None))
    ):
        raise InvalidRequest(f"the body has more than {MAX_MEMBERS} objects, or members of them")
    try:
        if not body.isascii():
            body.decode()  # what is kept raw is looked at by nobody else
        return FIELDS.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error


def whole_number(fields: Fields, name: str, most: int) -> int | None:
    """Return a field that is a whole number from 1 to ``most``; None where it is absent or null.

    Raises:
        InvalidRequest: it is something else.
    """
    raw = fields.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    if text == b"null":
        return None
    value = int(text) if text.isdigit() and len(text) <= MOST_DIGITS else 0
    if not 1 <= value <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}")
    return value


class _Thinking(msgspec.Struct):
    budget_tokens: int | None = None


THINKING = msgspec.json.Decoder(_Thinking)


def note_limits(job: Job, known: Known | None = None) -> None:
    """Note how much may come out of a chat or a message: where several limits stand there, the
    largest, since which of them holds is the provider's to say.

    Raises:
        InvalidRequest: one of them is no number, or too large.
    """
    if known is not None and job.surface == "chat":
        limit, other = known.max_tokens, known.max_completion_tokens
        job.output_limit = limit if other is None else max(limit or 0, other)
        job.choices = known.n or 1
        return
    fields = job.fields
    limit = whole_number(fields, "max_tokens", MAX_OUTPUT)
    if job.surface == "chat":
        if "max_completion_tokens" in fields:
            other = whole_number(fields, "max_completion_tokens", MAX_OUTPUT)
            limit = max(limit or 0, other or 0) or None
        if "n" in fields:
            job.choices = whole_number(fields, "n", MAX_CHOICES) or 1
    elif bytes(fields.get("thinking", b"null")) != b"null":
        # With interleaved thinking the budget may exceed max_tokens, and is spent beside it.
        try:
            budget = THINKING.decode(fields["thinking"]).budget_tokens or 0
        except msgspec.MsgspecError as error:
            raise InvalidRequest("thinking must be an object, its budget a number") from error
        if not 0 <= budget <= MAX_OUTPUT:
            raise InvalidRequest(f"budget_tokens must be at most {MAX_OUTPUT}")
        if budget and limit is None:
            raise InvalidRequest("thinking with budget_tokens wants max_tokens, too")
        if limit is not None and budget >= limit:
            limit += budget
    job.output_limit = limit


class _Inner(msgspec.Struct):
    type: str = ""


class _Part(msgspec.Struct):
    type: str = ""
    content: str | list[_Inner] | None = None
    """Of Anthropic's tool results, which may hold pictures."""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


MESSAGES = msgspec.json.Decoder(list[_Message])
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTPUT)]


class Known(msgspec.Struct):
    """What is routed on and counted of nearly every body, read in one pass."""

    model: str
    stream: bool | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    messages: list[_Message] | None = None


KNOWN = msgspec.json.Decoder(Known)


def known_of(body: bytes) -> Known | None:
    """Return what is to be known of a body that `open_fields` has opened; None where something of
    it is not as the APIs have it: then each member is looked at by itself.
    """
    try:
        return KNOWN.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None


WORDS = frozenset({"text", "refusal", "thinking", "redacted_thinking", "tool_use", "tool_result"})
"""Parts of a message that cost no more tokens than they have bytes."""

DOCUMENTS = frozenset({"document", "file", "container_upload"})


OPEN_FIELDS = frozenset(
    {
        "web_search_options",  # OpenAI
        "search_parameters",  # xAI
        "plugins",  # OpenRouter: searches, readers of files
        "models",  # OpenRouter: other models, at other prices
        "preset",  # OpenRouter: any of these
        "mcp_servers",  # Anthropic
        "container",  # Anthropic: code
        "data_sources",  # Azure: what is found there counts as input
    }
)
"""Members by which a provider is asked to run something itself."""

OWN_TOOLS = ("function", "custom", "bash_", "text_editor_", "computer_", "memory_")
"""How the types of tools begin that the caller runs; "" is Anthropic's for such a one, too."""

TOOLS = msgspec.json.Decoder(list[_Inner])


def is_open_ended(fields: Fields) -> bool:
    """Tell whether the provider is to run tools of its own: searches that cost beside the tokens,
    and whose results are tokens that the body does not have. Nothing bounds what that comes to.
    """
    if not OPEN_FIELDS.isdisjoint(fields) and any(
        bytes(fields.get(name, b"null")) not in {b"null", b"[]", b"false"} for name in OPEN_FIELDS
    ):
        return True
    tools = fields.get("tools")
    if tools is None or bytes(tools) == b"null":
        return False
    try:
        return not all(
            not each.type or each.type.startswith(OWN_TOOLS) for each in TOOLS.decode(tools)
        )
    except (msgspec.MsgspecError, RecursionError):
        return True  # no shape that we know


def input_bound(fields: Fields, body_bytes: int, known: Known | None = None) -> int:
    """Return an upper bound of a request's input tokens: its bytes, and what it points to.

    A token has a byte at the least; a picture or document may be a short URL.
    """
    messages = fields.get("messages")
    if "tools" in fields or "functions" in fields or "response_format" in fields:
        body_bytes += WITH_TOOLS
    if messages is None:
        return body_bytes
    found = None if known is None else known.messages
    if found is None:
        try:
            found = MESSAGES.decode(messages)
        except (msgspec.MsgspecError, RecursionError):
            # No shape that we know, so each of its objects may be anything.
            return body_bytes + PER_DOCUMENT + PER_ATTACHMENT * bytes(messages).count(b"{")
    for message in found:
        content = message.content
        if isinstance(content, list):
            body_bytes += sum(map(_attached, content))
    return body_bytes


def _attached(part: _Part) -> int:
    inner = part.content if isinstance(part.content, list) else ()
    return sum(
        PER_DOCUMENT if each.type in DOCUMENTS else PER_ATTACHMENT
        for each in (part, *inner)
        if each.type not in WORDS
    )
