"""Where the networks run, in which arithmetic, and how long the device took."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import (
    DeviceLost,
    DeviceMissing,
    InvalidRequest,
    OutOfMemory,
    unknown_name,
)
from packshot.core.types import PRECISIONS, VAE_PRECISIONS, Precision, Stage, Usage

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "DTYPES",
    "Meter",
    "arithmetic",
    "capability",
    "device_errors",
    "device_kind",
    "has_fp8",
    "pick_device",
    "pick_precision",
    "pick_vae_precision",
    "sent",
]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
    "fp8": torch.bfloat16,  # all but the products that `fast.dense` multiplies in fp8
}

UNTOLD = frozenset(
    "nvidia amd tesla geforce quadro instinct pcie nvl sxm sxm2 sxm3 sxm4 sxm5 sxm6 "
    "hbm2 hbm2e hbm3 hbm3e".split()
)
"""Words in a GPU's name that say who made it, and how it is mounted."""

MEMORY = re.compile(r"[0-9]+gb")


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises InvalidRequest for another name, DeviceMissing for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in {"cpu", "cuda"} or (index and not index.isdecimal()):
        raise unknown_name("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceMissing(
            f"device {name!r} was asked for, and torch sees {torch.cuda.device_count()} GPUs; "
            "use device cpu, or install a torch that is built for your GPU."
        )
    return torch.device(name)


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """Return the arithmetic of UNet and text encoders; auto is fp32 on a CPU, bf16 on a GPU.

    On a GPU before Ampere, which does not multiply in bf16, auto is fp32.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name == "fp8" and not has_fp8(device):
        raise InvalidRequest(
            f"precision fp8 was asked for, and {device_kind(device)} does not multiply in it; "
            "it takes an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper). Use bf16."
        )
    if name == "int8" and device.type != "cuda":
        raise InvalidRequest(
            f"precision int8 was asked for on {device.type}; it is for GPUs. Use fp32 or bf16."
        )
    older = device.type == "cuda" and capability(device) < (8, 0)
    if older and name in ("bf16", "int8"):
        raise InvalidRequest(
            f"precision {name} was asked for, and {device_kind(device)} is older than what it was "
            "made for: an NVIDIA GPU of compute capability 8.0 or more (Ampere). Use fp32."
        )
    if name != "auto":
        return name
    return "fp32" if device.type == "cpu" or older else "bf16"


def capability(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability: 8.0 and 8.6 are Ampere, 8.9 Ada, 9.0 Hopper; else (0, 0).

    ``PACKSHOT_COMPUTE_CAPABILITY=8.0`` takes a newer GPU for an older one: what was made for the
    newer is then left aside, so that the older one's way can be tried where there is none.
    """
    if device.type != "cuda":
        return (0, 0)
    own = torch.cuda.get_device_capability(device)
    said = os.environ.get("PACKSHOT_COMPUTE_CAPABILITY")
    if not said:
        return own
    major, _, minor = said.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InvalidRequest(
            f"PACKSHOT_COMPUTE_CAPABILITY is {said!r}; expected two numbers, such as 8.0."
        )
    return min(own, (int(major), int(minor)))


def has_fp8(device: torch.device) -> bool:
    """Tell whether a device multiplies in fp8 (e4m3)."""
    return capability(device) >= (8, 9)


def pick_vae_precision(name: Precision, model: Precision, *, force_upcast: bool) -> Precision:
    """Return the arithmetic of the VAE: auto is that of the ``model``, but never an unsafe fp16.

    ``force_upcast`` is the mark, in a VAE's config, of activations beyond the range of fp16. Ask
    for fp32 where edges are hard and gradients long: bf16 has eight bits to tell shades apart.
    """
    if name not in VAE_PRECISIONS:
        raise unknown_name("VAE precision", name, VAE_PRECISIONS)
    if name != "auto":
        return name
    if model in ("fp8", "int8"):
        return "bf16"
    return "fp32" if model == "fp16" and force_upcast else model


def device_kind(device: torch.device) -> str:
    """Return the kind of a device, as prices name it: "cpu", "h100", "a10g", "rtx-4090".

    It is the name that the driver gives, without maker, memory, form and index: what makes two
    devices cost the same.
    """
    if device.type != "cuda":
        return device.type
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    told = [word for word in words if word not in UNTOLD and not MEMORY.fullmatch(word)]
    return "-".join(told) or device.type


def arithmetic(device: torch.device) -> str:
    """Name what decides, beside its precision, how a network's sums round on ``device``.

    On a CPU the instructions and the number of threads; on a GPU its kind, and what fp32 is done
    in. And torch, whose kernels they are.
    """
    if device.type == "cpu":
        kernels = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    else:
        kernels = torch.get_float32_matmul_precision()
    return f"{device_kind(device)} {kernels} torch {torch.__version__}"


def lost(error: Exception) -> bool:
    """Tell whether an error, of torch or of Triton, says that the device's context is broken."""
    said = str(error)
    return "CUDA error" in said or "Triton Error [CUDA]" in said


@contextmanager
def device_errors() -> Generator[None]:
    """Translate what torch raises of a device's trouble.

    Raises `OutOfMemory` where the device has no room, and `DeviceLost` where its context is broken:
    all that this process asks of it from then on would fail, too.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device has no room for this render: {str(error).splitlines()[0]} Ask for a "
            "smaller picture, or let nothing else run on the device."
        ) from error
    except RuntimeError as error:
        if not lost(error):
            raise
        raise DeviceLost(
            f"the GPU's context is broken and this process cannot use it again: "
            f"{str(error).splitlines()[0]}. End the process; the next one begins anew."
        ) from error


def sent(numbers: object, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return numbers as a tensor on ``device``, without waiting for it: from pinned memory."""
    made = torch.tensor(numbers, dtype=dtype)
    if device.type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)


class Meter:
    """Collects one ``Usage`` per stage; waits for a GPU at the ends of stages, and nowhere else."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = device_kind(device)
        self.usage: list[Usage] = []

    @contextmanager
    def stage(self, stage: Stage, *, steps: int = 0, pixels: int = 0) -> Generator[None]:
        """Time what happens inside; ``steps`` and ``pixels`` are totals over the pictures."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        self.usage.append(Usage(stage, seconds, self.kind, steps, pixels))
