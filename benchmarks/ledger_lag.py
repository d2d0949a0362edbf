"""What one scrape of the ledger's lag costs, by how far the store is behind.

    ./packshot python benchmarks/ledger_lag.py --attempts 200000

Four workers' journals are filled, and nothing is drained: what the exporter then does for a scrape
is timed, in CPU time, beside decoding every record, which is what it did before there was a cursor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from packshot.ledger.journal import Journal, read_journals
from packshot.ledger.lag import lag_of
from packshot.ledger.records import Dimensions, Settled

WORKERS = 4
OWN = Dimensions(stage="denoise", device="cpu")


def fill(folder: Path, attempts: int) -> int:
    """Settle so many attempts in each worker's journal; return the bytes of all."""
    for number in range(WORKERS):
        journal = Journal(folder, f"w{number}")
        for _ in range(attempts // WORKERS):
            journal.settle(lambda at: Settled(f"a-{at}", at, 1, 1, 10**15, "succeeded", "", OWN))
        journal.close()
    return sum(path.stat().st_size for path in folder.glob("*/*.journal"))


def timed(call: Callable[[], object], runs: int) -> list[float]:
    """Return milliseconds of CPU per call, sorted."""
    taken: list[float] = []
    for _ in range(runs):
        start = time.process_time()
        call()
        taken.append((time.process_time() - start) * 1000)
    return sorted(taken)


def main() -> None:
    """Fill, time, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--attempts", type=int, default=200_000)
    options.add_argument("--runs", type=int, default=7)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = fill(folder, given.attempts)
        rows = {
            "lag_of": timed(lambda: lag_of(folder, {}, 2 * 10**15), given.runs),
            "every record": timed(lambda: sum(1 for _ in read_journals(folder)), given.runs),
        }
    facts = {"attempts": given.attempts, "bytes": size, "python": platform.python_version()}
    for what, taken in rows.items():
        middle = statistics.median(taken)
        print(f"{what:14} {middle:9.1f} ms of CPU ({taken[0]:.1f} to {taken[-1]:.1f})")
        facts[what] = round(middle, 2)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
