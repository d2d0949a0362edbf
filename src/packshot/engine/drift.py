"""How far each precision is from fp32, on one request: in its latents, and in its pictures."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from packshot.engine.devices import has_fp8
from packshot.engine.engine import Engine
from packshot.engine.model import Model
from packshot.engine.runner import PlainRunner, pick_runner

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from torch import Tensor

    from packshot.core.types import Precision, RenderRequest
    from packshot.engine.folder import ModelFolder
    from packshot.engine.results import Picture
    from packshot.engine.runner import Decoded, Runner

__all__ = ["LOSSLESS", "PLAIN", "Drift", "drifts", "exact_products"]

LOSSLESS = 1.1
"""Times the drift of the plain networks in bf16, up to which a precision counts as lossless."""

PLAIN = "bf16, plain networks"


@dataclass(frozen=True, slots=True)
class Drift:
    """What a precision makes of a request, beside fp32.

    ``latents`` is the relative error, in L2, of the final latents; ``mean_levels`` and
    ``most_levels`` are the difference of the pictures in levels of 256. ``similarity`` is the mean
    cosine of pictures and prompt by the model's own CLIP pair, None where it has none. ``lossless``
    is None for what the others are judged by.
    """

    name: str
    latents: float
    mean_levels: float
    most_levels: int
    similarity: float | None
    lossless: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    latents: Tensor
    images: tuple[Picture, ...]


def drifts(
    folder: ModelFolder, device: torch.device, request: RenderRequest, tuning: Path | None = None
) -> tuple[Drift, ...]:
    """Render ``request`` in fp32, and in each precision that ``device`` has; fp32 comes first.

    The model is loaded twice, one after the other: in bf16, and in fp32. ``tuning`` as
    `runner.pick_runner` takes it. Raises what loading and rendering do.
    """
    _give_back(device)
    made = _reduced(folder, device, request, tuning)
    _give_back(device)
    with exact_products():
        model = Model(folder, device, "fp32", "fp32")
        want = _made(model, PlainRunner(model), replace(request, precision=None))
        engine = Engine(model)
        similar = [
            _similarity(engine, each.images, request.prompt) for each in (want, *made.values())
        ]
    found = [_compared(name, each, want) for name, each in (("fp32", want), *made.items())]
    found = [replace(each, similarity=near) for each, near in zip(found, similar, strict=True)]
    judged_by = next((each.latents for each in found if each.name == PLAIN), None)
    return tuple(
        each
        if judged_by is None or each.name in ("fp32", PLAIN)
        else replace(each, lossless=each.latents <= LOSSLESS * judged_by)
        for each in found
    )


def _give_back(device: torch.device) -> None:
    """Free what a model that is no longer used still holds of the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reduced(
    folder: ModelFolder, device: torch.device, request: RenderRequest, tuning: Path | None
) -> dict[str, _Made]:
    """Return what each precision below fp32 makes, by its name; on a CPU that is bf16."""
    model = Model(folder, device, "bf16", "auto")
    plain = _made(model, PlainRunner(model), replace(request, precision=None))
    runner = pick_runner(model, tuning=tuning)
    if isinstance(runner, PlainRunner):
        return {"bf16": plain}
    tiers: list[Precision] = ["bf16", *(["fp8"] if has_fp8(device) else []), "int8"]
    made = {PLAIN: plain}
    for tier in tiers:
        made[tier] = _made(model, runner, replace(request, precision=tier))
    runner.release()
    return made


class _Kept:
    """A runner that notes what it decodes."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.latents: list[Tensor] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._runner, name)

    def decode(self, latents: Sequence[Tensor]) -> list[Decoded]:
        self.latents = [row.float().cpu() for row in latents]
        return self._runner.decode(latents)


def _made(model: Model, runner: Runner, request: RenderRequest) -> _Made:
    kept = _Kept(runner)
    images = Engine(model, runner=kept).render(request).images  # type: ignore[arg-type]
    return _Made(torch.stack(kept.latents), images)


def _compared(name: str, made: _Made, want: _Made) -> Drift:
    error = torch.dist(made.latents, want.latents) / torch.dist(want.latents, torch.zeros(()))
    apart = np.abs(np.stack(made.images).astype(np.int16) - np.stack(want.images))
    return Drift(name, float(error), float(apart.mean()), int(apart.max()), None, None)


def _similarity(engine: Engine, images: Sequence[Picture], prompt: str) -> float | None:
    if not engine.model.folder.has("image_encoder"):
        return None
    return float(engine.similarity(images, [prompt]).mean())


@contextmanager
def exact_products() -> Generator[None]:
    """Multiply fp32 in fp32, and not in TF32 as torch's convolutions do on a GPU."""
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn
    kept = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = kept
