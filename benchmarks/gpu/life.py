"""The fast paths in use: packshot-mini against a CPU, and a thousand mixed renders of SDXL's shape.

    python benchmarks/gpu/life.py [--renders 1000] [--sheet FILE]

First packshot-mini, of which pictures mean something: each tier against the CPU's pictures in fp32,
how near each is to its brief by the model's own CLIP (packshot-mini's own metric, no other's), and
a contact sheet. Then SDXL's shape: renders over nine sizes, batches and tiers, with reloads; memory
that is reserved must not grow, graphs stay under their limit, and what was made comes out again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from world import ROOT, make_folder

from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.fast.runner import GRAPHS, FastRunner
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model

MINI = ROOT / "packages/packshot-mini/src/packshot_mini/model"
FOLDER = Path("/tmp/sdxl-random")  # noqa: S108 (7 GB, to be kept)
CAPTIONS = (
    "white sneakers on a sandy beach, bright daylight, light from the left, eye-level view",
    "a red mug on white marble, soft light, eye-level view",
    "a green bottle on wet slate, dramatic light from the right, eye-level view",
    "a blue backpack on a pink studio background, soft light, eye-level view",
)
SIZES = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344),
    (1536, 640), (640, 1536),
)  # fmt: skip
"""SDXL's nine shapes (arXiv:2307.01952, appendix I: those of about a megapixel that are used)."""


def levels(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Return the mean and the largest difference of two pictures, in levels of 256."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return float(difference.mean()), int(difference.max())


def mini(sheet: Path | None) -> dict[str, Any]:
    """Compare the tiers on packshot-mini."""
    report: dict[str, Any] = {}
    cpu = Engine.load(MINI, device="cpu")
    gpu = Engine.load(MINI, device="cuda")
    requests = [RenderRequest(caption, (3,), 256, 256, 24, 5.0) for caption in CAPTIONS]
    want = [cpu.render(request).images[0] for request in requests]
    rows: dict[str, list[np.ndarray]] = {"cpu fp32": want}
    for tier in ("bf16", "fp8", "int8"):
        from dataclasses import replace

        rows[f"gpu {tier}"] = [
            gpu.render(replace(request, precision=tier)).images[0] for request in requests
        ]
    for name, images in rows.items():
        near = [
            float(cpu.similarity([image], [caption])[0, 0])
            for image, caption in zip(images, CAPTIONS, strict=True)
        ]
        apart = [levels(a, b) for a, b in zip(images, want, strict=True)]
        report[name] = {
            "similarity": sum(near) / len(near),
            "mean_levels": sum(mean for mean, _ in apart) / len(apart),
            "most_levels": max(most for _, most in apart),
        }
        print(f"packshot-mini, {name:<9}", report[name], flush=True)
    if sheet is not None:
        from PIL import Image

        Image.fromarray(
            np.concatenate([np.concatenate(images, axis=1) for images in rows.values()], axis=0)
        ).save(sheet)
    return report


def loaded() -> Engine:
    model = Model(ModelFolder.open(FOLDER), torch.device("cuda"), "bf16", "auto")
    return Engine(model, runner=FastRunner(model))


def mixed(renders: int, reloads: int = 2, steps: int = 2) -> dict[str, Any]:
    """Render a mix, reload in between; see that nothing grows and nothing changes."""
    draw = random.Random(0)
    make_folder(FOLDER)
    seen: dict[RenderRequest, str] = {}
    changed, reserved, most_graphs = 0, [], 0
    start = time.perf_counter()
    engine = loaded()
    for index in range(renders):
        if index and index % (renders // (reloads + 1)) == 0:
            del engine
            gc.collect()
            torch.cuda.empty_cache()
            engine = loaded()
            seen = {}
        width, height = draw.choice(SIZES)
        request = RenderRequest(
            draw.choice(CAPTIONS), (draw.randrange(3),), width, height, steps, 5.0,
            sampler=draw.choice(("euler", "dpmpp-2m", "euler-ancestral")),
            precision=draw.choice(("bf16", "bf16", "fp8")),
        )  # fmt: skip
        digest = hashlib.sha256(engine.render(request).images[0].tobytes()).hexdigest()
        changed += seen.setdefault(request, digest) != digest
        most_graphs = max(most_graphs, len(engine.runner.steps))
        if index % max(1, renders // 20) == 0:
            reserved.append(torch.cuda.memory_reserved() / 1e9)
            print(f"{index:>5} renders, {time.perf_counter() - start:6.1f} s, "
                  f"{reserved[-1]:.2f} GB reserved, {most_graphs} graphs", flush=True)  # fmt: skip
    half = reserved[len(reserved) // 2 :]
    return {
        "renders": renders,
        "seconds": time.perf_counter() - start,
        "changed_on_repeat": changed,
        "repeats": renders - len(seen),
        "reserved_gb": reserved,
        "slope_gb": float(np.polyfit(range(len(half)), half, 1)[0]) if len(half) > 1 else 0.0,
        "most_graphs": most_graphs,
        "graphs_limit": GRAPHS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renders", type=int, default=1000)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--parts", default="mini,mixed")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, sys.version.split()[0])
    report: dict[str, Any] = {}
    if "mini" in options.parts:
        report["mini"] = mini(options.sheet)
    if "mixed" in options.parts:
        report["mixed"] = mixed(options.renders)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
