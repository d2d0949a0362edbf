"""What the response cache costs a call: CPU of an exact hit, time of a semantic lookup.

    python benchmarks/cache.py [--model FOLDER] [--entries 50000]

Exact: `ResponseCache.serve` of a request of about 1 kB whose answer is in memory, against the same
call handed to a dispatcher that has the answer ready; CPU time of the process, medians of rounds
taken in turn. Semantic: `Semantic.find` from the text to the key, with 50,000 entries in one
partition, one call at a time, on one core: reading, MiniLM, index, guards, and each of them by
itself. Half of the requests have an entry that means the same. Pinned to one core where the system
lets it.

Timing: whether a caller can tell by the time what another one has cached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from packshot.gateway.cache.cache import ResponseCache, Rules
from packshot.gateway.cache.embed import MiniLM, Offloaded
from packshot.gateway.cache.entry import Entry, Scent
from packshot.gateway.cache.minilm import default_folder
from packshot.gateway.cache.replay import events_of
from packshot.gateway.cache.request import CachedRequest, cached_request, spoken
from packshot.gateway.cache.semantic import Semantic
from packshot.gateway.cache.settings import SemanticCacheEntry
from packshot.gateway.cache.store import MemoryStore
from packshot.gateway.dispatch import Answer, Stream
from packshot.gateway.job import Job
from packshot.gateway.plan import Route
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey
from packshot.ledger.avoided import AvoidedCosts
from packshot.ledger.records import Avoided

ROUNDS, CALLS = 15, 2000
LONG = 1 << 60
OWNER = VirtualKey("bench")
ROUTE = Route("caption", ())
SYSTEM = "You write captions of product pictures. " * 18
COLOURS = "white black red blue green grey navy beige pink olive".split()
THINGS = "sneaker mug lamp chair watch bottle backpack candle teapot jacket".split()
PLACES = ("on a beach", "on a table", "in a studio", "in a forest", "on marble", "by a window")
LIGHTS = ("bright daylight", "soft light", "golden hour", "hard shadows", "overcast sky")


def job_of(text: str) -> Job:
    body = {
        "model": "caption",
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
        "temperature": 0.2,
        "max_tokens": 200,
    }
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    now = time.perf_counter()
    return Job("id", "chat", OWNER, ROUTE, fields, "caption", False, now, now + 60, "chat")


BODY = msgspec.json.encode(
    {
        "choices": [
            {"index": 0, "message": {"content": "a caption " * 40}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 250, "completion_tokens": 80},
    }
)


class Ready:
    """A dispatcher that has the answer already."""

    async def answer(self, job: Job) -> Answer:
        job.cost = 1000
        return Answer(BODY)


class Nowhere:
    """A journal that counts what hits it is told of: a flush comes once a second, and no hit's."""

    hits = 0

    def append(self, event: Avoided) -> int:
        self.hits += event.hits
        return 1


async def exact() -> dict[str, Any]:
    """Return µs of CPU of a hit and of the bare call, and the medians' spread."""
    ready: Any = Ready()
    cache = ResponseCache(
        SemanticCacheEntry(enabled=True), ready, Telemetry(), MemoryStore(1 << 26)
    )
    journal = Nowhere()
    cache.avoided = AvoidedCosts(journal)
    statuses: list[bool] = []

    async def deliver(got: Answer | Stream) -> int:
        statuses.append(isinstance(got, Answer))
        return 200

    jobs = [job_of(f"a white sneaker, number {number}, on a beach") for number in range(CALLS)]
    for job in jobs:
        await cache.serve(job, deliver)
    hits, bare = [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        for job in jobs:
            await cache.serve(job, deliver)
        middle = time.process_time()
        for job in jobs:
            await deliver(await ready.answer(job))
        hits.append((middle - began) / CALLS * 1e6)
        bare.append((time.process_time() - middle) / CALLS * 1e6)
    if not all(b"cache: hit" in job.cache for job in jobs):
        raise RuntimeError("some of the calls were no hits")
    cache.avoided.flush()
    if journal.hits != ROUNDS * CALLS:
        raise RuntimeError(f"the ledger heard of {journal.hits} hits")
    added = [hit - one for hit, one in zip(hits, bare, strict=True)]
    return {
        "exact_hit_added_us": round(statistics.median(added), 2),
        "exact_hit_added_us_min_max": [round(min(added), 2), round(max(added), 2)],
        "body_bytes": sum(len(bytes(raw)) for raw in jobs[0].fields.values()),
    }


async def timing(count: int = 5000) -> dict[str, Any]:
    """Tell whether a caller can time what another one has cached (RELIABILITY S13).

    ``count`` prompts that another virtual key has cached, and as many that nobody has, in a
    random order; Kolmogorov and Smirnov's two-sample test over the seconds of
    `ResponseCache.serve`.
    """
    ready: Any = Ready()
    cache = ResponseCache(
        SemanticCacheEntry(enabled=True), ready, Telemetry(), MemoryStore(1 << 28)
    )

    async def deliver(_: Answer | Stream) -> int:
        return 200

    for number in range(count):
        await cache.serve(job_of(f"prompt {2 * number}"), deliver)
    other = VirtualKey("other")
    took: tuple[list[float], list[float]] = ([], [])
    # In a random order: in turns, one kind would pay for the collection of the garbage of both.
    for number in random.Random(3).sample(range(2 * count), 2 * count):
        job = job_of(f"prompt {number}")
        job.owner = other
        began = time.perf_counter()
        await cache.serve(job, deliver)
        took[number % 2].append(time.perf_counter() - began)
    distance, p = two_samples(*took)
    return {"timing_ks_distance": distance, "timing_ks_p": p}


def two_samples(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return Kolmogorov and Smirnov's distance of two samples of one size, and its p."""
    left, right = np.sort(one), np.sort(other)
    every = np.concatenate([left, right])
    gaps = np.searchsorted(left, every, "right") - np.searchsorted(right, every, "right")
    distance = float(np.abs(gaps).max()) / len(one)
    scaled = distance * (len(one) / 2) ** 0.5
    terms = [(-1) ** (k - 1) * np.exp(-2 * k * k * scaled * scaled) for k in range(1, 101)]
    return round(distance, 4), round(min(1.0, 2 * float(sum(terms))), 4)


def texts(count: int) -> list[str]:
    """Return ``count`` caption requests, no two alike."""
    rng = random.Random(1)
    made: dict[str, None] = {}
    while len(made) < count:
        colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
        place, light = rng.choice(PLACES), rng.choice(LIGHTS)
        made[
            f"a {colour} {thing}, model {rng.randint(100, 9999)}, {place}, {light}, "
            f"seen from the {rng.choice(('front', 'side', 'top'))}"
        ] = None
    return list(made)


def reworded(text: str) -> str:
    """Say the same with the phrases in another order."""
    thing, model, place, *rest = text.split(", ")
    return f"please: {thing}, {place}, {model}, {', '.join(rest)}"


async def semantic(folder: Path, entries: int, lookups: int) -> dict[str, Any]:
    """Return ms of a lookup: median, p95, p99; and how many of those that should hit did."""
    embedder = Offloaded(MiniLM(folder))
    problems: list[BaseException] = []
    tier = Semantic(embedder, entries, problems.append)
    known = texts(entries)
    partition, _ = spoken(request_of(known[0])) or ("", "")
    # Vectors of templates that differ in a number are near each other, which is the hard case.
    real = await embed_all(embedder, known[: min(entries, 4000)])
    rng = np.random.default_rng(1)
    for number, text in enumerate(known):
        row = real[number % len(real)]
        if number >= len(real):
            row = row + rng.normal(0, 0.02, row.shape).astype(np.float32)
            row /= np.linalg.norm(row)
        scent = Scent(partition, text, row.astype(np.float16).tobytes(), embedder.name)
        tier.learn(f"{number}", Entry(b"", "key:bench", "", "", 0, LONG, 1, (), scent))
    await tier.learned()
    rules = Rules(True, True, 0.94, 60, (), frozenset())
    times, used, found, given_up = [], [], 0, 0
    hit_ms: list[float] = []
    miss_ms: list[float] = []
    picks = [known[number] for number in random.Random(2).sample(range(len(real)), lookups)]
    asked = [
        reworded(text) if n % 2 else text.replace("a ", "two ", 1) for n, text in enumerate(picks)
    ]
    for warm in asked[:20]:
        await tier.find(request_of(warm), rules, 0.94)
    for text in asked:
        request = request_of(text)
        began, cpu = time.perf_counter(), time.process_time()
        key, _, scent = await tier.find(request, rules, 0.94)
        (hit_ms if key else miss_ms).append((time.perf_counter() - began) * 1e3)
        times.append((time.perf_counter() - began) * 1e3)
        used.append((time.process_time() - cpu) * 1e3)
        found += bool(key)
        given_up += scent is None
    facts_hop = await hand_over()
    await tier.aclose()
    if problems:
        raise problems[0]
    times.sort()
    used.sort()
    return {
        "entries": entries,
        "lookups": lookups,
        "hits": found,
        **stages(embedder, tier, asked, picks, real[: len(asked)]),
        "should_hit": lookups // 2,
        "given_up": given_up,
        "semantic_cpu_ms_p50": round(used[len(used) // 2], 2),
        "semantic_cpu_ms_p95": round(used[int(len(used) * 0.95)], 2),
        "semantic_ms_p50": round(times[len(times) // 2], 2),
        "semantic_ms_p95": round(times[int(len(times) * 0.95)], 2),
        "semantic_ms_p99": round(times[int(len(times) * 0.99)], 2),
        "hit_ms": of(hit_ms),
        "miss_ms": of(miss_ms),
        "hand_over_ms": facts_hop,
    }


def of(times: list[float]) -> list[float]:
    """Return median and 95th percentile."""
    times = sorted(times) or [0.0]
    return [round(times[len(times) // 2], 3), round(times[int(len(times) * 0.95)], 3)]


def timed(work: Callable[..., Any], rows: list[Any]) -> tuple[list[float], list[Any]]:
    """Return median and 95th percentile of ``work`` in ms, and what it returned."""
    took, got = [], []
    for row in rows:
        began = time.perf_counter()
        got.append(work(row))
        took.append((time.perf_counter() - began) * 1e3)
    return of(took), got


async def hand_over() -> list[float]:
    """Return ms of a turn of a thread that has nothing to do, there and back."""
    run = asyncio.get_running_loop().run_in_executor
    took = []
    with ThreadPoolExecutor(1) as thread:
        for _ in range(1000):
            began = time.perf_counter()
            await run(thread, int)
            took.append((time.perf_counter() - began) * 1e3)
    return of(took)


def stages(
    embedder: Offloaded, tier: Semantic, asked: list[str], picks: list[str], rows: np.ndarray
) -> dict[str, Any]:
    """Return ms, median and 95th percentile, of what a lookup is made of, each by itself."""
    from packshot.gateway.cache.guards import compare
    from packshot.gateway.cache.slots import read

    index = next(iter(tier._partitions.values())).index  # noqa: SLF001
    model: Any = embedder._model  # noqa: SLF001
    tokenizer, session = model._tokenizer, model._session  # noqa: SLF001
    found: dict[str, Any] = {}
    found["read_ms"], left = timed(read, asked)
    right = [read(text) for text in picks]
    found["guards_ms"], _ = timed(lambda pair: compare(*pair), list(zip(left, right, strict=True)))
    gists = [reading.gist for reading in left]
    found["tokenize_ms"], tokens = timed(lambda text: tokenizer.encode(text).ids, gists)
    found["model_ms"], _ = timed(
        lambda ids: session.run(None, {"tokens": np.array([ids], np.int64)}), tokens
    )
    found["search_ms"], _ = timed(lambda row: index.nearest(row, 4, 0.94), list(rows))
    found["replay_ms"], _ = timed(lambda _: events_of("chat", BODY, usage=True), gists)
    return {"tokens": statistics.median(map(len, tokens)), **found}


async def semantic_timing(folder: Path, count: int = 1000) -> dict[str, Any]:
    """As `timing`, with the semantic tier: another virtual key has had half of the texts read,
    embedded and kept, in other words as well.
    """
    problems: list[BaseException] = []
    tier = Semantic(Offloaded(MiniLM(folder)), 4 * count, problems.append, longest_s=30.0)
    rules = Rules(True, True, 0.94, 60, (), frozenset())
    known = texts(2 * count)
    for number, text in enumerate(known[::2]):
        _, _, scent = await tier.find(request_of(text), rules, 0.94)
        tier.learn(f"{number}", Entry(b"", "key:bench", "", "", 0, LONG, 1, (), scent))
    await tier.learned()
    took: tuple[list[float], list[float]] = ([], [])
    for number in random.Random(4).sample(range(2 * count), 2 * count):
        job = job_of(known[number])
        job.owner = VirtualKey("other")
        request = cached_request(job, 1.0)
        began = time.perf_counter()
        key, _, _ = await tier.find(request, rules, 0.94)
        took[number % 2].append(time.perf_counter() - began)
        if key:
            raise RuntimeError("another key's answer was found")
    await tier.aclose()
    distance, p = two_samples(*took)
    return {"semantic_timing_ks_distance": distance, "semantic_timing_ks_p": p}


async def embed_all(embedder: Offloaded, known: list[str]) -> np.ndarray:
    """Embed in pieces that the embedder takes."""
    from packshot.gateway.cache.slots import read

    gists = [read(text).gist for text in known]
    return np.concatenate(
        [await embedder.embed(gists[at : at + 200]) for at in range(0, len(gists), 200)]
    )


def request_of(text: str) -> CachedRequest:
    return cached_request(job_of(text), 1.0)


ROWS = {
    "hit_ms": "hit, text to key",
    "miss_ms": "miss, text to key",
    "read_ms": "  reading",
    "guards_ms": "  comparing with one entry",
    "tokenize_ms": "  tokens",
    "model_ms": "  MiniLM",
    "search_ms": "  searching",
    "hand_over_ms": "  to the thread and back",
    "replay_ms": "a kept answer told as a stream",
}


def show(facts: dict[str, Any]) -> None:
    print(f"{'ms':>42} {'p50':>8} {'p95':>8}")
    for name, what in ROWS.items():
        print(f"{what[:42]:42} {facts[name][0]:8.3f} {facts[name][1]:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=default_folder())
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--lookups", type=int, default=1000)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    facts: dict[str, Any] = {"python": platform.python_version(), "cpu": platform.processor()}
    facts |= asyncio.run(exact())
    facts |= asyncio.run(timing())
    print("exact", facts["exact_hit_added_us"], "µs", facts["exact_hit_added_us_min_max"])
    if (options.model / "manifest.json").is_file():
        facts |= asyncio.run(semantic_timing(options.model))
        facts |= asyncio.run(semantic(options.model, options.entries, options.lookups))
        show(facts)
    else:
        print(f"no model in {options.model}: packshot cache model makes it")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
