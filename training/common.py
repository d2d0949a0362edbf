"""What all trainings share: a clock that ends them, an average of the weights, files, grids."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Clock:
    """Training ends by time, so the learning rate follows time: warm-up, then cosine to zero."""

    def __init__(
        self, seconds: float, start: float = 0.0, end: float = 1.0, warm: float = 0.03
    ) -> None:
        self.seconds, self.first, self.last, self.warm = seconds, start, end, warm
        self.started = time.monotonic()

    def restart(self) -> None:
        """Count from now (after compilation, say)."""
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the whole training done, over all its parts."""
        return self.first + (self.last - self.first) * min(self.elapsed / self.seconds, 1.0)

    @property
    def over(self) -> bool:
        """Whether this part's time is up."""
        return self.elapsed >= self.seconds

    def rate(self) -> float:
        """Factor of the learning rate, 0..1."""
        progress = self.progress
        if progress < self.warm:
            return max(progress / self.warm, 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warm) / (1 - self.warm))) + 0.002


class Average:
    """Exponential moving average of weights (fp32), with the usual ramp at the start."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {k: v.detach().float().clone() for k, v in network.state_dict().items()}

    def reset(self, network: nn.Module) -> None:
        """Start anew from the network's present weights."""
        self.steps = 0
        self.weights = {k: v.detach().float().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        ours, theirs = [], []
        for key, value in network.state_dict().items():
            ours.append(self.weights[key])
            theirs.append(value.detach().float())
        torch._foreach_lerp_(ours, theirs, 1 - decay)


def save_weights(weights: dict[str, Tensor], path: Path, limit: float = 15e6) -> None:
    """Save fp16 safetensors, sharded so that no file exceeds ``limit`` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in weights.items()}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in half.items():
        if size + value.nbytes > limit - 2e5:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    if len(shards) == 1:
        save_file(shards[0], path)
        return
    names = [
        f"{path.stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path.parent / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {
        "metadata": {"total_size": sum(v.nbytes for v in half.values())},
        "weight_map": weight_map,
    }
    path.with_suffix(".safetensors.index.json").write_text(json.dumps(index, indent=1))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load what ``save_weights`` wrote, as fp32."""
    index = path.with_suffix(".safetensors.index.json")
    files = [path]
    if index.exists():
        files = [
            path.parent / n
            for n in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    return {k: v.float() for file in files for k, v in load_file(file).items()}


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to -1..1."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """-1..1 to uint8."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)


def save_grid(pictures: Tensor, columns: int, path: Path) -> None:
    """Save uint8 [B, 3, H, W] as one JPEG."""
    count, _, height, width = pictures.shape
    rows = (count + columns - 1) // columns
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).cpu().numpy()):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = picture
    Image.fromarray(sheet).save(path, quality=90)


def report(**values: Any) -> None:
    """Print one line of figures."""
    print(
        " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()),
        flush=True,
    )
