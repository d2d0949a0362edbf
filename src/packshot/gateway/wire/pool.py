"""The connections to one origin, kept alive between calls: the gateway's own HTTP client.

It exists because general clients cost more than the rest of the gateway together. It speaks
HTTP/1.1 to hosts from the operator's configuration, follows nothing, decodes nothing, and has one
timer for all deadlines of all its calls.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field

from packshot.core.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from packshot.gateway.wire.link import Answer, Link, LinkLimits
from packshot.gateway.wire.outbox import Outbox
from packshot.gateway.wire.resolve import Resolver
from packshot.gateway.wire.upstream import Call, Origin

__all__ = ["Pool", "PoolLimits", "PoolStats", "peer_name", "reason", "tls_context"]

SWEEP_S = 0.1
"""How often deadlines are looked at: a call may last that much longer than it should."""

STALL_S = 1.0
"""After a standstill of our own event loop the sockets are read before anybody is blamed."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How much one process asks of one origin.

    ``connections`` at most; ``waiting`` calls at most for one of them, beyond which calls are
    refused at once. ``keep_s`` seconds a connection may rest: less than the 60 to 75 s after which
    common servers close it, since a call that meets the closing may have to be booked as if it had
    been made.
    """

    connections: int = 512
    waiting: int = 1024
    keep_s: float = 50.0
    link: LinkLimits = field(default_factory=LinkLimits)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Connections that are open (those being made included), at rest, busy; and calls waiting."""

    open: int
    idle: int
    waiting: int
    in_flight: int


class _Waiter:
    """A call that waits for a connection, or (``link`` None) for the right to open one."""

    __slots__ = ("due", "future", "link")

    def __init__(self, future: asyncio.Future[None], due: float) -> None:
        self.future = future
        self.due = due
        self.link: Link | None = None


class Pool:
    """Connections to ``origin``: `Upstream` of the contract. It belongs to one event loop.

    The last connection to come to rest is the first to be used, so that those which a quiet hour
    does not need grow old and are closed.
    """

    def __init__(self, origin: Origin, limits: PoolLimits | None = None) -> None:
        self.origin = origin
        self.limits = limits or PoolLimits()
        self._peer = peer_name(origin)
        default = {"http": ":80", "https": ":443"}[origin.scheme]
        shown = self._peer.removesuffix(default)
        self._host_tail = f" HTTP/1.1\r\nhost: {shown}\r\n".encode()
        self._tls = tls_context(origin) if origin.scheme == "https" else None
        self._resolver = Resolver(origin.host, origin.port)
        self._links: set[Link] = set()
        self._idle: list[Link] = []
        self._waiters: deque[_Waiter] = deque()
        self._outbox = Outbox()
        self._open = 0
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._swept = 0.0

    @property
    def stats(self) -> PoolStats:
        """What the pool is doing."""
        idle = len(self._idle)
        return PoolStats(self._open, idle, len(self._waiters), self._open - idle)

    async def send(self, call: Call, /) -> Answer:
        """Send a call and return its answer once the head is there; see `Upstream.send`."""
        now = time.monotonic()
        idle = self._idle
        while idle:
            link = idle.pop()
            if (there := link.transport) is not None and not there.is_closing():
                break
        else:
            link = await self._acquire(call, now)
            now = time.monotonic()
        self._outbox.alone = self._open - len(idle) == 1
        while True:
            try:
                answer, waiter = link.send(call, self._host_tail, now)
            except ValueError:
                self._rest(link)
                raise
            try:
                await waiter
            except BaseException:
                if answer.stale:  # in the very moment in which it was cancelled
                    self._lost(link)
                answer.abort()
                raise
            if answer.started:
                return answer
            if not answer.stale:
                raise answer.error or RuntimeError("woken for nothing")
            # The call keeps the place of the connection that it found dead.
            self._links.discard(link)
            link = await self._connect(call)
            now = time.monotonic()

    async def close(self) -> None:
        """Close every connection; calls in flight fail, and so does every later one."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(self._unreachable("the pool was closed"))
        self._waiters.clear()
        self._idle.clear()
        for link in list(self._links):
            answer = link.answer
            began = answer is not None and answer.began
            link.fail(UpstreamBroken("the gateway is closing down", sent=True, began=began))
        if self._links:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---------------------------------------------------------------- getting a connection

    async def _acquire(self, call: Call, now: float) -> Link:
        """Return a connection: a new one where there is room, else the next that gets free."""
        if self._closed:
            raise self._unreachable("the pool is closed")
        if now >= call.deadline:
            raise self._late("the call's deadline had passed before it was sent")
        if self._open < self.limits.connections:
            self._open += 1
            return await self._connect(call)
        waiter = await self._wait_turn(call)
        if waiter.link is not None:
            if waiter.link.usable():
                return waiter.link
            self._open += 1  # the lost one's place is given back when its loss is reported
        return await self._connect(call)

    async def _wait_turn(self, call: Call) -> _Waiter:
        """Stand in the queue until there is a connection, or a place for one."""
        if len(self._waiters) >= self.limits.waiting:
            raise self._unreachable(
                f"saturated: {self._open} calls in flight and {len(self._waiters)} waiting"
            )
        self._watch()
        future = asyncio.get_running_loop().create_future()
        waiter = _Waiter(future, call.deadline)
        self._waiters.append(waiter)
        try:
            await future
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif future.done() and not future.cancelled() and future.exception() is None:
                # Cancelled just after it was served: what it got goes to the next.
                if waiter.link is None:
                    self._give_place()
                elif waiter.link.usable():
                    self._rest(waiter.link)
            raise
        return waiter

    async def _connect(self, call: Call) -> Link:
        """Open a connection in a place that is already counted; the place is freed on failure."""
        self._watch()
        budget = min(call.timeouts.connect_s, call.deadline - time.monotonic())
        try:
            async with asyncio.timeout(budget):
                link = await self._dial(budget)
        except TimeoutError:
            self._give_place()
            raise self._late(f"no connection within {max(budget, 0):g} s") from None
        except OSError as error:
            self._give_place()
            raise self._unreachable(reason(error)) from error
        except BaseException:
            self._give_place()
            raise
        self._links.add(link)
        if self._closed:
            link.drop()
            raise self._unreachable("the pool was closed")
        return link

    async def _dial(self, budget: float) -> Link:
        """Try the host's addresses one after another, the one that worked last first."""
        loop = asyncio.get_running_loop()
        addresses = await self._resolver.addresses()
        share = budget / len(addresses)
        errors: list[OSError] = []
        for address in addresses:
            try:
                async with asyncio.timeout(share if len(addresses) > 1 else None):
                    _, link = await loop.create_connection(
                        self._new_link,
                        address,
                        self.origin.port,
                        ssl=self._tls,
                        server_hostname=self.origin.host if self._tls else None,
                    )
            except (OSError, TimeoutError) as error:
                errors.append(error)
                continue
            self._resolver.worked(address)
            return link
        self._resolver.forget()
        raise errors[-1]

    def _new_link(self) -> Link:
        loop = asyncio.get_running_loop()
        return Link(loop, self._peer, self.limits.link, self._rest, self._lost, self._outbox)

    # ---------------------------------------------------------------- giving it back

    def _rest(self, link: Link) -> None:
        """Take a connection whose answer has ended."""
        waiter = self._next_waiter() if self._waiters else None
        if waiter is not None:
            waiter.link = link
            waiter.future.set_result(None)
        elif self._closed:
            link.drop()
        else:
            link.idle_since = time.monotonic()
            self._idle.append(link)

    def _lost(self, link: Link) -> None:
        """Forget a connection that is gone.

        One that stood for a moment, while its caller gave up on connecting, was never ours: the
        caller has given the place back.
        """
        if link not in self._links:
            return
        self._links.discard(link)
        if link in self._idle:
            self._idle.remove(link)
        self._give_place()

    def _give_place(self) -> None:
        """Let somebody else open a connection."""
        self._open -= 1
        if not self._closed and (waiter := self._next_waiter()) is not None:
            self._open += 1
            waiter.future.set_result(None)
        if self._emptied is not None and not self._links and not self._emptied.done():
            self._emptied.set_result(None)

    def _next_waiter(self) -> _Waiter | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                return waiter
        return None

    # ---------------------------------------------------------------- deadlines

    def _watch(self) -> None:
        """Have the timer running; it stops by itself when there is nothing left to watch."""
        if self._timer is None:
            self._swept = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        stalled = now - self._swept > STALL_S
        self._swept = now
        self._timer = None
        if not stalled:
            old = now - self.limits.keep_s
            for link in list(self._links):
                if link.answer is not None:
                    link.check(now)
            while self._idle and self._idle[0].idle_since <= old:
                self._idle.pop(0).drop()
            for waiter in self._waiters:
                if now >= waiter.due and not waiter.future.done():
                    waiter.future.set_exception(self._late("no connection got free in time"))
        if self._links or self._waiters or self._open:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _late(self, text: str) -> UpstreamTimeout:
        return UpstreamTimeout(f"{self._peer}: {text}", sent=False)

    def _unreachable(self, text: str) -> UpstreamUnreachable:
        return UpstreamUnreachable(f"{self._peer}: {text}", sent=False)


def peer_name(origin: Origin) -> str:
    """Return ``host:port`` as it stands in URLs."""
    host = origin.host if origin.host.isascii() else origin.host.encode("idna").decode()
    return f"[{host}]:{origin.port}" if ":" in host else f"{host}:{origin.port}"


def tls_context(origin: Origin) -> ssl.SSLContext:
    """Return what a connection must prove: a chain to the system's or the origin's authorities.

    Raises:
        OSError: the file of certificates cannot be read.
    """
    context = ssl.create_default_context(cafile=origin.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def reason(error: OSError) -> str:
    """Say why a connection failed, without addresses."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({error.reason or 'closed during the handshake'})"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    return f"no connection ({os.strerror(error.errno) if error.errno else error})"
