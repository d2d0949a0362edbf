"""What the gateway asks of a connection to a provider; `pool` is our own, tests have another.

::

    reply = await upstream.send(call)      the status and headers are there
    body = await reply.read(limit)         the whole body, or
    while part := await reply.chunk():     its parts as they come; b"" is the end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

__all__ = ["Call", "Origin", "Reply", "Timeouts", "Upstream"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider's server is: from the operator's configuration, never from a caller.

    ``ca`` is a file of certificates to trust instead of the system's; "" for those.
    """

    scheme: str
    host: str
    port: int
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long silence is borne, in seconds; the end of the whole call comes with each call.

    ``connect_s`` until the connection (TLS included) stands, ``first_byte_s`` from the request
    until the head of the answer, ``idle_s`` between two reads of its body.
    """

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0


class Call(msgspec.Struct, eq=False):
    """A request: ``target`` is path and query, ``headers`` whole lines that end in CRLF.

    Host, Content-Length and Connection are the upstream's to write. ``deadline`` is the
    `time.monotonic` by which the last byte must be there.
    """

    target: bytes
    headers: bytes
    body: bytes
    deadline: float
    timeouts: Timeouts
    method: bytes = b"POST"


class Reply(Protocol):
    """The answer to a call, read once: by `read` or by `chunk`.

    Its connection goes back to the pool at the end of the body, and is closed by `abort`.
    """

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """By lower-case name; the last one wins."""
        ...

    async def read(self, limit: int) -> bytes:
        """Return the whole body of at most ``limit`` bytes; raise `UpstreamError`."""
        ...

    async def chunk(self) -> bytes:
        """Return the next bytes of the body, b"" at its proper end; raise `UpstreamError`.

        When it is cancelled the connection stays: read on (the caller is gone, and what its answer
        cost is to be known), or `abort`.
        """
        ...

    def abort(self) -> None:
        """Read no more: close the connection. Harmless after the end, and twice."""
        ...


class Upstream(Protocol):
    """The connections to one origin, kept alive between calls.

    A call whose *kept* connection turns out to be dead is sent once more on a new one, if it is a
    GET, or if it is certain that nothing of it arrived. Every other one raises `UpstreamBroken`: to
    send it again could pay for it twice, and is another attempt. Cancelling `send` or `read` closes
    the call's connection.
    """

    async def send(self, call: Call, /) -> Reply:
        """Send a call and return its answer once the status line and headers are there.

        Raises:
            UpstreamUnreachable, UpstreamTimeout, UpstreamBroken: see there.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
