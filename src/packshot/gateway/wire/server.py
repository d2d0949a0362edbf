"""The gateway's front door: HTTP/1.1 read by llhttp (httptools), answered by an ASGI application.

llhttp parses; what is done here is what a server owes its clients: deadlines for a slow head, a
slow body and a reader that stands still; limits of size and number; refusal of what proxies read
differently (RFC 9112 §11.2); requests that stand in line behind another; back-pressure both ways.
A client is a `Connection`, a request a `Cycle`; two things of it an application gets in its scope:

``packshot.began``
    `time.perf_counter` at the first byte of the request.
``packshot.gone``
    The cycle: it tells at once when the client hangs up, without a task that waits for it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import unquote

import httptools

from packshot.gateway.wire.connection import SWEEP_S, Connection, Refused
from packshot.gateway.wire.cycle import Application, Gone, Serve
from packshot.gateway.wire.outbox import Outbox

__all__ = ["Connection", "Door", "DoorLimits", "Gone"]

HOST_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%:[]"

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


class Door:
    """All connections of one process that lead to one application; belongs to one event loop.

    Make servers with ``loop.create_server(door.protocol, …)``.
    """

    def __init__(self, app: Application, limits: DoorLimits | None = None) -> None:
        self.app = app
        self.serve: Serve | None = getattr(app, "serve", None)
        """The application's short way, where it has one."""
        self.limits = limits or DoorLimits()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """Those of connections that have a request under way."""
        self.servers: set[asyncio.Task[None]] = set()
        """Those of all connections that had one."""
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
        for task in list(self.tasks):
            task.cancel()
        # One that was cancelled before its first step cannot take itself out.
        while left := [task for task in self.servers if not task.done()]:
            await asyncio.wait(left)

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
