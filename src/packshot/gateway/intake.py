"""From an ASGI request to a `Job`: the body with its limits, the fields, what the headers add.

Headers that a caller may send, all optional::

    x-packshot-route, x-packshot-target    instead of what the body's model says
    x-packshot-timeout-ms                  the whole call's deadline, at most the configured one
    x-packshot-tags                        "season=spring,shop=12", dimensions of the cost
    x-packshot-session                     calls of one session keep to one key (prompt caches)
    x-packshot-render, -recipe, -batch, -stage     what the call is booked on
    x-packshot-cache                       what `packshot.gateway.cache.control` reads

`packshot.gateway.metadata` has another place for them; where both stand, the header holds.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import msgspec

from packshot.core.errors import BodyTooLarge, InvalidRequest, Saturated, unknown_name
from packshot.core.ids import new_id
from packshot.core.types import STAGES
from packshot.gateway.access import VirtualKey
from packshot.gateway.job import (
    MAX_CHOICES,
    Job,
    input_bound,
    is_open_ended,
    known_of,
    note_limits,
    open_fields,
    whole_number,
)
from packshot.gateway.metadata import HEADERS, said_in
from packshot.gateway.plan import Plan
from packshot.ledger.names import GATEWAY_STAGES
from packshot.providers.base import Fields, Surface

__all__ = [
    "DOORS",
    "Door",
    "Gone",
    "Receive",
    "Room",
    "Scope",
    "Share",
    "annotate",
    "make_job",
    "read_body",
    "text_of",
    "time_limit_s",
    "too_large",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]

MAX_TAGS = 16
MAX_NAME = 100
"""Characters of a tag, and of each name that a header gives."""

BOOKED_ON = tuple(
    (b"x-packshot-" + name.encode(), name) for name in ("render", "recipe", "batch", "stage")
)

OURS = frozenset(HEADERS.values())
"""The headers of a request that are for us; most have none of them."""

TEXT = msgspec.json.Decoder(str)
STAGES_OF_CALLS = frozenset({*STAGES, *GATEWAY_STAGES})
"""Not the ledger's "load" and "idle": what is booked on these is under no cap."""

ANTHROPIC_HEADERS = (b"anthropic-version", b"anthropic-beta")
"""What Anthropic's SDK says of the API's version goes on to Anthropic."""

SPOKEN = frozenset({"chat", "messages"})
"""What may be streamed, and has a limit of output tokens."""

PLAIN = re.compile(rb"[ -~]{1,500}")


class Gone(Exception):
    """The caller hung up before its request was complete."""


@dataclass(frozen=True, slots=True)
class Door:
    """A path that calls come in by: what is asked for, of whom if the model does not say, and the
    stage that it is booked on.
    """

    surface: Surface
    stage: str
    prefix: str = ""


DOORS: dict[str, Door] = {
    "/v1/chat/completions": Door("chat", "chat"),
    "/v1/embeddings": Door("embeddings", "embeddings"),
    "/v1/images/generations": Door("images", "images"),
    "/v1/messages": Door("messages", "chat"),
    "/v1/messages/count_tokens": Door("count_tokens", "chat"),
    "/openai/v1/chat/completions": Door("chat", "chat", "openai"),
    "/openai/v1/embeddings": Door("embeddings", "embeddings", "openai"),
    "/anthropic/v1/messages": Door("messages", "chat", "anthropic"),
    "/anthropic/v1/messages/count_tokens": Door("count_tokens", "chat", "anthropic"),
}


class Room:
    """Bytes that the bodies of all requests in flight may have together, in one worker.

    A body that is there at once, in one segment of the network, is not counted: as many of these as
    there may be calls have room. In memory a body is there up to three times: as it came, as it is
    sent on, and what of it waits to be written.
    """

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most


class Share:
    """What one request has taken of a `Room`."""

    __slots__ = ("_room", "_size")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size = 0

    def reach(self, size: int) -> None:
        """Have room for ``size`` bytes in all.

        Raises:
            Saturated: the other requests leave too little.
        """
        more = size - self._size
        if more <= 0:
            return
        if more > self._room.left:
            raise Saturated("as many bytes of requests are in memory as there may be", 1.0)
        self._room.left -= more
        self._size = size

    def give_back(self) -> None:
        """Take no more room."""
        self._room.left += self._size
        self._size = 0


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], limit: int, share: Share
) -> bytes:
    """Return the request's body.

    Raises:
        BodyTooLarge: it has, or announces, more than ``limit`` bytes.
        Saturated: there is no room for it beside those of other requests.
        Gone: the caller hung up in the middle.
    """
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or int(announced) > limit:
        raise too_large(limit)
    share.reach(int(announced))
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise Gone
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
        share.reach(size)
    return b"".join(parts)


def too_large(limit: int) -> BodyTooLarge:
    """Return the error for a body of more than ``limit`` bytes."""
    return BodyTooLarge(f"the body is longer than {limit} bytes")


def make_job(
    door: Door,
    plan: Plan,
    owner: VirtualKey,
    headers: Mapping[bytes, bytes],
    body: bytes,
    began: float,
) -> Job:
    """Return the job of a request: what is routed on is read here, once.

    Raises:
        InvalidRequest: the body or a header is not what it must be.
        Forbidden: the virtual key may not use this route or model.
    """
    fields, surface = open_fields(body), door.surface
    known = known_of(body)
    model = text_of(fields, "model") if known is None else known.model
    if "metadata" in fields:
        headers = {**said_in(fields), **headers}
    told = not OURS.isdisjoint(headers)
    if "models" in fields:
        raise InvalidRequest(
            "models is not passed on, since the key may not be for them: name one model, or a "
            "route with fallbacks"
        )
    wanted = None
    if told:
        wanted = headers.get(b"x-packshot-target") or headers.get(b"x-packshot-route")
    name = wanted.decode("latin-1") if wanted else model
    if wanted and not plan.knows(name):
        raise unknown_name("route or target", name[:200], filter(owner.may_see, plan.names()))
    route = plan.route(name, surface, "" if wanted else door.prefix, owner.may_see)
    first = route.targets[0]
    owner.permit(route.id, ((first.provider.name, first.model),))
    limit_s = first.provider.entry.network.timeouts.total_s
    speaks = surface in SPOKEN
    job = Job(
        new_id(),
        surface,
        owner,
        route,
        fields,
        model,
        speaks and (_streams(fields) if known is None else known.stream is True),
        began,
        monotonic() + (time_limit_s(headers, limit_s) if told else limit_s),
        door.stage,
        input_bound=input_bound(fields, len(body), known),
        open_ended=is_open_ended(fields),
    )
    if speaks:
        note_limits(job, known)
    elif surface == "images":
        # A picture in the body is no text: what is bounded by bytes is the prompt.
        job.images = whole_number(fields, "n", MAX_CHOICES) or 1
        job.input_bound = len(fields.get("prompt", b""))
    if told or surface in {"messages", "count_tokens"}:
        annotate(job, headers)
    return job


def _streams(fields: Fields) -> bool:
    return bytes(fields.get("stream", b"")) == b"true"


def annotate(job: Job, headers: Mapping[bytes, bytes]) -> None:
    """Add what the headers say of whose call this is."""
    tags = headers.get(b"x-packshot-tags")
    if tags:
        job.tags = _tags(tags)
    session = headers.get(b"x-packshot-session")
    if session:
        job.session = session[:256]
    job.said_of_cache = headers.get(b"x-packshot-cache")
    if job.surface in {"messages", "count_tokens"}:
        given = {name: headers[name] for name in ANTHROPIC_HEADERS if name in headers}
        # llhttp lets no line break through; what is not plain text has no business there either.
        job.headers = {name: value for name, value in given.items() if PLAIN.fullmatch(value)}
    for header, name in BOOKED_ON:
        value = headers.get(header)
        if value:
            setattr(job, name, _name(value, header.decode()))
    if job.stage not in STAGES_OF_CALLS:
        raise unknown_name("x-packshot-stage", job.stage, STAGES_OF_CALLS)


def time_limit_s(headers: Mapping[bytes, bytes], most: float) -> float:
    """Return how long the call may take: what the caller says, at most what is configured."""
    asked = headers.get(b"x-packshot-timeout-ms")
    if asked is None:
        return most
    if not asked.isdigit() or not 1 <= int(asked) <= 86_400_000:
        raise InvalidRequest("x-packshot-timeout-ms is a whole number of milliseconds, 1 or more")
    return min(most, int(asked) / 1000.0)


def text_of(fields: Fields, name: str) -> str:
    """Return a field that is text; raise `InvalidRequest` where it is absent, or something else."""
    raw = fields.get(name)
    if raw is None:
        raise InvalidRequest(f"{name} must be given")
    try:
        return TEXT.decode(raw)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{name} must be text") from error


def _tags(value: bytes) -> tuple[str, ...]:
    tags = [_name(part.strip(), "x-packshot-tags") for part in value.split(b",") if part.strip()]
    if len(tags) > MAX_TAGS or any("=" not in tag for tag in tags):
        raise InvalidRequest(f"x-packshot-tags is at most {MAX_TAGS} of name=value, with commas")
    if any(tag.startswith("key=") for tag in tags):
        raise InvalidRequest("x-packshot-tags: the tag key is the gateway's own; take another name")
    return tuple(tags)


def _name(value: bytes, header: str) -> str:
    text = value.decode("latin-1")
    if len(text) > MAX_NAME or not (text.isascii() and text.isprintable()):
        raise InvalidRequest(f"{header} is at most {MAX_NAME} printable ASCII characters")
    return text
