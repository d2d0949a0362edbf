"""How long reports take on a large ledger: the stage table, one render's story, waste, verify.

    ./packshot python benchmarks/ledger_reports.py --entries 1_000_000
    ./packshot python benchmarks/ledger_reports.py --store postgresql://user@host/db

Fills an empty store with entries as a gateway and a studio book them (30 days, 20 teams, five
stages a render, two of them paid to providers, one attempt in a hundred wasted), by the same
`append` that the drain uses, hash chain and sums included. Each report is timed on a new connection
first (what the first one after a start pays; the operating system may still have the file in
memory), then several times. Times are the clock's. The last line is one JSON object.

Sums by hour have a row for each dimension and each 4 % of cost, so that reports take the longer the
more costs differ. Time on a GPU differs little within a recipe, tokens of a caption much
(`MEDIANS`); ``--spread 0.5`` lets all costs differ as much as those.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.ledger.clerk import book_late, late
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.records import Dimensions, Outcome, Settled, Stamped
from packshot.ledger.reports.forecast import forecast
from packshot.ledger.reports.period import Period
from packshot.ledger.reports.stages import stage_table
from packshot.ledger.reports.story import story_of
from packshot.ledger.reports.waste import unpriced, waste
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore

BEGIN = 1_793_000_000 * SECOND_US - 1_793_000_000 * SECOND_US % HOUR_US
DAYS = 30
BATCH = 20_000
STAGES = (
    ("caption", "openai", "gpt-4o-mini", ""),
    ("encode", "", "sdxl", "h100"),
    ("denoise", "", "sdxl", "h100"),
    ("decode", "", "sdxl", "h100"),
    ("store", "s3", "bucket", ""),
)
MEDIANS = {
    "caption": (60_000, 0.5),
    "encode": (9_000, 0.03),
    "denoise": (900_000, 0.1),
    "decode": (40_000, 0.03),
    "store": (5000, 0.0),
}
"""Nano-EUR that an attempt of the stage costs, and the deviation of their logarithm."""


def entries(count: int, seed: int, spread: float | None) -> Iterator[Stamped]:
    """Make ``count`` settled attempts, spread evenly over the days."""
    rng = random.Random(seed)
    step = DAYS * 24 * HOUR_US // count
    for number in range(1, count + 1):
        render, place = divmod(number - 1, 5)
        stage, provider, model, device = STAGES[place]
        wasted, priced = rng.random() < 0.01, rng.random() > 0.0005
        median, own = MEDIANS[stage]
        deviation = own if spread is None else spread
        amount = int(median * rng.lognormvariate(0, deviation)) if priced else 0
        outcome: Outcome = "failed_billed" if wasted else "succeeded"
        at = BEGIN + number * step
        settled = Settled(
            attempt=f"{number:026d}",
            number=number,
            held_at=at,
            dispatched_at=at,
            settled_at=at + SECOND_US,
            outcome=outcome,
            reason=rng.choice(("timeout", "cut", "filtered")) if wasted else "",
            dimensions=Dimensions(
                render=f"r{render:020d}",
                recipe="packshot",
                stage=stage,
                provider=provider,
                model=model,
                team=f"team-{render % 20}",
                device=device,
            ),
            seconds_us=rng.randrange(10_000, 3_000_000),
            input_tokens=300 if provider == "openai" else 0,
            output_tokens=120 if provider == "openai" else 0,
            account="waste" if wasted else stage,
            amount=amount,
            payable=amount if provider else 0,
            depreciation=0 if provider else amount,
            priced=priced,
        )
        yield Stamped("bench", 1, number, settled)


def fill(store: TableStore, count: int, spread: float | None) -> float:
    """Append all entries; return the seconds that it took."""
    start = time.perf_counter()
    batch: list[Stamped] = []
    for each in entries(count, 1, spread):
        batch.append(each)
        if len(batch) == BATCH:
            store.append(batch)
            batch = []
    store.append(batch)
    return time.perf_counter() - start


def reports(count: int) -> dict[str, Callable[[TableStore], object]]:
    """What is timed, by name."""
    prices = PriceBook.load()
    month = Period(BEGIN, BEGIN + DAYS * 24 * HOUR_US + HOUR_US)
    day = Period(month.until - 24 * HOUR_US, month.until)
    render = f"r{count // 10:020d}"
    return {
        "stage_table": lambda store: stage_table(store, month),
        "stage_table_day": lambda store: stage_table(store, day),
        "by_team": lambda store: stage_table(store, month, "team"),
        "one_team": lambda store: stage_table(store, month, only={"team": "team-7"}),
        "render_story": lambda store: story_of(store, render),
        "waste_month": lambda store: waste(store, month),
        "waste_day": lambda store: waste(store, day),
        "unpriced_month": lambda store: unpriced(store, month),
        "late_month": lambda store: book_late(late(store, prices, month), None),
        "forecast": lambda store: forecast(store, month, 1_000_000),
    }


def timed(url: str, ask: Callable[[TableStore], object], rounds: int) -> tuple[float, list[float]]:
    """Return the seconds of the first time on a new connection, and of each one after it."""
    store = open_store(url, read_only=True)
    took: list[float] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ask(store)
        took.append(time.perf_counter() - start)
    store.close()
    return took[0], took[1:]


def measure(
    url: str, count: int, rounds: int, spread: float | None, *, verify: bool
) -> dict[str, object]:
    store = open_store(url)
    if store.query("SELECT seq FROM entries LIMIT 1"):
        raise SystemExit("the store is not empty: expected a new one")
    seconds = fill(store, count, spread)
    ((rollups,),) = store.query("SELECT COUNT(*) FROM rollups")
    ((stored,),) = store.query("SELECT COUNT(*) FROM entries")
    store.close()
    if stored != count:
        raise SystemExit(f"{stored} entries, expected {count}")
    result: dict[str, object] = {
        "fill_per_s": round(count / seconds),
        "rollup_rows": int(rollups),
    }
    if "://" not in url:
        result["bytes_per_entry"] = round(Path(url).stat().st_size / count)
    print(f"{count:,} entries in {seconds:.0f} s; {rollups:,} rows of sums by hour")
    print(f"{'ms':16} {'first':>10} {'median':>10} {'least':>10} {'most':>10}")
    for name, ask in reports(count).items():
        first, took = timed(url, ask, rounds)
        values = (first, statistics.median(took), min(took), max(took))
        print(f"{name:16} " + " ".join(f"{value * 1000:10.1f}" for value in values), flush=True)
        result[f"{name}_first_ms"] = round(first * 1000, 1)
        result[f"{name}_ms"] = round(statistics.median(took) * 1000, 1)
    if verify:
        store = open_store(url, read_only=True)
        start = time.perf_counter()
        found = store.verify()
        result["verify_s"] = round(time.perf_counter() - start, 1)
        store.close()
        print(f"verify {result['verify_s']} s, {len(found)} findings")
        if found:
            raise SystemExit(str(found[:3]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--spread", type=float, help="of all costs; else each stage's own")
    parser.add_argument("--store", default="", help="an empty store; else a new SQLite file")
    parser.add_argument("--no-verify", action="store_true", help="leave out what takes longest")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.store or f"{folder}/ledger.db"
        found = measure(
            url,
            arguments.entries,
            arguments.rounds,
            arguments.spread,
            verify=not arguments.no_verify,
        )
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "load_at_start": round(load, 2),
        "python": platform.python_version(),
        "store": "postgresql" if "://" in url else f"sqlite {sqlite3.sqlite_version}",
        "entries": arguments.entries,
        "rounds": arguments.rounds,
        "spread": arguments.spread,
        **found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
