"""One request and its response: uvicorn's cycle, with a response head that is written in one go.

uvicorn looks at each header with two regular expressions and writes head and body apart. Here a
response's head is joined, searched once for what would break out of a line, and leaves together
with the first bytes of its body. Measured over a whole call, that is a tenth of the gateway's CPU.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Cycle"]

BODILESS = frozenset({204, 304})


def nothing() -> None:
    """Do nothing: what a response that is over does when it ends."""


class Cycle(RequestResponseCycle):
    """A request under way; an application that breaks ASGI's rules gets a RuntimeError."""

    access_log = False
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    head = b""
    """The response's head, until the first of its body is there."""
    given = False
    """The whole body was handed on: what is received next is that the client is gone."""

    def __init__(self, protocol: HttpToolsProtocol, scope: Any, *, keep_alive: bool) -> None:  # noqa: ANN401
        # Not uvicorn's own, which sets one by one what stands above.
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.tasks = protocol.tasks
        self.task: asyncio.Task[None] | None = None
        """What runs this; it is among ``tasks`` until it ends."""

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Have the application answer; see that it does.

        A task that is cancelled before its first step does not get here, and stays in ``tasks``.
        Only `Door.close` does that, when nobody looks at them any more.
        """
        wrong = ""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                wrong = "the application ended before its answer did"
                self.logger.error(wrong)
        except BaseException:
            wrong = "the application failed"
            self.logger.exception(wrong)
        finally:
            if wrong and not self.response_started:
                await self.send_500_response()
            elif wrong:
                self.transport.close()
            self.on_response = nothing
            if self.task is not None:
                self.tasks.discard(self.task)

    async def receive(self) -> Any:  # noqa: ANN401 - any of ASGI's messages
        """Return what has come of the body; at once where all is there, as it mostly is."""
        if self.more_body or self.given or self.disconnected or self.response_complete:
            return await super().receive()
        self.given = True
        self.flow.resume_reading()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:  # noqa: ANN401 - any of ASGI's messages
        """Take the next part of the response; wait while the client reads too slowly."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind: str = message["type"]
        if self.response_started and kind == "http.response.body":
            self._body(message.get("body", b""), more=message.get("more_body", False))
        elif not self.response_started and kind == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"the ASGI message {kind!r} has no place here")

    def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        named = [*self.default_headers, *headers]
        given = dict(named)
        length = given.get(b"content-length")
        if length is not None:
            self.expected_content_length = int(length)
            self.chunked_encoding = False
        if b"connection" in given and b"close" in given[b"connection"].lower():
            self.keep_alive = False
        if not self.keep_alive:
            named.append((b"connection", b"close"))
        if self.chunked_encoding is None and not self._has_no_body(status):
            self.chunked_encoding = True
            named.append((b"transfer-encoding", b"chunked"))
        lines = [b": ".join(line) for line in named]
        self.head = head = b"%b%b\r\n\r\n" % (STATUS_LINE[status], b"\r\n".join(lines))
        count = len(lines) + 2
        if head.count(b"\n") != count or head.count(b"\r") != count or b"\0" in head:
            self.head = b""
            self.response_started = False
            raise RuntimeError("a header of the response holds a line's end or a NUL")

    def _has_no_body(self, status: int) -> bool:
        return self.scope["method"] == "HEAD" or status in BODILESS

    def _body(self, body: bytes, *, more: bool) -> None:
        if self.response_complete:
            raise RuntimeError("the response is complete already")
        size = len(body)
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (size, body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= size
        if self.expected_content_length < 0 or (not more and self.expected_content_length):
            raise RuntimeError("the response is not as long as its content-length")
        head, self.head = self.head, b""
        if head or body:
            self.transport.write(head + body if head else body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
