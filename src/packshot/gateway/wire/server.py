"""The gateway's front door: uvicorn's HTTP protocol, with the deadlines and refusals it lacks.

uvicorn reads HTTP with llhttp and runs the ASGI application. What is added here: deadlines for a
slow head, a slow body and a reader that stands still; limits of size and number; refusal of what
proxies read differently (RFC 9112 §11.2); and two things that an application gets in its scope:

``packshot.began``
    `time.perf_counter` at the first byte of the request.
``packshot.gone``
    A `Gone`: tells at once when the client hangs up, without a task that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from packshot.core.ids import new_id
from packshot.gateway.wire.cycle import Cycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

__all__ = ["Door", "DoorLimits", "Gone", "Protocol"]

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

REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


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


class Gone:
    """Tells an application that its client has hung up: set ``callback``, and it is called once.

    Set after the fact, it is called at once. It runs in the event loop: it must not block.
    """

    __slots__ = ("_callback", "fired", "task")

    def __init__(self) -> None:
        self.fired = False
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


class Refused(Exception):
    """A request that is answered here, by ``status``, and never reaches the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Door:
    """All connections of one process that lead to one application; belongs to one event loop.

    Make servers with ``loop.create_server(door.protocol, …)``.
    """

    def __init__(self, app: ASGI3Application, limits: DoorLimits | None = None) -> None:
        self.limits = limits or DoorLimits()
        self.config = Config(
            app, interface="asgi3", lifespan="off", ws="none", log_config=None, proxy_headers=False
        )
        self.config.load()
        self.state = ServerState()
        self.draining = False
        self.lingering = 0
        self.hosts: set[bytes] = set()
        """Values of Host that were looked at and are fine."""
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self._set_date()

    @property
    def connections(self) -> set[Protocol]:
        """Those that are open."""
        return cast("set[Protocol]", self.state.connections)

    def protocol(self) -> Protocol:
        """Return what handles one connection."""
        if self._timer is None:
            self._sweep()
        return Protocol(self)

    async def drain(self, grace_s: float) -> bool:
        """Let requests in flight end, close the rest; tell whether all ended within the grace."""
        self.draining = True
        for connection in list(self.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace_s):
                while tasks := [*self.state.tasks, *self._leaving()]:
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
        tasks = list(self.state.tasks)
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
        if len(self.hosts) < 1024:
            self.hosts.add(host)

    def _sweep(self) -> None:
        now = time.perf_counter()
        self._set_date()
        for connection in list(self.connections):
            connection.check(now)
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _set_date(self) -> None:
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]


class Protocol(HttpToolsProtocol):
    """One connection."""

    parser: httptools.HttpRequestParser
    app: Any
    scope: Any
    transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        super().__init__(door.config, door.state, {})
        self.access_log = False
        self.door = door
        self._phase = IDLE
        self._since = time.perf_counter()
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
        self._running: RequestResponseCycle | None = None
        self._gone: Gone | None = None
        self._stuck: tuple[int, float] = (0, 0.0)

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        super().connection_made(cast("asyncio.Transport", transport))
        door = self.door
        if door.draining:
            transport.close()
        elif len(door.connections) - door.lingering > door.limits.connections:
            self._refuse(503, "too many connections; try again in a second")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and whoever waits in line."""
        if self._phase == CLOSING:
            self.door.lingering -= 1
        self._abandon()
        super().connection_lost(exc)
        self.door.left()

    def _abandon(self) -> None:
        """End what runs for a client that is gone or is being sent away."""
        self.pipeline.clear()
        running, self._running = self._running, None
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.fire()

    def shutdown(self) -> None:
        """Close now, or once the answer that is under way has ended."""
        running = self._running
        if running is None or running.response_complete:
            self.transport.close()
        else:
            running.keep_alive = False

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
            self.parser.feed_data(data)
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
        super().on_message_begin()
        began = time.perf_counter()
        self.scope["packshot.began"] = began
        self._begun = True
        self._head = 0
        if self._phase == IDLE and self._fresh:
            self._fresh = False  # the deadline stays that of the connection
        else:
            self._since = began
        self._phase = HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer has no place to go."""
        if self._phase == HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Refuse what others may read differently, and start the application."""
        self._check_head()
        if len(self.pipeline) >= self.door.limits.pipelined:
            raise Refused(400, "too many requests before the first was answered")
        self._phase = BODY
        self._body, self._room = 0, self.door.limits.head
        self._since = time.perf_counter()
        self.scope["packshot.gone"] = Gone()
        self._begin()

    def _begin(self) -> None:
        """Start the application, or queue the request behind the one before.

        It is what uvicorn does here, less what was refused above, and with our own `Cycle`.
        """
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        scope["raw_path"] = target.path
        scope["path"] = unquote(path) if "%" in path else path
        scope["query_string"] = target.query or b""
        before: RequestResponseCycle | None = cast("Any", self.cycle)
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.cycle = Cycle(self, scope, keep_alive=keep_alive)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _check_head(self) -> None:
        limits = self.door.limits
        version = self.parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            raise Refused(400, f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        if self.parser.should_upgrade():
            raise Refused(400, NO_UPGRADE)
        if self.url[:1] != b"/" or b"#" in self.url:
            raise Refused(400, "the target of a request is a path, without scheme or fragment")
        if len(self.headers) > limits.headers:
            raise Refused(431, f"more than {limits.headers} headers")
        if self._large:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.head:
                raise Refused(431, f"the head is longer than {limits.head} bytes")
        self._check_names(version)

    def _check_names(self, version: str) -> None:
        """Look at the headers that decide where a request goes and where it ends."""
        given = self.scope["packshot.headers"] = dict(self.headers)
        if b"_" in b"".join(given):
            raise Refused(400, "names of headers are written with hyphens, not underscores")
        host = given.get(b"host")
        if host is not None:
            self.door.check_host(host)
        if len(given) != len(self.headers):
            names = [name for name, _ in self.headers]
            if names.count(b"host") > 1 or names.count(b"transfer-encoding") > 1:
                raise Refused(400, "a request has one Host header and one transfer-encoding")
        if host is None and version == "1.1":
            raise Refused(400, "a request has one Host header")
        coding = given.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
            raise Refused(400, "the only transfer-encoding is chunked, in HTTP/1.1")
        self.expect_100_continue = given.get(b"expect", b"").lower() == b"100-continue"

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body += len(body)
        self._room = self.door.limits.head
        if self.cycle.response_complete:
            self._spare -= len(body)
            if self._spare < 0 and self._phase != CLOSING:
                self._linger()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._phase == CLOSING:
            return
        if self.cycle.response_complete:
            self._rest()
        else:
            self._phase = BUSY
        super().on_message_complete()

    def _rest(self) -> None:
        self._phase, self._spare = IDLE, SPARE
        self._since = time.perf_counter()

    # ---------------------------------------------------------------- what goes out

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        ours = self._running = cast("Cycle", cycle)
        gone = self._gone = ours.scope["packshot.gone"]
        # The cycle takes it out again: a callback at its end would be one more turn of the loop.
        gone.task = ours.task = task = self.loop.create_task(ours.run_asgi(app))
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """Start the next request in line, or rest."""
        self.server_state.total_requests += 1
        self._running = self._gone = None
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.door.draining:
            self.transport.close()
        elif self._phase == BUSY:
            self._rest()

    def _refuse(self, status: int, message: str) -> None:
        """Answer and part; a client that waits for another answer too is only cut off."""
        running = self._running
        other = running is not None and (
            running.response_started or running is not self.cycle or self._phase == HEAD
        )
        self._abandon()
        if other or self.door.lingering >= self.door.limits.connections:
            self.transport.abort()
            self._phase = CLOSING
            self.door.lingering += 1
            return
        name = new_id()
        if status != 503:  # who is sent away for want of room is not logged: it would be more load
            logger.info("%s: answered %d, %s", name, status, message)
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}'
        body %= message.encode()
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\nx-packshot-request-id: %b\r\n%b\r\n%b"
            % (
                status,
                REASONS[status],
                self.server_state.default_headers[0][1],
                len(body),
                name.encode(),
                retry,
                body,
            )
        )
        self._linger()

    def _linger(self) -> None:
        """Part, but read on for a while: to close at once would reset our answer on its way."""
        self._phase = CLOSING
        self.door.lingering += 1
        self._since = time.perf_counter()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()

    # ---------------------------------------------------------------- deadlines

    def check(self, now: float) -> None:
        """Send away a client that is too slow; the door asks this of each, twice a second."""
        limits, passed = self.door.limits, now - self._since
        if self._phase == CLOSING:
            if passed > LINGER_S:
                self.transport.abort()
        elif self.flow.write_paused:
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
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._since += SWEEP_S  # it is we who are slow
        elif passed > limits.body_s and self._body < passed * limits.body_rate:
            self._refuse(408, f"the body came at less than {limits.body_rate} bytes/s")

    def _check_reader(self, now: float) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting != self._stuck[0]:
            self._stuck = (waiting, now)
        elif now - self._stuck[1] > self.door.limits.write_s:
            self.transport.abort()
