"""Where the networks run, in which arithmetic, and how long the device took."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.core.types import PRECISIONS, Precision, Stage, Usage

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["DTYPES", "Meter", "pick_device", "pick_precision", "pick_vae_precision"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises InvalidRequest for another name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in {"cpu", "cuda"} or (index and not index.isdecimal()):
        raise unknown_name("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(
            f"device {name!r} was asked for, and torch sees {torch.cuda.device_count()} GPUs; "
            "use device cpu, or install a torch that is built for your GPU."
        )
    return torch.device(name)


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """Return the arithmetic of UNet and text encoders; auto is fp32 on a CPU, bf16 on a GPU."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "fp32" if device.type == "cpu" else "bf16"


def pick_vae_precision(name: Precision, model: Precision, *, force_upcast: bool) -> Precision:
    """Return the arithmetic of the VAE: auto is that of the ``model``, but never an unsafe fp16.

    ``force_upcast`` is the mark, in a VAE's config, of activations beyond the range of fp16. Ask
    for fp32 where edges are hard and gradients long: bf16 has eight bits to tell shades apart.
    """
    if name not in PRECISIONS:
        raise unknown_name("VAE precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "fp32" if model == "fp16" and force_upcast else model


class Meter:
    """Collects one ``Usage`` per stage; waits for a GPU at the ends of stages, and nowhere else."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.usage: list[Usage] = []

    @contextmanager
    def stage(self, stage: Stage, *, steps: int = 0, pixels: int = 0) -> Generator[None]:
        """Time what happens inside; ``steps`` and ``pixels`` are totals over the pictures."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        self.usage.append(Usage(stage, seconds, str(self.device), steps, pixels))
