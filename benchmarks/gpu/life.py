"""The fast paths in use: packshot-mini against a CPU, and a thousand mixed renders of SDXL's shape.

    python benchmarks/gpu/life.py --parts mini [--sheet FILE]
    python benchmarks/gpu/life.py --parts mixed [--renders 1000] [--loads 3] [--limit 380]
    python benchmarks/gpu/life.py --parts mixed --tiny --renders 60     (tries the script on a CPU)

packshot-mini, of which pictures mean something: each tier against the CPU's pictures in fp32, how
near each is to its brief by the model's own CLIP (packshot-mini's own metric, no other's), and a
contact sheet. A tier that is further from them than `NEAR` and `SIMILAR` say has failed.

SDXL's shape: renders over nine sizes in two tiers, alone, in pairs and without guidance, with every
kind of sampler, and with reloads. Reserved memory must not grow, graphs stay under their limit, no
picture is NaN or flat, and what was made comes out again to the bit. The exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from operator_place import Place, placed
from world import MINI

from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.fast.runner import GRAPHS

CAPTIONS = (
    "white sneakers on a sandy beach, bright daylight, light from the left, eye-level view",
    "a red mug on white marble, soft light, eye-level view",
    "a green bottle on wet slate, dramatic light from the right, eye-level view",
    "a blue backpack on a pink studio background, soft light, eye-level view",
)
SEEDS = (3, 4, 5, 6)
"""Of each caption: a picture on marble now and then gets other veins in fp8."""

NEAR = {"cpu fp32": 0.0, "gpu bf16": 1.0, "gpu int8": 1.5, "gpu fp8": 3.0}
"""Levels of 256 by which pictures may differ from the CPU's in the mean: twice what was seen."""

SIMILAR = 0.02
"""By which the mean similarity to the briefs may be below the CPU's: it is 0.23, and of
another picture's brief about 0."""

GROWS_GB = 0.01
"""Of reserved memory in 100 renders, fitted over the last half of a load: more is a leak."""


def levels(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Return the mean and the largest difference of two pictures, in levels of 256."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return float(difference.mean()), int(difference.max())


def mini(sheet: Path | None) -> dict[str, Any]:
    """Compare the tiers on packshot-mini."""
    report: dict[str, Any] = {"failed": []}
    cpu = Engine.load(MINI, device="cpu")
    gpu = Engine.load(MINI, device="cuda")
    requests = [
        RenderRequest(caption, (seed,), 256, 256, 24, 5.0) for seed in SEEDS for caption in CAPTIONS
    ]
    want = [cpu.render(request).images[0] for request in requests]
    rows: dict[str, list[np.ndarray]] = {"cpu fp32": want}
    for tier in ("bf16", "fp8", "int8"):
        rows[f"gpu {tier}"] = [
            gpu.render(replace(request, precision=tier)).images[0] for request in requests
        ]
    for name, images in rows.items():
        near = [
            float(cpu.similarity([image], [request.prompt])[0, 0])
            for image, request in zip(images, requests, strict=True)
        ]
        apart = [levels(a, b) for a, b in zip(images, want, strict=True)]
        report[name] = {
            "similarity": sum(near) / len(near),
            "mean_levels": sum(mean for mean, _ in apart) / len(apart),
            "most_levels": max(most for _, most in apart),
        }
        least = report["cpu fp32"]["similarity"] - SIMILAR
        good = report[name]["mean_levels"] <= NEAR[name] and report[name]["similarity"] >= least
        report["failed"] += [] if good else [name]
        print("ok     " if good else "FAILED ", f"packshot-mini, {name:<9}", report[name],
              flush=True)  # fmt: skip
    if sheet is not None:
        from PIL import Image

        Image.fromarray(
            np.concatenate(
                [np.concatenate(each[: len(CAPTIONS)], axis=1) for each in rows.values()], axis=0
            )
        ).save(sheet)
    return report


@dataclass
class Load:
    """What was seen between one load of the model and the next."""

    reserved_gb: list[float] = field(default_factory=list)
    seen: dict[RenderRequest, str] = field(default_factory=dict)
    repeats: int = 0
    changed: int = 0
    most_graphs: int = 0
    flat: int = 0

    @property
    def slope_gb(self) -> float:
        """GB that reserved memory grew by in 100 renders, over the last half."""
        half = self.reserved_gb[len(self.reserved_gb) // 2 :]
        return 100 * float(np.polyfit(range(len(half)), half, 1)[0]) if len(half) > 1 else 0.0

    def render(self, engine: Engine, request: RenderRequest) -> None:
        """Render, and note what is to be seen."""
        images = np.stack(engine.render(request).images)
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        self.repeats += request in self.seen
        self.changed += self.seen.setdefault(request, digest) != digest
        self.flat += sum(int(image.std() == 0) for image in images)
        self.most_graphs = max(self.most_graphs, len(engine.runner.steps))
        cuda = torch.cuda.is_available()
        self.reserved_gb.append(torch.cuda.memory_reserved() / 1e9 if cuda else 0.0)


def drawn(draw: random.Random, place: Place, steps: int) -> RenderRequest:
    """Return a render of the mix: 22 shapes in all."""
    first = place.sizes[0]
    width, height = draw.choice(place.sizes)
    request = RenderRequest(
        draw.choice(CAPTIONS[:2]), (draw.randrange(2),), width, height, steps, 5.0,
        sampler=draw.choice(("euler", "dpmpp-2m", "euler-ancestral")),
        precision=draw.choice(("bf16", "fp8")),
    )  # fmt: skip
    kind = draw.random()
    if kind < 0.05:
        return replace(request, width=first[0], height=first[1], seeds=(1, 2))
    if kind < 0.1:
        return replace(request, width=first[0], height=first[1], guidance=1.0)
    return request


def mixed(place: Place, renders: int, loads: int, limit: float, steps: int = 2) -> dict[str, Any]:
    """Render a mix, reload in between; see that nothing grows and nothing changes."""
    draw, begun = random.Random(0), time.perf_counter()
    made: list[Load] = []
    each, done = -(-renders // loads), 0
    for number in range(loads):
        engine, load = place.load(), Load()
        made.append(load)
        for index in range(min(each, renders - done)):
            if time.perf_counter() - begun > limit:
                break
            load.render(engine, drawn(draw, place, steps))
            done += 1
            if index % max(1, each // 7) == 0:
                print(f"load {number + 1}, render {index:>4}: {time.perf_counter() - begun:6.1f} s,"
                      f" {load.reserved_gb[-1]:.3f} GB reserved, {load.most_graphs} graphs",
                      flush=True)  # fmt: skip
        print(f"load {number + 1}: {len(load.reserved_gb)} renders, {load.repeats} repeats, "
              f"{load.changed} changed, {load.flat} flat; in the last half reserved memory grew by "
              f"{load.slope_gb * 1e3:.2f} MB in 100 renders, to {load.reserved_gb[-1]:.3f} GB",
              flush=True)  # fmt: skip
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            load_left = torch.cuda.memory_reserved() / 1e9
            print(f"load {number + 1}: {load_left:.3f} GB are left when it is let go")
    ends = [load.reserved_gb[-1] for load in made]
    per_load = float(np.polyfit(range(loads), ends, 1)[0]) if loads > 1 else 0.0
    found = {
        "renders": done,
        "seconds": time.perf_counter() - begun,
        "repeats": sum(load.repeats for load in made),
        "changed_on_repeat": sum(load.changed for load in made),
        "flat": sum(load.flat for load in made),
        "reserved_gb_at_the_end_of_each_load": ends,
        "grown_gb_from_load_to_load": per_load,
        "grown_gb_in_100_renders": [load.slope_gb for load in made],
        "most_graphs": max(load.most_graphs for load in made),
        "graphs_limit": GRAPHS,
    }
    return found | {"failed": failures(found, renders)}


def failures(found: dict[str, Any], renders: int) -> list[str]:
    """Return what is not as it must be."""
    checks = {
        "all renders were made": found["renders"] == renders,
        "no picture is flat or NaN": found["flat"] == 0,
        "what comes again is equal to the bit": found["changed_on_repeat"] == 0,
        "graphs are under their limit": found["most_graphs"] <= GRAPHS,
        "reserved memory does not grow": max(found["grown_gb_in_100_renders"]) <= GROWS_GB,
        "nor from load to load": abs(found["grown_gb_from_load_to_load"]) <= 10 * GROWS_GB,
    }
    for what, good in checks.items():
        print("ok     " if good else "FAILED ", what)
    return [what for what, good in checks.items() if not good]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renders", type=int, default=1000)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--limit", type=float, default=380.0, help="seconds of mixed renders")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--parts", default="mini,mixed")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(name, "torch", torch.__version__, sys.version.split()[0])
    report: dict[str, Any] = {"device": name}
    if "mini" in options.parts:
        report["mini"] = mini(options.sheet)
    if "mixed" in options.parts:
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
        place = placed(tiny=options.tiny)
        report["mixed"] = mixed(place, options.renders, options.loads, options.limit)
    print(json.dumps(report))
    sys.exit(1 if any(part["failed"] for part in report.values() if isinstance(part, dict)) else 0)


if __name__ == "__main__":
    main()
