"""Whole pictures against diffusers' StableDiffusionXLPipeline, from the same seeds."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)

from packshot.core.types import SPACINGS, RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.schedule import training_sigmas
from tests.tiny import MINI_SCHEDULER, make_tiny_sdxl

# The reference library converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
REQUEST = RenderRequest(
    prompt="white sneakers on a sandy beach, bright daylight",
    seeds=(7,),
    width=64,
    height=64,
    steps=4,
    guidance=5.0,
    sampler="euler",
)


class Pair:
    """The two engines on one folder."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the reference libraries deprecate
            self.theirs = StableDiffusionXLPipeline.from_pretrained(folder)
        self.theirs.set_progress_bar_config(disable=True)
        self.ours = Engine.load(folder, device="cpu")
        self.config = dict(self.theirs.scheduler.config)

    def assert_same(self, request: RenderRequest, **scheduler) -> np.ndarray:
        """Compare the first picture, and return it."""
        kind = SCHEDULERS[request.sampler]
        config = self.config | scheduler
        if request.spacing:
            config["timestep_spacing"] = request.spacing
        self.theirs.scheduler = kind.from_config(config)
        theirs = self.theirs(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seeds[0]),
            output_type="pil",
        ).images[0]
        ours = self.ours.render(request).images[0]
        assert ours.std() > 10  # a picture that shows nothing would hide every difference
        assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
        return ours


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> Pair:
    return Pair(tiny_sdxl)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """v-prediction on a zero-terminal-SNR schedule, as packshot-mini has it."""
    return Pair(make_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-mini", MINI_SCHEDULER))


def changed(**changes) -> RenderRequest:
    return replace(REQUEST, **changes)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("folder", ["sdxl", "mini"])
def test_every_sampler_and_spacing(request, folder, sampler, spacing):
    request.getfixturevalue(folder).assert_same(changed(sampler=sampler, spacing=spacing))


def test_karras_over_the_range_of_the_model(sdxl):
    table = training_sigmas(sdxl.ours.model.noise)
    sdxl.assert_same(
        changed(schedule="karras"),
        use_karras_sigmas=True,
        sigma_min=table[0],
        sigma_max=table[-1],
    )


@pytest.mark.parametrize("folder", ["sdxl", "mini"])
def test_without_guidance(request, folder):
    pair = request.getfixturevalue(folder)
    plain = pair.assert_same(changed(guidance=1.0))
    steered = pair.assert_same(changed(guidance=9.0))
    assert not np.array_equal(plain, steered)


def test_a_negative_prompt_is_read_and_an_empty_one_is_zeros(sdxl):
    without = sdxl.assert_same(changed())
    with_one = sdxl.assert_same(changed(negative_prompt="blurred, watermark"))
    assert not np.array_equal(without, with_one)


@pytest.mark.parametrize(("width", "height"), [(64, 96), (104, 72), (128, 64)])
def test_sizes_that_are_not_square_or_do_not_halve(sdxl, width, height):
    assert sdxl.assert_same(changed(width=width, height=height)).shape == (height, width, 3)


def test_a_prompt_that_is_too_long_is_cut_at_the_same_token(sdxl):
    sdxl.assert_same(changed(prompt="a red canvas backpack, " * 30 + "unread"))


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_few_and_many_steps(mini, steps):
    mini.assert_same(changed(steps=steps, sampler="dpmpp-2m"))
