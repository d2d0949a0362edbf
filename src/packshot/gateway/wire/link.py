"""One connection to a provider, and the answers that come over it.

HTTP is read by llhttp (httptools) and by nothing else. A `Link` lives in the pool that made it; an
`Answer` belongs to one call. Everything between the two happens in callbacks of the event loop: a
call suspends once where its answer comes in one piece, and no call has a task or a timer.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import httptools

from packshot.core.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from packshot.gateway.wire.narrow import Narrow
from packshot.gateway.wire.outbox import Outbox
from packshot.gateway.wire.upstream import Call

__all__ = ["SAFE", "Answer", "Link", "LinkLimits", "StaleLink"]

HEAD, ANY, ALL = 0, 1, 2
"""What a waiting call waits for: the head, some of the body, or the end of it."""

SAFE = frozenset({b"GET", b"HEAD"})
"""What may be asked twice (RFC 9110 §9.2.1); any other request may cost money twice."""

LONGEST_JOIN = 1 << 16
"""Bytes of a body that is copied behind its head to go out as one segment."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """What an answer may look like.

    ``head`` bytes of status line and headers, interim answers (1xx) included; ``headers`` of
    different names;
    ``unread`` bytes of a body that may wait for a slow reader before the connection is no longer
    read. A segment comes on top: of at most 256 KiB the first time, of 32 KiB from then on.
    """

    head: int = 1 << 16
    headers: int = 200
    unread: int = 1 << 15


MOST = 1 << 15
"""Bytes of one chunk: what waits to be written to a slow reader is copied in pieces of this."""


EMPTY_LINE = b"\r\n\r\n"


class StaleLink(Exception):
    """A kept connection was dead before the request arrived: the call may be sent again."""


def request_bytes(call: Call, host_tail: bytes) -> tuple[bytes, ...]:
    """Return what goes over the wire for a call, in pieces.

    ``host_tail`` is the end of the request line and the Host header, as the pool made it.

    Raises:
        ValueError: the target or the headers would break out of their place; a bug of ours.
    """
    target, headers, body = call.target, call.headers, call.body
    if target not in _sound:
        _check_target(target)
    if headers and (headers[-2:] != b"\r\n" or headers[0] == 13 or headers.find(EMPTY_LINE) >= 0):
        raise ValueError("headers are whole lines, each ended by one CRLF")
    if not body and call.method in {b"GET", b"HEAD", b"DELETE"}:
        return (call.method, b" ", target, host_tail, headers, b"\r\n")
    length = b"content-length: %d\r\n\r\n" % len(body)
    return (call.method, b" ", target, host_tail, headers, length, body)


_sound: set[bytes] = set()
"""Targets that were looked at: a provider has few, and looking takes half a microsecond."""


def _check_target(target: bytes) -> None:
    if not target.startswith(b"/") or any(byte <= 32 or byte == 127 for byte in target):
        raise ValueError(f"a target is a path without spaces or control characters: {target!r}")
    if len(_sound) < 1024:
        _sound.add(target)


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return how many bytes the system has taken that the peer's has not acknowledged; 0 where it
    does not say.
    """
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    try:
        taken = transport.get_extra_info("socket").fileno()
        (count,) = struct.unpack("i", fcntl.ioctl(taken, termios.TIOCOUTQ, bytes(4)))
    except (OSError, AttributeError):  # it is closed
        return 0
    return int(count)


class Answer:
    """The answer to one call: `Reply` of the contract, filled by its link."""

    __slots__ = (
        "began",
        "call",
        "cap",
        "complete",
        "error",
        "headers",
        "link",
        "parts",
        "sent_at",
        "size",
        "stale",
        "started",
        "status",
        "waiter",
        "want",
    )

    def __init__(
        self, call: Call, link: Link, sent_at: float, waiter: asyncio.Future[None]
    ) -> None:
        self.call = call
        self.sent_at = sent_at
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.size = 0
        self.began = False
        """A byte has come."""
        self.started = False
        """Status and headers are there."""
        self.complete = False
        """The body is there, as its framing says."""
        self.error: UpstreamError | None = None
        self.stale = False
        """The connection had been kept, and was dead: the call never arrived, it may go again."""
        self.want = HEAD
        self.cap = 0
        self.waiter: asyncio.Future[None] | None = waiter
        self.link: Link | None = link
        """Its connection, until it has ended or never will."""

    async def read(self, limit: int) -> bytes:
        """Return the whole body; see `Reply.read`."""
        self.want, self.cap = ALL, limit
        while not self.complete and self.error is None and self.size <= limit:
            if int(self.headers.get(b"content-length", b"0")) > limit:
                break
            await self._wait()
        if self.error is not None:
            raise self.error
        if self.size > limit or not self.complete:
            self.abort()
            raise UpstreamBroken(
                f"the answer is longer than the {limit} bytes that are allowed for it",
                sent=True,
                began=True,
            )
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.parts, self.size = [], 0
        return body

    async def chunk(self) -> bytes:
        """Return what has come of the body since the last chunk; see `Reply.chunk`."""
        self.want = ANY
        while not self.parts and not self.complete and self.error is None:
            link = self.link
            if link is None:  # only if somebody reads on after `abort`
                break
            self.waiter = link.loop.create_future()
            link.resume()
            await self.waiter  # a cancelled sleeper leaves the connection to be read on
        parts = self.parts
        if not parts:
            if self.error is not None:
                raise self.error
            return b""
        if self.size > MOST:
            return self._piece()
        self.parts, self.size = [], 0
        if self.link is not None:
            self.link.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self) -> bytes:
        """Take the first of more than a chunk may have; what stays is read before more is."""
        parts = self.parts
        size = count = 0
        for part in parts:
            if size + len(part) > MOST:
                break
            size += len(part)
            count += 1
        if count:
            piece = b"".join(parts[:count])
            del parts[:count]
        else:
            piece, parts[0] = parts[0][:MOST], parts[0][MOST:]
        self.size -= len(piece)
        if self.link is not None and self.size <= self.link.limits.unread:
            self.link.resume()
        return piece

    def abort(self) -> None:
        """Close the connection, unless the body has ended; see `Reply.abort`."""
        link, self.link = self.link, None
        if link is not None:
            if self.error is None:
                self.error = UpstreamBroken(
                    "the call was broken off on our side", sent=True, began=self.began
                )
            link.drop()

    async def _wait(self) -> None:
        """Sleep until the link has something; a cancelled sleeper takes the connection with it."""
        link = self.link
        if link is None:  # only if somebody reads on after `abort`
            return
        self.waiter = link.loop.create_future()
        link.resume()
        try:
            await self.waiter
        except asyncio.CancelledError:
            self.waiter = None
            self.abort()
            raise

    def wake(self) -> None:
        """Let the sleeper look at what there is now."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: UpstreamError) -> None:
        """End with an error, raised where the body's end would have been."""
        self.link = None
        if self.error is None and not self.complete:
            self.error = error
        self.wake()

    def fail_stale(self) -> None:
        """End before it began: the pool sends the call again."""
        self.link = None
        self.stale = True
        self.wake()


class Link(asyncio.Protocol):
    """A connection: at rest in its pool, or busy with one call.

    ``rest`` is called when an answer has ended and the connection can take another call, ``lost``
    when the connection is gone, unless a call found it stale: that call keeps its place.
    """

    __slots__ = (
        "_ends_by_close",
        "_feed",
        "_fresh",
        "_given",
        "_keep",
        "_narrow",
        "_paused",
        "_problem",
        "_room",
        "_seen",
        "answer",
        "idle_since",
        "kept",
        "limits",
        "loop",
        "lost",
        "on_header",
        "outbox",
        "parser",
        "peer",
        "rest",
        "transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peer: str,
        limits: LinkLimits,
        rest: Callable[[Link], None],
        lost: Callable[[Link], None],
        outbox: Outbox | None = None,
    ) -> None:
        self.loop = loop
        self.peer = peer
        self.limits = limits
        self.rest = rest
        self.lost = lost
        self.outbox = outbox or Outbox()
        self.transport: asyncio.Transport | None = None
        self._given: dict[bytes, bytes] = {}
        """Headers and trailers, as they came; the last of a name wins."""
        self.on_header = self._given.__setitem__
        self.parser = httptools.HttpResponseParser(self)
        self.answer: Answer | None = None
        self.kept = False
        """It has answered before."""
        self.idle_since = 0.0
        self._feed = self.parser.feed_data
        self._keep = False
        self._ends_by_close = False
        self._fresh = True
        self._seen = 0.0
        self._paused = False
        self._narrow = False
        self._room = 0
        self._problem = ""

    # ---------------------------------------------------------------- what the pool and answers do

    def send(self, call: Call, host_tail: bytes, now: float) -> tuple[Answer, asyncio.Future[None]]:
        """Write a call; return its answer and a future that ends when the head is there.

        ``now`` is by `time.monotonic`; for ``host_tail`` and errors see `request_bytes`.
        """
        pieces = request_bytes(call, host_tail)
        waiter = self.loop.create_future()
        answer = self.answer = Answer(call, self, now, waiter)
        self._room = self.limits.head
        self._given.clear()
        self._fresh = True
        transport: Any = self.transport
        if len(call.body) > LONGEST_JOIN:
            transport.writelines(pieces)
        else:
            self.outbox.write(transport, b"".join(pieces))
        return answer, waiter

    def usable(self) -> bool:
        """Tell whether the connection stands, as far as is known here."""
        return self.transport is not None and not self.transport.is_closing()

    def drop(self) -> None:
        """Close at once, and let the answer be."""
        self.answer = None
        if self.transport is not None:
            self.transport.abort()

    def fail(self, error: UpstreamError) -> None:
        """Close at once, and end the answer with an error."""
        answer = self.answer
        self.drop()
        if answer is not None:
            answer.fail(error)

    def resume(self) -> None:
        """Read on, where a slow reader had stopped it."""
        if self._paused and self.transport is not None:
            self._paused = False
            self._fresh = True
            self.transport.resume_reading()

    def check(self, now: float) -> None:
        """Fail the call if it has waited too long; the pool asks this of each, often."""
        answer = self.answer
        if answer is None:
            return
        times = answer.call.timeouts
        if now >= answer.call.deadline:
            silence = "the call's deadline passed before the end of the answer"
        elif not answer.started:
            if now < answer.sent_at + times.first_byte_s:
                return
            silence = f"no answer within {times.first_byte_s:g} s"
        elif self._fresh or self._paused or (answer.parts and answer.want != ALL):
            # Only the provider's silence counts: not the time that our own reader takes.
            self._fresh, self._seen = False, now
            return
        elif now < self._seen + times.idle_s:
            return
        else:
            silence = f"the answer stood still for {times.idle_s:g} s"
        self.fail(UpstreamTimeout(f"{self.peer}: {silence}", sent=True, began=answer.began))

    # ---------------------------------------------------------------- what the event loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes | memoryview) -> None:
        """Read a segment, and wake the call if there is what it waits for."""
        answer = self.answer
        if answer is None:
            # Bytes that nobody asked for: what comes next could be taken for another call's answer.
            self.drop()
            return
        answer.began = self._fresh = True
        headless, size = not answer.started, answer.size
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not answer.complete:
                reason = self._problem or str(error) or "it wants to change the protocol"
                self._fail_garbage(reason)
                return
            self._keep = False  # the answer was whole; what follows it is not HTTP
        if headless:
            if not self._head_fits(answer, len(data)):
                answer.started = answer.complete = False
                self._fail_garbage(f"its head is longer than {self.limits.head} bytes")
                return
        elif answer.size != size:
            self._room = self.limits.head
        elif (room := self._room - len(data)) >= 0:
            self._room = room
        else:
            # Trailers without end, or something else that is framing and never data.
            self._fail_garbage(f"more than {self.limits.head} bytes without any of the body")
            return
        if answer.complete:
            self._finish(answer)
        elif answer.started:
            self._deliver(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer as it deserves, and tell the pool."""
        answer, self.answer = self.answer, None
        if answer is None:
            self.lost(self)
        elif self.kept and not answer.began and self._never_arrived(answer.call):
            answer.fail_stale()
        else:
            if answer.started and self._ends_by_close and exc is None:
                answer.complete = True
                answer.link = None
                answer.wake()
            else:
                where = "in the middle of its answer" if answer.began else "without an answer"
                text = f"{self.peer} closed the connection {where}"
                if exc is not None and exc.args:
                    text += f" ({exc.args[-1]})"
                answer.fail(UpstreamBroken(text, sent=True, began=answer.began))
            self.lost(self)
        self.outbox.waiting.pop(cast("asyncio.Transport", self.transport), None)
        self.transport = None

    def _never_arrived(self, call: Call) -> bool:
        """Tell whether a call may be sent again: it is safe, or the peer had closed before it came.

        A system acknowledges what it receives, and a FIN acknowledges all that came before it. So
        where none of a request was, nobody has read it (RFC 9110 §9.2.2). As little as is missing
        from the sum here is never a whole head, nor, with TLS, a whole record. Where the system
        does not tell, as it does on Linux (tcp(7), SIOCOUTQ), the call is not sent again from here:
        the caller of the pool makes another attempt of it, with a hold of its own.
        """
        if call.method in SAFE:
            return True
        transport = cast("asyncio.Transport", self.transport)
        if transport in self.outbox.waiting:
            return True
        pending = transport.get_write_buffer_size() + unacknowledged(transport)
        return pending >= len(call.target) + len(call.headers) + len(call.body)

    def _deliver(self, answer: Answer) -> None:
        """Wake the call if there is what it waits for, and stop reading if it is too slow."""
        if answer.want == ALL:
            if answer.size > answer.cap:
                answer.wake()
            return
        if answer.size > self.limits.unread and not self._paused:
            self._paused = True
            transport = cast("asyncio.Transport", self.transport)
            transport.pause_reading()
            if not self._narrow:
                self._narrow = True
                transport.set_protocol(Narrow(self))
        if answer.want == HEAD or answer.parts:
            answer.wake()

    def _head_fits(self, answer: Answer, size: int) -> bool:
        """Count the bytes of the head, exactly only where a segment brought much."""
        if size <= self._room:
            self._room -= size
            return True
        if not answer.started:
            return False
        head = sum(len(name) + len(value) + 4 for name, value in answer.headers.items())
        return head <= self.limits.head

    def _fail_garbage(self, reason: str) -> None:
        text = f"{self.peer} did not answer in HTTP/1.1 as expected: {reason}"
        self.fail(UpstreamBroken(text, sent=True, began=True))

    def _finish(self, answer: Answer) -> None:
        """Part with an answer that has ended: back to the pool, or close."""
        self.answer = answer.link = None
        transport: Any = self.transport
        # An answer before the end of the request: what is still to be sent would spoil the next.
        unsent = transport.get_write_buffer_size() or transport in self.outbox.waiting
        if self._keep and not transport.is_closing() and not unsent:
            if self._paused:
                self._paused = False
                transport.resume_reading()
            self.kept = True
            self.rest(self)
        else:
            transport.abort()
        answer.wake()

    # ---------------------------------------------------------------- what llhttp does

    def on_message_begin(self) -> None:
        """Refuse a second answer to one call."""
        if self.answer is None or self.answer.complete:
            raise ValueError("an answer too many")

    def on_headers_complete(self) -> None:
        """Hand the head over, unless it is an interim one."""
        status = self.parser.get_status_code()
        if len(self._given) > self.limits.headers:
            self._refuse_headers()
        if status < 200:
            if status == 101 or status < 100:
                self._problem = f"status {status}"
                raise ValueError(self._problem)
            return
        headers = self._given.copy()
        if not b"".join(headers).islower():
            headers = {name.lower(): value for name, value in headers.items()}
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            self._problem = f"transfer-encoding {coding[:40]!r}; packshot reads chunked only"
            raise ValueError(self._problem)
        self._ends_by_close = coding is None and b"content-length" not in headers
        answer: Any = self.answer
        answer.status, answer.headers, answer.started = status, headers, True
        if answer.call.method == b"HEAD":
            # llhttp cannot be told that no body follows, so such a connection is not kept.
            answer.complete, self._keep = True, False

    def _refuse_headers(self) -> NoReturn:
        self._problem = f"more than {self.limits.headers} headers"
        raise ValueError(self._problem)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        answer = self.answer
        if answer is not None and not answer.complete:
            answer.parts.append(body)
            answer.size += len(body)

    def on_message_complete(self) -> None:
        """Note the end of an answer, or of an interim one."""
        if len(self._given) > self.limits.headers:
            self._refuse_headers()
        answer = self.answer
        if answer is None or not answer.started:
            self._given.clear()
        else:
            answer.complete = True
            self._keep = self.parser.should_keep_alive() and answer.call.method != b"HEAD"
