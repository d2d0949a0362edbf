"""What passes between the start of a process and its first picture, caches cold and warm.

    python benchmarks/gpu/start.py [--turns cold,warm,warm] [--steps 30]

SDXL's true shape: 6.9 GB of safetensors, page cache warm. Each turn is a process of its own, which
tells when it reached what; kernels that Triton compiled, and how long that took, are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = str(Path(__file__).parents[2] / "src")

CHILD = """
import sys, time, json, os
begun = float(os.environ["BEGUN"]); marks = []
def mark(what):
    marks.append((what, time.time() - begun))
mark("python")
sys.path.insert(0, {source!r})
import torch
mark("import torch")
from pathlib import Path
from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.devices import pick_device
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
mark("import packshot")
device = pick_device("cuda"); torch.zeros(1, device=device); torch.cuda.synchronize()
mark("device")
folder = ModelFolder.open(Path({folder!r}))
mark("folder")
model = Model(folder, device, "auto", "auto"); torch.cuda.synchronize()
mark("weights")
engine = Engine(model)
mark("runner")
compiled = []
try:
    from triton import knobs
    def listen(src, metadata, metadata_group, times, cache_hit):
        compiled.append((getattr(src, "name", "?"), cache_hit, times.total))
    knobs.compilation.listener = listen
except ImportError:
    pass
mark("triton")
request = RenderRequest("a red mug", (1,), 1024, 1024, {steps}, 5.0)
runner = engine.runner
with torch.inference_mode():
    runner.encode(["a red mug"]); torch.cuda.synchronize()
    mark("texts captured")
    from packshot.engine.fast.graphs import Shape
    runner.unet("exact")
    mark("network built")
    runner._step_graph("exact", Shape(1, 128, 128)); torch.cuda.synchronize()
    mark("step captured")
    runner._decode_graph(128, 128); torch.cuda.synchronize()
    mark("decoder captured")
engine.render(request)
mark("first picture")
fresh = [t for n, hit, t in compiled if not hit]
slowest = sorted(((t / 1e6, n) for n, hit, t in compiled if not hit), reverse=True)[:5]
print(json.dumps(dict(marks=marks, kernels=len(compiled), fresh=len(fresh),
                      compile_s=sum(fresh) / 1e6, slowest=slowest)))
"""


def turn(folder: Path, steps: int, triton_cache: str) -> dict[str, object]:
    code = CHILD.format(source=SOURCE, folder=str(folder), steps=steps)
    env = os.environ | {"TRITON_CACHE_DIR": triton_cache, "BEGUN": repr(time.time())}
    env["PACKSHOT_HOME"] = env.get("PACKSHOT_HOME", triton_cache)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", default="cold,warm,warm")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    from sdxl import FOLDER
    from world import make_folder

    make_folder(FOLDER)
    report: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        cache = scratch
        for number, name in enumerate(options.turns.split(",")):
            cache = f"{scratch}/{number}" if name == "cold" else cache
            found = turn(FOLDER, options.steps, cache)
            report.append({"turn": name} | found)
            before = 0.0
            print(f"\n{name}: {found['fresh']} of {found['kernels']} kernels compiled, "
                  f"{found['compile_s']:.1f} s of work", *found["slowest"])  # fmt: skip
            for what, at in found["marks"]:
                print(f"  {at:7.2f} s  (+{at - before:5.2f})  {what}")
                before = at
            sys.stdout.flush()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
