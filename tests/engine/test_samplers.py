"""The samplers: whole trajectories against diffusers, and against closed-form solutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
)

from packshot.core.types import SPACINGS
from packshot.engine.denoise import denoise
from packshot.engine.samplers import SAMPLERS, Coefficients, dpmpp_2m, euler, euler_ancestral, plan
from packshot.engine.schedule import NoiseConfig, training_sigmas

# The reference library converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MINI = SDXL | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
THEIRS = {
    "euler": (EulerDiscreteScheduler, scheduling_euler_discrete),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, scheduling_euler_ancestral_discrete),
    "dpmpp-2m": (DPMSolverMultistepScheduler, scheduling_dpmsolver_multistep),
}
SHAPE = (2, 3, 4, 5)
CPU = torch.device("cpu")


class Network:
    """A fixed nonlinear function of its input and of the step; remembers every input."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        self.seen.append(latents)
        mixed = 1.3 * latents.roll(1, dims=-1) + 0.4 * latents
        return latents - 0.5 * torch.tanh(mixed) + 0.1 * math.sin(0.7 * index)


def noises() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def our_trajectory(config: dict, **settings) -> list[torch.Tensor]:
    network = Network()
    steps = plan(NoiseConfig.from_json(config), **settings, device=CPU, dtype=torch.float64)
    last = denoise(network, steps, noises())
    return [*network.seen, last]


class InDouble(ModuleType):
    """``torch`` for their module, whose step would round the latents to fp32 every time."""

    def __getattr__(self, name: str):
        return getattr(torch, "float64" if name == "float32" else name)


def their_trajectory(sampler: str, steps: int, config: dict) -> list[torch.Tensor]:
    kind, module = THEIRS[sampler]
    scheduler, network = kind(**config), Network()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(5)
    extra = {"generator": generator} if sampler == "euler-ancestral" else {}
    latents = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    latents = latents * scheduler.init_noise_sigma
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", InDouble("torch"))
        for index, timestep in enumerate(scheduler.timesteps):
            output = network(scheduler.scale_model_input(latents, timestep), index)
            latents = scheduler.step(output, timestep, latents, **extra).prev_sample
    return [*network.seen, latents]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype == torch.float64
        assert (a - b).abs().max().item() <= 1e-6, f"step {step}"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [SDXL, MINI], ids=["sdxl", "mini"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 9, 20, 37])
def test_trajectories_are_those_of_diffusers(sampler, config, spacing, steps):
    config = config | {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")}
    ours = our_trajectory(config, sampler=sampler, schedule="default", spacing=spacing, steps=steps)
    assert_same(ours, their_trajectory(sampler, steps, config))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
@pytest.mark.parametrize("config", [SDXL, MINI], ids=["sdxl", "mini"])
@pytest.mark.parametrize("steps", [2, 9, 20, 37])
def test_karras_trajectories_are_those_of_diffusers(sampler, config, steps):
    """Given the same sigmas: their Euler must be told the model's range, which ours always takes.

    Their DPM++ also rounds the timesteps it conditions on (see test_schedule); the network here is
    told the index of the step instead, so that only the stepping is compared. Their Euler ancestral
    has no Karras schedule: the closed forms below speak for ours.
    """
    table = training_sigmas(NoiseConfig.from_json(config))
    bounds = {"sigma_min": table[0], "sigma_max": table[-1]} if sampler == "euler" else {}
    theirs = their_trajectory(sampler, steps, config | bounds | {"use_karras_sigmas": True})
    ours = our_trajectory(
        config, sampler=sampler, schedule="karras", spacing="linspace", steps=steps
    )
    assert_same(ours, theirs)


# ---------------------------------------------------------------- closed forms
# Data: a mixture of two normals. Its estimate D(x, sigma) is known, and so is the flow: in one
# dimension the probability-flow ODE moves every point along its quantile.

ERF = np.vectorize(math.erf)
WEIGHTS, MEANS, WIDTHS = np.array([0.35, 0.65]), np.array([-1.0, 0.8]), np.array([0.25, 0.5])


def estimate(x: np.ndarray, sigma: float) -> np.ndarray:
    variance = WIDTHS**2 + sigma**2
    z = (x[:, None] - MEANS) ** 2 / variance
    posterior = WEIGHTS * np.exp(-0.5 * z) / np.sqrt(variance)
    posterior /= posterior.sum(axis=1, keepdims=True)
    each = MEANS + WIDTHS**2 / variance * (x[:, None] - MEANS)
    return (posterior * each).sum(axis=1)


def cdf(x: np.ndarray, sigma: float) -> np.ndarray:
    z = (x[:, None] - MEANS) / np.sqrt(2 * (WIDTHS**2 + sigma**2))
    return (WEIGHTS * (1 + ERF(z)) / 2).sum(axis=1)


def flow(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """Return where the ODE takes ``x`` from sigma ``start`` to ``end``: the same quantile there."""
    target = cdf(x, start)
    low, high = np.full_like(x, -100.0), np.full_like(x, 100.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, end) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def run(rule: Coefficients, sigmas: np.ndarray, x: np.ndarray, normals=None) -> np.ndarray:
    before = np.zeros_like(x)
    for i, sigma in enumerate(sigmas):
        now = estimate(x, sigma)
        x = rule.keep[i] * x + rule.now[i] * now + rule.before[i] * before
        if normals is not None:
            x = x + rule.noise[i] * normals.standard_normal(x.shape)
        before = now
    return x


@pytest.mark.parametrize(("rule", "order"), [(euler, 1), (dpmpp_2m, 2)])
def test_error_falls_with_the_order_of_the_method(rule, order):
    """Every doubling of the steps divides the error against the exact flow by 2 ** order.

    Compared at sigma 0.05: the step from there to 0 is the same for every rule.
    """
    start, end = 10.0, 0.05
    x = np.linspace(-20.0, 20.0, 9)
    exact = flow(x, start, end)
    errors = []
    for steps in (80, 160, 320, 640):
        sigmas = np.geomspace(start, end, steps + 1)
        errors.append(np.abs(run(rule(np.append(sigmas, 0.0)), sigmas[:-1], x) - exact).max())
    measured = -np.polyfit(np.log([80, 160, 320, 640]), np.log(errors), 1)[0]
    assert measured == pytest.approx(order, abs=0.15)


def test_the_last_step_of_every_rule_lands_on_the_estimate():
    for rule in SAMPLERS.values():
        row = rule(np.array([3.0, 1.0, 0.2, 0.0]))
        assert (row.keep[-1], row.now[-1], row.before[-1], row.noise[-1]) == (0, 1, 0, 0)


def ancestral_variance(steps: int, width: float = 0.5, start: float = 10.0, end: float = 0.05):
    """Return the variance at ``end`` for normal data: linear, so it can be followed exactly."""
    sigmas = np.geomspace(start, end, steps + 1)
    row = euler_ancestral(np.append(sigmas, 0.0))
    variance = width**2 + start**2
    for i, sigma in enumerate(sigmas[:-1]):
        gain = row.keep[i] + row.now[i] * width**2 / (width**2 + sigma**2)
        variance = gain**2 * variance + row.noise[i] ** 2
    return variance


def test_ancestral_has_the_right_variance_to_first_order():
    exact = 0.5**2 + 0.05**2
    errors = [abs(ancestral_variance(steps) - exact) for steps in (100, 200, 400, 800)]
    measured = -np.polyfit(np.log([100, 200, 400, 800]), np.log(errors), 1)[0]
    assert measured == pytest.approx(1, abs=0.1)


def test_ancestral_draws_from_the_mixture():
    """The largest distance between the empirical and the exact CDF is what chance allows."""
    normals, count = np.random.default_rng(3), 20_000
    sigmas = np.geomspace(20.0, 0.01, 300)
    component = normals.choice(2, size=count, p=WEIGHTS)
    x = MEANS[component] + np.hypot(WIDTHS[component], 20.0) * normals.standard_normal(count)
    x = run(euler_ancestral(np.append(sigmas, 0.0)), sigmas, x, normals)
    points = np.linspace(-2.5, 2.5, 101)
    empirical = np.searchsorted(np.sort(x), points) / count
    assert np.abs(empirical - cdf(points, 0.0)).max() < 0.01


# ---------------------------------------------------------------- the loop


def test_fp32_latents_lose_nothing_from_the_top_sigma_down():
    """Zero terminal SNR starts at sigma 4096, where ``x + d * (to - at)`` would cancel digits."""

    def end(dtype: torch.dtype) -> torch.Tensor:
        steps = plan(
            NoiseConfig.from_json(MINI),
            sampler="euler",
            schedule="default",
            spacing="trailing",
            steps=20,
            device=CPU,
            dtype=dtype,
        )
        noise = (n.to(dtype) for n in noises())
        return denoise(Network(), steps, noise).double()

    assert (end(torch.float32) - end(torch.float64)).abs().max().item() < 2e-6


@pytest.mark.parametrize(("name", "draws"), [("euler", 1), ("euler-ancestral", 5), ("dpmpp-2m", 1)])
def test_only_an_ancestral_sampler_draws_noise_on_the_way(name, draws):
    settings = {"schedule": "default", "spacing": "trailing", "steps": 4, "device": CPU}
    drawn = [noise.float() for noise, _ in zip(noises(), range(9), strict=False)]
    rest = iter(drawn)
    denoise(Network(), plan(NoiseConfig(), sampler=name, **settings), rest)
    assert len(list(rest)) == 9 - draws


def test_steps_of_no_length_do_nothing():
    """As many steps as training timesteps leave no room for the intervals of a multistep grid."""
    row = dpmpp_2m(np.array([2.0, 1.0, 1.0, 1.0, 0.5, 0.0]))
    assert row.keep.tolist() == [0.5, 1, 1, 0.5, 0]
    assert row.now.tolist() == [0.5, 0, 0, 0.5, 1]
    assert not row.before.any()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_sampler_runs_at_the_largest_step_count(name, spacing):
    steps = plan(
        NoiseConfig.from_json(MINI),
        sampler=name,
        schedule="default",
        spacing=spacing,
        steps=1000,
        device=CPU,
        dtype=torch.float64,
    )
    last = denoise(Network(), steps, noises())
    assert last.isfinite().all()
    assert last.abs().max() < 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_reads_nothing_back_from_the_device(name):
    """On the meta device there is nothing to read: one ``.item()`` or branch would raise."""
    meta = torch.device("meta")
    steps = plan(
        NoiseConfig.from_json(MINI),
        sampler=name,
        schedule="karras",
        spacing="trailing",
        steps=6,
        device=meta,
    )
    noise = (n.float().to(meta) for n in noises())
    done: list[int] = []
    last = denoise(Network(), steps, noise, lambda count, clean: done.append(count))
    assert last.is_meta
    assert last.dtype == torch.float32
    assert done == [1, 2, 3, 4, 5, 6]
