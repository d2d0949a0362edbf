"""Answers and their vectors in PostgreSQL with pgvector: what one replica kept all find at once.

As with Valkey, a lookup has 5 ms for an answer; after one without, nobody asks for a second. Near
entries are searched for on the server, among those of all replicas. Each embedding model of each
dimension has a table and an index of its own. Everything is in the schema `SCHEMA`, and holds
nothing that cannot be made again: it may be dropped while no gateway runs.

One function does each change, and takes the row of totals first: what is counted is what is there,
and no two wait for each other. Reads take no lock.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import StateUnavailable
from packshot.gateway.cache.asking import Asking, Together
from packshot.gateway.cache.entry import Entry, Purge, Scent, decoded, encoded
from packshot.gateway.cache.postgres_tables import (
    AT_ONCE,
    LONGEST_LOG,
    SCHEMA,
    SET_UP,
    SET_UP_LOCK,
    table_of,
)
from packshot.gateway.cache.store import FORGOTTEN, Mark, Near, News, sets_of, worth_of
from packshot.state.blobs import Held, check_limit
from packshot.state.postgres import FAILURES, Connection, Pool

__all__ = ["ANSWER_S", "PostgresStore"]

ANSWER_S = 0.005
"""Seconds for an answer to a call that is waiting."""

PATIENT_S = 2.0
"""The same where no call waits."""

EXTENSION = "vector"
CONNECTIONS = 4
EF_SEARCH = 80
"""How far pgvector's index looks, of its 1 to 1000; more finds more and takes longer."""

MAX_BESIDE = 100
"""Statements for which no call waits (that an entry was asked for); more are not sent."""

GET = """
SELECT e.key, e.value, t.floor + e.worth > e.rank FROM entries e, total t
WHERE e.key = ANY ($1) AND e.until > $2
"""
TOUCH = """
UPDATE entries SET rank = (SELECT floor FROM total) + worth WHERE key IN (
  SELECT key FROM entries WHERE key = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED)
"""
"""It waits for no other change, so that none can wait for it in turn."""

PUT = "put($1, $2, $3, $4, $5, $6, $7, $8)"
MODELS = "SELECT name, dimension, number FROM models"
NEAREST = """
SELECT key, text, 1 - (vector <=> $2) FROM {table}
WHERE partition = $1 AND until > $3 ORDER BY vector <=> $2 LIMIT $4
"""

T = TypeVar("T")


class PostgresStore:
    """A `Store` of ``max_bytes`` in the database ``url``, with `Neighbours`; ``clock`` is in µs.

    Raises:
        InvalidRequest: the URL is none of PostgreSQL's.
    """

    def __init__(self, url: str, max_bytes: int, clock: Clock = wall_us) -> None:
        self.max_bytes = check_limit(max_bytes)
        self._asking = Asking(clock, FAILURES)
        self._clock = clock
        self._heard = -1
        """Up to which purge the replica has heard; later ones may mean what it puts."""
        self._lacks = ""
        self._models: dict[tuple[str, int], str] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._together = Together(self._get)
        self._pool = Pool(url, CONNECTIONS, self._prepare)

    @property
    def problem(self) -> str:
        """As `Store.problem`."""
        return self._asking.problem or self._lacks

    async def get(self, key: str) -> Entry | None:
        """As `Store.get`, in 5 ms at the most."""
        return await self._together.get(key)

    async def _get(self, keys: Sequence[str]) -> dict[str, Entry]:
        words = (keys, self._clock())
        rows = await self._quiet(lambda c: c.fetch(GET, *words), ANSWER_S) or ()
        if stale := [key for key, _, is_stale in rows if is_stale]:
            self._beside(lambda c: c.execute(TOUCH, stale))
        return {key: entry for key, value, _ in rows if (entry := decoded(value)) is not None}

    async def put(self, key: str, entry: Entry) -> None:
        """As `Store.put`."""

        async def work(connection: Connection) -> None:
            if entry.until <= self._clock():
                await connection.fetchval("SELECT drop_some('key', $1, 1)", key)
                return
            sets = [_plain(name) for name in sets_of(entry)]
            worth, size = worth_of(entry), entry.size
            row = (key, sets, entry.until, worth, size, encoded(entry), self.max_bytes, self._heard)
            if entry.scent is None or self._lacks:
                await connection.fetchval(f"SELECT {PUT}", *row)
                return
            scent = entry.scent
            table = await self._table(connection, scent.embedder, len(scent.vector) // 2)
            await connection.execute(
                f"WITH kept AS (SELECT {PUT} AS new) INSERT INTO {table}"  # noqa: S608 - ours
                " SELECT $1, $9::text, $10::bytea, $3, $11::halfvec FROM kept WHERE new",
                *row,
                scent.partition,
                scent.text.encode(),
                scent.vector,
            )

        await self._quiet(work, PATIENT_S)

    async def nearest(self, scent: Scent, count: int, at_least: float) -> Sequence[Near]:
        """As `Neighbours.nearest`, in 5 ms at the most."""
        dimension = len(scent.vector) // 2
        table = self._models.get((scent.embedder, dimension))
        if table is None:  # asked for, or made, beside the call
            self._beside(lambda c: self._table(c, scent.embedder, dimension))
            return ()
        words = (scent.partition, scent.vector, self._clock(), count)
        sql = NEAREST.format(table=table)
        rows = await self._quiet(lambda c: c.fetch(sql, *words), ANSWER_S) or ()
        found = [Near(key, text.decode(), similarity) for key, text, similarity in rows]
        return [near for near in found if near.similarity >= at_least]

    async def purge(self, what: Purge) -> int:
        """As `Store.purge`."""
        gone = 0
        try:
            while True:
                some = await self._pool.run(
                    lambda c: c.fetchval(
                        "SELECT drop_some($1, $2, $3)", what.by, what.value, AT_ONCE
                    ),
                    PATIENT_S,
                )
                gone += some
                if some < AT_ONCE or what.by in {"key", "all"}:
                    break
            note = "SELECT note($1, $2, $3)"
            await self._pool.run(
                lambda c: c.fetchval(note, what.by, what.value, LONGEST_LOG), PATIENT_S
            )
        except FAILURES as error:
            raise StateUnavailable(
                f"the store of answers cannot be reached: {error}; what was to go may be there yet"
            ) from error
        return gone

    async def sweep(self) -> int:
        """As `Store.sweep`."""
        gone, words = 0, ("end", str(self._clock()), AT_ONCE)
        while True:
            some = await self._quiet(
                lambda c: c.fetchval("SELECT drop_some($1, $2, $3)", *words), PATIENT_S
            )
            gone += some or 0
            if not some or some < AT_ONCE:
                return gone

    async def held(self) -> Held:
        """As `Store.held`."""
        row = await self._quiet(lambda c: c.fetchrow("SELECT number, size FROM total"), PATIENT_S)
        return Held(*row) if row else Held(0, 0)

    async def news(self, mark: Mark) -> News:
        """As `Store.news`: what was purged. Entries are searched for where they are."""

        async def work(connection: Connection) -> News:
            for name, dimension, number in await connection.fetch(MODELS):
                self._models[name, dimension] = table_of(number)
            last = await connection.fetchval("SELECT purged FROM total")
            if not last - LONGEST_LOG <= mark[1] <= last:
                return News((0, last), (), FORGOTTEN)
            rows = await connection.fetch(
                "SELECT by, value FROM purges WHERE number > $1 AND number <= $2 ORDER BY number",
                mark[1],
                last,
            )
            return News((0, last), (), [Purge(by, value) for by, value in rows])

        found = await self._quiet(work, PATIENT_S)
        if found is None:
            return News(mark, (), ())
        self._heard = found.mark[1]
        return found

    async def aclose(self) -> None:
        """Note what is under way, and end the connections."""
        await asyncio.gather(*self._tasks)
        await self._pool.aclose()

    async def _quiet(self, work: Callable[[Connection], Awaitable[T]], limit_s: float) -> T | None:
        """Return what ``work`` returns, None where there is nothing in time."""
        return await self._asking.quiet(lambda: self._pool.run(work, limit_s))

    def _beside(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        """Do something for which no call waits."""
        if len(self._tasks) < MAX_BESIDE:
            task = asyncio.get_running_loop().create_task(self._quiet(work, PATIENT_S))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ the database
    async def _prepare(self, connection: Connection) -> None:
        """Set a new connection up, and the schema where there is none."""
        await connection.execute(f"SET statement_timeout = {int(PATIENT_S * 1000)}")
        schema = await self._extension(connection)
        path = SCHEMA if schema is None else f"{SCHEMA}, {schema}"
        await connection.execute(f"SET search_path = {path}")
        if not await connection.fetchval("SELECT to_regclass('purges') IS NOT NULL"):
            await connection.execute(
                f"BEGIN; SELECT pg_advisory_xact_lock({SET_UP_LOCK}); {SET_UP}; COMMIT"
            )
        await connection.execute("SET synchronous_commit = off")  # but for purges
        await connection.execute("SET plan_cache_mode = force_custom_plan")  # partitions differ
        await connection.fetch(
            GET, [""], 0
        )  # a connection's first answer takes 10 ms: not a call's
        if schema is None:
            return
        await connection.set_type_codec(
            "halfvec", schema=schema.strip('"'), encoder=_sent, decoder=_got, format="binary"
        )
        await connection.execute("SELECT '[1]'::halfvec; SET hnsw.iterative_scan = strict_order")
        await connection.execute(f"SET hnsw.ef_search = {EF_SEARCH}")
        for _, dimension, number in await connection.fetch(
            f"{MODELS} ORDER BY number DESC LIMIT 2"
        ):
            sql = NEAREST.format(table=table_of(number))
            await connection.fetch(sql, "", b"\0\0" * dimension, 0, 1)

    async def _extension(self, connection: Connection) -> str | None:
        """Return the schema of pgvector, installed where it may be; None without it."""
        where = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n"
        where += " ON n.oid = e.extnamespace WHERE e.extname = $1"
        schema = await connection.fetchval(where, EXTENSION)
        if schema is None:
            try:
                await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}")
            except asyncpg.PostgresError as error:
                self._lacks = (
                    f"only identical requests are found: {error}; have pgvector 0.8 or later"
                    " installed, and CREATE EXTENSION vector"
                )
                return None
            schema = await connection.fetchval(where, EXTENSION)
        self._lacks = ""
        return schema

    async def _table(self, connection: Connection, embedder: str, dimension: int) -> str:
        """Return the table of a model's vectors, made where there is none."""
        table = self._models.get((embedder, dimension))
        if table is None:
            number = await connection.fetchval("SELECT model($1, $2)", embedder, dimension)
            table = table_of(number)
            self._models[embedder, dimension] = table
        return table


def _plain(text: str) -> str:
    """Return a text without the one character that PostgreSQL's has not."""
    return text.replace("\0", "\ufffd")


def _sent(vector: bytes) -> bytes:
    """Return a vector (fp16, of this machine's order) as pgvector's halfvec goes over the wire."""
    numbers = array("H", vector)
    if sys.byteorder == "little":
        numbers.byteswap()
    return len(numbers).to_bytes(2, "big") + b"\0\0" + numbers.tobytes()


def _got(data: bytes) -> bytes:
    numbers = array("H", data[4:])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()
