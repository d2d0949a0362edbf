"""How often three caches answer what they should, and what they should not: on labelled pairs.

    ./packshot cache model
    ./packshot python benchmarks/cache_guard.py [--half dev|heldout|third] [--write PAIRS.jsonl]

Exact: the texts are equal. Cosine: MiniLM's similarity is 0.94 or more, as semantic caches are set
up. Ours: the guards agree, and the similarity of what they read (`Reading.gist`) reaches
`THRESHOLD`, which was chosen on the development half. Rates come with Clopper and Pearson's 95 %
intervals. The held-out half has words and grammars that the guards were not written against, and
was run once, and so has the third draw, which is of other products, phrasing and languages again;
`--seed` draws other pairs by the same generator.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from cache_pairs import dev, heldout, third
from cache_pairs.pairs import Pair, write

from packshot.gateway.cache import minilm
from packshot.gateway.cache.embed import MiniLM
from packshot.gateway.cache.guards import compare
from packshot.gateway.cache.sequential import Interval, exact_interval, wilson_interval
from packshot.gateway.cache.slots import read

THRESHOLD = 0.80
ALONE = 0.94
HALVES = {"dev": dev.generate, "heldout": heldout.generate, "third": third.generate}
OTHER_THRESHOLDS = (0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.9, 0.85, 0.8)


def similarities(model: MiniLM, texts: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    """Return the cosine of each pair, and how long each text took (seconds)."""
    found, took = [], []
    for number, pair in enumerate(texts):
        start = time.perf_counter()
        left, right = model.encode(pair)
        took.append((time.perf_counter() - start) / 2)
        found.append(float(left @ right))
        if sys.stderr.isatty() and number % 500 == 0:
            print(f"\r{number:,} of {len(texts):,} pairs", end="", file=sys.stderr)
    return found, took


def percent(interval: Interval, digits: int = 1) -> str:
    rate, low, high = (100 * part for part in (interval.rate, interval.low, interval.high))
    return f"{rate:.{digits}f} % ({low:.{digits}f} to {high:.{digits}f})"


def show(name: str, pairs: list[Pair], hit: list[bool]) -> dict[str, object]:
    same = [answered for pair, answered in zip(pairs, hit, strict=True) if pair.same]
    other = [answered for pair, answered in zip(pairs, hit, strict=True) if not pair.same]
    hits, false = exact_interval(sum(same), len(same)), exact_interval(sum(other), len(other))
    wilson = wilson_interval(sum(other), len(other))
    print(f"{name:26} {percent(hits):24} {percent(false, 3)}")
    return {
        "hits": sum(same),
        "same": len(same),
        "false": sum(other),
        "other": len(other),
        "hit_rate": round(hits.rate, 4),
        "false_rate": round(false.rate, 6),
        "false_high": round(false.high, 6),
        "false_high_wilson": round(wilson.high, 6),
    }


def by_kind(pairs: list[Pair], ours: list[bool], alone: list[bool]) -> None:
    total, mine, theirs = Counter[tuple[bool, str]](), Counter(), Counter()
    for pair, our, their in zip(pairs, ours, alone, strict=True):
        key = (not pair.same, pair.kind)
        total[key] += 1
        mine[key] += our
        theirs[key] += their
    print(f"\n{'kind':8} {'of pair':22} {'pairs':>6} {'ours':>8} {'cosine':>8}")
    for key in sorted(total):
        label = "other" if key[0] else "same"
        print(f"{label:8} {key[1]:22} {total[key]:6} {mine[key]:8} {theirs[key]:8}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--half", choices=HALVES, default="dev")
    parser.add_argument("--model", type=Path, default=minilm.default_folder())
    parser.add_argument("--write", type=Path, help="only write the pairs, one JSON object a line")
    parser.add_argument("--seed", type=int, help="another draw of the same generator")
    parser.add_argument("--guards-only", action="store_true", help="without the model: quick")
    parser.add_argument("--first", type=int, help="only so many of the pairs")
    options = parser.parse_args()
    seed = () if options.seed is None else (options.seed,)
    pairs = HALVES[options.half](*seed)[: options.first]
    if options.write:
        write(options.write, pairs)
        return
    if options.guards_only:
        agree = [compare(read(pair.a), read(pair.b)).agree for pair in pairs]
        by_kind(pairs, agree, [False] * len(pairs))
        print(json.dumps({"half": options.half, "guards": show("guards alone", pairs, agree)}))
        return
    model = MiniLM(options.model)
    print(f"{options.half}: {len(pairs):,} pairs; {platform.machine()}, Python {sys.version[:6]}")
    cosine, took = similarities(model, [(pair.a, pair.b) for pair in pairs])
    start = time.process_time()
    readings = [(read(pair.a), read(pair.b)) for pair in pairs]
    agree = [compare(left, right).agree for left, right in readings]
    guard_s = (time.process_time() - start) / len(pairs)
    gist, _ = similarities(model, [(left.gist, right.gist) for left, right in readings])
    ours = [agrees and near >= THRESHOLD for agrees, near in zip(agree, gist, strict=True)]
    alone = [near >= ALONE for near in cosine]
    print(f"\n{'':26} {'hits of those that should':24} false of those that should not")
    result = {
        "exact": show("exact", pairs, [pair.a == pair.b for pair in pairs]),
        "cosine": show(f"cosine ≥ {ALONE}", pairs, alone),
        "guards": show("guards alone", pairs, agree),
        "ours": show(f"guards, cosine ≥ {THRESHOLD}", pairs, ours),
    }
    for threshold in OTHER_THRESHOLDS:
        hit = [near >= threshold for near in cosine]
        result[f"cosine {threshold}"] = show(f"cosine ≥ {threshold}", pairs, hit)
        hit = [agrees and near >= threshold for agrees, near in zip(agree, gist, strict=True)]
        result[f"ours {threshold}"] = show(f"guards, cosine ≥ {threshold}", pairs, hit)
    by_kind(pairs, ours, alone)
    times = {
        "embed_ms_median": round(1000 * statistics.median(took), 2),
        "guard_pair_ms": round(1000 * guard_s, 3),
    }
    print(f"\n{times}")
    print(json.dumps({"half": options.half, "pairs": len(pairs), **result, **times}))


if __name__ == "__main__":
    main()
