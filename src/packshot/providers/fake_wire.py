"""The fake provider's connections: HTTP in, one answer at a time out, with every way to go wrong.

There are no tasks: an answer is a list of pieces, and `_step` sends the next ones, now or when a
timer or the kernel's buffer says so. Requests that come before the answer is out wait for it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import httptools

from packshot.providers.fake_script import (
    FINE,
    NEVER,
    Bill,
    End,
    Fault,
    Settings,
    Truth,
    billed_of,
)

__all__ = ["Connection", "Owner", "Play", "Request", "StaticConnection", "chunked"]

PIECES = 8
"""Pieces of an answer that is not streamed, where a fault needs some."""

LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for 0 seconds: the connection ends with a RST."""

FLUSH_S = 0.01
"""After this long, what was written before a RST is on its way."""

LAST_CHUNK = b"0\r\n\r\n"
NO_CHUNK = b"zz\r\n"


@dataclass(slots=True)
class Request:
    """A whole request; header names are lower case."""

    path: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytearray = field(default_factory=bytearray)
    method: str = ""
    keep: bool = True


@dataclass(slots=True)
class Play:
    """What a request is answered with: ``parts`` are as they go over the wire.

    ``tokens`` are those that came out when each part was sent. ``truth`` is None for an answer that
    nobody pays. ``tail`` follows the last part. ``incomplete`` is an answer that ends properly for
    HTTP, but not for its API.
    """

    head: bytes
    parts: list[bytes]
    tail: bytes = b""
    fault: Fault = FINE
    tokens: list[int] = field(default_factory=list[int])
    truth: Truth | None = None
    incomplete: bool = False


class Owner(Protocol):
    """The fake itself, as its connections know it."""

    settings: Settings
    clock: Callable[[], float]
    connections: set[asyncio.Transport]

    def answer(self, request: Request, /) -> Play:
        """Decide what a request is answered with."""
        ...


def chunked(data: bytes) -> bytes:
    """Return data as one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._request = Request()
        self._waiting: deque[Request] = deque()
        self._play: Play | None = None
        self._at = 0
        self._keep = True
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._play is not None and self._timer is None and self._at > 0:
            self._step()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._owner.connections.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._play is not None:
            failed = self._play.fault.status >= 400
            self._end("hung_up", "nothing" if failed else self._owner.settings.hangup)
        self._waiting.clear()

    # ---- httptools

    def on_url(self, url: bytes) -> None:
        """Take the next bytes of the target."""
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Take the next bytes of the body."""
        self._request.body += body

    def on_message_complete(self) -> None:
        """Answer the request, or queue it behind the one that is being answered."""
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        request.keep = self._parser.should_keep_alive()
        self._request = Request()
        if self._play is None:
            self._begin(request)
        else:
            self._waiting.append(request)

    # ---- the answer

    def _begin(self, request: Request) -> None:
        play = self._play = self._owner.answer(request)
        self._at = 0
        self._keep = request.keep
        self._after(play.fault.head_after_s, self._head)

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        """Go on later; at once where there is nothing to wait for, and never after `NEVER`."""
        if seconds <= 0:
            then()
        elif seconds < NEVER:
            self._timer = self._loop.call_later(seconds, self._on_timer, then)

    def _on_timer(self, then: Callable[[], None]) -> None:
        self._timer = None
        then()

    def _head(self) -> None:
        play = self._play
        assert play is not None  # noqa: S101 - for the type checker
        fault = play.fault
        if fault.ending != "whole" and fault.at < 0:
            self._break()
            return
        if play.truth is not None:
            play.truth.status = fault.status
        if fault == FINE:
            # The way of all benchmarks: one write of all that there is.
            self._transport.write(play.head + b"".join(play.parts) + play.tail)
            self._at = len(play.parts)
            self._whole()
            return
        self._transport.write(play.head)
        self._after(fault.first_after_s, self._step)

    def _step(self) -> None:
        """Send the next parts, up to where something happens."""
        play = self._play
        assert play is not None  # noqa: S101 - for the type checker
        fault, parts = play.fault, play.parts
        while not self._paused:
            if fault.ending != "whole" and self._at == min(fault.at, len(parts)):
                self._break()
                return
            if self._at == len(parts):
                self._transport.write(play.tail)
                self._whole()
                return
            self._transport.write(parts[self._at])
            self._at += 1
            # The end of the body comes with its last part: a client that has all may close then.
            if fault.every_s and self._at < len(parts):
                self._after(fault.every_s, self._step)
                return

    def _break(self) -> None:
        """Do what the fault says at this place; `answer` has prepared what is not done here."""
        play = self._play
        assert play is not None  # noqa: S101 - for the type checker
        ending = play.fault.ending
        if ending == "stall":
            return
        if ending == "torn" and self._at < len(play.parts):
            part = play.parts[self._at]
            self._transport.write(part[: len(part) // 2])
        elif ending == "bad_chunk":
            self._transport.write(NO_CHUNK)
        self._end("cut", self._owner.settings.cut if play.fault.at >= 0 else "nothing")
        if ending == "reset":
            self._after(FLUSH_S if self._at else 0, self._reset)
        else:
            self._transport.close()

    def _reset(self) -> None:
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self._transport.abort()

    def _whole(self) -> None:
        play = self._play
        assert play is not None  # noqa: S101 - for the type checker
        if play.fault.status >= 400:
            self._end("refused", "nothing")
        elif play.incomplete:
            self._end("cut", self._owner.settings.cut)
        else:
            self._end("done", "all")
        if not self._keep:
            self._transport.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())

    def _end(self, end: End, usual: Bill) -> None:
        """Close the books of the answer."""
        play, self._play = self._play, None
        if play is None or (truth := play.truth) is None:
            return
        truth.end = end
        truth.until = self._owner.clock()
        truth.events = self._at
        if truth.said is not None:
            tokens = play.tokens[self._at - 1] if self._at else 0
            truth.billed = billed_of(play.fault.billed or usual, truth.said, tokens)


class StaticConnection(asyncio.Protocol):
    """One client's connection in a benchmark: nothing is read but where a request ends.

    ``whole`` is an answer in one piece, ``streamed`` one in as many writes; with a pace, they are
    that many seconds apart.
    """

    def __init__(self, owner: Owner, whole: bytes, streamed: list[bytes]) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._every_s = owner.settings.usual.every_s
        self._whole, self._parts = whole, streamed
        self._stream = False
        self._transport: asyncio.Transport
        # Straight into the parser: a call less for each read.
        self.data_received = httptools.HttpRequestParser(self).feed_data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.connections.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._owner.connections.discard(self._transport)

    def on_body(self, body: bytes) -> None:
        """See whether a stream is wanted."""
        if b'"stream":true' in body or b'"stream": true' in body:
            self._stream = True

    def on_message_complete(self) -> None:
        """Send the answer."""
        if not self._stream:
            self._transport.write(self._whole)
            return
        self._stream = False
        if self._every_s:
            self._next(0)
            return
        for part in self._parts:
            self._transport.write(part)

    def _next(self, at: int) -> None:
        if at < len(self._parts) and not self._transport.is_closing():
            self._transport.write(self._parts[at])
            self._loop.call_later(self._every_s, self._next, at + 1)
