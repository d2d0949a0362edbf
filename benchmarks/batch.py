"""What a batch costs beside its pictures, and what a resume costs before its first one.

- Throughput with packshot-mini on this machine's CPU: `packshot batch` (a worker process, files
  encoded, stored in a folder, every stage booked, every step a transaction on the disk) against a
  bare loop over the engine that keeps nothing. Both in turns, so that a busy machine is unfair to
  both; model loading and each first picture apart. The aim is 0.95. CPU seconds are compared, too:
  what others do on the machine is not in them.
- The start of a resume: 100,000 items of which 99,000 are delivered, until the first work is
  handed out. The aim is 2 s. The first plan beside it.
- Memory of the run's own process over a stub that makes pictures at once: it must not grow with
  what is done.

Run it with

    ./packshot python benchmarks/batch.py

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from packshot.core.types import RenderRequest, Usage
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import Settings
from packshot.ledger.wiring import local_ledger
from packshot.studio.batch.items import Item
from packshot.studio.batch.perform import FACTORY
from packshot.studio.batch.planning import Source, plan_batch
from packshot.studio.batch.runner import Books, Run, Setup
from packshot.studio.batch.spool import Spool
from packshot.studio.batch.state import Made, RunState
from packshot.studio.batch.supervise import Order
from packshot.studio.batch.tally import Tally
from packshot.studio.batch.worker import Job, Performer
from packshot.studio.models import open_model
from packshot.studio.objects import Objects
from packshot.studio.recipes.recipe import load_recipe

MODEL = "packshot-mini"
BRIEF = "white sneakers on a sandy beach"
STUB = "batch:load"
"""This file's own factory: the worker finds it beside the script."""


def load(_settings: dict[str, Any], folder: Path, on_device: Callable[[str], None]) -> Performer:
    """Return what makes small files at once."""
    on_device("cpu")
    spool = Spool(folder)

    def make(job: Job) -> Made:
        job.step()
        job.usage.append(Usage("denoise", 0.0001, "cpu"))
        kept = spool.put(f"{job.item.seed}".encode() * 100, "x.png")
        facts: dict[str, Any] = {}
        return Made(job.render, kept.key, "x.png", kept.sha256, kept.size, 0, "", facts)

    return make


def table(folder: Path, count: int) -> Path:
    """Write a table of items."""
    path = folder / "items.csv"
    with path.open("w") as file:
        file.write("id,brief,seed\n")
        file.writelines(f"i{k},{BRIEF} number {k % 50},{k}\n" for k in range(count))
    return path


def ledger_in(folder: Path) -> tuple[Ledger, Any]:
    """Open a ledger of its own."""
    settings = Settings(str(folder / "ledger.db"), folder / "journal")
    book = book_of(settings)
    return local_ledger(settings, book), book


def run_of(folder: Path, state: RunState, factory: str, settings: dict[str, Any]) -> Run:
    """Return a run into a folder."""
    ledger, book = ledger_in(folder)
    order = Order(factory, settings, state.folder)
    store = Objects(str(folder / "out"))
    return Run(state, Setup(order, store, Books(ledger, book, "text", "bench", MODEL)))


# ------------------------------------------------------------------------------ throughput


def bare(pictures: int) -> Callable[[int], tuple[float, float]]:
    """Load the engine here, and return what times a loop over it."""
    from packshot.engine.engine import Engine

    folder = open_model(MODEL)
    engine = Engine.load(folder.path, device="cpu")
    side, _ = engine.default_size
    recipe = load_recipe("text")
    render: Any = next(step for step in recipe.steps if step.name == "render")

    def once(seed: int) -> None:
        engine.render(RenderRequest(BRIEF, (seed,), side, side, render.steps, render.guidance))

    once(0)

    def timed(first: int) -> tuple[float, float]:
        begin, before = time.perf_counter(), cpu_s()
        for seed in range(first, first + pictures):
            once(seed)
        return (time.perf_counter() - begin) / pictures, (cpu_s() - before) / pictures

    return timed


def cpu_s() -> float:
    """Return the CPU seconds of this process, and of those that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in used)


def batched(pictures: int) -> tuple[float, float]:
    """Return wall seconds per picture of a batch, from its first delivered picture to its last, and
    CPU seconds per picture of both processes, without what a batch of one takes, too.
    """
    wall, many = _batch(pictures + 1)
    _, one = _batch(1)
    return wall, (many - one) / pictures


def _batch(pictures: int) -> tuple[float, float]:
    before = cpu_s()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load_recipe("text")
        state = RunState(folder / "run")
        model = open_model(MODEL)
        plan_batch(state, Source(table(folder, pictures), recipe, model.fingerprint))
        seen: list[tuple[float, int]] = []

        def tick(tally: Tally) -> None:
            if tally.delivered and (not seen or seen[-1][1] != tally.delivered):
                seen.append((time.perf_counter(), tally.delivered))

        settings = {"recipe": recipe.facts(), "model": MODEL}
        run_of(folder, state, FACTORY, settings).go(tick)
        state.close()
        (begin, first), (end, last) = seen[0], seen[-1]
        return (end - begin) / max(1, last - first), cpu_s() - before


# ------------------------------------------------------------------------------ resume


def resumed(count: int) -> dict[str, float]:
    """Return the seconds of a first plan, and of a resume until its first work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Source(table(folder, count), load_recipe("text"), "model")
        state = RunState(folder / "run")
        begin = time.perf_counter()
        plan_batch(state, source)
        planned = time.perf_counter() - begin
        made = Made("r", "f", "n", "s" * 64, 1, 1, "a caption", {"finish": {"size": [256, 256]}})
        _mark_delivered(state, made, count - count // 100)
        state.close()
        begin = time.perf_counter()
        state = RunState(folder / "run")
        plan_batch(state, source)
        state.abandon()
        state.counts()
        next(state.waiting("todo"))
        took = time.perf_counter() - begin
        state.close()
        return {"plan_s": round(planned, 2), "resume_s": round(took, 3)}


def _mark_delivered(state: RunState, made: Made, count: int) -> None:
    import msgspec

    base = state._base  # noqa: SLF001 - what a run would have done in a day
    content = msgspec.msgpack.encode(made)
    base.execute(
        "UPDATE works SET state = 'delivered', made = ?, delivered = ? WHERE row <= ?",
        (content, content, count + 1),
    )
    base.execute(
        "INSERT INTO attempts (render, work, at, ended, booked)"
        " SELECT hex(work), work, 0, 'made', 1 FROM works WHERE state = 'delivered'"
    )


# ------------------------------------------------------------------------------ memory


def grown(count: int) -> dict[str, float]:
    """Make ``count`` small files, and return the process's memory on the way, in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = RunState(folder / "run")
        recipe = load_recipe("text")
        rows = (
            (k, sha256(str(k).encode()).digest(), Item(f"i{k}", f"{BRIEF} {k}", k))
            for k in range(count)
        )
        state.replan(rows, recipe.name)
        seen: dict[int, float] = {}

        def tick(tally: Tally) -> None:
            part = tally.delivered * 10 // count
            if part not in seen:
                seen[part] = _memory()

        begin = time.perf_counter()
        tally = run_of(folder, state, STUB, {}).go(tick)
        seconds = time.perf_counter() - begin
        state.close()
        parts = sorted(seen)
        return {
            "works": tally.delivered,
            "per_s": round(tally.delivered / seconds, 1),
            "at_10_%": seen[parts[min(1, len(parts) - 1)]],
            "at_50_%": seen.get(5, 0.0),
            "at_the_end": seen[parts[-1]],
        }


def _memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


def alone(part: str, count: int) -> dict[str, float]:
    """Run a part of this script in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--count", str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, and JSON last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--works", type=int, default=5_000)
    parser.add_argument("--part", default="")
    parser.add_argument("--count", type=int, default=0)
    told = parser.parse_args()
    parts = {"resume": resumed, "memory": grown}
    if told.part:
        print(json.dumps(parts[told.part](told.count)))
        return
    print(f"{platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `packshot` does for all commands
    timed = bare(told.pictures)
    loops: list[tuple[float, float]] = []
    batches: list[tuple[float, float]] = []
    for number in range(told.rounds):
        loops.append(timed(1 + number * told.pictures))
        batches.append(batched(told.pictures))
        loop, batch = loops[-1], batches[-1]
        print(
            f"round {number + 1}: a picture in {loop[0]:.3f} s (CPU {loop[1]:.3f}) by the loop,"
            f" {batch[0]:.3f} s (CPU {batch[1]:.3f}) by the batch",
            flush=True,
        )
    pairs = list(zip(loops, batches, strict=True))
    facts: dict[str, Any] = {
        "loop_s": round(statistics.median(each[0] for each in loops), 3),
        "batch_s": round(statistics.median(each[0] for each in batches), 3),
        "wall_ratios": [round(loop[0] / batch[0], 3) for loop, batch in pairs],
        "cpu_ratios": [round(loop[1] / batch[1], 3) for loop, batch in pairs],
        "resume": alone("resume", told.items),
        "memory": alone("memory", told.works),
    }
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
