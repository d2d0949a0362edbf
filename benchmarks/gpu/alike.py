"""What a change does to the machine code of a model's kernels; no GPU is needed.

    python benchmarks/gpu/alike.py REVISION [--model mini|sdxl] [--tiers bf16,fp8,int8]

One step of the network in each tier, and a decoding, as an H100 would launch them: of this tree and
of REVISION's, whose kernels are compiled for it (PTX, by the Triton that is installed) but not
started. Shown is, for each kernel, how many variants there are, how many are the same, and how many
have the same instructions in another order, registers not counted; and whether the same kernels
start in the same order on the same grids. The exit code is 1 where something differs. So a kernel
that ran on a GPU before a change need not run there again after one that does not touch it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "mini": "packages/packshot-mini/src/packshot_mini/model/{}/config.json",
    "sdxl": "tests/engine/golden/{}.json",
}
SIDES = {"mini": 32, "sdxl": 128}
"""Of the latents."""

CHILD = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import torch

# An H100, as far as the tree's own code asks; nothing is started on it.
torch.cuda.is_available = lambda: True
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from packshot.engine.fast import kernels
from packshot.engine.fast.calibration import calibrate, to_fp8, to_int8
from packshot.engine.fast.graphs import Shape, StepGraph
from packshot.engine.fast.kernels import launch
from packshot.engine.fast.unet import FastUNet
from packshot.engine.fast.vae import FastDecoder
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE

into, config, side, tiers = sys.argv[1:]
shape, meta, launches, tier = Shape(1, int(side), int(side)), torch.device("meta"), [], ""
compile_only = JITFunction.warmup


class Chip:
    get_current_device = get_current_stream = staticmethod(lambda *_: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))


def noted(kernel, *args, grid, **options):
    launches.append((tier, kernel.fn.__name__, list(grid)))
    return compile_only(kernel, *args, grid=grid, **options)


def network(kind, name):
    made = kind.from_config(json.loads(Path(config.format(name)).read_text()))
    return made.to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)


def attend(q, k, v, **options):
    if k.shape[2] <= 256 or options.get("quant") is not None:
        return kernels.attend(q, k, v, **options)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


driver.set_active(Chip())
JITFunction.warmup, launch._rehearsing = noted, True
Tensor.__float__ = lambda _: 1.0  # of what has no memory
with meta, torch.inference_mode():
    plain = network(UNet, "unet")
    for tier in tiers.split(","):
        unet = FastUNet(plain, kernels, attend, one_pass=True)
        if tier == "int8":
            to_int8(unet)
        if tier == "fp8":
            to_fp8(unet, calibrate(unet, StepGraph(unet, shape, meta, None).step, 1))
        StepGraph(unet, shape, meta, None).step()
    tier = "decoding"
    FastDecoder(network(VAE, "vae"), kernels)(torch.empty(1, 4, shape.height, shape.width))
Path(into).write_text(json.dumps(launches))
"""


def compiled(tree: Path, into: Path, options: argparse.Namespace) -> list[Any]:
    """Compile what ``tree`` would launch, to PTX below ``into``; return the launches in order."""
    into.mkdir()
    told = into / "launches.json"
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "TRITON_CACHE_DIR": str(into)}
    words = (told, ROOT / CONFIGS[options.model], SIDES[options.model], options.tiers)
    subprocess.run(
        [sys.executable, "-P", "-c", CHILD, *map(str, words)], env=environment, check=True
    )
    launches: list[Any] = json.loads(told.read_text())
    return launches


def variants(compiled_to: Path) -> dict[str, list[list[str]]]:
    """Return each kernel's variants as instructions, without lines of source and debug sections."""
    found: dict[str, list[list[str]]] = {}
    for file in sorted(compiled_to.glob("*/*.ptx")):
        code = file.read_text().partition(".section")[0]
        lines = (re.sub(r"//.*", "", line).strip() for line in code.splitlines())
        kept = [
            x for x in lines if x and not x.startswith((".loc", ".file", "$L__tmp", "$L__func"))
        ]
        found.setdefault(file.stem, []).append(kept)
    return found


def unnumbered(code: list[str]) -> Counter[str]:
    """Return how often each instruction comes, registers and parameters without their numbers."""
    body = (line for line in code if not line.startswith((".param", ".reg")))
    return Counter(re.sub(r"(%[a-z]+|_param_)\d+", r"\1", line) for line in body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--model", choices=CONFIGS, default="mini")
    parser.add_argument("--tiers", default="bf16,fp8,int8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tree = place / "tree"
        tree.mkdir()
        words = ["git", "-C", str(ROOT), "archive", options.revision, "src"]
        archive = subprocess.run(words, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        before, after = (
            compiled(x, place / y, options) for x, y in ((tree, "then"), (ROOT, "now"))
        )
        then, now = variants(place / "then"), variants(place / "now")
    rows: dict[str, tuple[int, int, int, int]] = {}
    print(f"{'kernel':<14} {'then':>5} {'now':>5} {'same':>5} {'but for order':>14}")
    for name in sorted(then | now):
        old, new = then.get(name, []), now.get(name, [])
        same, counted = sum(code in old for code in new), [unnumbered(code) for code in old]
        order = sum(unnumbered(code) in counted for code in new) - same
        rows[name] = (len(old), len(new), same, order)
        print(f"{name:<14} {len(old):>5} {len(new):>5} {same:>5} {order:>14}")
    alike = before == after
    print(f"{len(after)} launches, {'the same' if alike else f'{len(before)} then: OTHERS'}")
    differ = [k for k, (old, new, same, order) in rows.items() if not old == new == same + order]
    print(json.dumps({"launches_alike": alike, "kernels": rows, "differ": differ}))
    sys.exit(bool(differ) or not alike)


if __name__ == "__main__":
    main()
