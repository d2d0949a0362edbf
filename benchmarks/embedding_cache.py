"""What keeping texts' embeddings saves: 4,000 caption stems with a long tail, real encoders.

Renders ask for stems by Zipf's law (the k-th most frequent one in proportion to 1/k), 40,000 times
in 30 days. That is the workload; its hit rate follows from it, and the question is what a real
cache makes of it, with its limits, its time and its file:

- `read`: every text through packshot-mini's encoders or the cache, as the engine does it, 256 MiB
  in memory and a file behind it. How many hits, where; what they take; what they saved; are the
  bits the same?
- `again`: the same with an empty memory, as in a new process, before the same file.
- `months`: 90 days on a clock of their own, with embeddings of one byte: what does the end after 30
  days cost?
- `small`: the hit rate of shelves that hold 250 to 2,000 stems.

Run it with

    ./packshot python benchmarks/embedding_cache.py

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from packshot.core.types import NOTHING_READ, EmbeddingUse
from packshot.state.blobs import OVERHEAD, Found, MemoryBlobs, TieredBlobs
from packshot.state.sqlite_blobs import SqliteBlobs
from packshot.studio.embeddings import EmbeddingSettings, KeptEmbeddings

STEMS, RENDERS, DAYS = 4000, 40_000, 30
MIB = 1024 * 1024
PRODUCTS = (
    *("sneakers", "boots", "loafers", "sandals", "wristwatch", "sunglasses", "backpack", "handbag"),
    *("wallet", "belt", "mug", "teapot", "vase", "bowl", "plate", "bottle", "jar", "candle"),
    *("lamp", "clock", "chair", "stool", "cushion", "blanket", "headphones", "camera", "speaker"),
    *("keyboard", "perfume bottle", "soap", "lipstick", "toothbrush", "knife", "pan", "kettle"),
    *("ring", "necklace", "scarf", "hat", "umbrella"),
)
COLOURS = ("white", "black", "red", "tan", "navy", "olive", "teal", "grey", "mustard", "rose")
GROUNDS = (
    "on white marble, soft light, product photo",
    "on a sandy beach, bright daylight, eye-level view",
    "on dark slate, light from the left, shallow depth of field",
    "on a wooden table, window light, 85 mm lens",
    "on a pink studio background, even light",
    "on wet stone, dramatic side light",
    "on a linen cloth, morning light, top view",
    "on grey concrete, overcast light",
    "on moss, dappled light",
    "on a glass shelf, backlight",
)


def stems() -> list[str]:
    """Return 4,000 captions of the length and the words of real ones."""
    made = [f"{c} {p} {g}" for p in PRODUCTS for c in COLOURS for g in GROUNDS]
    return made[:STEMS]


def asked(seed: int, renders: int) -> np.ndarray:
    """Return which stem each render asks for."""
    share = 1 / np.arange(1, STEMS + 1)
    return np.random.default_rng(seed).choice(STEMS, renders, p=share / share.sum())


class Watched:
    """A shelf that times what it finds."""

    def __init__(self, shelf: MemoryBlobs | SqliteBlobs) -> None:
        self.shelf = shelf
        self.put, self.delete, self.sweep, self.held = (
            shelf.put,
            shelf.delete,
            shelf.sweep,
            shelf.held,
        )
        self.took: list[float] = []

    def get(self, key: str) -> Found | None:
        start = time.perf_counter()
        found = self.shelf.get(key)
        if found is not None:
            self.took.append(time.perf_counter() - start)
        return found

    def facts(self) -> dict[str, float]:
        milliseconds = sorted(1000 * seconds for seconds in self.took) or [0.0]
        return {
            "hits": len(self.took),
            "p50_ms": round(statistics.median(milliseconds), 4),
            "p95_ms": round(milliseconds[int(0.95 * (len(milliseconds) - 1))], 4),
        }


def read(model: object, texts: list[str], order: np.ndarray, file: Path) -> dict[str, object]:
    """Read every text that is asked for as the engine does, and return what came of it."""
    import torch

    from packshot.engine.conditioning import encode_texts
    from packshot.engine.embeddings import TextReader

    settings = EmbeddingSettings()
    front = Watched(MemoryBlobs(settings.memory_mb * MIB))
    back = Watched(SqliteBlobs(file, settings.file_mb * MIB))
    kept = KeptEmbeddings(TieredBlobs(front, back))
    encode = partial(encode_texts, *model.readers)
    reader, plain = TextReader(model, encode, cache=kept), TextReader(model, encode)
    took: dict[bool, list[float]] = {True: [], False: []}
    with torch.inference_mode():
        for stem in order:
            start = time.perf_counter()
            _, use = reader.read([texts[stem]])
            took[bool(use.hits)].append(time.perf_counter() - start)
        same = all(
            torch.equal(reader.read([text])[0].tokens, plain.read([text])[0].tokens)
            for text in (texts[stem] for stem in order[:: len(order) // 100])
        )
    if not same:
        raise SystemExit("an embedding from the cache differs from one that is made now")
    hits, misses = len(took[True]), len(took[False])
    total = sum(took[True]) + sum(took[False])
    each = statistics.median(took[False]) if misses else None
    facts = {
        "hit_rate": round(hits / (hits + misses), 4),
        "distinct": len(set(order.tolist())),
        "memory": front.facts(),
        "file": back.facts(),
        "encode_ms": each and round(1000 * each, 2),
        "hit_ms": round(1000 * statistics.median(took[True]), 3),
        "seconds": round(total, 1),
        "saved_s": round(kept.total.saved_s, 1),
        "file_mib": round(back.held().size / MIB),
    }
    back.shelf.close()
    return facts


class Days:
    """A clock that the workload moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def counted(kept: KeptEmbeddings, order: np.ndarray, clock: Days, days: float) -> EmbeddingUse:
    """Ask for stems, spread over ``days``; embeddings are one byte here."""
    total = NOTHING_READ
    for stem in order:
        clock.now += days * 24 * 3600 / len(order)
        hit = kept.get(str(stem)) is not None
        if not hit:
            kept.put(str(stem), b"x")
        total += EmbeddingUse(int(hit), int(not hit))
    return total


def months() -> list[float]:
    """Return the hit rate of three months, one after the other."""
    clock = Days()
    kept = KeptEmbeddings(MemoryBlobs(64 * MIB, clock))
    rates = [counted(kept, asked(seed, RENDERS), clock, DAYS).rate for seed in (1, 2, 3)]
    return [round(rate, 4) for rate in rates]


def small() -> dict[int, float]:
    """Return the hit rate by how many stems the shelf holds."""
    rates: dict[int, float] = {}
    for room in (250, 500, 1000, 2000):
        clock = Days()
        kept = KeptEmbeddings(MemoryBlobs(room * (1 + OVERHEAD), clock))
        rates[room] = round(counted(kept, asked(1, RENDERS), clock, DAYS).rate, 4)
    return rates


def environment() -> dict[str, str | int | float]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=RENDERS, help="of `read` (default 40,000)")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    import torch

    import packshot_mini
    from packshot.engine.engine import Engine

    torch.set_num_threads(given.threads)
    model = Engine.load(packshot_mini.model_path(), device="cpu").model
    texts, order = stems(), asked(1, given.renders)
    facts: dict[str, object] = {"environment": environment()}
    print(json.dumps(facts["environment"], indent=2))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.db"
        for name in ("read", "again"):
            facts[name] = read(model, texts, order, file)
            print(f"\n{name}")
            for key, value in facts[name].items():
                print(f"  {key:12}{value}")
    facts["months"], facts["small"] = months(), small()
    print(f"\nhit rate of three months, each embedding ending after 30 days: {facts['months']}")
    print(f"hit rate by stems that the shelf holds: {facts['small']}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
