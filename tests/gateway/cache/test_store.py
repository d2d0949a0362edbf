"""What every store of answers promises, and what is the file's own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.gateway.cache.entry import BESIDE, Entry, Purge, Scent
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.store import MemoryStore, Store
from packshot.state.blobs import Held
from tests.gateway.cache.conftest import BODY, KINDS, LIMIT, SECOND, Clock, Place, entry_of

Test = Callable[[Store, Clock], Awaitable[None]]


@asynccontextmanager
async def store_at(place: Place, limit: int = LIMIT) -> AsyncIterator[tuple[Any, Clock]]:
    made = place.open(limit)
    try:
        yield made, place.clock
    finally:
        await made.aclose()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(place: Place) -> Callable[[Test], None]:
    async def through(test: Test) -> None:
        async with store_at(place) as (store, clock):
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


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_never_wrong_and_never_too_large(place: Place, steps: Any) -> None:
    async def test() -> None:
        async with store_at(place) as (store, clock):
            await store.purge(Purge("all"))  # of the example before
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
@pytest.mark.parametrize("kind", ["file"])
def test_what_was_purged_is_in_the_file_no_more(place: Place) -> None:
    async def test() -> None:
        async with store_at(place) as (store, _):
            await store.put("a", entry_of("a very private answer"))
            await store.purge(Purge("scope", "key:one"))
            folder = Path(place.url).parent
            files = await asyncio.to_thread(lambda: [f.read_bytes() for f in folder.iterdir()])
            assert files
            assert not any(b"private" in file for file in files)

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["file"])
def test_a_damaged_file_costs_hits_and_no_errors(place: Place) -> None:
    async def test() -> None:
        async with store_at(place) as (store, clock):
            await store.put("a", entry_of())
            with closing(sqlite3.connect(place.url)) as other:
                other.execute("DROP TABLE entries")
            assert await store.get("a") is None
            assert "cannot be used" in store.problem
            await store.put("b", entry_of())
            clock.now += 61 * SECOND
            with pytest.raises(StateUnavailable):
                await store.purge(Purge("all"))

    asyncio.run(test())
