"""The semantic tier: similar requests share an answer, others and other callers' do not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import pytest
import requests

from packshot.core.errors import ModelCorrupt
from packshot.gateway.cache.cache import Rules
from packshot.gateway.cache.embed import Vectors
from packshot.gateway.cache.entry import Entry, Purge, Scent
from packshot.gateway.cache.request import CachedRequest, cached_request
from packshot.gateway.cache.semantic import Semantic, read_kept
from packshot.gateway.cache.slots import read
from packshot.gateway.job import Job
from packshot.gateway.plan import Route
from packshot.gateway.virtual_key import VirtualKey
from packshot.gateway.worker import Worker
from packshot.providers.fake_script import Settings
from tests.gateway.cache.test_cache import KEYS, YAML, body_of, calls, did
from tests.gateway.world import World

PHRASES = ["a white sneaker on a beach", "on a beach, a white sneaker"]


class Words:
    """An embedder that counts words."""

    dimension = 64

    def __init__(self, name: str = "words@1") -> None:
        self.name = name

    async def embed(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[crc32(word.encode()) % self.dimension] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def with_tier(worker: Worker, name: str = "words@1") -> None:
    cache = worker.gateway.cache
    assert cache is not None
    cache.tier = Semantic(Words(name), 1000, lambda error: worker.telemetry.error(None, error))


async def ended(tier: Semantic) -> None:
    await tier.learned()
    await tier.aclose()


def semantic_world(folder: Path, **more: Any) -> World:
    yaml = YAML.replace("semantic: false", "semantic: true")
    fakes = {"openai": Settings(), "anthropic": Settings()}
    return World(folder, yaml, fakes, lambda worker: with_tier(worker, **more))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    for letter in KEYS:
        monkeypatch.setenv(f"SECRET_{letter}", letter * 40)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    made = semantic_world(tmp_path)
    made.start()
    yield made
    made.stop()
    assert not made.errors, made.errors


def ask(there: World, text: str, key: str = "a", said: str = "", **more: Any) -> requests.Response:
    headers = {"authorization": f"Bearer {key * 40}", "x-packshot-cache": said}
    data = json.dumps(body_of(text, **more))
    return requests.post(f"{there.url}/v1/chat/completions", data=data, headers=headers, timeout=30)


def test_the_same_in_other_words_is_a_hit_and_a_changed_slot_a_miss(there: World) -> None:
    first, second = (ask(there, text) for text in PHRASES)
    assert (did(first), did(second)) == ("miss", "hit")
    assert second.headers["x-packshot-cache-kind"] == "semantic"
    assert 0.94 <= float(second.headers["x-packshot-cache-similarity"]) <= 1
    assert first.content == second.content
    assert calls(there) == 1
    for other in ("a red sneaker on a beach", "a white sneaker, size 43, on a beach"):
        assert did(ask(there, other, said="threshold=0.1")) == "miss"


def test_who_asks_and_with_what_parts_them(there: World) -> None:
    assert did(ask(there, PHRASES[0])) == "miss"
    assert did(ask(there, PHRASES[1], key="b")) == "miss"
    assert did(ask(there, PHRASES[1], max_tokens=50)) == "miss"
    assert did(ask(there, PHRASES[1], said="exact")) == "miss"
    assert did(ask(there, PHRASES[0], key="c")) == "miss"
    shared = ask(there, PHRASES[1], key="d")
    assert (did(shared), shared.headers["x-packshot-cache-kind"]) == ("hit", "semantic")


def test_it_survives_a_restart_but_not_another_model_and_is_forgotten(tmp_path: Path) -> None:
    first = semantic_world(tmp_path)
    first.start()
    ask(first, PHRASES[0])
    first.stop()
    second = semantic_world(tmp_path)
    second.start()
    second.run(second.worker.gateway.cache.tick())  # type: ignore[union-attr]
    try:
        cache = second.worker.gateway.cache
        assert cache is not None
        cache._mark = (0, 0)  # as if it had been opened with this tier
        second.run(cache.tick())
        assert did(ask(second, PHRASES[1], said="only-if-cached")) == "hit"
        assert second.run(cache.purge(Purge("scope", "key:one"))) == 1
        assert ask(second, PHRASES[1], said="only-if-cached").status_code == 504
        assert ask(second, PHRASES[0], said="only-if-cached").status_code == 504
    finally:
        second.stop()


def test_vectors_of_another_embedder_are_not_found() -> None:
    tier = Semantic(Words("words@2"), 10, pytest.fail)
    vector = np.ones(64, np.float16).tobytes()
    entry = Entry(b"", "key:one", "", "", 0, 1 << 60, 1, (), Scent("p", "t", vector, "words@1"))
    tier.learn("k", entry)
    asyncio.run(ended(tier))
    assert len(tier) == 0


def test_it_knows_no_more_than_it_may() -> None:
    tier = Semantic(Words(), 3, pytest.fail)
    vector = np.ones(64, np.float16).tobytes()
    for number in range(10):
        scent = Scent(f"p{number % 4}", f"text {number}", vector, "words@1")
        tier.learn(f"k{number}", Entry(b"", "s", "", "", 0, 1 << 60, 1, (), scent))
    tier.drop(Purge("key", "k9"))
    asyncio.run(ended(tier))
    assert len(tier) == 2
    assert len(tier._partitions) == 2


class Near(Words):
    """An embedder in this process, as `Offloaded` is; it counts what it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[str] = []
        self.fails = False

    def encode(self, texts: Sequence[str]) -> Vectors:
        if self.fails:
            raise ModelCorrupt("it broke")
        self.embedded += texts
        return asyncio.run(self.embed(texts))


RULES = Rules(True, True, 0.94, 60, (), frozenset())


def asking(text: str, owner: str = "one") -> CachedRequest:
    body = {"model": "caption", "messages": [{"role": "user", "content": text}]}
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    route = Route("caption", ())
    job = Job("id", "chat", VirtualKey(owner), route, fields, "caption", False, 0.0, 60.0, "chat")
    return cached_request(job, 1.0)


async def told(tier: Semantic, key: str, text: str, *, until: int = 1 << 60) -> None:
    _, _, scent = await tier.find(asking(text), RULES, 0.94)
    tier.learn(key, Entry(b"", "key:one", "", "", 0, until, 1, (), scent))
    await tier.learned()


def test_what_says_the_same_in_another_order_is_found_without_a_vector() -> None:
    async def test() -> None:
        embedder, errors = Near(), list[BaseException]()
        tier = Semantic(embedder, 10, errors.append, longest_s=30.0)
        await told(tier, "k1", PHRASES[0])
        assert len(embedder.embedded) == 1
        key, cosine, scent = await tier.find(asking(PHRASES[1]), RULES, 0.94)
        assert (key, cosine) == ("k1", 1.0)
        assert scent is not None
        assert len(scent.vector) == 2 * embedder.dimension
        assert len(embedder.embedded) == 1
        assert (await tier.find(asking(PHRASES[1], "two"), RULES, 0.1))[0] == ""
        # The same words, and yet another thing: the guards are asked all the same.
        await told(tier, "k2", "a red mug with a blue lid")
        assert (await tier.find(asking("a blue mug with a red lid"), RULES, 0.1))[0] == ""
        tier.drop(Purge("key", "k1"))
        await tier.learned()
        assert (await tier.find(asking(PHRASES[1]), RULES, 0.94))[0] == ""
        assert next(iter(tier._partitions.values())).alike.keys() == {
            read("a red mug with a blue lid").gist
        }
        assert errors == []
        embedder.fails = True
        assert await tier.find(asking("a lamp"), RULES, 0.94) == ("", 0.0, None)
        assert [type(error) for error in errors] == [ModelCorrupt]
        await ended(tier)

    asyncio.run(test())


def test_what_is_past_its_time_is_not_found_but_what_came_before_it_is() -> None:
    async def test() -> None:
        now = 10
        tier = Semantic(Near(), 10, pytest.fail, clock=lambda: now, longest_s=30.0)
        await told(tier, "k1", PHRASES[0])
        await told(tier, "k2", f"please: {PHRASES[0]}", until=20)
        now = 19
        assert (await tier.find(asking(PHRASES[1]), RULES, 0.94))[0] == "k2"
        now = 20
        assert (await tier.find(asking(PHRASES[1]), RULES, 0.94))[0] == "k1"
        assert len(tier) == 1
        await ended(tier)

    asyncio.run(test())


def test_a_lookup_goes_before_what_a_store_tells_of_at_the_start() -> None:
    class Counting(Semantic):
        def _look(self, ask: Any) -> Any:
            known.append(len(self))
            return super()._look(ask)

    known: list[int] = []

    async def test() -> None:
        tier = Counting(Near(), 500, pytest.fail, longest_s=30.0)
        await told(tier, "k", PHRASES[0])
        vector, all_told = np.ones(64, np.float16).tobytes(), threading.Event()
        tier._do(all_told.wait)
        for number in range(499):
            scent = Scent("p", f"text {number}", vector, "words@1")
            tier.learn(f"n{number}", Entry(b"", "s", "", "", 0, 1 << 60, 1, (), scent))
        lookup = asyncio.create_task(tier.find(asking(PHRASES[1]), RULES, 0.94))
        await asyncio.sleep(0)  # it is asked now
        all_told.set()
        assert (await lookup)[0] == "k"
        assert known[-1] < 500
        await tier.learned()
        assert len(tier) == 500
        await tier.aclose()

    asyncio.run(test())


def test_readings_are_of_one_partition() -> None:
    """Or one caller could time what another one asked (RELIABILITY S13)."""

    async def test() -> None:
        tier = Semantic(Near(), 10, pytest.fail, longest_s=30.0)
        read_kept.cache_clear()
        for owner in ("one", "two", "one"):
            await tier.find(asking(PHRASES[0], owner), RULES, 0.94)
        assert (read_kept.cache_info().misses, read_kept.cache_info().hits) == (2, 1)
        await tier.aclose()

    asyncio.run(test())
