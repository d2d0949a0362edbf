"""Stepping rules as tables of coefficients, so that the loop is one line for all of them.

A rule takes the noise levels of a render and returns four numbers for each step; with ``D`` the
network's estimate of the clean latents at that step, every rule here is

    x  <-  keep * x  +  now * D  +  before * D_of_the_step_before  +  noise * n

``plan`` adds the numbers that turn the network's raw output into ``D`` (its preconditioning), and
the noise level that each step ends at, which a picture to be kept in part is brought to. The whole
table goes to the device once; nothing in the loop is read back from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from packshot.core.types import Sampler, Schedule, Spacing
from packshot.engine.devices import sent
from packshot.engine.schedule import SCHEDULES, Doubles, Grid, Levels, NoiseConfig, Prediction

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SAMPLERS",
    "Coefficients",
    "Plan",
    "Step",
    "dpmpp_2m",
    "euler",
    "euler_ancestral",
    "plan",
]


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """What each step multiplies by, one double per step; see the module for the formula."""

    keep: Doubles
    now: Doubles
    before: Doubles
    noise: Doubles


Rule = Callable[[Doubles], Coefficients]
"""From steps + 1 falling sigmas, the last of them 0, to the coefficients of the steps."""


def euler(sigmas: Doubles) -> Coefficients:
    """Follow the probability-flow ODE with Euler steps (arXiv:2206.00364, algorithm 1)."""
    keep = sigmas[1:] / sigmas[:-1]
    none = np.zeros_like(keep)
    return Coefficients(keep, 1 - keep, none, none)


def euler_ancestral(sigmas: Doubles) -> Coefficients:
    """Take an Euler step below the level asked for, then add fresh noise up to it.

    The split is that of the DDPM posterior (Ho et al. 2020, arXiv:2006.11239, equation 7):
    ``up**2 = to**2 * (1 - (to / at)**2)`` and ``down = to**2 / at``.
    """
    at, to = sigmas[:-1], sigmas[1:]
    keep = (to / at) ** 2
    return Coefficients(keep, 1 - keep, np.zeros_like(keep), to * np.sqrt(1 - keep))


def dpmpp_2m(sigmas: Doubles) -> Coefficients:
    """DPM-Solver++(2M) of Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    The line through the last two estimates, as a function of ``-log sigma``, is carried to the
    middle of the step. First order where there is no such line: at the first step, after a step of
    no length, and at the last one, whose end has ``-log 0``.
    """
    keep = sigmas[1:] / sigmas[:-1]
    length = np.zeros_like(keep)
    length[:-1] = -np.log(keep[:-1])
    lead = np.zeros_like(keep)
    np.divide(length[1:], 2 * length[:-1], out=lead[1:], where=length[:-1] > 0)
    return Coefficients(keep, (1 - keep) * (1 + lead), (keep - 1) * lead, np.zeros_like(keep))


SAMPLERS: dict[Sampler, Rule] = {
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "dpmpp-2m": dpmpp_2m,
}


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One row of the table: 0-dimensional tensors on the device.

    ``D = skip * x + out * network(scale * x)``; ``level`` is the sigma that the step ends at, 0 at
    the last one; ``following`` is the scale of the next step, 1 at the last; the other four as in
    the module's formula.
    """

    scale: Tensor
    skip: Tensor
    out: Tensor
    keep: Tensor
    now: Tensor
    before: Tensor
    noise: Tensor
    level: Tensor
    following: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The steps of one render, on its device; ``table`` [steps, 9] has `Step`'s numbers in order.

    ``timesteps`` [steps] condition the network. ``start`` is the standard deviation of the noise
    to begin with; ``from_original``: whether it lies on the latents of a picture, or is all there
    is. ``draws_noise``: whether the ``noise`` column holds anything but zeros.
    """

    steps: tuple[Step, ...]
    table: Tensor
    timesteps: Tensor
    start: float
    from_original: bool
    draws_noise: bool


def plan(  # noqa: PLR0913 - options of one layout, all by keyword
    noise: NoiseConfig,
    *,
    sampler: Sampler,
    schedule: Schedule,
    spacing: Spacing,
    steps: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    enter: int | None = None,
) -> Plan:
    """Lay out ``steps`` steps of ``sampler`` over ``schedule``; fp64, rounded to ``dtype`` once.

    ``steps`` is 1 … ``noise.train_steps``; ``spacing`` matters to the default schedule only.
    ``enter`` is the index of the first step taken, with the latents of a picture under the noise of
    its level (SDEdit, arXiv:2108.01073); None takes all steps, from noise alone.
    """
    first, from_original = enter or 0, enter is not None
    multistep = sampler == "dpmpp-2m"
    levels = SCHEDULES[schedule](noise, Grid(steps, spacing, intervals=multistep))
    levels = Levels(levels.sigmas[first:], levels.timesteps[first:])
    rule = SAMPLERS[sampler](levels.sigmas)
    columns = _preconditioning(noise.prediction, levels) | asdict(rule)
    columns["level"] = levels.sigmas[1:]
    columns["following"] = np.append(columns["scale"][1:], 1.0)
    table = sent(np.stack(list(columns.values()), axis=1), device, dtype)
    rows = [dict(zip(columns, row.unbind(), strict=True)) for row in table.unbind()]
    return Plan(
        steps=tuple(Step(**row) for row in rows),
        table=table,
        timesteps=sent(levels.timesteps, device, dtype),
        start=_start(
            levels.sigmas[0],
            at_the_prior=not from_original and (multistep or spacing == "leading"),
        ),
        from_original=from_original,
        draws_noise=bool(rule.noise.any()),
    )


def _preconditioning(prediction: Prediction, levels: Levels) -> dict[str, Doubles]:
    """Scale the network's input to unit variance, and its output to an estimate of clean latents.

    The variance-preserving process in the terms of arXiv:2206.00364, table 1; v-prediction is that
    of Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """
    sigma = levels.sigmas[:-1]
    scale = 1 / np.sqrt(sigma**2 + 1)
    if prediction == "epsilon":
        return {"scale": scale, "skip": np.ones_like(sigma), "out": -sigma}
    return {"scale": scale, "skip": scale**2, "out": -sigma * scale}


def _start(sigma: float, *, at_the_prior: bool) -> float:
    """Return the standard deviation to begin with, ``sigma`` being the first level.

    The diffusion process has ``sqrt(sigma**2 + 1)`` there: data of unit variance, and noise. Euler
    from the very top of the schedule begins with the noise alone; at the prior it does not, and on
    a picture it need not.
    """
    return float(np.hypot(sigma, 1.0)) if at_the_prior else float(sigma)
