"""Cut the power of a modelled disk thousands of times, and count what was promised and is missing.

    ./packshot python benchmarks/ledger_power.py --cuts 3000

The models are those of the tests (`tests/ledger/power.py` for the journal, a file system of apsw's
under SQLite in `tests/ledger/stores/power_vfs.py`); there some cuts are made, here many. The rows
with NORMAL and FULL show that the harness finds what is lost: they must not be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from packshot.ledger.stores.sqlite import SETTINGS
from tests.ledger.stores.test_sqlite_power import leases_lose, store_loses
from tests.ledger.test_power import outlives

FULL = [setting.replace("EXTRA", "FULL") for setting in SETTINGS]
SQLITE = {
    "store, ours (WAL, EXTRA)": store_loses,
    "store, WAL and NORMAL": lambda seed: store_loses(seed, then="synchronous = NORMAL"),
    "store, WAL and FULL": lambda seed: store_loses(seed, FULL),
    "leases, ours": leases_lose,
    "leases, NORMAL": lambda seed: leases_lose(seed, then="synchronous = NORMAL"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seeds, start = range(arguments.seed, arguments.seed + arguments.cuts), time.monotonic()
    rows: dict[str, dict[str, int]] = {}
    for mode in ("power", "process"):
        kept = failed = 0
        for seed in seeds:
            try:
                kept += outlives(mode, seed, seed * 7919 % 250)
            except AssertionError as error:
                failed += 1
                print(f"{mode}, seed {seed}: {error}")
        rows[f"journal, {mode}"] = {"cuts": len(seeds), "losing": failed, "promises kept": kept}
    for name, loses in SQLITE.items():
        lost = [loses(seed) for seed in seeds]
        rows[name] = {"cuts": len(seeds), "losing": sum(each > 0 for each in lost)}
    for name, row in rows.items():
        print(f"{name:28} {row['losing']:6} of {row['cuts']} cuts lose what was acknowledged")
    print(
        json.dumps(
            {
                "rows": rows,
                "seconds": round(time.monotonic() - start, 1),
                "python": platform.python_version(),
                "machine": f"{os.cpu_count()} cores, {platform.platform()}",
            }
        )
    )
    ours = ("journal, power", "journal, process", "store, ours (WAL, EXTRA)", "leases, ours")
    sys.exit(any(rows[name]["losing"] for name in ours))


if __name__ == "__main__":
    main()
