"""Servers for the tests of connections: each answers, byte for byte, what a test has it say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import uvloop

from packshot.gateway.wire.aio import AioPool
from packshot.gateway.wire.pool import Pool, PoolLimits
from packshot.gateway.wire.upstream import Call, Origin, Timeouts, Upstream

T = TypeVar("T")

KINDS = ("pool", "pool on asyncio", "aiohttp")
"""Every kind of upstream must pass every test of test_upstream.py."""

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """One connection as the server sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one request, head and body; b"" if the client closed instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head + await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        try:
            self.writer.write(data)
        except RuntimeError as error:  # uvloop's word for a connection that is gone
            raise ConnectionResetError from error
        await self.writer.drain()

    async def answer(self, data: bytes = OK) -> bytes:
        """Read a request and answer it; return the request."""
        request = await self.request()
        if request:
            await self.say(data)
        return request

    async def gone(self) -> bool:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                continue
        return True

    def reset(self) -> None:
        """Close with RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Talk = Callable[[Peer], Awaitable[object]]


class Server:
    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.problems: list[BaseException] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        try:
            await self.talk(peer)
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        except BaseException as error:  # noqa: BLE001 - shown when the server ends
            self.problems.append(error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self.tasks.discard(task)


@contextlib.asynccontextmanager
async def serving(talk: Talk, ssl: object = None, host: str = "127.0.0.1") -> AsyncIterator[Origin]:
    """Run a server whose every connection is ``talk``; what fails in there fails the test."""
    world = Server(talk)
    server = await asyncio.start_server(world.serve, "127.0.0.1", 0, ssl=ssl)  # type: ignore[arg-type]
    port = server.sockets[0].getsockname()[1]
    try:
        yield Origin("https" if ssl else "http", host, port)
    finally:
        server.close()
        for task in list(world.tasks):
            task.cancel()
        if world.tasks:
            await asyncio.wait(list(world.tasks))
        await server.wait_closed()
    if world.problems:
        raise world.problems[0]


def run(kind: str, scene: Coroutine[object, object, T]) -> T:
    """Run a test on the loop that goes with its kind of upstream."""
    return asyncio.run(scene) if kind == "pool on asyncio" else uvloop.run(scene)


@contextlib.asynccontextmanager
async def upstream(
    kind: str, origin: Origin, limits: PoolLimits | None = None
) -> AsyncIterator[Upstream]:
    made: Upstream = AioPool(origin, limits) if kind == "aiohttp" else Pool(origin, limits)
    try:
        yield made
    finally:
        await made.close()


@contextlib.contextmanager
def closing(*, half: bool) -> Iterator[tuple[Origin, Callable[[], None], list[int]]]:
    """Serve with threads. Yield also what closes the first connection (by ``half`` for sending
    only), and returns when the client's system knows; and the connections that brought requests.
    """
    closes, seen = threading.Event(), list[int]()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for number in range(2):
            with contextlib.suppress(OSError):
                made, _ = listener.accept()
                with made:
                    while _read(made):
                        seen.append(number)
                        made.sendall(OK)
                        if number == 0:
                            closes.wait(20)
                            if half:
                                made.shutdown(socket.SHUT_WR)
                            break
                    if half and number == 0:
                        halves.append(made.dup())

    halves: list[socket.socket] = []
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])

        def close() -> None:
            closes.set()
            _wait_until_closed(origin)

        yield origin, close, seen
    finally:
        closes.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for each in halves:
            each.close()


def _read(made: socket.socket) -> bool:
    """Read a request, head and body; false at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = made.recv(1 << 16)
        if not got:
            return False
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += made.recv(1 << 16)
    return True


def _wait_until_closed(origin: Origin) -> None:
    """Wait, without a turn of the event loop, until a connection to it has seen its FIN."""
    port = f"{origin.port:04X}"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        states = [row.split()[3] for row in lines if row.split()[2].endswith(f":{port}")]
        if "08" in states:  # CLOSE_WAIT
            return
        time.sleep(0.005)
    raise AssertionError("it was not closed")


def call(
    target: bytes = b"/v1/x",
    body: bytes = b"{}",
    *,
    headers: bytes = b"x-a: b\r\n",
    method: bytes = b"POST",
    within: float = 20.0,
    connect: float = 5.0,
    first: float = 10.0,
    idle: float = 10.0,
) -> Call:
    """Return a call with limits that no test reaches unless it means to."""
    times = Timeouts(connect_s=connect, first_byte_s=first, idle_s=idle)
    return Call(target, headers, body, time.monotonic() + within, times, method)
