"""The noise levels: parity with diffusers' tables, and the analytic answer where diffusers errs."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from packshot.core.errors import ModelCorrupt
from packshot.core.types import SPACINGS
from packshot.engine.schedule import (
    Grid,
    NoiseConfig,
    default_levels,
    karras_levels,
    training_sigmas,
)

# The reference library converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
ZERO_SNR = SDXL | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
CONFIGS = [SDXL, LINEAR, ZERO_SNR, LINEAR | {"rescale_betas_zero_snr": True}]


@pytest.mark.parametrize("config", CONFIGS)
def test_training_sigmas_are_those_of_diffusers_bit_for_bit(config):
    theirs = EulerDiscreteScheduler(**config).sigmas[:-1].flip(0).double().numpy()
    assert np.array_equal(training_sigmas(NoiseConfig.from_json(config)), theirs)


def test_zero_terminal_snr_ends_at_the_top_sigma_and_keeps_the_bottom_one():
    plain, rescaled = (training_sigmas(NoiseConfig.from_json(c)) for c in (SDXL, ZERO_SNR))
    assert rescaled[-1] == pytest.approx(4096, rel=1e-6)
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-3)
    assert np.all(np.diff(rescaled) > 0)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50])
@pytest.mark.parametrize("offset", [0, 1])
def test_default_levels_are_those_of_diffusers(config, spacing, steps, offset):
    extra = {"timestep_spacing": spacing, "steps_offset": offset}
    noise = NoiseConfig.from_json(config | extra)
    for scheduler, intervals in (
        (EulerDiscreteScheduler, False),
        (DPMSolverMultistepScheduler, True),
    ):
        theirs = scheduler(**config, **extra)
        theirs.set_timesteps(steps)
        ours = default_levels(noise, Grid(steps, spacing, intervals))
        assert ours.timesteps == pytest.approx(theirs.timesteps.double().numpy(), rel=1e-7)
        assert ours.sigmas == pytest.approx(theirs.sigmas.double().numpy(), rel=1e-6)


@pytest.mark.parametrize("steps", [61, 103, 457])
def test_trailing_has_as_many_steps_as_were_asked_for(steps):
    """Theirs adds up a rounded stride, so that some step counts gain a step at timestep -1."""
    theirs = EulerDiscreteScheduler(**SDXL, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert len(theirs.timesteps) == steps + 1

    ours = default_levels(NoiseConfig(), Grid(steps, "trailing"))
    exact = [round(1000 * (steps - i) / steps) - 1 for i in range(steps)]
    assert ours.timesteps.tolist() == exact


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 333, 499, 500, 501, 999, 1000])
def test_every_step_count_stays_inside_the_training_range(spacing, intervals, steps):
    levels = default_levels(NoiseConfig(steps_offset=1), Grid(steps, spacing, intervals))
    assert len(levels.timesteps) == steps == len(levels.sigmas) - 1
    assert levels.timesteps.min() >= 0
    assert levels.timesteps.max() <= 999
    assert levels.sigmas[-1] == 0
    assert np.all(np.diff(levels.sigmas) <= 0)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps", [2, 20, 50])
def test_karras_levels_are_those_of_diffusers_given_the_same_range(config, steps):
    """Their Euler takes the range from the spacing unless told, their DPM++ from the model."""
    noise = NoiseConfig.from_json(config)
    table = training_sigmas(noise)
    ours = karras_levels(noise, Grid(steps, "leading"))
    euler = EulerDiscreteScheduler(
        **config, use_karras_sigmas=True, sigma_min=table[0], sigma_max=table[-1]
    )
    multistep = DPMSolverMultistepScheduler(**config, use_karras_sigmas=True)
    for theirs in (euler, multistep):
        theirs.set_timesteps(steps)
        assert ours.sigmas == pytest.approx(theirs.sigmas.double().numpy(), rel=1e-6)
    assert ours.timesteps == pytest.approx(euler.timesteps.double().numpy(), abs=2e-2)


def test_karras_timesteps_are_never_rounded():
    """DPM++ of diffusers rounds them, so that at 45 steps two steps claim the same noise level."""
    theirs = DPMSolverMultistepScheduler(**SDXL, use_karras_sigmas=True)
    theirs.set_timesteps(45)
    assert len(set(theirs.timesteps.tolist())) == 44

    noise = NoiseConfig()
    levels = karras_levels(noise, Grid(45, "leading"))
    assert np.all(np.diff(levels.timesteps) < 0)
    table = training_sigmas(noise)
    back = np.exp(np.interp(levels.timesteps, np.arange(1000), np.log(table)))
    assert back == pytest.approx(levels.sigmas[:-1], rel=1e-12)


def test_karras_follows_the_formula_of_the_paper():
    table = training_sigmas(NoiseConfig())
    low, high, n = table[0], table[-1], 12
    exact = [
        (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)
    ]
    assert karras_levels(NoiseConfig(), Grid(n, "linspace")).sigmas[:-1] == pytest.approx(exact)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "sample"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("timestep_spacing", "random"),
        ("trained_betas", [0.1, 0.2]),
    ],
)
def test_a_noise_process_that_cannot_be_sampled_is_refused_by_name(key, value):
    with pytest.raises(ModelCorrupt, match=key):
        NoiseConfig.from_json(SDXL | {key: value})


def test_an_empty_config_means_what_diffusers_means_by_it():
    theirs = EulerDiscreteScheduler().config
    ours = NoiseConfig.from_json({})
    assert (ours.beta_start, ours.beta_end) == (theirs.beta_start, theirs.beta_end)
    assert (ours.beta_schedule, ours.prediction) == (theirs.beta_schedule, theirs.prediction_type)
    assert (ours.spacing, ours.steps_offset) == (theirs.timestep_spacing, theirs.steps_offset)
    assert (ours.train_steps, ours.zero_terminal_snr) == (theirs.num_train_timesteps, False)
