"""Renders that start from a picture: what changes, what stays, what is told, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from packshot.core.errors import Cancelled, InvalidRequest, RenderFailed
from packshot.core.types import Original, RenderRequest
from packshot.engine.denoise import Kept, denoise
from packshot.engine.encode import encode_original, free_latents
from packshot.engine.engine import Engine
from packshot.engine.limits import validate
from packshot.engine.networks.vae import VAE
from packshot.engine.samplers import SAMPLERS, plan
from packshot.engine.schedule import NoiseConfig

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
LEFT = np.zeros((64, 64), bool)
LEFT[:, :32] = True
PLAIN = RenderRequest("white sneakers on a sandy beach", (7,), 64, 64, 6, 4.0)
REQUEST = replace(PLAIN, original=Original(PICTURE, 0.5))
MASKED = replace(PLAIN, original=Original(PICTURE, 0.5, LEFT))


@pytest.fixture(scope="module")
def engine(tiny_sdxl: Path) -> Engine:
    return Engine.load(tiny_sdxl, device="cpu")


def with_original(**changes) -> RenderRequest:
    return replace(REQUEST, original=replace(REQUEST.original, **changes))


# ---------------------------------------------------------------- steps and strength


@pytest.mark.parametrize(
    ("steps", "strength", "taken"),
    [(20, 1.0, 20), (20, 0.5, 10), (20, 0.99, 19), (50, 0.58, 29), (20, 0.05, 1), (1, 1.0, 1)],
)
def test_strength_is_the_share_of_the_steps_that_are_taken(steps, strength, taken):
    request = replace(with_original(strength=strength), steps=steps)
    assert request.steps_taken == taken
    assert replace(request, original=None).steps_taken == steps
    validate(request)


def test_progress_previews_and_usage_count_the_steps_taken(engine):
    told: list[tuple[int, int]] = []
    shown = []

    def on_step(progress):
        told.append((progress.step, progress.steps))
        shown.append(progress.preview())

    request = replace(REQUEST, seeds=(1, 2))
    result = engine.render(request, on_step)
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    assert {picture.shape for picture in shown} == {(64, 64, 3)}
    encode, denoised, _ = result.usage
    assert (encode.stage, encode.pixels) == ("encode", 64 * 64)  # once for both pictures
    assert denoised.steps == 6
    assert engine.render(PLAIN).usage[0].pixels == 0


def test_a_render_can_be_ended_and_the_engine_goes_on(engine):
    before = engine.render(MASKED).images[0]

    def stop(progress):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        engine.render(MASKED, stop)
    assert np.array_equal(engine.render(MASKED).images[0], before)


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("request_", [REQUEST, MASKED], ids=["whole", "masked"])
@pytest.mark.parametrize("sampler", ["euler-ancestral", "dpmpp-2m"])
def test_a_picture_of_many_is_the_single_render_of_its_seed_bit_for_bit(engine, request_, sampler):
    request = replace(request_, sampler=sampler, seeds=(7, 8, 9))
    together = engine.render(request).images
    assert len({image.tobytes() for image in together}) == 3
    for seed, image in zip(request.seeds, together, strict=True):
        assert np.array_equal(image, engine.render(replace(request, seeds=(seed,))).images[0])


def test_pictures_made_together_are_those_made_alone_but_for_rounding(engine, monkeypatch):
    """What a GPU does; here on the CPU, by making the batches that it would make."""

    request = replace(MASKED, seeds=(7, 8, 9), sampler="euler-ancestral")
    alone = engine.render(request).images
    monkeypatch.setattr(engine.runner, "batches", lambda pictures, pixels: (pictures,))
    for a, b in zip(alone, engine.render(request).images, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_may_not_change_ends_in_the_latents_of_the_picture(
    engine, monkeypatch, sampler, strength
):
    ended = []
    denoised = engine.runner.denoise
    monkeypatch.setattr(
        engine.runner, "denoise", lambda *args: ended.append(denoised(*args)) or ended[-1]
    )
    engine.render(replace(PLAIN, sampler=sampler, original=Original(PICTURE, strength, LEFT)))
    with torch.inference_mode():
        kept = encode_original(Original(PICTURE, 1.0), engine.model.vae, lambda: engine.model.vae)
    assert torch.equal(ended[0][..., 4:], kept.latents[..., 4:])
    assert (ended[0][..., :4] - kept.latents[..., :4]).abs().min() > 0


def test_a_mask_that_frees_all_at_full_strength_is_a_render_from_noise(engine):
    everything = with_original(strength=1.0, mask=np.ones((64, 64), np.float32))
    assert np.array_equal(engine.render(everything).images[0], engine.render(PLAIN).images[0])


def test_the_last_preview_of_a_masked_render_is_its_picture(engine, monkeypatch):
    monkeypatch.setitem(engine.model.__dict__, "tiny_vae", engine.model.vae)
    shown = []
    result = engine.render(MASKED, lambda progress: shown.append(progress.preview()))
    assert np.array_equal(shown[-1], result.images[0])


def test_a_latent_may_change_where_any_of_its_pixels_may():
    mask = torch.zeros(24, 32)
    mask[0, 0] = 0.5
    mask[15, 8] = 1.0
    mask[16:24, 24:32] = 0.49  # marks nothing
    free = free_latents(mask)
    assert free.shape == (1, 1, 3, 4)
    assert free[0, 0].nonzero().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
def test_masks_of_every_kind_mean_the_same(engine, kind):
    original = Original(PICTURE, 0.5, LEFT.astype(kind))
    made = engine.render(replace(PLAIN, original=original)).images[0]
    assert np.array_equal(made, engine.render(MASKED).images[0])


def test_nothing_in_the_loop_is_read_back():
    """Tensors without data: whoever looked at one would raise."""
    device = torch.device("meta")
    steps = plan(
        NoiseConfig(),
        sampler="euler-ancestral",
        schedule="default",
        spacing="leading",
        steps=5,
        device=device,
        enter=2,
    )
    noise = iter(lambda: torch.empty(2, 4, 8, 8, device=device), None)
    kept = Kept(
        torch.empty(1, 4, 8, 8, device=device),
        torch.empty(1, 1, 8, 8, device=device, dtype=torch.bool),
    )
    done: list[int] = []
    last = denoise(lambda x, _: x, steps, noise, lambda count, _: done.append(count), kept)
    assert last.shape == (2, 4, 8, 8)
    assert done == [1, 2, 3]


# ---------------------------------------------------------------- the encoder


def broken_encode(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    encode, left = VAE.encode, [times]

    def encoding(self, pixels):
        left[0] -= 1
        return encode(self, pixels) if left[0] < 0 else torch.full((1, 4, 8, 8), torch.nan)

    monkeypatch.setattr(VAE, "encode", encoding)


def test_latents_that_are_no_numbers_are_made_once_more_in_fp32(tiny_sdxl, engine, monkeypatch):
    half = Engine.load(tiny_sdxl, device="cpu", vae_precision="bf16")
    request = Original(PICTURE, 0.5)
    with torch.inference_mode():
        full = encode_original(request, engine.model.vae, lambda: engine.model.vae).latents
        rough = encode_original(request, half.model.vae, lambda: half.model.vae_fp32).latents
        assert full.dtype == rough.dtype == torch.float32
        assert not torch.equal(full, rough)
        broken_encode(monkeypatch, times=1)
        again = encode_original(request, half.model.vae, lambda: half.model.vae_fp32).latents
    assert torch.equal(full, again)


def test_a_picture_that_cannot_be_encoded_ends_the_render(engine, monkeypatch):
    with monkeypatch.context() as patch:
        broken_encode(patch, times=2)
        with pytest.raises(RenderFailed, match="no numbers of the original picture"):
            engine.render(REQUEST)
    engine.render(REQUEST)


# ---------------------------------------------------------------- refusals


def floats(value: float) -> np.ndarray:
    return np.full((64, 64), value, np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"picture": PICTURE[:32]}, "picture is 64x32x3 of uint8, expected 64x64 pixels of RGB"),
        ({"picture": PICTURE[..., 0]}, "picture is 64x64 of uint8"),
        ({"picture": PICTURE.astype(np.float32)}, "64x64x3 of float32.*resize it"),
        ({"strength": 0.0}, "strength is 0, expected more than 0, and at most 1"),
        ({"strength": 1.5}, r"strength is 1\.5"),
        ({"strength": -0.5}, r"strength is -0\.5"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 0.1}, r"0\.1 of 6 steps is less than one step.*least 0\.166667"),
        ({"mask": LEFT[:, :32]}, "mask is 32x64, expected 64x64 pixels of one channel"),
        ({"mask": PICTURE}, "mask is 64x64x3"),
        ({"mask": LEFT.astype(np.uint8) * 255}, "mask holds 0 to 255.*divide bytes by 255"),
        ({"mask": floats(-0.1)}, r"mask holds -0\.1 to -0\.1"),
        ({"mask": floats(float("nan"))}, "mask holds nan"),
        ({"mask": LEFT.astype(str)}, "mask is of <U5"),
        ({"mask": np.zeros((64, 64), bool)}, "mask lets nothing change: it holds 0 at most"),
        ({"mask": floats(0.4)}, r"it holds 0\.4 at most"),
    ],
)
def test_what_is_refused(change, said):
    with pytest.raises(InvalidRequest, match=said):
        validate(with_original(**change))
