"""A client of Valkey and Redis for what limits need: one connection, commands one after the other.

Answers come in the order of the commands, so that any number of calls are under way at once, and
one that is cancelled costs nothing: its answer is dropped when it comes. (redis-py 8.1 gives each
call a connection of its own, fails when there are too many, and leaks sockets of cancelled ones.)
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote, urlsplit

import hiredis

from packshot.core.errors import InvalidRequest

__all__ = ["Address", "Client", "ReplyError", "address_of"]

CONNECT_S = 1.0
"""Seconds for a connection with its log-in; callers wait as long as they like, or less."""

MAX_WAITING = 10_000
"""Calls under way at once. More than that is a server that does not answer."""

ReplyError = hiredis.ReplyError
"""The server answered, with an error."""

PLAIN = frozenset(("redis", "valkey"))
SECURE = frozenset(("rediss", "valkeys"))


pack = cast("Callable[[tuple[str | int, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is; ``path`` is that of a local socket, "" for TCP."""

    host: str = ""
    port: int = 6379
    path: str = ""
    secure: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0


def address_of(url: str) -> Address:
    """Return what a URL says: ``valkey://[user:password@]host[:port][/database]``.

    ``redis://`` means the same, ``valkeys://`` and ``rediss://`` go through TLS, and
    ``unix:///path`` is a local socket.

    Raises:
        InvalidRequest: it is none of these; the message does not show it.
    """
    wrong = InvalidRequest(
        "the address of the shared state is not valkey://host:port/database, or the same with"
        " valkeys:// (TLS), redis:// or rediss://, or unix:///path/of/socket"
    )
    try:
        parts = urlsplit(url)
        port, database = parts.port or 6379, int(parts.path.strip("/") or 0)
    except ValueError:
        if not url.startswith("unix:///"):
            raise wrong from None  # the cause would show the password
        parts, port, database = urlsplit(url), 0, 0
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return Address(path=parts.path, user=user, password=password)
    if parts.scheme not in PLAIN | SECURE or not parts.hostname:
        raise wrong
    secure = parts.scheme in SECURE
    return Address(parts.hostname, port, "", secure, user, password, database)


def encoded(words: Sequence[str | int]) -> bytes:
    """Return a command as it goes over the wire."""
    return pack(tuple(words))


class _Connection(asyncio.Protocol):
    """Sends commands, and hands answers to those who wait, in order."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[object]] = deque()

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        lost = ConnectionResetError(f"the connection to the shared state was lost: {exc}")
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(lost)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
            while answer is not False:
                self._answer(answer)
                answer = self._reader.gets()
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def _answer(self, answer: object) -> None:
        waiter = self._waiting.popleft()  # IndexError: an answer that nobody asked for
        if waiter.done():
            return
        if isinstance(answer, ReplyError):
            waiter.set_exception(answer)
        else:
            waiter.set_result(answer)

    def send(self, command: bytes) -> asyncio.Future[object]:
        """Send a command; the future has its answer, or why there is none."""
        waiter: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self.transport is None or len(self._waiting) >= MAX_WAITING:
            waiter.set_exception(ConnectionError("the shared state does not answer"))
            return waiter
        self._waiting.append(waiter)
        self.transport.write(command)
        return waiter

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Client:
    """Calls one server. Connects when first called, and again where the connection was lost."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection = _Connection()
        self._connecting: asyncio.Task[OSError | None] | None = None

    async def call(self, command: bytes) -> object:
        """Return the answer to an `encoded` command.

        Raises:
            OSError: there is no connection, or it was lost.
            ReplyError: the server answered with an error.
        """
        if not self._connection.is_open:
            await self._connect()
        return await self._connection.send(command)

    def drop(self) -> None:
        """Give up the connection: what is under way fails, the next call makes a new one."""
        self._connection.close()

    async def aclose(self) -> None:
        """End the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._connection.close()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    async def _connect(self) -> None:
        """Wait for the one attempt to connect that all callers share."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open())
            self._connecting.add_done_callback(self._connected)
        error = await asyncio.shield(self._connecting)
        if error is not None:
            raise error

    def _connected(self, _: asyncio.Task[OSError | None]) -> None:
        self._connecting = None

    async def _open(self) -> OSError | None:
        """Connect and log in; return what went wrong: nobody may be waiting any more."""
        connection = _Connection()
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._transport(connection)
                await self._log_in(connection)
        except (OSError, ReplyError) as error:  # a TimeoutError is an OSError
            connection.close()
            return ConnectionError(f"no connection to the shared state: {error}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return None

    async def _transport(self, connection: _Connection) -> None:
        loop, to = asyncio.get_running_loop(), self._address
        if to.path:
            await loop.create_unix_connection(lambda: connection, to.path)
            return
        secure = ssl.create_default_context() if to.secure else None
        await loop.create_connection(lambda: connection, to.host, to.port, ssl=secure)

    async def _log_in(self, connection: _Connection) -> None:
        to = self._address
        if to.password:
            login = [to.user, to.password] if to.user else [to.password]
            await connection.send(encoded(["AUTH", *login]))
        if to.database:
            await connection.send(encoded(["SELECT", to.database]))
