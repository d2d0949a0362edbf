"""The pool before PostgreSQL: what a caller waits for, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from packshot.core.errors import InvalidRequest
from packshot.state import postgres as module
from packshot.state.postgres import FAILURES, Connection, Pool
from tests.ledger.stores.conftest import new_database, postgres
from tests.relay import Relay

__all__ = ["postgres"]

LONG_S = 20.0
NEVER_S = 0.01


@pytest.fixture
def relay(postgres: Any) -> Iterator[Relay]:
    parts = urlsplit(new_database(postgres))
    folder = unquote(parts.query.partition("host=")[2])
    with Relay(f"{folder}/.s.PGSQL.5432") as made:
        made.url = f"postgresql://postgres@127.0.0.1:{made.port}{parts.path}?sslmode=disable"  # type: ignore[attr-defined]
        yield made


async def one(connection: Connection) -> int:
    return await connection.fetchval("SELECT 1")


def through(relay: Any, test: Callable[[Pool], Awaitable[None]], size: int = 2) -> None:
    async def run() -> None:
        async def prepare(connection: Connection) -> None:
            await connection.execute("SET statement_timeout = 30000")

        pool = Pool(relay.url, size, prepare)
        try:
            await test(pool)
        finally:
            await pool.aclose()

    asyncio.run(run())


def test_there_are_never_more_connections_than_may_be(relay: Relay) -> None:
    async def test(pool: Pool) -> None:
        async def nap(connection: Connection) -> int:
            return await connection.fetchval("SELECT 1 FROM pg_sleep(0.01)")

        assert await asyncio.gather(*(pool.run(nap, LONG_S) for _ in range(50))) == [1] * 50
        assert relay.accepted <= 2

    through(relay, test)


def test_a_caller_waits_no_longer_than_it_said_and_the_answer_is_for_nobody_else(
    relay: Relay,
) -> None:
    async def test(pool: Pool) -> None:
        async def slow(connection: Connection) -> int:
            return await connection.fetchval("SELECT 2 FROM pg_sleep(0.2)")

        assert await pool.run(one, LONG_S) == 1
        with pytest.raises(TimeoutError, match="in time"):
            await pool.run(slow, NEVER_S)
        with pytest.raises(TimeoutError, match="busy"):
            await pool.run(one, NEVER_S)
        assert await pool.run(one, LONG_S) == 1
        assert relay.accepted == 1

    through(relay, test, 1)


def test_what_has_no_answer_is_given_up(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: Pool) -> None:
        assert await pool.run(one, LONG_S) == 1
        relay.mute()
        with pytest.raises(TimeoutError, match="in time"):
            await pool.run(one, NEVER_S)
        lost = next(iter(pool._open))
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if lost.is_closed():
                break
        assert lost not in pool._open
        relay.resume()
        monkeypatch.setattr(module, "PATIENT_S", LONG_S)
        assert await again(pool) == 1

    monkeypatch.setattr(module, "PATIENT_S", 0.1)
    through(relay, test, 1)


def test_connections_that_are_lost_are_made_again(relay: Relay) -> None:
    async def test(pool: Pool) -> None:
        await asyncio.gather(*(pool.run(one, LONG_S) for _ in range(4)))
        relay.cut()
        assert await again(pool) == 1
        assert pool._size >= len(pool._open)

    through(relay, test)


def test_errors_come_out_and_the_connection_stays(relay: Relay) -> None:
    async def test(pool: Pool) -> None:
        for _ in range(3):
            with pytest.raises(asyncpg.UndefinedTableError):
                await pool.run(lambda c: c.execute("SELECT * FROM nothing"), LONG_S)
        assert await pool.run(one, LONG_S) == 1
        assert relay.accepted == 1

    through(relay, test, 1)


def test_nobody_there(relay: Relay) -> None:
    async def test(pool: Pool) -> None:
        for _ in range(20):  # the reason is known once the attempt has failed
            with pytest.raises(FAILURES, match="no connection") as told:
                await pool.run(one, NEVER_S)
        assert "secret" not in str(told.value)

    relay.close()
    relay.url = "postgresql://me:secret@127.0.0.1:1/x"  # type: ignore[attr-defined]
    relay.close = lambda: None  # type: ignore[method-assign]
    through(relay, test)


@pytest.mark.parametrize("url", ["valkey://host", "postgresql://me:pa:ss@host:se/cret"])
def test_an_address_that_is_none_is_refused_and_not_shown(url: str) -> None:
    async def prepare(connection: Connection) -> None:
        del connection

    with pytest.raises(InvalidRequest, match="postgresql://user@host") as told:
        Pool(url, 1, prepare)
    assert "cret" not in str(told.value)


async def again(pool: Pool) -> int:
    """Ask until there is a new connection."""
    for _ in range(100):
        try:
            return await pool.run(one, 1.0)
        except FAILURES:
            await asyncio.sleep(0.05)
    raise AssertionError("there was no connection for long")
