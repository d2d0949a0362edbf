"""Which kernels one step is made of: how many of each, how long, and what lies between them.

    python benchmarks/gpu/kernels.py [--shapes 512x512:1:bf16,1024x1024:1:fp8] [--rows 24]

SDXL's true shape, random weights. A shape is WIDTHxHEIGHT:PICTURES:TIER; guidance is on. A step's
graph is replayed under torch's profiler, and timed without it. A kernel's time is from the end of
the one before, or its own start where that is later, to its end: many start early, and wait.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import Any

import torch
from sdxl import FOLDER, LATENCY
from torch.profiler import ProfilerActivity, profile
from world import make_folder, timed

from packshot.engine.devices import pick_device
from packshot.engine.engine import Engine
from packshot.engine.fast.graphs import Shape
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
from packshot.engine.profile import classify

REPLAYS = 5


def short(name: str) -> str:
    """Return a kernel's name without most of its template's arguments."""
    return re.sub(r"^void |at::native::|\(anonymous namespace\)::", "", name)[:72]


def table(engine: Engine, spec: str, rows: int) -> dict[str, Any]:
    """Print the kernels of one step, and return its figures."""
    size, pictures, tier = spec.split(":")
    width, height = map(int, size.split("x"))
    shape = Shape(int(pictures), height // 8, width // 8)
    with torch.inference_mode():
        graph = engine.runner._step_graph("exact" if tier == "bf16" else tier, shape)
        graph.index.zero_()
        times = timed(graph.step, 20)
        graph.index.zero_()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(REPLAYS):
                graph.step()
            torch.cuda.synchronize()
    events = [e for e in recorded.events() if e.device_type.name == "CUDA"]
    calls: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    ended = 0.0
    for event in sorted(events, key=lambda e: e.time_range.end):
        calls[event.name] += 1
        alone = event.time_range.end - max(ended, event.time_range.start)
        ended = event.time_range.end
        micros[event.name] += alone
        kinds[classify(event.name)] += alone
    busy = sum(micros.values()) / REPLAYS / 1e3
    count = len(events) / REPLAYS
    print(f"\n{spec}: {times} ms a step; {count:.0f} kernels, {busy:.2f} ms in them")
    print("  ", {kind: round(spent / REPLAYS / 1e3, 2) for kind, spent in kinds.most_common()})
    for name, spent in micros.most_common(rows):
        each, often = spent / calls[name], calls[name] / REPLAYS
        print(f"  {often:5.0f} x {each:7.2f} us = {spent / REPLAYS / 1e3:6.3f} ms  {short(name)}")
    sys.stdout.flush()
    return {"step_ms": times.median, "kernels": count, "busy_ms": busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="512x512:1:bf16,512x512:1:fp8,1024x1024:1:bf16")
    parser.add_argument("--rows", type=int, default=24)
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, sys.version.split()[0])
    make_folder(FOLDER)
    model = Model(ModelFolder.open(FOLDER), pick_device("cuda"), "bf16", "auto")
    engine = Engine(model)
    engine.runner.encode([LATENCY.prompt])
    print(json.dumps({s: table(engine, s, options.rows) for s in options.shapes.split(",")}))


if __name__ == "__main__":
    main()
