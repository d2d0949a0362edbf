"""SDXL's networks in their true shape with random weights, made on the device."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from packshot.engine.networks.base import Network
from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE

GOLDEN = Path(__file__).parents[2] / "tests" / "engine" / "golden"
KINDS: dict[str, type[Network]] = {
    "unet": UNet, "vae": VAE, "text_encoder": CLIPText, "text_encoder_2": CLIPText,
}  # fmt: skip


def network(name: str, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Return the network ``name`` of SDXL with torch's own random start, channels last."""
    torch.manual_seed(len(name))
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    with torch.device(device):
        made = KINDS[name].from_config(config)
    made = made.to(dtype).eval().requires_grad_(False)
    return made.to(memory_format=torch.channels_last)


def drift(got: Tensor, want: Tensor) -> float:
    """Return the relative error in L2."""
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())


def milliseconds(run, repeats: int = 20, warm: int = 3) -> tuple[float, float, float]:  # noqa: ANN001
    """Return median, least and most of ``run`` by events, one at a time."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    times.sort()
    return times[len(times) // 2], times[0], times[-1]
