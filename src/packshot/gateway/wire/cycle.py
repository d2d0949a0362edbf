"""One request and its response, as an ASGI application sees them, or more directly.

An application gets `Cycle.receive` and `Cycle.send`, which are ASGI's, and in its scope the cycle
itself, under ``packshot.gone``: `take_body` and `reply` are the short way for a body that has come
whole and an answer that is there whole, as nearly all are, in one write and without a coroutine.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from packshot.gateway.wire.lines import lines_of

if TYPE_CHECKING:
    from packshot.gateway.wire.connection import Connection
    from packshot.gateway.wire.head import Head

__all__ = ["STATUS", "UNREAD", "Application", "Cycle", "Gone", "Serve"]

logger = logging.getLogger(__name__)

Send: TypeAlias = Callable[[Any], Any]

UNREAD = 1 << 16
"""Bytes of a body that wait for the application before no more is read."""

BODILESS = frozenset({204, 304})

PHRASES: dict[int, str] = {status.value: status.phrase for status in http.HTTPStatus}
STATUS = {
    status: f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode()
    for status in range(100, 600)
}


class Application(Protocol):
    """An ASGI 3 application."""

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Any:  # noqa: ANN401 - ASGI's
        """Serve one request."""
        ...


Serve: TypeAlias = "Callable[[Cycle], Awaitable[None] | None]"
"""An application's short way: it serves a request, or leaves it to ASGI."""


class Gone:
    """Tells an application that its client has hung up: set ``callback``, and it is called once.

    Set after the fact, it is called at once. It runs in the event loop: it must not block. Where
    ``cancels`` is set, what serves the client is cancelled.
    """

    __slots__ = ("_callback", "cancels", "fired", "task")

    def __init__(self) -> None:
        self.fired = False
        self.cancels = False
        self.task: asyncio.Task[None] | None = None
        """What serves the client: to cancel it, without a search for the current task."""
        self._callback: Callable[[], None] | None = None

    @property
    def callback(self) -> Callable[[], None] | None:
        """What is called when the client is gone."""
        return self._callback

    @callback.setter
    def callback(self, value: Callable[[], None] | None) -> None:
        self._callback = value
        if self.fired and value is not None:
            value()

    def fire(self) -> None:
        """Tell it, the first time only."""
        if not self.fired:
            self.fired = True
            if self._callback is not None:
                self._callback()
            if self.cancels and self.task is not None:
                self.task.cancel()


class Cycle(Gone):
    """A request under way; an application that breaks ASGI's rules gets a RuntimeError."""

    __slots__ = (
        "_chunked", "_given", "_head", "_left", "began", "bodiless", "complete", "disconnected",
        "head", "headers", "keep_alive", "lines", "link", "method", "more_body", "parts", "size",
        "started", "target", "version", "waiter", "wants",
    )  # fmt: skip

    def __init__(
        self,
        link: Connection,
        headers: Mapping[bytes, bytes],
        method: bytes,
        target: bytes,
        began: float,
    ) -> None:
        # `Gone.__init__` is written out: this is made for every request.
        self.fired = self.cancels = False
        self.task = self._callback = None
        self.link = link
        self.headers = headers
        """Of the request, by lower-case name; the last one wins."""
        self.head: Head | None = None
        """The head, where it is that of a request before."""
        self.lines: list[tuple[bytes, bytes]] | None = None
        """All headers, where a name came more than once."""
        self.method = method
        self.target = target
        self.version = "1.1"
        self.began = began
        """`time.perf_counter` at the first byte of the request."""
        self.bodiless = method == b"HEAD"
        """Its answer has no body, whatever its headers say."""
        self.keep_alive = True
        self.wants = False
        """The client waits to be told to send its body."""
        self.more_body = True
        self.started = False
        """The response has begun …"""
        self.complete = False
        """… and has ended."""
        self.disconnected = False
        self.parts: list[bytes] = []
        """What has come of the body and waits for the application; ``size`` bytes."""
        self.size = 0
        self._given = False
        """The whole body was handed on: what is received next is that the client is gone."""
        self._head = b""
        """The response's head, until the first of its body is there."""
        self._chunked = False
        self._left = 0
        """Bytes of the response's body that its content-length still promises."""
        self.waiter: asyncio.Future[None] | None = None
        """The application, where it waits for the rest of the body."""

    def path(self) -> str:
        """Return the path that is asked for."""
        door = self.link.door
        return (door.targets.get(self.target) or door.split(self.target))[0]

    def scope(self) -> dict[str, Any]:
        """Return what ASGI says of a request."""
        door = self.link.door
        path, raw_path, query = door.targets.get(self.target) or door.split(self.target)
        return self.link.base | {
            "http_version": self.version,
            "method": self.method.decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": [*self.headers.items()] if self.lines is None else self.lines,
            "state": {},
            "packshot.began": self.began,
            "packshot.gone": self,
        }

    async def run(self, application: Application) -> None:
        """Have the application answer; see that it does. One that has a method ``serve`` is handed
        the cycle itself, and gets what ASGI says only where that returns nothing to wait for.

        A task that is cancelled before its first step does not get here, and stays among the
        door's. Only `Door.close` does that, when nobody looks at them any more.
        """
        wrong = ""
        try:
            serve = self.link.door.serve
            served = None if serve is None else serve(self)
            await (served or application(self.scope(), self.receive, self.send))
            if not self.complete and not self.disconnected:
                wrong = "the application ended before its answer did"
                logger.error(wrong)
        except BaseException:
            wrong = "the application failed"
            logger.exception(wrong)
        finally:
            if wrong:
                self._apologize()
            if self.task is not None:
                self.link.door.tasks.discard(self.task)

    def _apologize(self) -> None:
        if self.started or self.disconnected:
            self.link.door.outbox.close(self.link.transport)
            return
        self.keep_alive = False
        self.reply(500, b"content-type: text/plain; charset=utf-8\r\n", b"Internal Server Error")

    # ---------------------------------------------------------------- the request

    def wake(self) -> None:
        """Let whoever waits in `receive` look at what there is now."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take_body(self) -> bytes | None:
        """Return the body where it has come whole; None where it has not, or was taken."""
        if self.more_body or self._given or self.disconnected:
            return None
        self._given = True
        parts, self.parts = self.parts, []
        if self.link.read_paused:
            self.link.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def receive(self) -> dict[str, Any]:
        """Return what has come of the body; at once where all is there, as it mostly is."""
        body = self.take_body()
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        if self.wants and not self.link.transport.is_closing():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wants = False
        while not (self.disconnected or self.complete):
            if not self._given and (self.size or not self.more_body):
                self._given = not self.more_body
                body, self.parts, self.size = b"".join(self.parts), [], 0
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            self.link.resume()
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        return {"type": "http.disconnect"}

    # ---------------------------------------------------------------- the response

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer, soon and in one write; ``lines`` are headers, each ended by CRLF.

        It does not wait for a slow reader: until it has read, its next request is not begun.

        Raises:
            RuntimeError: an answer was begun.
        """
        if self.started:
            raise RuntimeError("the response was begun already")
        if self.disconnected:
            return
        self.started = True
        link = self.link
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        door, size = link.door, b"content-length: %d\r\n\r\n" % len(body)
        parts = (STATUS[status], door.date, lines, size, b"" if self.bodiless else body)
        door.outbox.write(link.transport, b"".join(parts))
        self._end()

    async def send(self, message: dict[str, Any]) -> None:
        """Take the next part of the response; wait while the client reads too slowly."""
        if self.link.write_paused and not self.disconnected:
            await self.link.drained()
        if self.disconnected:
            return
        kind: str = message["type"]
        if self.started and kind == "http.response.body":
            self._body(message.get("body", b""), more=message.get("more_body", False))
        elif not self.started and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"the ASGI message {kind!r} has no place here")

    def write(self, body: bytes) -> None:
        """Send a piece of a response that `send` has begun, while the connection is not
        ``write_paused``.
        """
        if not self.disconnected:
            self._body(body, more=True)

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        given = dict(headers)
        lines = lines_of(headers)
        length = given.get(b"content-length")
        if b"close" in given.get(b"connection", b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            lines += b"connection: close\r\n"
        if length is not None:
            self._left = int(length)
        elif not self.bodiless and status not in BODILESS:
            self._chunked = True
            lines += b"transfer-encoding: chunked\r\n"
        self.started = True
        self.wants = False
        self._head = b"%b%b%b\r\n" % (STATUS[status], self.link.door.date, lines)

    def _body(self, body: bytes, *, more: bool) -> None:
        if self.complete:
            raise RuntimeError("the response is complete already")
        if self.bodiless:
            self._left, body = 0, b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self._left -= len(body)
            if self._left < 0 or (not more and self._left):
                raise RuntimeError("the response is not as long as its content-length")
        head, self._head = self._head, b""
        if head or body:
            self._write(head + body if head else body)
        if not more:
            self._end()

    def _write(self, data: bytes) -> None:
        self.link.door.outbox.write(self.link.transport, data)

    def _end(self) -> None:
        self.complete = True
        if self.waiter is not None:
            self.wake()
        if not self.keep_alive:
            self.link.door.outbox.close(self.link.transport)
        self.link.answered()

    def hang_up(self) -> None:
        """Hear that the client is gone, or is sent away."""
        if not self.complete:
            self.disconnected = True
            self.wake()
