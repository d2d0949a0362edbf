"""How much of a batch's time its device is used: one picture in hand, and two.

    ./packshot python benchmarks/batch_hands.py [--pictures 40] [--steps 6] [--size 1024]

packshot-mini on this machine's CPU, one thread, so that another core is left to finish what was
rendered: enlarge it to ``--size``, encode it as PNG, keep it. The worker is the real one, and tells
when it had the device. The busy share is that time over the time from the first render's begin to
the last one's end. One and two in hand in turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from batch import MODEL, run_of, table

from packshot.studio.batch import perform
from packshot.studio.batch.planning import Source, plan_batch
from packshot.studio.batch.setup import Rules
from packshot.studio.batch.state import Made, RunState
from packshot.studio.batch.worker import Divided, Job, Performer, Rest
from packshot.studio.models import open_model
from packshot.studio.recipes.recipe import load_recipe

TIMED = "batch_hands:load"
SPANS = "spans.txt"


class Timed:
    """A worker's performer that notes when it has the device, and how long it then finishes."""

    def __init__(self, work: Divided, file: Path) -> None:
        self._work = work
        self._file = file

    def __call__(self, job: Job, /) -> Made:
        return self.begin(job)()

    def begin(self, job: Job, /) -> Rest:
        begun = time.monotonic()
        rest = self._work.begin(job)
        free = time.monotonic()

        def finish() -> Made:
            start = time.monotonic()
            made = rest()
            with self._file.open("a") as file:
                file.write(f"{begun} {free} {time.monotonic() - start}\n")
            return made

        return finish


def load(settings: dict[str, Any], folder: Path, on_device: Callable[[str], None]) -> Performer:
    """Return the real performer, timed."""
    import torch

    torch.set_num_threads(1)
    work = perform.load(settings, folder, on_device)
    assert isinstance(work, Divided)  # noqa: S101 - or there is nothing to measure
    return Timed(work, folder / SPANS)


def measured(in_hand: int, pictures: int, parameters: dict[str, Any]) -> dict[str, float]:
    """Make a batch, and return the busy share, and seconds for a picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load_recipe("text").changed(parameters)
        state = RunState(folder / "run")
        model = open_model(MODEL)
        plan_batch(state, Source(table(folder, pictures), recipe, model.fingerprint))
        run = run_of(folder, state, TIMED, {"recipe": recipe.facts(), "model": MODEL})
        run._setup = replace(run._setup, rules=Rules(in_hand=in_hand))  # noqa: SLF001
        run._rules = run._setup.rules  # noqa: SLF001
        run.go()
        lines = (state.folder / SPANS).read_text().splitlines()
        state.close()
    spans = sorted(tuple(map(float, line.split())) for line in lines)[1:]  # the first warms up
    wall = max(free for _, free, _ in spans) - spans[0][0]
    busy = sum(free - begun for begun, free, _ in spans)
    return {
        "busy": busy / wall,
        "device_s": busy / len(spans),
        "finish_s": statistics.mean(took for _, _, took in spans),
        "picture_s": wall / len(spans),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    parameters = {"render.steps": options.steps, "finish.size": f"{options.size}x{options.size}"}
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for turn in range(options.turns):
        for in_hand, seen in found.items():
            seen.append(measured(in_hand, options.pictures, parameters))
            said = ", ".join(f"{name} {value:.3f}" for name, value in seen[-1].items())
            print(f"turn {turn + 1}, {in_hand} in hand: {said}", flush=True)
    report = {
        str(in_hand): {
            name: [round(statistics.median(each[name] for each in seen), 4),
                   round(min(each[name] for each in seen), 4),
                   round(max(each[name] for each in seen), 4)]
            for name in seen[0]
        }
        for in_hand, seen in found.items()
    }  # fmt: skip
    print(json.dumps({"median_least_most": report, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
