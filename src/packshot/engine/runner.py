"""Who runs the networks: `PlainRunner` as they are written, `fast.runner` on fused kernels.

The engine says what is to be made; a runner makes it. Each faster way is tested against the plain
one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F

from packshot.engine.conditioning import condition, encode_texts
from packshot.engine.decode import decode_checked
from packshot.engine.denoise import denoise, guided, predictor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from packshot.core.types import Precision
    from packshot.engine.buckets import Size
    from packshot.engine.conditioning import EncodedTexts
    from packshot.engine.denoise import Kept, Watch
    from packshot.engine.model import Model
    from packshot.engine.results import Picture
    from packshot.engine.samplers import Plan

__all__ = [
    "Decoded",
    "PlainRunner",
    "Runner",
    "Task",
    "Tell",
    "Tier",
    "pick_runner",
    "preloading",
]

BATCH_PIXELS = 4 * 1024 * 1024
"""How many the plain networks make together on a GPU."""

Tier = Literal["exact", "fp8", "int8"]
"""``exact`` is the model's own precision."""

Decoded = tuple["Picture", tuple[str, ...]]
"""A picture, and warnings for the user."""

Tell = Callable[[int, int], None]
"""Is told how much is done, of how much."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one batch of pictures is made of; they differ in their noise only.

    ``texts`` has one row without guidance (``guidance`` 1), else two: without the prompt, with it.
    ``width`` and ``height`` in pixels. ``tier``: the arithmetic of the UNet's large products, where
    a runner has a choice.
    """

    plan: Plan
    texts: EncodedTexts
    width: int
    height: int
    guidance: float
    kept: Kept | None = None
    tier: Tier = "exact"


class Runner(Protocol):
    """Runs a model's networks on its device. ``name`` tells it from those that round otherwise."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def choices(self) -> tuple[str, ...]:
        """Tell what was chosen by measuring, one sentence each."""
        ...

    def told(self) -> tuple[str, ...]:
        """Return sentences for the user that were not returned before."""
        ...

    def warm(
        self,
        sizes: Sequence[Size],
        pictures: Sequence[int] = (1,),
        tiers: Sequence[Tier] = ("exact",),
        tell: Tell | None = None,
    ) -> int:
        """Prepare for renders of these ``sizes``, so many ``pictures`` at a time, in these tiers.

        Returns how many graphs were made for it: what is prepared already takes no time.
        """
        ...

    def batches(self, pictures: int, pixels: int) -> tuple[int, ...]:
        """Return how many of ``pictures`` of ``pixels`` each are made together, batch by batch."""
        ...

    def release(self) -> None:
        """Give back the memory of what can be made again."""
        ...

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Read texts with both encoders, one row each."""
        ...

    def denoise(
        self, task: Task, pictures: int, noise: Iterator[Tensor], watch: Watch | None
    ) -> Tensor:
        """Return the clean latents [pictures, c, h, w]; see `denoise.denoise`."""
        ...

    def decode(self, latents: Sequence[Tensor]) -> list[Decoded]:
        """Decode latents [c, h, w] to pictures; `RenderFailed` where none comes out."""
        ...


class PlainRunner:
    """The networks as they are written."""

    name = "plain"

    def __init__(self, model: Model) -> None:
        self._model = model

    def choices(self) -> tuple[str, ...]:
        """Nothing: torch chooses by itself."""
        return ()

    def told(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def warm(
        self,
        sizes: Sequence[Size],
        pictures: Sequence[int] = (1,),
        tiers: Sequence[Tier] = ("exact",),
        tell: Tell | None = None,
    ) -> int:
        """Nothing is prepared."""
        del sizes, pictures, tiers, tell
        return 0

    def batches(self, pictures: int, pixels: int) -> tuple[int, ...]:
        """On a GPU as many together as have `BATCH_PIXELS`; on a CPU one by one.

        There kernels round differently for another batch, and a seed is to mean the same bits in
        company as alone.
        """
        fit = 1 if self._model.device.type == "cpu" else max(1, BATCH_PIXELS // pixels)
        whole, rest = divmod(pictures, fit)
        return (fit,) * whole + ((rest,) if rest else ())

    def release(self) -> None:
        """Nothing is kept but the weights."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """As `Runner.encode`."""
        return encode_texts(*self._model.readers, texts)

    def denoise(
        self, task: Task, pictures: int, noise: Iterator[Tensor], watch: Watch | None
    ) -> Tensor:
        """As `Runner.denoise`."""
        unet = self._model.unet
        told = condition(
            unet, task.texts, task.plan.timesteps, width=task.width, height=task.height
        )
        predict = predictor(unet, told.repeated(pictures))
        predict = predict if task.guidance == 1 else guided(predict, task.guidance)
        return denoise(predict, task.plan, noise, watch, task.kept)

    def decode(self, latents: Sequence[Tensor]) -> list[Decoded]:
        """As `Runner.decode`, one at a time: the VAE is where memory peaks."""
        model = self._model
        return [decode_checked(row[None], model.vae, lambda: model.vae_fp32) for row in latents]


@contextmanager
def preloading(device: torch.device, precision: Precision) -> Generator[None]:
    """Load the code that a GPU's kernels need beside what is done inside: reading weights.

    In fp32 nothing is, for `pick_runner` picks the plain networks then.
    """
    if device.type != "cuda" or precision == "fp32":
        yield
        return
    beside = Thread(target=_preload, args=(device,))
    beside.start()
    try:
        yield
    finally:
        beside.join()


def _preload(device: torch.device) -> None:
    """Import the kernels, and have cuDNN and cuBLAS loaded by a use of each."""
    with suppress(Exception):  # whatever it is, it is said again where it is needed
        for name in ("runner", "kernels"):
            import_module(f"packshot.engine.fast.{name}")
        x = torch.zeros((64, 64, 3, 3), dtype=torch.bfloat16, device=device)
        F.conv2d(x, x, padding=1)
        torch.mm(x.flatten(1), x.flatten(1).t())


def pick_runner(
    model: Model, *, graphs: bool = True, invariant: bool = False, tuning: Path | None = None
) -> Runner:
    """Return the fastest runner for a model: on a GPU in 16 bits or less, the fused kernels.

    ``graphs``, ``invariant`` and ``tuning`` as `fast.runner.FastRunner` takes them.
    """
    if model.device.type != "cuda" or model.precision == "fp32":
        return PlainRunner(model)
    from packshot.engine.fast.runner import FastRunner

    return FastRunner(model, graphs=graphs, invariant=invariant, tuning=tuning)
