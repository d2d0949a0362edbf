"""Every kernel, compiled for a chip that is not there: prints its shared memory. See test_compiled.

The networks of SDXL's true shape and packshot-mini's run on tensors without memory, and what they
would launch is compiled instead, as in a `kernels.rehearsal`. Printed are also the kernels that are
to multiply in a loop and of which a compiled one has none; see `launch.block_k`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from packshot.engine.fast import kernels
from packshot.engine.fast.calibration import calibrate, to_fp8, to_int8
from packshot.engine.fast.graphs import Shape, StepGraph
from packshot.engine.fast.unet import FastUNet
from packshot.engine.fast.vae import FastDecoder
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE

GOLDEN = Path(__file__).parents[1] / "golden"
MINI = Path(__file__).parents[3] / "packages" / "packshot-mini" / "src" / "packshot_mini" / "model"
SHAPES = (Shape(1, 128, 128), Shape(8, 128, 128), Shape(1, 64, 64))
BY_BLOCKS = ("_ask", "_geglu")


class Chip:
    """What Triton asks of a driver, for a chip of compute capability ``chip``: 80, 89, 90."""

    def __init__(self, chip: int) -> None:
        self.chip = chip

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)


def network(kind: Any, file: Path) -> Any:
    config = json.loads(file.read_text())
    made = kind.from_config(config).to(torch.bfloat16, memory_format=torch.channels_last)
    return made.requires_grad_(False)


def attend(q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
    if quant is not None or kernels.attends(k.shape[2]):
        return kernels.attend(q, k, v, quant=quant)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def step_of(unet: FastUNet, shape: Shape) -> Callable[[], None]:
    return StepGraph(unet, shape, torch.device("meta"), None).step


def compile_all(chip: int, tiers: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return the largest shared memory of each kernel, in bytes, and whose loops are gone."""
    shared: dict[str, int] = defaultdict(int)
    unrolled: list[str] = []

    def listen(src: Any, metadata: Any, metadata_group: dict[str, str], **_: object) -> None:
        shared[src.name] = max(shared[src.name], metadata["shared"])
        (made,) = (path for name, path in metadata_group.items() if name.endswith(".ttgir"))
        if src.name in BY_BLOCKS and "scf.for" not in Path(made).read_text():
            unrolled.append(src.name)

    launch = importlib.import_module("packshot.engine.fast.kernels.launch")
    driver.set_active(Chip(chip))
    knobs.compilation.listener = listen
    launch._rehearsing = True
    Tensor.__float__ = lambda _: 1.0  # of what has no memory
    importlib.import_module("packshot.engine.fast.kernels.tokens").processors = lambda: 132
    hopper = chip >= 90
    importlib.import_module("packshot.engine.fast.kernels.attention").EARLY = hopper
    with torch.device("meta"), torch.inference_mode():
        plain, small = network(UNet, GOLDEN / "unet.json"), network(UNet, MINI / "unet/config.json")
        for tier in tiers:
            step_all(plain, tier, SHAPES, one_pass=hopper)
            step_all(small, tier, (Shape(1, 32, 32), Shape(4, 32, 32)), one_pass=hopper)
        FastDecoder(network(VAE, GOLDEN / "vae.json"), kernels)(torch.empty(1, 4, 128, 128))
    return shared, unrolled


def step_all(plain: UNet, tier: str, shapes: Sequence[Shape], *, one_pass: bool) -> None:
    unet = FastUNet(plain, kernels, attend, one_pass=one_pass)
    if tier == "int8":
        to_int8(unet)
    if tier == "fp8":
        to_fp8(unet, calibrate(unet, step_of(unet, shapes[-1]), 1))
    for shape in shapes:
        step_of(unet, shape)()


if __name__ == "__main__":
    json.dump(compile_all(int(sys.argv[1]), sys.argv[2:]), sys.stdout)
