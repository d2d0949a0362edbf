"""The gateway's front door: HTTP/1.1 read by llhttp (httptools), answered by an ASGI application.

llhttp parses; what is done here is what a server owes its clients: deadlines for a slow head, a
slow body and a reader that stands still; limits of size and number; refusal of what proxies read
differently (RFC 9112 §11.2); requests that stand in line behind another; back-pressure both ways.
A request is a `Cycle`; two things of it an application gets in its scope:

``packshot.began``
    `time.perf_counter` at the first byte of the request.
``packshot.gone``
    The cycle: it tells at once when the client hangs up, without a task that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, cast
from urllib.parse import unquote

import httptools

from packshot.core.ids import new_id
from packshot.gateway.wire.cycle import STATUS, UNREAD, Application, Cycle, Gone
from packshot.gateway.wire.outbox import Outbox

__all__ = ["Connection", "Door", "DoorLimits", "Gone"]

logger = logging.getLogger("packshot.gateway")

IDLE, HEAD, BODY, BUSY, CLOSING = range(5)
"""Where a connection is: between requests, in a head, in a body, waiting for us, told to go."""

SWEEP_S = 0.5
"""How often deadlines are looked at."""

LINGER_S = 2.0
"""How long a refused client may go on sending before it is cut off: time to read our answer."""

HOST_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%:[]"

NO_UPGRADE = "this server speaks HTTP/1.1 only, and upgrades to nothing"

SPARE = 1 << 20
"""Bytes of a body that are read after its answer, so that the connection can be kept."""

MAX_SEEN = 1024
"""Values of Host, and targets, that were looked at once and are remembered."""


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What one process takes from its clients; defaults are those of the threat model.

    ``connections`` at once; ``head`` bytes and ``headers`` lines of a request; ``pipelined``
    requests that may wait behind one. ``head_s`` seconds for a head, from its first byte or from
    the connection; a body must come at ``body_rate`` bytes/s on average once ``body_s`` seconds
    have passed; ``idle_s`` between requests; ``write_s`` for a client that takes nothing of its
    answer. ``hosts``: the names in ``Host`` that are served; empty: any that is well formed.
    """

    connections: int = 1000
    head: int = 1 << 15
    headers: int = 100
    pipelined: int = 16
    head_s: float = 10.0
    body_s: float = 30.0
    body_rate: int = 1024
    idle_s: float = 75.0
    write_s: float = 60.0
    hosts: frozenset[str] = field(default_factory=frozenset[str])


class Refused(Exception):
    """A request that is answered here, by ``status``, and never reaches the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Door:
    """All connections of one process that lead to one application; belongs to one event loop.

    Make servers with ``loop.create_server(door.protocol, …)``.
    """

    def __init__(self, app: Application, limits: DoorLimits | None = None) -> None:
        self.app = app
        self.limits = limits or DoorLimits()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """Requests under way."""
        self.draining = False
        self.lingering = 0
        self.outbox = Outbox()
        self.hosts: set[bytes] = set()
        """Values of Host that were looked at and are fine."""
        self.targets: dict[bytes, tuple[str, bytes, bytes]] = {}
        """Path, raw path and query of targets that came before."""
        self.date = b""
        """The header line of an answer with the date."""
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self._set_date()

    def protocol(self) -> Connection:
        """Return what handles one connection."""
        if self._timer is None:
            self._sweep()
        return Connection(self)

    async def drain(self, grace_s: float) -> bool:
        """Let requests in flight end, close the rest; tell whether all ended within the grace."""
        self.draining = True
        for connection in list(self.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace_s):
                while tasks := [*self.tasks, *self._leaving()]:
                    await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return False
        return True

    def _leaving(self) -> list[asyncio.Future[None]]:
        """Return a future that ends when the next connection does; none where there is none."""
        if not self.connections:
            return []
        self._empty = asyncio.get_running_loop().create_future()
        return [self._empty]

    async def close(self) -> None:
        """Cut every connection, and wait until their requests have ended."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def left(self) -> None:
        """Hear that a connection is gone."""
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def check_host(self, host: bytes) -> None:
        """Refuse what no URL could name, and names that are not ours."""
        if host in self.hosts:
            return
        name, _, port = host.rpartition(b":") if not host.endswith(b"]") else (host, b"", b"")
        name, port = (name, port) if name else (port, b"")
        inner = name[1:-1] if name.startswith(b"[") and name.endswith(b"]") else name
        sound = name and not host.translate(None, HOST_CHARACTERS) and b"[" not in inner
        sound = sound and b"]" not in inner and (inner is not name or b":" not in name)
        if not sound or (port and not port.isdigit()):
            raise Refused(400, "the Host header is not a host name")
        if self.limits.hosts and name.decode().lower() not in self.limits.hosts:
            raise Refused(400, "the Host header names a host that is not served here")
        if len(self.hosts) < MAX_SEEN:
            self.hosts.add(host)

    def split(self, target: bytes) -> tuple[str, bytes, bytes]:
        """Return path, raw path and query of a request's target."""
        url = httptools.parse_url(target)
        raw: bytes = url.path
        path = raw.decode("ascii")
        found = unquote(path) if "%" in path else path, raw, url.query or b""
        if len(self.targets) < MAX_SEEN and len(target) < MAX_SEEN:
            self.targets[target] = found
        return found

    def _sweep(self) -> None:
        now = time.perf_counter()
        self._set_date()
        for connection in list(self.connections):
            connection.check(now)
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _set_date(self) -> None:
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_base", "_began", "_begun", "_body", "_drained", "_feed", "_fresh", "_head", "_large",
        "_lines", "_phase", "_room", "_running", "_since", "_spare", "_stuck", "_target",
        "_version", "_waiting", "cycle", "door", "loop", "parser", "read_paused", "transport",
        "write_paused",
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
        self._base: dict[str, Any] = {}
        """What the scopes of all requests of the connection have in common."""
        self._running: Cycle | None = None
        """The request that is being answered; at most one."""
        self._waiting: deque[tuple[Cycle, dict[str, Any]]] = deque()
        """Requests behind it, in order."""
        self._drained: asyncio.Future[None] | None = None
        self._began = 0.0
        self._version = "1.1"
        self._target = b""
        self._lines: list[tuple[bytes, bytes]] = []
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
        self._body = 0
        self._room = 0
        """Bytes that may still come before the next of the body."""
        self._spare = SPARE
        self._stuck: tuple[int, float] = (0, 0.0)

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        self.transport = cast("asyncio.Transport", transport)
        door = self.door
        door.connections.add(self)
        self._base = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
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
        self._abandon()
        self.resume_writing()
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
        phase, size, limit = self._phase, self._body, self.door.limits.head
        if phase == CLOSING:
            return
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
        self._lines = []
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
        if self._phase == HEAD:
            self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Refuse what others may read differently, and start the application, or queue behind."""
        headers = self._check_head()
        if len(self._waiting) >= self.door.limits.pipelined:
            raise Refused(400, "too many requests before the first was answered")
        parser, target = self.parser, self._target
        path, raw_path, query = self.door.targets.get(target) or self.door.split(target)
        method = parser.get_method()
        self.cycle = cycle = Cycle(self, headers, bodiless=method == b"HEAD")
        scope: dict[str, Any] = self._base | {
            "method": method.decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._lines,
            "state": {},
            "packshot.began": self._began,
            "packshot.gone": cycle,
        }
        self._phase = BODY
        self._body, self._room = 0, self.door.limits.head
        self._since = time.perf_counter()
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            cycle.wants = True
        if self._version != "1.1" or not parser.should_keep_alive():
            cycle.keep_alive = False
            scope["http_version"] = self._version
        if self._running is None and not self.write_paused:
            self._start(cycle, scope)
        else:
            self._waiting.append((cycle, scope))
            self.pause()

    def _check_head(self) -> dict[bytes, bytes]:
        """Refuse what others may read differently; return the headers, the last of a name wins."""
        limits, parser, lines = self.door.limits, self.parser, self._lines
        version = parser.get_http_version()
        if version != "1.1":
            self._check_version(version)
        if parser.should_upgrade():
            raise Refused(400, NO_UPGRADE)
        if self._target[:1] != b"/" or b"#" in self._target:
            raise Refused(400, "the target of a request is a path, without scheme or fragment")
        if len(lines) > limits.headers:
            raise Refused(431, f"more than {limits.headers} headers")
        if self._large:
            size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in lines)
            if size > limits.head:
                raise Refused(431, f"the head is longer than {limits.head} bytes")
        return self._checked(dict(lines), version)

    def _checked(self, given: dict[bytes, bytes], version: str) -> dict[bytes, bytes]:
        """Look at the headers that decide where a request goes and where it ends."""
        lines = self._lines
        if b"_" in b"".join(given):
            raise Refused(400, "names of headers are written with hyphens, not underscores")
        if len(given) != len(lines):
            names = [name for name, _ in lines]
            if names.count(b"host") > 1 or names.count(b"transfer-encoding") > 1:
                raise Refused(400, "a request has one Host header and one transfer-encoding")
        host = given.get(b"host")
        if host is not None:
            if host not in self.door.hosts:
                self.door.check_host(host)
        elif version == "1.1":
            raise Refused(400, "a request has one Host header")
        coding = given.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
            raise Refused(400, "the only transfer-encoding is chunked, in HTTP/1.1")
        return given

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

    def _start(self, cycle: Cycle, scope: dict[str, Any]) -> None:
        self._running = cycle
        # The cycle takes it out again: a callback at its end would be one more turn of the loop.
        cycle.task = task = self.loop.create_task(cycle.run(self.door.app, scope))
        self.door.tasks.add(task)
        self.door.outbox.alone = len(self.door.tasks) == 1

    def _next(self) -> None:
        """Start the next request in line, if there is one and its answer can be written."""
        if self._waiting and not self.write_paused and not self.transport.is_closing():
            self._start(*self._waiting.popleft())

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
