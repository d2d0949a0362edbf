"""PostgreSQL under the ledger, through asyncpg: the same tables, bulk rows by COPY.

asyncpg lives on an event loop of its own, in a thread of its own, so that the store can be called
from any thread: one that runs a loop, too. A connection that was lost is made anew by the next
call; what was sent before may be stored or not, and is sent again (`Store.append` skips it then).
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.stores.database import Row, Table, Transaction

__all__ = ["PostgresDatabase", "numbered"]

CONNECT_S = 10.0
ANSWER_S = 300.0
"""Seconds that one statement may take; a batch takes milliseconds, a report over years seconds."""

MIGRATION_LOCK = 0x7061636B
"""Advisory lock ("pack") that lets one process at a time change the schema."""

UNAVAILABLE = ("08", "53", "57", "58", "28", "3D", "40", "55", "25")
"""Classes of SQLSTATE: connection, resources, shutdown, system, login, no such database, deadlock,
lock, read-only (PostgreSQL 18, appendix A)."""

LOST = (OSError, EOFError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The connection is gone. The last is asyncpg's when that happens as a COPY begins."""

CORRUPT = ("22", "23", "XX", "P0")
"""Data, constraints, damaged files, and our triggers that refuse a change."""

T = TypeVar("T")


class Connection(Protocol):
    """What is used of asyncpg's connection, which has no types of its own."""

    async def execute(self, sql: str, *parameters: object) -> str: ...
    async def fetch(self, sql: str, *parameters: object) -> list[Sequence[Any]]: ...
    async def copy_records_to_table(
        self, table: str, *, records: Sequence[Row], columns: Sequence[str]
    ) -> str: ...
    async def set_type_codec(self, name: str, **how: object) -> None: ...
    async def close(self, **how: float) -> None: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...


PLACEHOLDER = re.compile(r"'[^']*'|\?")


def numbered(sql: str) -> str:
    """Return a statement with ``$1``, ``$2`` … for its ``?``, except within quotes."""
    count = 0

    def number(match: re.Match[str]) -> str:
        nonlocal count
        if match[0] != "?":
            return match[0]
        count += 1
        return f"${count}"

    return PLACEHOLDER.sub(number, sql)


class PostgresDatabase:
    """A PostgreSQL database: one connection that writes, one that reads, both made when needed."""

    dialect = "postgresql"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.hostname or 'local socket'}{parts.path}"  # never the password
        self._loop = _Loop()
        self._writing = _Line(url, self._loop)
        self._reading = _Line(url, self._loop)

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Write: committed and on the server's disk when the block ends."""
        with self._errors(), self._writing.transaction("BEGIN") as within:
            yield within

    @contextmanager
    def snapshot(self) -> Generator[Transaction]:
        """Read: the same state until the block ends."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        with self._errors(), self._reading.transaction(begin) as within:
            yield within

    def version(self, within: Transaction) -> int:
        """Return the number of the last migration applied."""
        # Whoever asks within a writing transaction is about to change the schema: one at a time.
        ((read_only,),) = within.query("SELECT current_setting('transaction_read_only') = 'on'")
        if not read_only:
            within.query("SELECT pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
        ((there,),) = within.query("SELECT to_regclass('packshot_schema') IS NOT NULL")
        return within.query("SELECT version FROM packshot_schema")[0][0] if there else 0

    def set_version(self, within: Transaction, version: int) -> None:
        """Record it."""
        within.execute("CREATE TABLE IF NOT EXISTS packshot_schema (version bigint NOT NULL)")
        within.execute("DELETE FROM packshot_schema")
        within.execute("INSERT INTO packshot_schema VALUES (?)", (version,))

    def damage(self) -> list[str]:
        """Return nothing: PostgreSQL checks its pages itself (``data_checksums``)."""
        return []

    def close(self) -> None:
        """Release the connections and end the thread."""
        self._writing.close()
        self._reading.close()
        self._loop.close()

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Say what PostgreSQL's errors mean for the ledger."""
        try:
            yield
        except asyncpg.PostgresError as error:
            state = str(getattr(error, "sqlstate", "") or "")
            if state.startswith(CORRUPT):
                raise LedgerCorrupt(f"{self.name}: {error}") from error
            if state.startswith(UNAVAILABLE):
                raise self._unavailable(error) from error
            raise
        except OverflowError as error:
            raise LedgerCorrupt(f"{self.name}: a number exceeds 64 bits: {error}") from error
        except LOST as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> LedgerUnavailable:
        what = str(error) or type(error).__name__
        return LedgerUnavailable(
            f"{self.name}: {what}; nothing was acknowledged. The server must run, take this"
            " login and have room; the same rows can be sent again"
        )


class _Loop:
    """An event loop in a thread, which runs coroutines for callers in other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="packshot-postgres", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Line:
    """One connection, used by one thread at a time, made anew where it was lost."""

    def __init__(self, url: str, loop: _Loop) -> None:
        self._url = url
        self._loop = loop
        self._lock = threading.RLock()
        self._connection: Connection | None = None

    @contextmanager
    def transaction(self, begin: str) -> Generator[Transaction]:
        with self._lock:
            connection = self._connected()
            run = self._loop.run
            try:
                run(connection.execute(begin))
                yield _Statements(connection, self._loop)
                run(connection.execute("COMMIT"))
            except BaseException:
                self._abandon(connection)
                raise

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                self._loop.run(_leave(connection))

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = self._loop.run(_connect(self._url))
        return self._connection

    def _abandon(self, connection: Connection) -> None:
        """Drop a connection whose transaction failed: the server rolls back what is not committed.

        No ROLLBACK is sent, since a connection that failed once may not answer.
        """
        self._connection = None
        self._loop.run(_terminate(connection))


class _Statements:
    """A connection within a transaction."""

    def __init__(self, connection: Connection, loop: _Loop) -> None:
        self._connection = connection
        self._run = loop.run

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        rows = self._run(self._connection.fetch(numbered(sql), *parameters))
        return [tuple(row) for row in rows]

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._run(self._connection.execute(numbered(sql), *parameters))

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        if table.on_conflict:
            self._run(self._connection.execute(_merge(table), *map(list, zip(*rows, strict=True))))
            return
        self._run(
            self._connection.copy_records_to_table(table.name, records=rows, columns=table.columns)
        )


def _merge(table: Table) -> str:
    """Return the statement that merges rows given as one array per column."""
    arrays = ", ".join(
        f"${place}::{'text' if name in table.text else 'bigint'}[]"
        for place, name in enumerate(table.columns, 1)
    )
    names = ", ".join(table.columns)
    return f"""
INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {table.on_conflict}
"""  # noqa: S608 - names of ours


def _number(text: str) -> int | float:
    """Return a sum of integers as an integer, a quotient as a float: as SQLite has them."""
    return float(text) if "." in text else int(text)


async def _connect(url: str) -> Connection:
    connect = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]
    connection = await connect(
        url,
        timeout=CONNECT_S,
        command_timeout=ANSWER_S,
        server_settings={"synchronous_commit": "on", "application_name": "packshot ledger"},
    )
    await connection.set_type_codec(
        "numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text"
    )
    return connection


async def _terminate(connection: Connection) -> None:
    connection.terminate()


async def _leave(connection: Connection) -> None:
    """Say goodbye; a server that does not answer within the time is left without."""
    try:
        await connection.close(timeout=CONNECT_S)
    except (*LOST, asyncpg.PostgresError):
        connection.terminate()
