"""What `operator_run` and `life` render with: SDXL's shape on a GPU, or a small one on a CPU."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from world import make_folder

from packshot.core.errors import InvalidRequest
from packshot.core.types import RenderRequest
from packshot.engine.buckets import SDXL, Size
from packshot.engine.engine import Engine
from packshot.engine.fast.runner import FastRunner
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
from packshot.studio.embeddings import cache_folder
from packshot.studio.loading import load_model

FOLDER = Path(os.environ.get("SDXL_FOLDER", "/tmp/sdxl-random"))  # noqa: S108 (7 GB, to be kept)
TEXT = "white sneakers on a sandy beach"


@dataclass(frozen=True)
class Place:
    """What is run, and how large."""

    folder: str
    tiny: bool = False

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((64, 64), (96, 64), (64, 96)) if self.tiny else SDXL

    @property
    def small(self) -> Size:
        return (96, 96) if self.tiny else (512, 512)

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    def load(self, on_device: Callable[[str], None] | None = None) -> Engine:
        """Return the engine as `packshot render` and a batch's worker load it."""
        folder = ModelFolder.open(Path(self.folder))
        if not self.tiny:
            return load_model(folder, "cuda", ("auto", "auto"), on_device)
        if on_device:
            on_device("cpu")
        return played(Model(folder, torch.device("cpu"), "fp32", "fp32"))


def played(model: Model) -> Engine:
    """Return an engine that runs on a CPU what is a GPU's: plain kernels, tiers of eight bits."""
    from packshot.engine import engine as module
    from packshot.engine.networks.unet import UNet
    from packshot.engine.networks.vae import VAE
    from packshot.engine.weights import load

    torch.set_num_threads(1)
    model.unet = load(UNet, model.folder, "unet", channels_last=True)
    model.vae = load(VAE, model.folder, "vae", channels_last=True)
    model.precision = "bf16"

    def checked(name: str, _: object) -> str:
        if name == "fp8" and os.environ.get("PACKSHOT_COMPUTE_CAPABILITY") == "8.6":
            raise InvalidRequest("precision fp8 was asked for, and this is played")
        return name

    module.pick_precision = checked  # type: ignore[assignment]
    return Engine(model, runner=FastRunner(model, tuning=cache_folder() / "tuning"))


def again(engine: Engine, **options: bool) -> Engine:
    """Return another engine on the same weights."""
    tuning = cache_folder() / "tuning"
    return Engine(engine.model, runner=FastRunner(engine.model, tuning=tuning, **options))


def asked(size: Size, seeds: tuple[int, ...] = (1,), steps: int = 4, **more: str) -> RenderRequest:
    return RenderRequest(TEXT, seeds, *size, steps, 5.0, **more)  # type: ignore[arg-type]


def digest(engine: Engine, request: RenderRequest) -> str:
    return hashlib.sha256(np.stack(engine.render(request).images).tobytes()).hexdigest()


def levels(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Return the mean and the largest difference of two pictures, in levels of 256."""
    apart = np.abs(a.astype(int) - b.astype(int))
    return float(apart.mean()), int(apart.max())


def reserved() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def placed(*, tiny: bool) -> Place:
    """Return what to run, with its folder made."""
    if not tiny:
        return Place(str(make_folder(FOLDER)))
    from tiny import make_tiny_sdxl

    return Place(str(make_tiny_sdxl(Path(tempfile.mkdtemp()) / "tiny")), tiny=True)
