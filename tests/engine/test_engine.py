"""The engine as its callers see it: seeds, progress, previews, cancelling, faults, usage."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packshot.core.errors import (
    Cancelled,
    DeviceLost,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    RenderFailed,
)
from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.networks.vae import VAE
from packshot.engine.results import Progress
from packshot.engine.runner import PlainRunner

REQUEST = RenderRequest("white sneakers on a sandy beach", (7,), 64, 64, 3, 4.0)


@pytest.fixture(scope="module")
def engine(tiny_sdxl: Path) -> Engine:
    return Engine.load(tiny_sdxl, device="cpu")


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("sampler", ["euler-ancestral", "dpmpp-2m"])
def test_a_picture_of_many_is_the_single_render_of_its_seed_bit_for_bit(engine, sampler):
    request = replace(REQUEST, sampler=sampler, seeds=(7, 8, 9, 10))
    together = engine.render(request).images
    assert len({image.tobytes() for image in together}) == 4
    for seed, image in zip(request.seeds, together, strict=True):
        alone = engine.render(replace(request, seeds=(seed,))).images[0]
        assert np.array_equal(image, alone)


def test_the_same_request_gives_the_same_bits_after_others(engine):
    first = engine.render(REQUEST).images[0]
    engine.render(replace(REQUEST, prompt="a mug", guidance=1.0, steps=2, width=96))
    assert np.array_equal(engine.render(REQUEST).images[0], first)


def test_a_render_neither_reads_nor_moves_the_global_generator(engine):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = engine.render(replace(REQUEST, sampler="euler-ancestral")).images[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = engine.render(replace(REQUEST, sampler="euler-ancestral")).images[0]
    assert np.array_equal(first, second)


def test_pictures_made_together_are_those_made_alone_but_for_rounding(engine, monkeypatch):
    """What a GPU does; here on the CPU, by making the batches that it would make."""

    request = replace(REQUEST, seeds=(7, 8, 9), sampler="euler-ancestral")
    alone = engine.render(request).images
    monkeypatch.setattr(engine.runner, "batches", lambda pictures, pixels: (pictures,))
    for a, b in zip(alone, engine.render(request).images, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("size", "device", "expected"),
    [
        (1024, "cuda", (4, 4, 1)),
        (2048, "cuda", (1,) * 9),
        (256, "cuda", (9,)),
        (256, "cpu", (1,) * 9),
    ],
)
def test_a_gpu_makes_as_many_pictures_together_as_fit(size, device, expected):
    runner = PlainRunner(SimpleNamespace(device=torch.device(device)))
    assert runner.batches(9, size * size) == expected


# ---------------------------------------------------------------- guidance


def test_guidance_runs_both_prompts_in_one_batch_and_none_at_one(engine, monkeypatch):
    rows: list[int] = []
    forward = engine.model.unet.forward

    def counting(latents, *args):
        rows.append(len(latents))
        return forward(latents, *args)

    monkeypatch.setattr(engine.model.unet, "forward", counting)
    engine.render(replace(REQUEST, guidance=4.0))
    engine.render(replace(REQUEST, guidance=1.0))
    assert rows == [2, 2, 2, 1, 1, 1]


# ---------------------------------------------------------------- progress and cancelling


def test_every_step_of_every_picture_is_told(engine):
    told: list[tuple[int, int, int, int]] = []
    engine.render(
        replace(REQUEST, seeds=(1, 2)),
        lambda p: told.append((p.picture, p.pictures, p.step, p.steps)),
    )
    assert told == [(picture, 2, step, 3) for picture in (1, 2) for step in (1, 2, 3)]


def test_watching_and_previewing_change_nothing(engine):
    plain = engine.render(REQUEST).images[0]
    watched = engine.render(REQUEST, lambda progress: progress.preview()).images[0]
    assert np.array_equal(plain, watched)


def test_previews_are_made_by_the_tiny_autoencoder_of_the_estimate(engine, monkeypatch):
    previews = []
    result = engine.render(REQUEST, lambda progress: previews.append(progress.preview()))
    assert [p.shape for p in previews] == [(64, 64, 3)] * 3
    assert all(p.dtype == np.uint8 for p in previews)
    assert not np.array_equal(previews[0], previews[-1])

    # With the VAE in its place the last one is the picture: the last step lands on the estimate.
    monkeypatch.setitem(engine.model.__dict__, "tiny_vae", engine.model.vae)
    engine.render(REQUEST, lambda progress: previews.append(progress.preview()))
    assert np.array_equal(previews[-1], result.images[0])


def test_a_folder_without_a_tiny_autoencoder_previews_with_the_vae(tiny_sdxl, tmp_path):
    folder = copy_without(tiny_sdxl, tmp_path / "model", "tiny_vae")
    bare = Engine.load(folder, device="cpu")
    previews = []
    result = bare.render(REQUEST, lambda progress: previews.append(progress.preview()))
    assert np.array_equal(previews[-1], result.images[0])


@pytest.mark.parametrize("error", [Cancelled("stop"), KeyboardInterrupt()])
def test_a_render_can_be_ended_between_steps_and_the_engine_goes_on(engine, error):
    before = engine.render(REQUEST).images[0]
    steps: list[int] = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            raise error

    with pytest.raises(type(error)):
        engine.render(REQUEST, stop)
    assert steps == [1, 2]
    assert np.array_equal(engine.render(REQUEST).images[0], before)


# ---------------------------------------------------------------- results


def test_the_result_says_what_was_made_and_what_it_took(engine, tiny_sdxl):
    result = engine.render(replace(REQUEST, seeds=(1, 2), width=96))
    assert [image.shape for image in result.images] == [(64, 96, 3)] * 2
    assert all(image.dtype == np.uint8 for image in result.images)
    assert result.request == replace(REQUEST, seeds=(1, 2), width=96, spacing="leading")
    assert (result.device, result.precision) == ("cpu", "fp32")
    assert (result.model, result.fingerprint) == (tiny_sdxl.name, engine.model.folder.fingerprint)
    assert result.warnings == ()
    encode, denoise, decode = result.usage
    assert [u.stage for u in result.usage] == ["encode", "denoise", "decode"]
    assert (denoise.steps, denoise.pixels) == (6, 2 * 64 * 96)
    assert (encode.steps, decode.steps, decode.pixels) == (0, 0, 2 * 64 * 96)
    assert all(u.seconds > 0 and u.device == "cpu" for u in result.usage)
    with pytest.raises(FrozenInstanceError):
        result.images = ()


def test_a_prompt_beyond_the_reach_of_the_encoders_is_reported(engine):
    long = "a red canvas backpack " * 40
    ours = engine.model.readers[0].tokenizer.encode(long).dropped
    assert ours > 0
    (said,) = engine.render(replace(REQUEST, prompt=long)).warnings
    assert said.startswith(f"the prompt is {ours} tokens longer")
    (said,) = engine.render(replace(REQUEST, negative_prompt=long)).warnings
    assert said.startswith(f"the negative prompt is {ours} tokens longer")
    (said,) = engine.render(replace(REQUEST, prompt=long, guidance=1.0)).warnings
    assert said.startswith("the prompt is")


def test_a_bad_request_is_refused_before_any_work(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "unet", None)
    with pytest.raises(InvalidRequest, match="steps is 0"):
        engine.render(replace(REQUEST, steps=0))


def test_loading_and_rendering_import_neither_the_compiler_nor_the_reference(tiny_sdxl):
    """Torch's compiler alone takes longer to import than a model to load."""
    code = """if True:
        import sys
        from pathlib import Path
        from packshot.core.types import RenderRequest
        from packshot.engine.engine import Engine
        engine = Engine.load(Path(sys.argv[1]), device="cpu")
        engine.render(RenderRequest("a mug", (1,), 64, 64, 1, 4.0), lambda p: p.preview())
        heavy = {"torch._dynamo", "torch._inductor", "diffusers", "transformers", "torchvision"}
        sys.exit(", ".join(heavy & set(sys.modules)) or 0)
    """
    command = [sys.executable, "-W", "error", "-c", code, str(tiny_sdxl)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ModelNotFound, match="nowhere"):
        Engine.load(tmp_path / "nowhere")


# ---------------------------------------------------------------- faults


def broken(value: float, times: int, contrast: float = 1e-5):
    """Return a decode that is lost in ``value`` so many times, then works."""
    decode, left = VAE.decode, [times]

    def decoding(self, latents):
        pixels = decode(self, latents)
        left[0] -= 1
        return pixels if left[0] < 0 else value + contrast * pixels

    return decoding


@pytest.mark.parametrize(
    ("value", "contrast", "said"),
    [
        (torch.nan, 1.0, "not-a-number"),
        (torch.inf, 1.0, "not-a-number"),
        (0.2, 1e-3, "one flat colour"),
        (7.0, 1.0, "one flat colour"),  # varied, but all of it beyond white
    ],
)
def test_a_broken_picture_is_decoded_once_more_in_fp32(
    tiny_sdxl, monkeypatch, value, contrast, said
):
    engine = Engine.load(tiny_sdxl, device="cpu", vae_precision="bf16")
    full = Engine.load(tiny_sdxl, device="cpu").render(REQUEST).images[0]
    monkeypatch.setattr(VAE, "decode", broken(value, times=1, contrast=contrast))
    result = engine.render(REQUEST)
    assert np.array_equal(result.images[0], full)
    assert len(result.warnings) == 1
    assert said in result.warnings[0]
    assert "once more, in fp32" in result.warnings[0]


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_a_picture_that_is_broken_twice_never_leaves(engine, monkeypatch, value):
    with monkeypatch.context() as patch:
        patch.setattr(VAE, "decode", broken(value, times=2))
        with pytest.raises(RenderFailed, match="latents are sound"):
            engine.render(REQUEST)
    assert engine.render(REQUEST).warnings == ()


def test_latents_that_are_no_numbers_are_named_as_the_cause(engine, monkeypatch):
    monkeypatch.setattr(
        engine.model.unet, "forward", lambda latents, *args: torch.full_like(latents, torch.nan)
    )
    with pytest.raises(RenderFailed, match=r"latents were no numbers.*precision fp32"):
        engine.render(REQUEST)


def test_one_flat_channel_is_no_fault(engine, monkeypatch):
    decode = VAE.decode

    def without_red(self, latents):
        pixels = decode(self, latents)
        pixels[:, 0] = -1.0
        return pixels

    monkeypatch.setattr(VAE, "decode", without_red)
    result = engine.render(REQUEST)
    assert not result.images[0][..., 0].any()
    assert result.warnings == ()


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_the_full_one_with_latents_in_fp32(tiny_sdxl, engine, precision):
    half = Engine.load(tiny_sdxl, device="cpu", precision=precision)
    seen: list[torch.dtype] = []
    watch = half._watch

    def spying(*args):
        tell = watch(*args)

        def told(done, clean):
            seen.append(clean.dtype)
            tell(done, clean)

        return told

    half._watch = spying
    result = half.render(REQUEST, lambda progress: None)
    full = engine.render(REQUEST).images[0].astype(int)
    assert result.precision == precision
    assert set(seen) == {torch.float32}
    assert np.abs(result.images[0].astype(int) - full).mean() < 4


def copy_without(source: Path, target: Path, component: str) -> Path:
    """Return a copy of a model folder that lacks one component."""
    target.mkdir()
    for child in source.iterdir():
        if child.name != component:
            (target / child.name).symlink_to(child)
    return target


# ---------------------------------------------------------------- a device in trouble


def test_pictures_that_do_not_fit_together_are_made_in_smaller_batches(engine, monkeypatch):
    request = replace(REQUEST, seeds=(7, 8, 9))
    want = engine.render(request).images
    made, denoise = [], engine.runner.denoise

    def cramped(task, pictures, noise, watch):
        made.append(pictures)
        if pictures > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return denoise(task, pictures, noise, watch)

    monkeypatch.setattr(engine.runner, "batches", lambda pictures, pixels: (pictures,))
    monkeypatch.setattr(engine.runner, "denoise", cramped)
    monkeypatch.setattr(engine.runner, "release", lambda: made.append("released"))
    got = engine.render(request).images
    assert made == [3, "released", 1, 2, "released", 1, 1]
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_picture_that_does_not_fit_alone_is_an_error_and_the_next_one_is_made(
    engine, monkeypatch
):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "denoise", full)
        with pytest.raises(OutOfMemory, match=r"9 GiB.*smaller picture"):
            engine.render(REQUEST)
    assert engine.render(REQUEST).images


@pytest.mark.parametrize("by", ["CUDA error", "Triton Error [CUDA]"])
def test_a_broken_context_says_that_the_process_must_end(engine, monkeypatch, by):
    def broken(*args):
        raise RuntimeError(f"{by}: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(engine.runner, "denoise", broken)
    with pytest.raises(DeviceLost, match=r"illegal memory access was encountered\. End the"):
        engine.render(REQUEST)


def test_an_error_that_is_no_device_s_comes_out_as_it_is(engine, monkeypatch):
    def wrong(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine.runner, "denoise", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        engine.render(REQUEST)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_what_is_too_fine_for_eight_bits_is_prepared_in_bf16(engine, monkeypatch, precision):
    seen = []
    monkeypatch.setattr(engine.model, "precision", precision)
    monkeypatch.setattr(
        engine.runner, "warm", lambda sizes, pictures, tiers, _: seen.append((*sizes, *tiers)) or 1
    )
    tier = "exact" if precision == "bf16" else precision
    assert engine.warm(((1024, 1024), (2048, 2048))) == len(seen)
    assert engine.warm(((2048, 2048),)) == 1
    large, small = (2048, 2048), (1024, 1024)
    both = [(small, large, tier)] if precision == "bf16" else [(small, tier), (large, "exact")]
    assert seen == [*both, (large, "exact")]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_decoder_without_room_gets_that_of_the_steps(engine, monkeypatch, failures):
    decode, told = engine.runner.decode, []

    def full(latents):
        told.append("decode")
        if told.count("decode") <= failures:
            raise torch.OutOfMemoryError("no room")
        return decode(latents)

    monkeypatch.setattr(engine.runner, "decode", full)
    monkeypatch.setattr(engine.runner, "release", lambda: told.append("release"))
    if failures == 1:
        assert len(engine.render(REQUEST).images) == 1
    else:
        with pytest.raises(OutOfMemory):
            engine.render(REQUEST)
    assert told == ["decode", "release", "decode"]
