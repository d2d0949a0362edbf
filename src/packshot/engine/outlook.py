"""What a render would run on here, asked of torch and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from packshot.core.types import Precision
from packshot.engine.devices import has_fp8, pick_device, pick_precision
from packshot.engine.threads import thread_count

__all__ = ["Outlook", "outlook"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What "auto" comes to. ``cuda`` is the CUDA version that torch was built for, or None.

    ``gpus`` are the names of those that torch can use, ``threads`` how many it computes with on a
    CPU, ``fp8`` whether the device multiplies in it.
    """

    device: str
    precision: Precision
    threads: int
    cuda: str | None
    gpus: tuple[str, ...]
    fp8: bool = False


def outlook() -> Outlook:
    """Return what a render with device and precision "auto" would use."""
    device = pick_device("auto")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Outlook(
        device=str(device),
        precision=pick_precision("auto", device),
        threads=thread_count(),
        cuda=torch.version.cuda,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(count)),
        fp8=has_fp8(device),
    )
