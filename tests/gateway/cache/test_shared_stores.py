"""What workers and replicas that share a store promise each other, on real servers.

A replica is what a gateway has: its memory, its semantic tier, and its own connection to the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from packshot.core.errors import StateUnavailable
from packshot.gateway.cache import file_store, postgres_store, valkey_store
from packshot.gateway.cache.cache import Kept, ResponseCache, Rules
from packshot.gateway.cache.control import Control
from packshot.gateway.cache.entry import Purge, Scent
from packshot.gateway.cache.flights import Hit
from packshot.gateway.cache.request import CachedRequest
from packshot.gateway.cache.semantic import Semantic
from packshot.gateway.cache.settings import SemanticCacheEntry
from packshot.gateway.cache.store import MemoryStore
from packshot.gateway.telemetry import Telemetry
from tests.gateway.cache.conftest import BEHIND, BODY, LONG, SECOND, SERVERS, Place, entry_of
from tests.gateway.cache.test_semantic import PHRASES, Words

LARGE = 1 << 20
RULES = Rules(True, True, 0.9, 1000, (), frozenset())
OTHER = "a red mug in a kitchen"
PATIENT_S = 60.0
"""A busy machine is no reason to give up a search, as a gateway does, whose call waits for it."""


class Few(Words):
    """The same name with shorter vectors: another dimension."""

    dimension = 32


@pytest.fixture(params=BEHIND)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(text: str, scope: str = "key:one") -> CachedRequest:
    key = sha256(f"{scope} {text}".encode()).hexdigest()
    messages = [{"role": "user", "content": text}]
    return CachedRequest(key, scope, (), messages, {b"": scope.encode()})


class Replica:
    def __init__(
        self, place: Place, *, url: str = "", embedder: Words | None = None, limit: int = LARGE
    ) -> None:
        self.store = place.open(limit, url)
        self.clock = place.clock
        self.errors: list[BaseException] = []
        far = self.store if place.kind == "postgres" else None
        words = embedder or Words()
        self.tier = Semantic(words, 1000, self.errors.append, self.clock, far, PATIENT_S)
        none: Any = None
        self.front = MemoryStore(LARGE, self.clock)
        self.cache = ResponseCache(
            SemanticCacheEntry(enabled=True),
            none,
            Telemetry(),
            self.front,
            back=self.store,
            tier=self.tier,
            clock=self.clock,
        )

    async def keep(self, text: str, scope: str = "key:one", **more: Any) -> None:
        """Answer a request that nobody asked before, and keep the answer, as the cache does."""
        request = asked(text, scope)
        _, _, scent = await self.tier.find(request, RULES, 0.9)
        entry = entry_of(text[:BODY], scope=scope, scent=scent, **more)
        self.front.keep(request.key, entry)
        self.tier.learn(request.key, entry)
        await self.store.put(request.key, entry)

    async def ask(self, text: str, scope: str = "key:one", threshold: float = 0.9) -> str:
        """Return "exact", "semantic" or "miss"."""
        request = asked(text, scope)
        how = Kept(request, "caption", RULES, Control(threshold=threshold))
        hit, _ = await self.cache._behind(how)
        if hit is None:
            return "miss"
        assert isinstance(hit, Hit)
        assert hit.entry.scope == scope
        return "exact" if hit.similarity is None else "semantic"

    async def tick(self) -> None:
        await self.cache.tick()
        await self.tier.learned()


@asynccontextmanager
async def replicas(place: Place, count: int = 2, **more: Any) -> AsyncIterator[list[Replica]]:
    made = [Replica(place, **more) for _ in range(count)]
    for each in made:
        await each.tick()
    try:
        yield made
    finally:
        for each in made:
            await each.cache.aclose()
            assert each.errors == []


def test_what_one_replica_kept_another_finds_for_similar_requests(place: Place) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            await one.keep(PHRASES[0])
            await two.tick()
            assert await two.ask(PHRASES[1]) == "semantic"
            assert await two.ask(PHRASES[0]) == "exact"
            for near in ("a red sneaker on a beach", "a white sneaker, size 43, on a beach"):
                assert await two.ask(near, threshold=0.1) == "miss"
            assert await two.ask(PHRASES[1], "key:two") == "miss"

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["postgres"])
def test_postgresql_has_it_at_once(place: Place) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            await one.keep(OTHER)
            await two.tick()  # the model is known from now on
            await one.keep(PHRASES[0])
            assert await two.ask(PHRASES[1]) == "semantic"
            assert len(two.tier) == 0

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["postgres"])
def test_nearest_is_of_its_partition_its_model_and_its_time(place: Place) -> None:
    near, far = (np.array(v, np.float16).tobytes() for v in ([1, 0, 0, 0.1], [0, 1, 0, 0]))
    end = place.clock.now + 10 * SECOND
    kept = {
        "far": (Scent("p", "far", far, "e"), LONG),
        "near": (Scent("p", "near", near, "e"), LONG),
        "other partition": (Scent("q", "", near, "e"), LONG),
        "other model": (Scent("p", "", near, "f"), LONG),
        "ends": (Scent("p", "ends", near, "e"), end),
    }

    async def test() -> None:
        store = place.open(LARGE)
        for key, (scent, until) in kept.items():
            await store.put(key, entry_of(scent=scent, until=until))
        asked = kept["near"][0]
        assert {each.key for each in await store.nearest(asked, 2, 0.9)} == {"near", "ends"}
        place.clock.now = end
        found = await store.nearest(asked, 4, 0.0)
        assert [(each.key, each.text) for each in found] == [("near", "near"), ("far", "far")]
        assert found[0].similarity == pytest.approx(1.0, abs=1e-3)
        assert len(await store.nearest(asked, 1, 0.0)) == 1
        assert store.problem == ""
        await store.aclose()

    asyncio.run(test())


def test_a_forgotten_tenant_is_forgotten_by_all(place: Place) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            for scope in ("key:one", "key:two"):
                await one.keep(PHRASES[0], scope)
            await two.tick()
            assert await two.ask(PHRASES[0]) == await two.ask(PHRASES[0], "key:two") == "exact"
            assert await one.cache.purge(Purge("scope", "key:one")) == 1
            await two.tick()
            for each in (one, two):
                assert each.front.look(asked(PHRASES[0]).key) is None
                assert await each.ask(PHRASES[0]) == "miss"
                assert await each.ask(PHRASES[1]) == "miss"
                assert await each.ask(PHRASES[1], "key:two") == "semantic"
            assert (await two.store.held()).values == 1

    asyncio.run(test())


def test_a_put_that_crosses_a_purge_leaves_nothing(place: Place) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            await one.cache.purge(Purge("scope", "key:one"))
            await two.keep(PHRASES[0])  # it has not heard of it yet
            await two.keep(OTHER, "key:two")
            assert (await two.store.held()).values == 1
            await two.tick()
            assert await two.ask(PHRASES[0]) == await two.ask(PHRASES[1]) == "miss"
            await two.keep(PHRASES[0])
            assert await one.ask(PHRASES[0]) == "exact"

    asyncio.run(test())


@pytest.mark.parametrize(
    "what",
    [
        Purge("all"),
        Purge("key", asked(PHRASES[0]).key),
        Purge("route", "caption"),
        Purge("tag", "s=1"),
    ],
)
def test_every_kind_of_purge_reaches_a_put_and_a_replica(place: Place, what: Purge) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            await one.keep(PHRASES[0], tags=("s=1",))
            await two.tick()
            assert await two.ask(PHRASES[0]) == "exact"
            assert await one.cache.purge(what) == 1
            await two.keep(PHRASES[0], tags=("s=1",))
            assert (await two.store.held()).values == 0
            await two.tick()
            assert await two.ask(PHRASES[1]) == "miss"

    asyncio.run(test())


def test_who_missed_too_many_purges_begins_anew(place: Place) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            await two.keep(PHRASES[0])
            await two.keep(OTHER, "key:two")
            await two.tick()
            for number in range(2):
                await one.cache.purge(Purge("tag", f"n={number}"))
            await one.cache.purge(Purge("scope", "key:one"))
            for number in range(3):
                await one.cache.purge(Purge("tag", f"m={number}"))
            await two.tick()
            assert len(two.front) == 0
            assert await two.ask(PHRASES[0]) == await two.ask(PHRASES[1]) == "miss"
            assert await two.ask("in a kitchen, a red mug", "key:two") == "semantic"
            await one.cache.purge(Purge("tag", "n=9"))
            await two.tick()  # it knows where it stands again
            assert len(two.front) == 1

    with ExitStack() as stack:
        for module in (file_store, valkey_store, postgres_store):
            stack.enter_context(patch.object(module, "LONGEST_LOG", 3))
        asyncio.run(test())


def test_a_restart_loses_nothing_and_ends_are_kept(place: Place) -> None:
    async def test() -> None:
        async with replicas(place, 1) as (one,):
            await one.keep(PHRASES[0], until=place.clock.now + 10 * SECOND)
        async with replicas(place, 1) as (new,):
            place.clock.now += 10 * SECOND - 1
            assert await new.ask(PHRASES[1]) == "semantic"
            assert await new.ask(PHRASES[0]) == "exact"
            place.clock.now += 1
            assert await new.ask(PHRASES[1]) == await new.ask(PHRASES[0]) == "miss"

    asyncio.run(test())


@pytest.mark.parametrize("other", [Words("words@2"), Few("words@1")])
def test_vectors_of_two_models_never_meet(place: Place, other: Words) -> None:
    async def test() -> None:
        async with replicas(place, 2) as (old, old_too), replicas(place, 2, embedder=other) as news:
            await old.keep(PHRASES[0])
            for each in (old, old_too, *news):
                await each.tick()
            assert await old_too.ask(PHRASES[1]) == "semantic"
            assert await news[0].ask(PHRASES[0]) == "exact"
            assert await news[0].ask(PHRASES[1]) == "miss"
            await news[0].keep(PHRASES[1])
            for each in (old, old_too, *news):
                await each.tick()
            shouted = PHRASES[0].upper().replace("A ", "a ").lower() + " please"
            for each, key in ((news[1], PHRASES[1]), (old_too, PHRASES[0])):
                found, _, _ = await each.tier.find(asked(shouted), RULES, 0.8)
                assert found == asked(key).key

    asyncio.run(test())


def test_replicas_at_the_same_time_stay_within_the_limit_and_agree(place: Place) -> None:
    colours = ("red", "green", "blue", "white", "black", "pink", "grey", "brown", "gold", "teal")
    texts = [f"a {colour} {thing} on a beach" for colour in colours for thing in ("mug", "sofa")]

    async def test() -> None:
        async with replicas(place, 4, limit=15_000) as made:
            for _ in range(2):
                await asyncio.gather(
                    *(
                        each.keep(text)
                        for at, text in enumerate(texts)
                        for each in made[at % 2 :: 2]
                    )
                )
            for each in made:
                await each.tick()
            held = await made[0].store.held()
            assert 5 < held.values < len(texts)
            assert held.size <= 15_000
            stored = [text for text in texts if await made[0].store.get(asked(text).key)]
            assert len(stored) == held.values
            for each in made:
                each.front.drop(Purge("all"))
                for text in texts:
                    said = "On a beach: " + text.removesuffix(" on a beach")
                    want = "semantic" if text in stored else "miss"
                    assert await each.ask(said) == want, said

    asyncio.run(test())


def test_a_hit_counts_against_eviction_wherever_it_was(place: Place) -> None:
    async def test() -> None:
        async with replicas(place, 2, limit=3_000) as (one, two):
            await one.store.put("kept", entry_of(cost=1200))
            for number in range(20):
                await one.store.put(f"k{number}", entry_of(cost=1000))
                assert await two.store.get("kept") is not None
                await two.store.held()
            assert (await one.store.held()).values == 4

    asyncio.run(test())


@pytest.mark.parametrize("kind", SERVERS)
def test_a_crowd_asks_together_and_each_has_its_own(place: Place) -> None:
    async def test() -> None:
        async with replicas(place, 1) as (one,):
            for number in range(100):
                await one.store.put(f"k{number}", entry_of(f"answer {number}"))
            asked = counted(one.store)
            found = await asyncio.gather(*(one.store.get(f"k{at % 130}") for at in range(260)))
            for at, entry in enumerate(found):
                number = at % 130
                want = entry_of(f"answer {number}") if number < 100 else None
                assert entry == want
            assert len(asked) <= 5

    asyncio.run(test())


# ---------------------------------------------------------------- bad days
@pytest.mark.parametrize("kind", SERVERS)
def test_a_stalled_server_is_waited_for_once_a_second(place: Place) -> None:
    async def test() -> None:
        relay, url = place.relay()
        module: Any = valkey_store if place.kind == "valkey" else postgres_store
        with relay:
            one = Replica(place, url=url)
            await one.tick()
            await one.keep(PHRASES[0])
            one.front.drop(Purge("all"))
            await asyncio.gather(*getattr(one.store, "_tasks", ()))
            relay.stall()
            place.clock.now += SECOND  # it answered a moment ago: that is no server that is away
            with patch.object(module, "ANSWER_S", 0.005), patch.object(module, "PATIENT_S", 0.05):
                limits = counted(one.store)
                for _ in range(10):
                    assert await one.ask(PHRASES[1]) == "miss"
                assert limits == [0.005]
                assert "does not answer" in one.store.problem
                await one.store.put("b", entry_of())
                await one.tick()
                assert limits == [0.005]
                place.clock.now += SECOND
                assert await one.ask(PHRASES[0]) == "miss"
                assert limits == [0.005, 0.005]
                with pytest.raises(StateUnavailable, match="may be there yet"):
                    await one.cache.purge(Purge("route", "none"))
            relay.resume()
            place.clock.now += SECOND
            assert (await one.store.held()).values == 1
            assert await one.ask(PHRASES[0]) == "exact"
            assert one.store.problem == ""
            await one.cache.aclose()
            assert one.errors == []

    asyncio.run(test())


@pytest.mark.parametrize("kind", SERVERS)
def test_one_late_answer_of_a_busy_server_does_not_stop_the_next(place: Place) -> None:
    async def test() -> None:
        relay, url = place.relay()
        module: Any = valkey_store if place.kind == "valkey" else postgres_store
        with relay:
            store = place.open(LARGE, url)
            await store.news((0, 0))
            await store.put("a", entry_of("a"))
            relay.stall()
            with patch.object(module, "ANSWER_S", 0.005):
                assert await store.get("a") is None
            relay.resume()
            assert store.problem == ""
            assert await store.get("a") == entry_of("a")
            await store.aclose()

    asyncio.run(test())


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_is_gone_costs_hits_and_comes_back(place: Place) -> None:
    async def test() -> None:
        relay, url = place.relay()
        one = Replica(place, url=url)
        module: Any = valkey_store if place.kind == "valkey" else postgres_store
        with relay:
            await one.tick()
            await one.keep(PHRASES[0])
            port = relay.port
        one.front.drop(Purge("all"))
        place.clock.now += SECOND
        with patch.object(module, "ANSWER_S", 0.005), patch.object(module, "PATIENT_S", 0.05):
            assert await one.ask(PHRASES[0]) == "miss"
            await one.store.put("b", entry_of())
            assert "does not answer" in one.store.problem
        with type(relay)(relay._target, port):
            for _ in range(50):
                place.clock.now += SECOND
                if await one.ask(PHRASES[0]) == "exact":
                    break
                await asyncio.sleep(0.1)
            assert await one.ask(PHRASES[0]) == "exact"
            await one.cache.aclose()
        assert one.errors == []

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["valkey"])
def test_purges_and_entries_are_heard_of_by_who_knew_the_server_before_it_lost_all(
    place: Place, valkey_server: Any
) -> None:
    async def test() -> None:
        async with replicas(place) as (one, two):
            for each in (one, two):
                await each.keep(PHRASES[0])
                await each.cache.purge(Purge("tag", "none=1"))
            await two.tick()
            with valkey_server.client() as client:
                client.flushall()
            await one.keep(OTHER)
            await one.cache.purge(Purge("scope", "key:one"))
            await one.keep("a blue sofa in a kitchen", "key:two")
            await two.tick()
            assert len(two.front) == 0
            assert await two.ask("in a kitchen, a blue sofa", "key:two") == "semantic"

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["valkey"])
def test_nothing_of_a_forgotten_tenant_stays_on_the_server(
    place: Place, valkey_server: Any
) -> None:
    async def test() -> None:
        async with replicas(place) as (one, _):
            await one.keep(PHRASES[0], tags=("shop=1",))
            await one.cache.purge(Purge("scope", "key:one"))
            with valkey_server.client() as client:
                names = {name.decode().rpartition(":")[2] for name in client.keys("*")}
            assert names == {"size", "kept", "purged", "purges"}

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["valkey"])
def test_who_starts_hears_of_the_newest_that_it_has_room_for(place: Place) -> None:
    async def test() -> None:
        async with replicas(place, 1) as (one,):
            for number in range(7):
                await one.keep(f"a mug, size {number}")
            store = valkey_store.ValkeyStore(place.url, LARGE, place.clock, most_news=3)
            with patch.object(valkey_store, "NEWS_AT_ONCE", 2):
                first = await store.news((0, 0))
                then = await store.news(first.mark)
                end = await store.news(then.mark)
            texts = [entry.scent.text for _, entry in (*first.entries, *then.entries)]
            assert texts == ["a mug, size 4", "a mug, size 5", "a mug, size 6"]
            assert not end.entries
            assert end.mark == then.mark
            await store.aclose()

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["postgres"])
def test_without_pgvector_identical_requests_are_found(place: Place) -> None:
    async def test() -> None:
        with patch.object(postgres_store, "EXTENSION", "no_such_vector"):
            async with replicas(place) as (one, two):
                await one.keep(PHRASES[0])
                assert await two.ask(PHRASES[0]) == "exact"
                assert await two.ask(PHRASES[1]) == "miss"
                assert "CREATE EXTENSION vector" in two.store.problem

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["postgres"])
def test_any_text_can_be_kept_and_purged(place: Place) -> None:
    text = "a \0 mug ' ; -- % $1 {x} 鉛筆 \U0001f600"

    async def test() -> None:
        async with replicas(place) as (one, two):
            await one.keep(text, tags=("shop=a\0b",))
            await two.tick()
            assert await two.ask(text) == "exact"
            await two.tier.find(asked(text), RULES, 0.9)
            assert await one.cache.purge(Purge("scope", "key:one")) == 1

    asyncio.run(test())


def counted(store: Any) -> list[float]:
    """Return the time limits of what a store sends from now on."""
    limits: list[float] = []
    client = store._pool if hasattr(store, "_pool") else store
    name = "run" if hasattr(store, "_pool") else "_run"
    real = getattr(client, name)

    async def told(*words: Any) -> Any:
        limits.append(words[-1])
        return await real(*words)

    setattr(client, name, told)
    return limits
