"""The gateway at top speed for minutes: whether its memory grows, and the store keeps up.

    ./packshot python benchmarks/gateway_soak.py --minutes 10

Everything is on: a virtual key with limits and a budget, hold and post in the ledger with journal
and drain, three weighted provider keys; the provider is the fake one (`--static`, 1 kB of JSON).
Load, gateway, drain and provider share the machine as they can.

Each line is a slice of time. ``behind`` is how many attempts are in the journal and not yet in the
store, ``journal`` the size of what is kept of it. The end of it: the slope of the memory after the
first quarter, by least squares, in MiB per 100,000 calls (RELIABILITY R20: below 1), the slope of
``behind`` over the second half, in calls a second (bounded: near 0), how long the drain took to
catch up, and how many calls are missing in the books (0; calls that were under way when a slice's
load ended are booked, and not counted as calls). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import gateway_rivals as rivals
from gateway import stored
from gateway_load import family, measure

from packshot.gateway.bench import started_fake
from packshot.ledger.lag import lag_of
from packshot.ledger.stores import open_store

CATCH_UP_S = 300.0


@dataclass(frozen=True)
class Slice:
    """What a slice of time was like, at its end; memory in MiB of all of the gateway's processes
    and of the largest worker, ``journal_mb`` in MB.
    """

    at_s: float
    calls: int
    per_s: float
    p99_ms: float
    bad: int
    behind: int
    journal_mb: float
    memory: float
    worker: float
    files: int


def memory_of(pid: int) -> float:
    """Return what a process has of memory for itself alone, in MiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in text.splitlines() if line.startswith("Private_"))
    return sum(int(line[1]) for line in lines) / 1024


def is_drain(pid: int) -> bool:
    """Tell whether a process moves the journals into the store."""
    try:
        return b"drainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def open_files(pids: Sequence[int]) -> int:
    """Return how many descriptors processes have open."""
    found = 0
    for pid in pids:
        try:
            found += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            continue
    return found


def behind(folder: Path) -> int:
    """Return how many attempts the ledger's store is behind the journals."""
    store = open_store(str(folder / "ledger.db"), read_only=True)
    try:
        return lag_of(folder / "journal", store.marks(), 0).attempts
    finally:
        store.close()


def slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the slope of a line through points, by least squares; 0 for fewer than three."""
    if len(pairs) < 3:
        return 0.0
    x_mean = sum(x for x, _ in pairs) / len(pairs)
    y_mean = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - x_mean) ** 2 for x, _ in pairs)
    return sum((x - x_mean) * (y - y_mean) for x, y in pairs) / spread if spread else 0.0


def soak(options: argparse.Namespace, folder: Path) -> tuple[list[Slice], float, int]:
    """Put load on a gateway; return the slices, the seconds to catch up, and what is missing."""
    slices: list[Slice] = []
    with ExitStack() as stack:
        port, _ = stack.enter_context(started_fake())
        url = f"http://127.0.0.1:{port}"
        ours = stack.enter_context(rivals.packshot(folder, url, "", None, 0, options.python))
        print(f"{'s':>6}{'calls/s':>9}{'p99 ms':>8}{'bad':>5}{'behind':>9}{'journal':>9}"
              f"{'MiB':>8}{'worker':>8}{'files':>7}")  # fmt: skip
        began, calls = time.monotonic(), 0
        while time.monotonic() - began < options.minutes * 60:
            got = measure(ours, folder, conns=options.connections, seconds=options.slice, cores=[0])
            calls += got.calls
            pids = family(ours.process.pid)
            sizes = {pid: memory_of(pid) for pid in pids}
            worker = max(sizes[pid] for pid in pids if not is_drain(pid))
            waiting = sum(f.stat().st_size for f in folder.glob("journal/*/*.journal"))
            made = Slice(
                time.monotonic() - began, calls, got.per_s, got.p99 / 1e3, got.bad,
                behind(folder), waiting / 1e6, sum(sizes.values()), worker, open_files(pids),
            )  # fmt: skip
            slices.append(made)
            print(f"{made.at_s:>6.0f}{made.per_s:>9,.0f}{made.p99_ms:>8.1f}{made.bad:>5}"
                  f"{made.behind:>9,}{made.journal_mb:>8.1f}M{made.memory:>8.1f}"
                  f"{made.worker:>8.1f}{made.files:>7}", flush=True)  # fmt: skip
        ended = time.monotonic()
        while (behind(folder) or calls > stored(folder)) and time.monotonic() < ended + CATCH_UP_S:
            time.sleep(0.2)
        return slices, time.monotonic() - ended, max(0, calls - stored(folder))


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--slice", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--python", default="", help="interpreter of the gateway, if not this one")
    options = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores,"
          f" load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="packshot-soak-") as name:
        slices, caught_up_s, missing = soak(options, Path(name))
    settled = slices[len(slices) // 4 :]
    second = slices[len(slices) // 2 :]
    per_call = slope([(each.calls, each.worker) for each in settled])
    growth = slope([(each.at_s, each.behind) for each in second])
    calls = slices[-1].calls
    print(f"{calls:,} calls, {sum(each.bad for each in slices)} of them failed")
    print(
        f"memory of the worker: {per_call * 1e5:+.2f} MiB per 100,000 calls after the first quarter"
    )
    print(f"behind: {growth:+.1f} calls a second over the second half, at most "
          f"{max(each.behind for each in slices):,}")  # fmt: skip
    print(f"caught up {caught_up_s:.1f} s later; missing in the books: {missing}")
    facts = {
        "minutes": options.minutes, "calls": calls, "mib_per_100k_calls": per_call * 1e5,
        "behind_per_s": growth, "most_behind": max(each.behind for each in slices),
        "caught_up_s": caught_up_s, "missing": missing, "load": os.getloadavg(),
        "slices": [asdict(each) for each in slices],
    }  # fmt: skip
    print(json.dumps(facts))
    return 0 if not missing else 1


if __name__ == "__main__":
    raise SystemExit(main())
