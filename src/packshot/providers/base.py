"""What the gateway knows of an upstream API, whichever it is.

An `Exchange` is one pair of what the caller speaks and what the target speaks: it writes the
target's request from the caller's, and the caller's answer from the target's. Where the two are the
same, bytes pass unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import msgspec

from packshot.core.sse import Event
from packshot.core.types import Usage

__all__ = [
    "SURFACES",
    "Api",
    "Event",
    "Exchange",
    "Failure",
    "FailureKind",
    "Fields",
    "Relay",
    "Surface",
]

Api: TypeAlias = Literal["openai", "anthropic", "stability"]
"""The wire format that a provider speaks."""

Surface: TypeAlias = Literal["chat", "embeddings", "images", "messages", "count_tokens"]
"""What a caller asks for; the last two are Anthropic's, the others OpenAI's."""

SURFACES: tuple[Surface, ...] = get_args(Surface)

Fields: TypeAlias = dict[str, msgspec.Raw]
"""A request's JSON object, its values undecoded: what is not routed on stays raw bytes."""

FailureKind: TypeAlias = Literal[
    "rate_limit",  # 429: this key, for a while
    "quota",  # the account is out of money: this key, until a person acts
    "auth",  # the key is refused
    "context",  # the prompt is too long for this model
    "refusal",  # a content filter said no
    "bad_request",  # the caller's mistake; no other target would do better
    "not_found",  # no such model there
    "overloaded",  # 503, 529
    "server",  # 5xx
    "timeout",
    "network",
    "garbage",  # what came was not what the API promises
]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, in one vocabulary for all providers.

    ``status`` is the upstream's, 0 without an answer. ``retry_after_s`` is the delay it asked for,
    in whatever form. ``message`` is for the caller: without URLs, keys or other headers.
    """

    kind: FailureKind
    status: int
    message: str
    code: str = ""
    param: str = ""
    retry_after_s: float | None = None


class Relay(Protocol):
    """A stream on its way from the target to the caller; one per answer."""

    usage: Usage | None
    """What the provider said so far that it used; final once `done` is true."""

    done: bool
    """The stream came to its proper end (``[DONE]``, ``message_stop``)."""

    failure: Failure | None
    """An error event came inside the stream, or one that is not of its API (kind "garbage").

    From then on `feed` returns nothing, the error included: before the first byte another target
    can take over, after it `failures.error_event` says it in the caller's own shape.
    """

    def feed(self, data: bytes, /) -> bytes:
        """Take bytes as they come, and return what goes to the caller: whole events, maybe none.

        Raises:
            UpstreamBroken: a line is longer than the limit, or an event is not what the API says.
        """
        ...


class Exchange(Protocol):
    """How one surface is served by one API."""

    surface: Surface
    api: Api
    path: str
    """Behind the provider's base URL ("/chat/completions")."""

    def request(self, fields: Fields, model: str, output_limit: int | None, /) -> bytes:
        """Return the body for the target: ``fields`` with the target's model name.

        ``output_limit`` is put in where the caller named none, and always where the API needs one.

        Raises:
            Inexpressible: the target's API cannot express a field, which is named.
            InvalidRequest: a field is not as the caller's API has it.
        """
        ...

    def reply(self, body: bytes, model: str, /) -> tuple[bytes, Usage | None]:
        """Return the caller's body and what was used, of a 200; ``model`` as the caller named it.

        Usage is None where none was sent, or none that can be right: the bound is booked.

        Raises:
            UpstreamBroken: it is not what the API promises; `failure` then says whether it holds
                an error, as a 200 of OpenRouter's may.
        """
        ...

    def relay(self, fields: Fields, model: str, /) -> Relay:
        """Return a relay for a streamed answer to the request ``fields``."""
        ...

    def needs(self, fields: Fields, /) -> Sequence[str]:
        """Return what the request needs of a target: "tools", "vision", "json", "prefill"."""
        ...
