"""Every kernel, compiled for a chip that is not there: prints its shared memory. See test_compiled.

The network of SDXL's true shape runs on tensors without memory, and what it would launch is
compiled instead, as in a `kernels.rehearsal`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
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
SHAPES = (Shape(1, 128, 128), Shape(8, 128, 128), Shape(1, 64, 64))


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


def network(kind: Any, name: str) -> Any:
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    made = kind.from_config(config).to(torch.bfloat16, memory_format=torch.channels_last)
    return made.requires_grad_(False)


def attend(q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
    if quant is not None or kernels.attends(k.shape[2], k.shape[3]):
        return kernels.attend(q, k, v, quant=quant)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def step_of(unet: FastUNet, shape: Shape) -> Callable[[], None]:
    return StepGraph(unet, shape, torch.device("meta"), None).step


def compile_all(chip: int, tiers: list[str]) -> dict[str, int]:
    """Return the largest shared memory of each kernel, in bytes."""
    shared: dict[str, int] = defaultdict(int)

    def listen(src: Any, metadata: Any, **_: object) -> None:
        shared[src.name] = max(shared[src.name], metadata["shared"])

    launch = importlib.import_module("packshot.engine.fast.kernels.launch")
    driver.set_active(Chip(chip))
    knobs.compilation.listener = listen
    launch._rehearsing = True
    Tensor.__float__ = lambda _: 1.0  # of what has no memory
    hopper = chip >= 90
    importlib.import_module("packshot.engine.fast.kernels.attention").EARLY = hopper
    with torch.device("meta"), torch.inference_mode():
        plain = network(UNet, "unet")
        for tier in tiers:
            unet = FastUNet(plain, kernels, attend, one_pass=hopper)
            if tier == "int8":
                to_int8(unet)
            if tier == "fp8":
                to_fp8(unet, calibrate(unet, step_of(unet, SHAPES[-1]), 1))
            for shape in SHAPES:
                step_of(unet, shape)()
        FastDecoder(network(VAE, "vae"), kernels)(torch.empty(1, 4, 128, 128))
    return shared


if __name__ == "__main__":
    json.dump(compile_all(int(sys.argv[1]), sys.argv[2:]), sys.stdout)
