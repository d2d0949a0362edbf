"""What every store of answers promises, and what is the file's own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.gateway.cache import valkey_store as valkey_module
from packshot.gateway.cache.entry import BESIDE, Entry, Purge, Scent
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.store import MemoryStore, Store
from packshot.gateway.cache.valkey_store import ValkeyStore
from packshot.state.blobs import Held
from tests.state.conftest import new_valkey

ROOM = 4
BODY = 100
LIMIT = ROOM * (BODY + BESIDE)
SECOND = 1_000_000
LONG = 1 << 60


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


def entry_of(name: str = "", *, cost: int = 1000, until: int = LONG, **more: Any) -> Entry:
    values: dict[str, Any] = {"scope": "key:one", "route": "caption", "target": "openai/x", **more}
    return Entry(name.encode().ljust(BODY, b"."), made_at=0, until=until, cost=cost, **values)


KINDS = ["memory", "file", "valkey"]
Test = Callable[[Store, Clock], Awaitable[None]]


VALKEY: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def _valkey() -> Iterator[None]:
    """Start one server for the file; a busy machine is no silent server."""
    with new_valkey() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(valkey_module, "ANSWER_S", 1.0)
        VALKEY.append(server)
        yield
        VALKEY.clear()


def address(server: Any) -> str:
    return f"valkey://127.0.0.1:{server.port}/0"


@asynccontextmanager
async def store_of(kind: str, folder: Path, limit: int = LIMIT) -> AsyncIterator[tuple[Any, Clock]]:
    clock = Clock()
    if kind == "memory":
        made: Store = MemoryStore(limit, clock)
    elif kind == "file":
        made = FileStore(folder / "answers.db", limit, clock)
    else:
        with VALKEY[0].client() as client:
            client.flushall()
        made = ValkeyStore(address(VALKEY[0]), limit, clock)
    try:
        yield made, clock
    finally:
        await made.aclose()


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    async def through(test: Test) -> None:
        async with store_of(request.param, tmp_path) as (store, clock):
            await test(store, clock)
            assert store.problem == ""

    return lambda test: asyncio.run(through(test))


def test_what_is_put_is_found_whole(run: Callable[[Test], None]) -> None:
    async def test(store: Store, clock: Clock) -> None:
        del clock
        entry = entry_of("a", tags=("shop=1",), scent=Scent("p", "text", b"\0\1", "e"))
        assert await store.get("a") is None
        await store.put("a", entry)
        assert await store.get("a") == entry
        await store.put("a", entry_of("b"))
        assert await store.get("a") == entry_of("b")
        assert await store.held() == Held(1, BODY + BESIDE)

    run(test)


def test_nothing_is_returned_from_its_end_on(run: Callable[[Test], None]) -> None:
    async def test(store: Store, clock: Clock) -> None:
        await store.put("a", entry_of(until=clock.now + 10 * SECOND))
        await store.put("b", entry_of(until=clock.now + 20 * SECOND))
        await store.put("past", entry_of(until=clock.now))
        clock.now += 10 * SECOND - 1
        assert await store.get("a") is not None
        clock.now += 1
        assert await store.get("a") is None
        await store.sweep()
        assert await store.held() == Held(1, BODY + BESIDE)
        assert await store.get("b") is not None

    run(test)


def test_what_saves_least_per_byte_goes_first(run: Callable[[Test], None]) -> None:
    async def test(store: Store, clock: Clock) -> None:
        del clock
        for name, cost in (("dear", 9000), ("cheap", 10), ("middle", 500), ("free", 0)):
            await store.put(name, entry_of(name, cost=cost))
        await store.put("new", entry_of("new", cost=700))
        assert await store.get("free") is None
        await store.put("newer", entry_of("newer", cost=700))
        assert await store.get("cheap") is None
        for name in ("dear", "middle", "new", "newer"):
            assert await store.get(name) is not None
        await store.put("huge", entry_of("x" * LIMIT))
        assert await store.get("huge") is None

    run(test)


def test_what_nobody_asks_for_ages(run: Callable[[Test], None]) -> None:
    async def test(store: Store, clock: Clock) -> None:
        del clock
        await store.put("once dear", entry_of(cost=2000))
        for number in range(20):
            await store.put(f"k{number}", entry_of(cost=1000))
        assert await store.get("once dear") is None

    run(test)


@pytest.mark.parametrize(
    ("what", "left"),
    [
        (Purge("all"), ""),
        (Purge("key", "a"), "bcd"),
        (Purge("key", "zz"), "abcd"),
        (Purge("tag", "shop=1"), "cd"),
        (Purge("tag", "shop="), "abcd"),
        (Purge("route", "other"), "abd"),
        (Purge("scope", "key:two"), "abc"),
    ],
)
def test_purges(run: Callable[[Test], None], what: Purge, left: str) -> None:
    async def test(store: Store, clock: Clock) -> None:
        del clock
        await store.put("a", entry_of("a", tags=("shop=1", "x=2")))
        await store.put("b", entry_of("b", tags=("a=1", "shop=1")))
        await store.put("c", entry_of("c", route="other", tags=("shop=11",)))
        await store.put("d", entry_of("d", scope="key:two"))
        assert await store.purge(what) == 4 - len(left)
        found = [key for key in "abcd" if await store.get(key) is not None]
        assert "".join(found) == left

    run(test)


STEPS = st.lists(
    st.tuples(st.sampled_from("pgd"), st.sampled_from("abcdefg"), st.integers(0, 5)), max_size=60
)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_never_wrong_and_never_too_large(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: Any
) -> None:
    async def test() -> None:
        async with store_of(kind, tmp_path_factory.mktemp("store")) as (store, clock):
            last: dict[str, Entry] = {}
            for step, key, number in steps:
                if step == "p":
                    last[key] = entry_of(
                        key, cost=number * 100, until=clock.now + (number + 1) * 3 * SECOND
                    )
                    await store.put(key, last[key])
                elif step == "d":
                    await store.purge(Purge("key", key))
                    last.pop(key, None)
                clock.now += SECOND
                found = await store.get(key)
                assert found is None or (found == last[key] and found.until > clock.now)
                assert (await store.held()).size <= LIMIT

    asyncio.run(test())


def test_a_store_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        MemoryStore(10)
    with pytest.raises(InvalidRequest):
        FileStore(tmp_path / "a.db", 10)


# ---------------------------------------------------------------- the file
def test_a_second_worker_hears_of_entries_and_purges(tmp_path: Path) -> None:
    async def test() -> None:
        async with store_of("file", tmp_path) as (one, _), store_of("file", tmp_path) as (two, _):
            scented = entry_of("a", scent=Scent("p", "t", b"", "e"))
            await one.put("a", scented)
            await one.put("plain", entry_of())
            news = await two.news((0, 0))
            assert (news.entries, news.purges) == ([("a", scented)], [])
            await one.purge(Purge("scope", "key:one"))
            news = await two.news(news.mark)
            assert (news.entries, news.purges) == ([], [Purge("scope", "key:one")])
            assert await two.news(news.mark) == (news.mark, [], [])

    asyncio.run(test())


def test_what_was_purged_is_in_the_file_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with store_of("file", tmp_path) as (store, _):
            await store.put("a", entry_of("a very private answer"))
            await store.purge(Purge("scope", "key:one"))
            files = await asyncio.to_thread(lambda: [f.read_bytes() for f in tmp_path.iterdir()])
            assert files
            assert not any(b"private" in file for file in files)

    asyncio.run(test())


def test_a_damaged_file_costs_hits_and_no_errors(tmp_path: Path) -> None:
    async def test() -> None:
        async with store_of("file", tmp_path) as (store, clock):
            await store.put("a", entry_of())
            with sqlite3.connect(tmp_path / "answers.db") as other:
                other.execute("DROP TABLE entries")
            assert await store.get("a") is None
            assert "cannot be used" in store.problem
            await store.put("b", entry_of())
            clock.now += 61 * SECOND
            with pytest.raises(StateUnavailable):
                await store.purge(Purge("all"))

    asyncio.run(test())


# ---------------------------------------------------------------- Valkey
def test_replicas_share_answers_and_hear_of_purges() -> None:
    async def test() -> None:
        clock = Clock()
        async with store_of("valkey", Path()) as (one, _):
            two = ValkeyStore(address(VALKEY[0]), LIMIT, clock)
            mark = (await two.news((0, 0))).mark
            await one.put("a", entry_of("a"))
            assert await two.get("a") == entry_of("a")
            assert await one.purge(Purge("scope", "key:one")) == 1
            news = await two.news(mark)
            assert news.purges == [Purge("scope", "key:one")]
            assert (await two.news(news.mark)).purges == []
            assert await two.get("a") is None
            with VALKEY[0].client() as client:
                names = {name.decode() for name in client.keys("*")}
            assert {name.rpartition(":")[2] for name in names} <= {"size", "purged", "purges"}
            await two.aclose()

    asyncio.run(test())


def test_a_server_that_is_away_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        clock = Clock()
        with new_valkey() as server:
            store = ValkeyStore(address(server), LIMIT, clock)
            await store.put("a", entry_of("a"))
            assert await store.get("a") == entry_of("a")
        assert await store.get("a") is None
        assert "does not answer" in store.problem
        tried: list[str] = []
        call = store._client.call

        async def counted(command: bytes) -> object:
            tried.append("")
            return await call(command)

        monkeypatch.setattr(store._client, "call", counted)
        for _ in range(10):
            assert await store.get("a") is None
            await store.put("b", entry_of("b"))
        assert tried == []
        clock.now += SECOND
        assert await store.get("a") is None
        assert len(tried) == 1
        with pytest.raises(StateUnavailable, match="may be there yet"):
            await store.purge(Purge("all"))
        await store.aclose()

    asyncio.run(test())


def test_a_server_that_is_silent_is_waited_for_as_long_as_is_said() -> None:
    limits: list[float | None] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        store = ValkeyStore(f"valkey://127.0.0.1:{port}", LIMIT)
        real = asyncio.timeout

        def timeout(limit_s: float | None) -> asyncio.Timeout:
            limits.append(limit_s)
            return real(limit_s)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(valkey_module, "ANSWER_S", 0.005)
            patch.setattr(asyncio, "timeout", timeout)
            assert await store.get("a") is None
        assert "in time" in store.problem
        await store.aclose()
        server.close()

    asyncio.run(test())
    assert limits[0] == 0.005
