"""One client of the front door, from first byte to last; see `packshot.gateway.wire.server`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from packshot.core.ids import new_id
from packshot.gateway.wire.cycle import STATUS, UNREAD, Cycle
from packshot.gateway.wire.head import Head, head_of

if TYPE_CHECKING:
    from packshot.gateway.wire.server import Door

__all__ = ["SWEEP_S", "Connection", "Refused"]

logger = logging.getLogger("packshot.gateway")

IDLE, HEAD, BODY, BUSY, CLOSING = range(5)
"""Where a connection is: between requests, in a head, in a body, waiting for us, told to go."""

SWEEP_S = 0.5
"""How often deadlines are looked at."""

LINGER_S = 2.0
"""How long a refused client may go on sending before it is cut off: time to read our answer."""

HASH, UNDERSCORE = b"#_"

NO_UPGRADE = "this server speaks HTTP/1.1 only, and upgrades to nothing"

SPARE = 1 << 20
"""Bytes of a body that are read after its answer, so that the connection can be kept."""

TRIES = 8
"""Heads in a row that are kept in vain before none is kept any more on a connection."""


class Refused(Exception):
    """A request that is answered here, by ``status``, and never reaches the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_began", "_begun", "_body", "_drained", "_due", "_feed", "_fresh", "_given", "_head",
        "_kept", "_large", "_lines", "_over", "_phase", "_rest", "_room", "_running", "_server",
        "_since", "_spare", "_stuck", "_target", "_tries", "_turn", "_version", "_waiting", "base",
        "client", "cycle", "door", "loop", "parser", "read_paused", "transport", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self.door = door
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        # What follows "connection: close" is not read; it must not spoil the answer either.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.cycle: Cycle | None = None
        """The request that came last."""
        self.read_paused = self.write_paused = False
        self._feed = self.parser.feed_data
        self.base: dict[str, Any] = {}
        """What the scopes of all requests of the connection have in common."""
        self.client = ""
        """The client's address; "" for a local socket's."""
        self._running: Cycle | None = None
        """The request that is being answered; at most one."""
        self._due: Cycle | None = None
        """The same, until `_serve` has it."""
        self._server: asyncio.Task[None] | None = None
        """The task that answers, from the first request on …"""
        self._turn: asyncio.Future[None] | None = None
        """… and what it waits for between two of them."""
        self._over = False
        """The connection is lost."""
        self._waiting: deque[Cycle] = deque()
        """Requests behind it, in order."""
        self._drained: asyncio.Future[None] | None = None
        self._began = 0.0
        self._version, self._target = "1.1", b""
        self._given: dict[bytes, bytes] = {}
        """Headers by lower-case name, the last of a name wins; and all of them, where one came
        again."""
        self._lines: list[tuple[bytes, bytes]] | None = None
        self._phase = IDLE
        self._since = time.perf_counter()
        """When the phase began."""
        self._fresh = True
        """No byte has come yet: the first head has its deadline from the connection on."""
        self._head = 0
        """Bytes of the head in segments of its own."""
        self._large = False
        """The head has to be measured at its end: it began in a segment with something else."""
        self._begun = False
        """A request began in the segment that is being read."""
        self._body = self._room = self._rest = 0
        """Bytes of the body; that may still come before the next of them; that are to come, where
        llhttp knows nothing of them."""
        self._spare = SPARE
        self._kept: Head | None = None
        """The last head, which may come again …"""
        self._tries = TRIES
        """… and how many more are kept if it does not."""
        self._stuck: tuple[int, float] = (0, 0.0)

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        self.transport = cast("asyncio.Transport", transport)
        door = self.door
        door.connections.add(self)
        peer = _address(transport.get_extra_info("peername"))
        self.client = peer[0] if peer else ""
        self.base = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": _address(transport.get_extra_info("sockname")),
            "client": peer,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": "",
        }
        if door.draining:
            transport.close()
        elif len(door.connections) - door.lingering > door.limits.connections:
            self._refuse(503, "too many connections; try again in a second")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and whoever waits in line."""
        del exc
        if self._phase == CLOSING:
            self.door.lingering -= 1
        self.door.connections.discard(self)
        self._over = True
        self._abandon()
        self.resume_writing()
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self.door.outbox.waiting.pop(self.transport, None)
        self.door.left()
        del self.parser, self._feed  # which refer to this connection

    def _abandon(self) -> None:
        """End what runs for a client that is gone or is being sent away."""
        self._waiting.clear()
        running, self._running = self._running, None
        if running is not None and not running.complete:
            running.hang_up()
            running.fire()
        if self.cycle is not None and self.cycle is not running:
            self.cycle.hang_up()

    def shutdown(self) -> None:
        """Close now, or once the answer that is under way has ended."""
        if self._running is None:
            self.door.outbox.close(self.transport)
        else:
            self._running.keep_alive = False

    # ---------------------------------------------------------------- back-pressure

    def pause(self) -> None:
        """Read no more for now."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on: what stands in line has its limit, and a client that hangs up is heard."""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The client has read: go on, with the next request too."""
        self.write_paused = False
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        if self._running is None:
            self._next()

    async def drained(self) -> None:
        """Return when the client has read most of what was written."""
        while self.write_paused:
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    # ---------------------------------------------------------------- what comes in

    def data_received(self, data: bytes) -> None:
        """Read a segment."""
        phase = self._phase
        if phase == IDLE and self._kept is not None and self._again(data):
            return
        if phase == CLOSING:
            return
        if self._rest:
            self._take(data)
            return
        before = self.cycle
        self._parse(data, phase)
        if phase == IDLE and self._tries and self.cycle is not before:
            self._keep(data)

    def _parse(self, data: bytes, phase: int) -> None:
        """Have llhttp read a segment; see that no head and no trailer grows without end."""
        size, limit = self._body, self.door.limits.head
        # Such a segment may bring a head whose bytes have not been counted.
        self._large = len(data) > limit or (self._large and phase == HEAD)
        self._begun = False
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse_for(error)
            return
        if self._begun:
            self._large = True
        elif self._phase == HEAD:
            self._head += len(data)
            if self._head > limit:
                self._refuse(431, f"the head is longer than {limit} bytes")
        elif phase == BODY == self._phase and size == self._body:
            self._room -= len(data)
            if self._room < 0:  # framing or trailers without end
                self._refuse(431, f"the trailer is longer than {limit} bytes")

    def _keep(self, data: bytes) -> None:
        """Keep the head that this segment began with, if it is one that may come again."""
        cycle: Any = self.cycle
        self._kept = None
        if cycle.keep_alive and cycle.lines is None:
            most = self.door.limits.head
            self._kept = head_of(data, cycle.method, cycle.target, cycle.headers, most)
            self._tries -= 1

    def _again(self, data: bytes) -> bool:
        """Start a request that has the head of the one before, and nothing behind its body; False,
        and nothing is done, where the segment is anything else.
        """
        head: Any = self._kept
        length: int = head.length(data)
        start: int = head.start
        rest = length + start - len(data)
        if length < 0 or rest < 0 or self.write_paused:
            return False
        self._tries = TRIES
        now = self._since = time.perf_counter()
        self.cycle = cycle = Cycle(self, head.headers, head.method, head.target, now)
        cycle.head = head
        self._phase, self._rest, self._body = BODY, rest, 0
        self._start(cycle)
        if rest or length > UNREAD:
            if len(data) > start:
                self.on_body(data[start:])
            if not rest:
                self.on_message_complete()
        else:  # the same, at once
            cycle.parts, cycle.size, cycle.more_body = [data[start:]], length, False
            self._phase, self._body = BUSY, length
        return True

    def _take(self, data: bytes) -> None:
        """Take a piece of the body of a request that llhttp has not seen, and what is behind it."""
        rest = self._rest
        self._rest = max(0, rest - len(data))
        self.on_body(data[:rest])
        if not self._rest:
            self.on_message_complete()
            if len(data) > rest:
                self.data_received(data[rest:])

    def _refuse_for(self, error: Exception) -> None:
        cause = error.__context__
        if self._phase == CLOSING:
            return
        if isinstance(cause, Refused):
            self._refuse(cause.status, str(cause))
        elif isinstance(error, httptools.HttpParserUpgrade):
            self._refuse(400, NO_UPGRADE)
        else:
            self._refuse(400, "this is not a request in HTTP/1.1")

    def on_message_begin(self) -> None:
        """Start a request: note when."""
        if self._phase == CLOSING:
            raise Refused(400, "the connection is being closed")
        self._began = began = time.perf_counter()
        self._begun = True
        self._head = 0
        self._target = b""
        self._version = "1.1"
        self._given, self._lines = {}, None
        if self._fresh:
            self._fresh = False  # the deadline stays that of the connection
        else:
            self._since = began
        self._phase = HEAD

    def on_url(self, url: bytes) -> None:
        """Take (a piece of) the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer has no place to go."""
        name, given = name.lower(), self._given
        if self._lines is not None or name in given:
            self._repeated(name, value)
        given[name] = value

    def _repeated(self, name: bytes, value: bytes) -> None:
        """Keep the lines, too, from where a name comes again."""
        if self._lines is None:
            self._lines = list(self._given.items())
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        """Refuse what others may read differently, and start the application, or queue behind."""
        headers = self._check_head()
        if len(self._waiting) >= self.door.limits.pipelined:
            raise Refused(400, "too many requests before the first was answered")
        parser = self.parser
        method: bytes = parser.get_method()
        self.cycle = cycle = Cycle(self, headers, method, self._target, self._began)
        self._phase = BODY
        self._body, self._room = 0, self.door.limits.head
        self._since = time.perf_counter()
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            cycle.wants = True
        if self._version != "1.1" or not parser.should_keep_alive():
            cycle.keep_alive = False
            cycle.version = self._version
        if self._lines is not None:
            cycle.lines = self._lines
        self._given, self._lines = {}, None  # where trailers go, and stay
        if self._running is None and not self.write_paused:
            self._start(cycle)
        else:
            self._waiting.append(cycle)
            self.pause()

    def _check_head(self) -> dict[bytes, bytes]:
        """Refuse what others may read differently; return the headers, the last of a name wins."""
        door, parser, given, target = self.door, self.parser, self._given, self._target
        version = parser.get_http_version()
        if version != "1.1":
            self._check_version(version)
        if parser.should_upgrade():
            raise Refused(400, NO_UPGRADE)
        if target not in door.targets and (target[:1] != b"/" or HASH in target):
            raise Refused(400, "the target of a request is a path, without scheme or fragment")
        if len(given) > door.limits.headers or self._large or self._lines is not None:
            self._count()
        if UNDERSCORE in b"".join(given):
            raise Refused(400, "names of headers are written with hyphens, not underscores")
        host = given.get(b"host")
        if host is None:
            if version == "1.1":
                raise Refused(400, "a request has one Host header")
        elif host not in door.hosts:
            door.check_host(host)
        coding = given.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
            raise Refused(400, "the only transfer-encoding is chunked, in HTTP/1.1")
        return given

    def _count(self) -> None:
        """Refuse too many headers, or too much of them, and what there may be one of only."""
        limits = self.door.limits
        lines = list(self._given.items()) if self._lines is None else self._lines
        if len(lines) > limits.headers:
            raise Refused(431, f"more than {limits.headers} headers")
        if self._large:
            size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in lines)
            if size > limits.head:
                raise Refused(431, f"the head is longer than {limits.head} bytes")
        names = [name for name, _ in lines]
        if names.count(b"host") > 1 or names.count(b"transfer-encoding") > 1:
            raise Refused(400, "a request has one Host header and one transfer-encoding")

    def _check_version(self, version: str) -> None:
        if version != "1.0":
            raise Refused(400, f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        self._version = version

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        cycle: Any = self.cycle
        self._body += len(body)
        self._room = self.door.limits.head
        if not cycle.complete:
            cycle.parts.append(body)
            cycle.size += len(body)
            if cycle.size > UNREAD:
                self.pause()
            if cycle.waiter is not None:
                cycle.wake()
            return
        self._spare -= len(body)
        if self._spare < 0 and self._phase != CLOSING:
            self._linger()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._phase == CLOSING:
            return
        cycle: Any = self.cycle
        if cycle.complete:
            self._phase, self._spare = IDLE, SPARE
            self._since = time.perf_counter()
        else:
            self._phase = BUSY
            cycle.more_body = False
            if cycle.waiter is not None:
                cycle.wake()

    # ---------------------------------------------------------------- what goes out

    def _start(self, cycle: Cycle) -> None:
        self._running = self._due = cycle
        door, turn = self.door, self._turn
        if self._server is None:
            self._server = self.loop.create_task(self._serve())
            door.servers.add(self._server)
        elif turn is not None and not turn.done():
            turn.set_result(None)
        cycle.task = self._server
        door.tasks.add(self._server)  # the cycle takes it out again
        door.outbox.alone = len(door.tasks) == 1

    async def _serve(self) -> None:
        """Have the requests of the connection answered, one after another.

        One task does it for all of them: to make one for each takes 2 us more.
        """
        try:
            while True:
                cycle, self._due = self._due, None
                if cycle is not None:
                    await cycle.run(self.door.app)
                elif self._over:
                    break
                else:
                    self._turn = self.loop.create_future()
                    await self._turn
                    self._turn = None
        finally:
            if self._server is not None:
                self.door.servers.discard(self._server)

    def _next(self) -> None:
        """Start the next request in line, if there is one and its answer can be written."""
        if self._waiting and not self.write_paused and not self.transport.is_closing():
            self._start(self._waiting.popleft())

    def answered(self) -> None:
        """Hear that the request under way has its answer: start the next in line, or rest."""
        self._running = None
        if self.transport.is_closing():
            return
        if self._waiting:
            self._next()
        elif self.door.draining:
            self.door.outbox.close(self.transport)
        elif self._phase == BUSY:
            self._phase, self._spare = IDLE, SPARE
            self._since = time.perf_counter()
        if self.read_paused:
            self.resume()

    def _refuse(self, status: int, message: str) -> None:
        """Answer and part; a client that waits for another answer too is only cut off."""
        self.door.outbox.flush()  # answers of requests before this one
        running = self._running
        other = running is not None and (
            running.started or running is not self.cycle or self._phase == HEAD
        )
        self._abandon()
        if other or self.door.lingering >= self.door.limits.connections:
            self.transport.abort()
            self._phase = CLOSING
            self.door.lingering += 1
            return
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}'
        body %= message.encode()
        more = b"x-packshot-request-id: %b\r\n" % (name := new_id()).encode()
        if status == 503:
            more += b"retry-after: 1\r\n"  # and no line in the log: it would be more load
        else:
            logger.info("%s: answered %d, %s", name, status, message)
        self.transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            b"%b\r\n%b" % (STATUS[status], self.door.date, len(body), more, body)
        )
        self._linger()

    def _linger(self) -> None:
        """Part, but read on for a while: to close at once would reset our answer on its way."""
        self.door.outbox.flush()
        self._phase = CLOSING
        self.door.lingering += 1
        self._since = time.perf_counter()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.resume()
        else:
            self.transport.close()

    # ---------------------------------------------------------------- deadlines

    def check(self, now: float) -> None:
        """Send away a client that is too slow; the door asks this of each, twice a second."""
        limits, passed = self.door.limits, now - self._since
        if self._phase == CLOSING:
            if passed > LINGER_S:
                self.transport.abort()
        elif self.write_paused:
            self._check_reader(now)
        elif self._phase == IDLE:
            if passed > (limits.head_s if self._fresh else limits.idle_s):
                self.transport.close()
        elif self._phase == HEAD and passed > limits.head_s:
            self._refuse(408, f"the head did not come within {limits.head_s:g} s")
        elif self._phase == BODY:
            self._check_body(passed)

    def _check_body(self, passed: float) -> None:
        limits = self.door.limits
        if self.read_paused or (self.cycle is not None and self.cycle.wants):
            self._since += SWEEP_S  # it is we who are slow
        elif passed > limits.body_s and self._body < passed * limits.body_rate:
            self._refuse(408, f"the body came at less than {limits.body_rate} bytes/s")

    def _check_reader(self, now: float) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting != self._stuck[0]:
            self._stuck = (waiting, now)
        elif now - self._stuck[1] > self.door.limits.write_s:
            self.transport.abort()


def _address(found: object) -> tuple[str, int] | None:
    """Return host and port of an address of the socket module; None for a local socket's."""
    address = cast("tuple[str, int]", found)
    return (str(address[0]), int(address[1])) if isinstance(found, tuple) else None
