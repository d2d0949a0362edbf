"""What keeping the books costs: CPU per hold and post, and per attempt through the drain.

    ./packshot python benchmarks/ledger.py --attempts 50000

Three figures, each the median of several rounds of random data, in CPU time of the process (a busy
machine lengthens the clock's): a hold and a post in the journal with prices; one attempt from the
journal into a SQLite store, hash chain and sums by hour included; and, as the limit for both, the
``write()`` calls that the first needs, alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from packshot.core.clock import wall_us
from packshot.core.types import Usage
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.records import Dimensions
from packshot.ledger.stores import open_store

STAGES = ("encode", "denoise", "decode", "finish", "store")


def cpu_us(work: Callable[[], object], count: int) -> float:
    """CPU microseconds of this process per one of ``count``."""
    gc.collect()
    start = time.process_time()
    work()
    return (time.process_time() - start) / count * 1e6


def book_attempts(ledger: Ledger, count: int, rng: random.Random) -> None:
    """Hold and post ``count`` calls of a model that is paid by the token, for twenty teams."""
    teams = [f"team-{n}" for n in range(20)]
    for number in range(count):
        stage = STAGES[number % 5]
        of = Dimensions(
            render=f"r{number // 5}",
            recipe="render",
            stage=stage,
            provider="openai",
            model="gpt-4o-mini",
            team=teams[number // 5 % 20],
        )
        hold = ledger.hold(of, 10_000_000)
        used = Usage("caption", input_tokens=rng.randrange(50, 900), output_tokens=120)
        ledger.post(hold, used)


def writes_alone(folder: Path, count: int) -> None:
    """The two ``write()`` of an attempt, of the sizes that the journal writes."""
    descriptor = os.open(folder / "limit", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    held, settled = bytes(150), bytes(230)
    for _ in range(count):
        os.write(descriptor, held)
        os.write(descriptor, settled)
    os.close(descriptor)


def one_round(count: int, seed: int) -> dict[str, float]:
    """Run all parts once, in a folder of its own."""
    rng, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ledger = Ledger(Journal(folder / "journal", "bench"), PriceBook.load())
        book_attempts(ledger, 500, rng)  # warm-up
        found["hold_post_us"] = cpu_us(lambda: book_attempts(ledger, count, rng), count)
        found["writes_us"] = cpu_us(lambda: writes_alone(folder, count), count)
        ledger.close()
        store = open_store(str(folder / "ledger.db"))
        drain = Drain(folder / "journal", store, None, wall_us)
        start = time.perf_counter()
        found["drain_us"] = cpu_us(drain.step, count + 500)
        found["drain_per_s"] = (count + 500) / (time.perf_counter() - start)
        rows = store.query("SELECT count(*) FROM entries")[0][0]
        if rows != count + 500:
            raise SystemExit(f"{rows} entries, expected {count + 500}")
        store.close()
        found["bytes"] = (folder / "ledger.db").stat().st_size / rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attempts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rounds = [one_round(arguments.attempts, seed) for seed in range(arguments.rounds)]
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "load_at_start": round(load, 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "attempts": arguments.attempts,
        "rounds": arguments.rounds,
    }
    print(f"{'':14} {'median':>10} {'least':>10} {'most':>10}")
    for key in rounds[0]:
        values = [round_[key] for round_ in rounds]
        print(f"{key:14} {statistics.median(values):10.2f} {min(values):10.2f} {max(values):10.2f}")
        result[key] = round(statistics.median(values), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
