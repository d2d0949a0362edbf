"""A TCP relay to put before Valkey, PostgreSQL or a provider, to be their bad network.

It runs in a thread with a loop of its own, so that tests with and without asyncio use it alike. Its
methods return when what they ask for is so.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")
LINGER = struct.pack("ii", 1, 0)


class Relay:
    """Passes everything on between a loopback port and ``target``: (host, port), or a path.

    ``latency_s`` is added to every read, in both directions; ``request_bytes`` and
    ``answer_bytes`` are what was passed on, ``accepted`` the connections that came.
    """

    def __init__(self, target: tuple[str, int] | str, port: int = 0) -> None:
        self.latency_s = 0.0
        self.accepted = 0
        self.request_bytes = 0
        self.answer_bytes = 0
        self.port = port
        self._target = target
        self._left: int | None = None
        self._muted = False
        self._links: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._run(self._listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut everything and end the thread."""
        self._run(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def stall(self) -> None:
        """Pass nothing on, in either direction; connections stay open and new ones are taken."""
        self._run(self._set_gate(is_open=False))

    def mute(self) -> None:
        """Half-open: what clients send arrives, and no answer comes back."""
        self._muted = True

    def resume(self) -> None:
        """End a stall, where what waited is passed on; or a mute, which cuts what was open."""
        if self._muted:
            self._muted = False
            self.cut()
        self._run(self._set_gate(is_open=True))

    def cut_after(self, size: int) -> None:
        """Pass on ``size`` more bytes of answers, then cut that connection with a RST."""
        self._left = size

    def cut(self) -> None:
        """Cut what is open, with a RST; new connections are taken."""
        self._run(self._cut_links())

    def down(self) -> None:
        """Cut what is open and refuse new connections."""
        self._run(self._leave())

    def up(self) -> None:
        """Listen again, at the same port."""
        self._run(self._listen())

    # ---- in the thread

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut_links()

    async def _cut_links(self) -> None:
        links = tuple(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _set_gate(self, *, is_open: bool) -> None:
        if is_open:
            self._open.set()
        else:
            self._open.clear()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until a side ends it or the test does."""
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        other: asyncio.StreamWriter | None = None
        passing: list[asyncio.Task[None]] = []
        try:
            back, other = await self._connect()
            passing = [
                asyncio.create_task(self._pass(reader, other, answers=False)),
                asyncio.create_task(self._pass(back, writer, answers=True)),
            ]
            # The first side to close ends both; what it sent before has been passed on.
            done, _ = await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        except (asyncio.CancelledError, OSError):
            _reset(writer)
        finally:
            self._links.discard(task)
            for each in passing:
                each.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            for end in (writer, other):
                if end is not None:
                    end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(65536):
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            await self._open.wait()
            if answers and self._muted:
                continue
            over = False
            if answers and self._left is not None:
                over = len(data) >= self._left
                data = data[: self._left]  # the rest is lost
                self._left = None if over else self._left - len(data)
            writer.write(data)
            await writer.drain()
            if answers:
                self.answer_bytes += len(data)
            else:
                self.request_bytes += len(data)
            if over:
                # What is written goes out before the RST.
                await asyncio.sleep(0.01)
                raise ConnectionResetError("the test cuts here")


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    writer.transport.abort()
