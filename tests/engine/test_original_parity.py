"""Renders that start from a picture against diffusers' image-to-image and inpainting pipelines.

Both are given the same latents of the picture, the mean of the autoencoder's distribution: theirs
would draw from it. The mask's edges lie between latents, where every rule of scaling it down
agrees; ours for the others is tested in test_original.
"""

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
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from packshot.core.types import SPACINGS, Original, RenderRequest
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
STRENGTHS = [0.25, 0.6, 1.0]
WIDTH, HEIGHT = 96, 64
REQUEST = RenderRequest(
    prompt="white sneakers on a sandy beach, bright daylight",
    seeds=(7,),
    width=WIDTH,
    height=HEIGHT,
    steps=8,
    guidance=5.0,
    sampler="euler",
)


def some_picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return blocks of random colours: a picture with edges."""
    blocks = np.random.default_rng(3).integers(0, 256, (height // 8, width // 8, 3))
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)


def some_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[:, :40] = mask[48:, :] = 1.0
    return mask


class Trio:
    """Our engine and their two pipelines on one folder."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the reference libraries deprecate
            self.img2img = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
            self.inpaint = StableDiffusionXLInpaintPipeline(**self.img2img.components)
        for pipeline in (self.img2img, self.inpaint):
            pipeline.set_progress_bar_config(disable=True)
        self.ours = Engine.load(folder, device="cpu")
        self.config = dict(self.img2img.scheduler.config)

    def their_latents(self, picture: np.ndarray) -> torch.Tensor:
        pixels = self.img2img.image_processor.preprocess(Image.fromarray(picture))
        with torch.inference_mode():
            mean = self.img2img.vae.encode(pixels).latent_dist.mode()
        return mean * self.img2img.vae.config.scaling_factor

    def assert_same(self, request: RenderRequest, **scheduler) -> np.ndarray:
        """Compare the first picture, and return it."""
        original = request.original
        pipeline = self.img2img if original.mask is None else self.inpaint
        masked = {}
        if original.mask is not None:
            mask = Image.fromarray((original.mask * 255).astype(np.uint8))
            masked = {"mask_image": mask, "width": request.width, "height": request.height}
        config = self.config | scheduler
        if request.spacing:
            config["timestep_spacing"] = request.spacing
        pipeline.scheduler = SCHEDULERS[request.sampler].from_config(config)
        theirs = pipeline(
            request.prompt,
            image=self.their_latents(original.picture),
            strength=original.strength,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seeds[0]),
            output_type="pil",
            **masked,
        ).images[0]
        ours = self.ours.render(request).images[0]
        assert ours.std() > 10  # a picture that shows nothing would hide every difference
        assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
        return ours


def amplified(folder: Path) -> Path:
    """Make the encoder's latents as large as noise is: a tiny random one hardly stirs them."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["quant_conv.weight"] *= 30
    save_file(weights, file)
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    return Trio(amplified(make_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """v-prediction on a zero-terminal-SNR schedule, as packshot-mini has it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mini"
    return Trio(amplified(make_tiny_sdxl(folder, MINI_SCHEDULER)))


def start(strength: float, mask: np.ndarray | None = None, **changes) -> RenderRequest:
    return replace(REQUEST, original=Original(some_picture(), strength, mask), **changes)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("folder", ["sdxl", "mini"])
def test_every_sampler_and_strength(request, folder, strength, sampler, masked):
    mask = some_mask() if masked else None
    request.getfixturevalue(folder).assert_same(start(strength, mask, sampler=sampler))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_sampler_and_spacing(sdxl, spacing, sampler, masked):
    mask = some_mask() if masked else None
    sdxl.assert_same(start(0.5, mask, sampler=sampler, spacing=spacing))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_karras_over_the_range_of_the_model(sdxl, masked):
    table = training_sigmas(sdxl.ours.model.noise)
    sdxl.assert_same(
        start(0.5, some_mask() if masked else None, schedule="karras"),
        use_karras_sigmas=True,
        sigma_min=table[0],
        sigma_max=table[-1],
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_without_guidance(mini, masked):
    mini.assert_same(start(0.5, some_mask() if masked else None, guidance=1.0))


@pytest.mark.parametrize(("width", "height"), [(64, 104), (104, 72)])
def test_sizes_that_do_not_halve(sdxl, width, height):
    picture, mask = some_picture(width, height), np.zeros((height, width), bool)
    mask[:, :40] = True
    for free in (None, mask):
        original = Original(picture, 0.5, free)
        sdxl.assert_same(replace(REQUEST, width=width, height=height, original=original))


def test_strengths_make_different_pictures(sdxl):
    made = [sdxl.ours.render(start(strength)).images[0] for strength in STRENGTHS]
    assert len({picture.tobytes() for picture in made}) == len(STRENGTHS)


def test_the_latents_are_those_of_their_encoder(sdxl):
    from packshot.engine.encode import encode_original

    model = sdxl.ours.model
    with torch.inference_mode():
        kept = encode_original(Original(some_picture(), 0.5), model.vae, lambda: model.vae)
    theirs = sdxl.their_latents(some_picture())
    assert 0.5 < theirs.std() < 2
    assert (kept.latents - theirs).abs().max() < 1e-4
