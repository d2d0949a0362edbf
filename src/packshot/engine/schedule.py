"""Noise levels: which sigmas a render visits, and which training timestep belongs to each.

Everything here is host-side arithmetic on a few hundred doubles, done once per request. Sigmas are
those of the variance-exploding view, ``x = x0 + sigma * n`` (Karras et al. 2022, arXiv:2206.00364).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from packshot.core.errors import ModelCorrupt
from packshot.core.types import SPACINGS, Schedule, Spacing

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SCHEDULES",
    "Doubles",
    "Grid",
    "Levels",
    "NoiseConfig",
    "Prediction",
    "default_levels",
    "karras_levels",
    "training_sigmas",
]

Doubles: TypeAlias = NDArray[np.float64]
Name = TypeVar("Name", bound=str)
Prediction = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear"]

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
BETA_SCHEDULES: tuple[BetaSchedule, ...] = get_args(BetaSchedule)

# alpha-bar at the last timestep under zero terminal SNR: exactly 0 would make sigma infinite. The
# published samplers use fp16's smallest subnormal, which puts the top sigma at 4096.
ZERO_SNR_ALPHA_BAR = 2.0**-24

KARRAS_RHO = 7.0  # arXiv:2206.00364, section 3


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """How the model was trained to see noise; the fields of ``scheduler/scheduler_config.json``.

    ``spacing`` and ``steps_offset`` are the folder's own defaults for the default schedule.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    spacing: Spacing = "leading"
    steps_offset: int = 0

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> NoiseConfig:
        """Read a scheduler's JSON; an absent key has the value that diffusers gives it.

        Raises ModelCorrupt for a noise process that the samplers here cannot reproduce.
        """
        if config.get("trained_betas") is not None:
            raise ModelCorrupt(
                "scheduler_config.json lists trained_betas; packshot samples from beta_start, "
                "beta_end and beta_schedule."
            )
        return cls(
            train_steps=int(config.get("num_train_timesteps", 1000)),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=_one_of(config, "beta_schedule", "linear", BETA_SCHEDULES),
            prediction=_one_of(config, "prediction_type", "epsilon", PREDICTIONS),
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            spacing=_one_of(config, "timestep_spacing", "linspace", SPACINGS),
            steps_offset=int(config.get("steps_offset", 0)),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """How many levels a render visits (1 … ``NoiseConfig.train_steps``), and where they lie.

    ``intervals`` cuts the range into ``steps`` intervals and visits the upper end of each, as
    multistep solvers define their grid; else ``steps`` points are visited, both ends among them.
    """

    steps: int
    spacing: Spacing
    intervals: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """``sigmas``: steps + 1 doubles, falling to 0. ``timesteps``: one double for each step."""

    sigmas: Doubles
    timesteps: Doubles


def training_sigmas(noise: NoiseConfig) -> Doubles:
    """Return the sigma of every training timestep, rising, ``noise.train_steps`` values.

    The products are taken in fp32, as in training: the network never saw the exact ones.
    """
    betas = _betas(noise)
    if noise.zero_terminal_snr:
        betas = _rescaled_to_zero_snr(betas)
    alpha_bar = torch.cumprod(1.0 - betas, dim=0)
    if noise.zero_terminal_snr:
        alpha_bar[-1] = ZERO_SNR_ALPHA_BAR
    return (((1 - alpha_bar) / alpha_bar) ** 0.5).double().numpy()


def default_levels(noise: NoiseConfig, grid: Grid) -> Levels:
    """Visit training timesteps spaced as ``grid`` says (table 2 of arXiv:2305.08891)."""
    timesteps = np.clip(_SPACERS[grid.spacing](noise, grid), 0, noise.train_steps - 1)
    sigmas = np.interp(timesteps, np.arange(noise.train_steps), training_sigmas(noise))
    return Levels(np.append(sigmas, 0.0), timesteps)


def karras_levels(noise: NoiseConfig, grid: Grid) -> Levels:
    """Space the sigmas evenly in ``sigma ** (1 / 7)`` over the model's whole range.

    Equation 5 of arXiv:2206.00364. The range is the model's, so only ``grid.steps`` matters.
    Timesteps are fractional: read off the training table by linear interpolation in log sigma,
    and never rounded, for a rounded one would name another noise level than the picture has.

    Under zero terminal SNR the range reaches to 4096, so that half of 20 steps lie above sigma 80,
    where there is nothing to see yet: such a model is better served by the default schedule.
    """
    table = training_sigmas(noise)
    top, bottom = table[-1] ** (1 / KARRAS_RHO), table[0] ** (1 / KARRAS_RHO)
    sigmas: Doubles = np.linspace(top, bottom, grid.steps, dtype=np.float64) ** KARRAS_RHO
    timesteps = np.interp(np.log(sigmas), np.log(table), np.arange(float(noise.train_steps)))
    return Levels(np.append(sigmas, 0.0), timesteps)


SCHEDULES: dict[Schedule, Callable[[NoiseConfig, Grid], Levels]] = {
    "default": default_levels,
    "karras": karras_levels,
}


def _betas(noise: NoiseConfig) -> torch.Tensor:
    if noise.beta_schedule == "linear":
        return torch.linspace(noise.beta_start, noise.beta_end, noise.train_steps)
    return torch.linspace(noise.beta_start**0.5, noise.beta_end**0.5, noise.train_steps) ** 2


def _rescaled_to_zero_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha-bar) so that it ends at 0 (arXiv:2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def _leading(noise: NoiseConfig, grid: Grid) -> Doubles:
    stride = max(1, noise.train_steps // (grid.steps + grid.intervals))
    rising = np.arange(float(grid.steps)) + grid.intervals
    return rising[::-1] * stride + noise.steps_offset


def _trailing(noise: NoiseConfig, grid: Grid) -> Doubles:
    # Each point from its own index: a running sum drifts, and at 61 steps ends in a 62nd point.
    return np.round(noise.train_steps * (1 - np.arange(grid.steps) / grid.steps)) - 1


def _linspace(noise: NoiseConfig, grid: Grid) -> Doubles:
    points = np.linspace(0, noise.train_steps - 1, grid.steps + grid.intervals)[::-1]
    if grid.intervals:
        return np.round(points[:-1])
    # The network is told fp32 timesteps: the sigmas are to be of those, and not of nearby ones.
    return points.astype(np.float32).astype(np.float64)


_SPACERS: dict[Spacing, Callable[[NoiseConfig, Grid], Doubles]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
}


def _one_of(config: Mapping[str, Any], key: str, absent: Name, valid: tuple[Name, ...]) -> Name:
    got = config.get(key, absent)
    for name in valid:
        if got == name:
            return name
    names = ", ".join(valid)
    raise ModelCorrupt(f"scheduler_config.json: {key} is {got!r}; packshot samples {names}.")
