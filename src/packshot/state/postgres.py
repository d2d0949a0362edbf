"""A few connections to one PostgreSQL, for callers that cannot wait for it.

Connections are made beside the calls, never within one. A call waits for a free connection and its
answer for as long as it says, and not longer, whatever the server does: what was sent goes on
without it, for `PATIENT_S` at the most. (asyncpg's own pool makes connections within calls, and one
that is cancelled waits until the server has heard of it.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from packshot.core.databases import POSTGRES
from packshot.core.errors import InvalidRequest

__all__ = ["FAILURES", "PATIENT_S", "Connection", "Pool"]

CONNECT_S = 2.0
"""Seconds for a connection with its log-in and what is prepared on it."""

PATIENT_S = 5.0
"""Seconds after which a connection whose statement has no answer is given up."""

RETRY_S = 1.0
"""Seconds between two attempts to connect."""

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a call may end with: a TimeoutError is an OSError, and so is what the network says."""

T = TypeVar("T")


class Connection(Protocol):
    """What is used of asyncpg's connection, which has no types of its own."""

    async def execute(self, sql: str, *parameters: object) -> str: ...
    async def fetch(self, sql: str, *parameters: object) -> list[Sequence[Any]]: ...
    async def fetchrow(self, sql: str, *parameters: object) -> Sequence[Any] | None: ...
    async def fetchval(self, sql: str, *parameters: object) -> Any: ...  # noqa: ANN401 - a column
    async def set_type_codec(self, name: str, **how: object) -> None: ...
    async def close(self, **how: float) -> None: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...


Prepare: TypeAlias = Callable[[Connection], Awaitable[None]]


class Pool:
    """Up to ``size`` connections to the database ``url``, each prepared by ``prepare``.

    Raises:
        InvalidRequest: the URL is none of PostgreSQL's.
    """

    def __init__(self, url: str, size: int, prepare: Prepare) -> None:
        if not url.startswith(POSTGRES) or not _has_port(url):
            raise InvalidRequest(
                "the address of the database is not postgresql://user@host:port/database"
            )
        self._url = url
        self._size = size
        self._prepare = prepare
        self._open: set[Connection] = set()
        self._idle: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        self._waiting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._making: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._why = "there is no connection"

    async def run(self, work: Callable[[Connection], Awaitable[T]], limit_s: float) -> T:
        """Return what ``work`` makes of a connection of its own, within ``limit_s`` seconds.

        Raises:
            FAILURES: the server did not answer in time, or with an error.
        """
        until = monotonic() + limit_s
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._free()
        except TimeoutError:
            raise TimeoutError("all connections are busy" if self._open else self._why) from None
        task = self._begin(self._used(connection, work))
        done, _ = await asyncio.wait({task}, timeout=max(0.0, until - monotonic()))
        if not done:
            raise TimeoutError("no answer in time")
        return task.result()

    async def aclose(self) -> None:
        """End the connections, and what is under way."""
        if self._making is not None:
            self._making.cancel()
        for connection in self._open:
            connection.terminate()
        self._open.clear()
        self._size = 0
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the loop's next turn

    async def _free(self) -> Connection:
        while True:
            self._mend()
            if not self._open and self._making is None:
                raise ConnectionError(self._why)
            self._waiting += 1
            try:
                connection = await self._idle.get()
            finally:
                self._waiting -= 1
            if connection is not None and not connection.is_closed():
                return connection
            if connection is not None:
                self._open.discard(connection)  # it was lost while nobody used it
            elif not self._open:
                raise ConnectionError(self._why)

    async def _used(self, connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        # Not a cancellation: that would itself wait for a server that does not answer.
        giving_up = asyncio.get_running_loop().call_later(PATIENT_S, connection.terminate)
        try:
            return await work(connection)
        finally:
            giving_up.cancel()
            if connection.is_closed():
                self._open.discard(connection)
            else:
                self._idle.put_nowait(connection)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(cast("asyncio.Task[Any]", task))
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more

    def _mend(self) -> None:
        """See to it that there are as many connections as there may be."""
        if len(self._open) < self._size and self._making is None and monotonic() >= self._retry_at:
            self._making = self._begin(self._make())
            self._making.add_done_callback(self._made)

    def _made(self, task: asyncio.Future[None]) -> None:
        self._making = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._why = f"no connection: {error or type(error).__name__}"
            self._retry_at = monotonic() + RETRY_S
            for _ in range(self._waiting if not self._open else 0):
                self._idle.put_nowait(None)  # nobody waits for what does not come

    async def _make(self) -> None:
        connect = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]
        while len(self._open) < self._size:
            async with asyncio.timeout(CONNECT_S):
                connection = await connect(
                    self._url,
                    timeout=CONNECT_S,
                    server_settings={"application_name": "packshot", "jit": "off"},
                )
                try:
                    await self._prepare(connection)
                except BaseException:
                    connection.terminate()
                    raise
            self._open.add(connection)
            self._idle.put_nowait(connection)


def _has_port(url: str) -> bool:
    try:
        _ = urlsplit(url).port
    except ValueError:  # its text would show what may be a password
        return False
    return True
