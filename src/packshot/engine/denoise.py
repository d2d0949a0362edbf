"""The loop that turns noise into latents: one line of arithmetic per step, fp32 throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.engine.conditioning import Conditioning
    from packshot.engine.networks.unet import UNet
    from packshot.engine.samplers import Plan

__all__ = ["Kept", "Predict", "Watch", "denoise", "guided", "noise_of", "predictor"]

Predict = Callable[["Tensor", int], "Tensor"]
"""Scaled latents [n, c, h, w] and the index of the step, to the network's raw output, fp32."""

Watch = Callable[[int, "Tensor"], None]
"""Told after each step how many are done, and the estimate of the clean latents; may raise."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The clean latents [1, c, h, w] of a picture to start from, and which of them may change.

    ``free`` [1, 1, h, w] of booleans, on the same device; None lets all of them change.
    """

    latents: Tensor
    free: Tensor | None = None

    def under(self, latents: Tensor, noise: Tensor | float) -> Tensor:
        """Return ``latents`` where they are free, and elsewhere the picture's under ``noise``."""
        return latents if self.free is None else latents.where(self.free, self.latents + noise)


def denoise(
    predict: Predict,
    plan: Plan,
    noise: Iterator[Tensor],
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Return the clean latents [n, c, h, w] that ``plan`` leads to.

    ``noise`` yields unit normals of that shape: the first is the start, and where the sampler adds
    noise each step takes one more. What ``kept`` does not let change is set, after each step, to
    its own latents at the noise level reached, under the same noise as at the start (blended latent
    diffusion, arXiv:2206.02779); the last level is 0. Nothing here reads a tensor on the host, so
    the device never waits; an exception from ``watch`` ends the render between two steps.
    """
    first = next(noise)
    latents = first * plan.start
    if kept and plan.from_original:
        latents = latents + kept.latents
    clean_before = torch.zeros_like(latents)
    for index, step in enumerate(plan.steps):
        output = predict(latents * step.scale, index)
        clean = step.skip * latents + step.out * output
        latents = step.keep * latents + step.now * clean + step.before * clean_before
        if plan.draws_noise:
            latents = latents + step.noise * next(noise)
        if kept:
            latents = kept.under(latents, step.level * first)
        clean_before = clean
        if watch:
            watch(index + 1, kept.under(clean, 0.0) if kept else clean)
    return latents


def predictor(unet: UNet, conditioning: Conditioning) -> Predict:
    """Return ``unet`` as the loop calls it, with everything but the latents filled in."""
    dtype = next(unet.parameters()).dtype

    def predict(latents: Tensor, index: int) -> Tensor:
        latents = latents.to(dtype, memory_format=torch.channels_last)
        return unet(latents, conditioning.shifts[index], conditioning.cross_kv).float()

    return predict


def guided(predict: Predict, guidance: float) -> Predict:
    """Steer away from the first half of the network's batch, the negative prompt, to the second.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) with both halves in one call.
    """

    def combined(latents: Tensor, index: int) -> Tensor:
        without, with_prompt = predict(latents.repeat(2, 1, 1, 1), index).chunk(2)
        return without + guidance * (with_prompt - without)

    return combined


def noise_of(
    seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device
) -> Iterator[Tensor]:
    """Yield unit normals [len(seeds), *shape] in fp32 for ever, row k from ``seeds[k]`` alone.

    Drawn on the CPU, so that a seed means the same noise on every device and in every batch.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        rows = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        if device.type == "cuda":
            # From pinned memory the copy is queued behind the kernels, and the host goes on.
            yield rows.pin_memory().to(device, non_blocking=True)
        else:
            yield rows.to(device)
