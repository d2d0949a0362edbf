"""What `operator_run` starts in processes of their own: a second start, an older chip, a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from operator_place import Place, asked, levels

from packshot.core.errors import InvalidRequest
from packshot.engine.engine import Engine
from packshot.engine.fast import runner as fast
from packshot.engine.fast.attention import Attention
from packshot.engine.fast.runner import FastRunner
from packshot.studio.batch.worker import Job, Performer

POISON = "poison"
"""The brief that breaks the device's context."""


def child(place: Place, what: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a part of this script in a process of its own, and return what it found."""
    line = [sys.executable, __file__, json.dumps(asdict(place)), what]
    environment = os.environ | {"BEGUN": repr(time.time())} | (env or {})
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def second(place: Place) -> dict[str, Any]:
    """Render in both tiers with the tuning that is there; count what is measured all the same."""
    counts = {"measured": 0, "calibrated": 0}
    fastest, calibrate = Attention._fastest, fast.calibrate

    def counted_fastest(self: Attention, *args: torch.Tensor) -> str:
        counts["measured"] += 1
        return fastest(self, *args)

    def counted_calibrate(*args: object) -> list[float]:
        counts["calibrated"] += 1
        return calibrate(*args)  # type: ignore[arg-type]

    Attention._fastest = counted_fastest  # type: ignore[method-assign]
    fast.calibrate = counted_calibrate
    engine = place.load()
    runner: FastRunner = engine.runner  # type: ignore[assignment]
    before, told = dict(runner.tuning.attention), runner.told()
    first_s = 0.0
    for tier in ("bf16", "fp8"):
        engine.render(asked(place.sizes[0], precision=tier))
        first_s = first_s or time.time() - float(os.environ["BEGUN"])
    same = before == runner.tuning.attention
    return counts | {"known": len(before), "same": same, "told": told, "first_s": first_s}


def chip(place: Place, tier: str) -> dict[str, Any]:
    """Render in bf16 and in a tier, and see what is refused."""
    engine = place.load()
    images = {
        name: engine.render(asked(place.small, steps=8, precision=name)).images[0]
        for name in ("bf16", tier)
    }
    refused = ""
    if tier != "fp8":
        try:
            engine.render(asked(place.small, precision="fp8"))
        except InvalidRequest as error:
            refused = str(error)
    mean, most = levels(images["bf16"], images[tier])
    one_pass = bool(getattr(engine.runner, "_one_pass", False))
    return {"mean_levels": mean, "most_levels": most, "refused": refused, "one_pass": one_pass}


def factory(settings: dict[str, Any], folder: Path, on_device: Callable[[str], None]) -> Performer:
    """Return what makes pictures; an item whose brief is `POISON` breaks the device's context."""
    from packshot.studio.batch.state import Made

    del folder
    place = Place(**settings)
    engine = place.load(on_device)

    def perform(job: Job) -> Made:
        if job.item.brief == POISON:
            poison(engine)
        engine.render(asked(place.small))
        return Made(job.render, "none.png", "none.png", "", 0, job.item.seed, "", {})

    return perform


def poison(engine: Engine) -> None:
    """Have the device read beyond the end of a tensor: an assertion in a kernel."""
    if torch.cuda.is_available():
        beyond = torch.tensor([9], device="cuda")
        torch.zeros(4, device="cuda").index_select(0, beyond)
        return

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine.runner.denoise = broken  # type: ignore[assignment]


if __name__ == "__main__":
    name, *more = sys.argv[2].split()
    where = Place(**json.loads(sys.argv[1]))
    print(json.dumps(second(where) if name == "second" else chip(where, *more)))
