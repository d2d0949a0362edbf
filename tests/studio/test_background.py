"""From a product to a scene: grounds without a second product, and checks that can fail."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from packshot.core.errors import BadPhoto, CheckFailed, MaskNeeded
from packshot.core.types import RenderRequest
from packshot.studio.background import (
    NEXT_SEED,
    product_of,
    render_ground,
    verify,
    white_ground,
    with_shadow,
)
from packshot.studio.checks import LIMITS, failures
from packshot.studio.colour import srgb_profile
from packshot.studio.filters import blurred, boxed, filled, grown, shrunk
from packshot.studio.ground import caption_ground, cleaned, enlarged, stage_of
from packshot.studio.store import encode
from tests.studio.lexicons import SMALL
from tests.studio.products import colours, disc, photo_of, product
from tests.studio.stub import StubEngine

SIDE = 128
SAND = np.array((214, 190, 140), np.uint8)


def sand(side: int = SIDE, seed: int = 1) -> np.ndarray:
    """A ground: sand that gets lighter towards the top, with grain."""
    rows = np.linspace(20, -20, side)[:, None, None]
    grain = np.random.default_rng(seed).normal(0, 2, (side, side, 1))
    return np.clip(SAND + rows + grain, 0, 255).astype(np.uint8)


@dataclass
class GroundEngine(StubEngine):
    """Draws sand; of ``bad`` seeds, sand with the product going on beyond its outline."""

    bad: set[int] = field(default_factory=set)

    def render(self, request: RenderRequest, *, on_step=None):
        done = super().render(request, on_step=on_step)
        images = []
        for seed in request.seeds:
            picture = sand(request.width, seed)
            if request.original is not None:
                keep = ~np.asarray(request.original.mask, bool)
                picture[keep] = request.original.picture[keep]
            if seed in self.bad:
                part = request.width // 16
                picture[5 * part : 14 * part, part : 15 * part] = (180, 60, 50)
            images.append(picture)
        return replace(done, images=tuple(images))


def request(seed: int = 5) -> RenderRequest:
    return RenderRequest("on a sandy beach", (seed,), SIDE, SIDE, 2, 3.0)


def file_of(scene, kind: str = "PNG", **extra) -> bytes:
    return encode(scene.picture(), kind, {"icc_profile": srgb_profile(), **extra})


def test_a_product_stands_on_its_ground_and_passes_every_check() -> None:
    made = render_ground(product(), request(), GroundEngine())
    scene, light = with_shadow(made.scene, "on sand, light from the right")
    checks = verify(file_of(scene), scene)
    assert {check.name for check in checks} == {"core_max", "core_mean", "tone", "seam"}
    assert all(check.value == 0 for check in checks if check.name != "seam")
    assert light == {"side": "right", "kind": "studio"}
    assert (made.seed, made.refused) == (5, ())
    picture = np.asarray(scene.picture())
    assert (picture[disc() == 255] == colours()[disc() == 255]).all()
    assert np.abs(picture[:10].astype(int) - SAND).mean() < 25


def test_the_model_is_shown_the_product_and_may_change_what_is_around_it() -> None:
    engine = GroundEngine()
    render_ground(product(), request(), engine)
    original = engine.requests[0].original
    assert original is not None
    assert original.strength == 1.0
    assert original.mask is not None
    assert not original.mask[SIDE // 2, SIDE // 2]
    assert original.mask[:20].all()
    assert np.abs(original.picture[64, 64].astype(int) - (180, 60, 50)).max() < 20
    render_ground(product(), request(), engine, mode="ground")
    assert engine.requests[1].original is None


def test_a_ground_with_a_second_product_is_rendered_again_with_another_seed() -> None:
    engine = GroundEngine(bad={5, 5 + NEXT_SEED})
    made = render_ground(product(), request(), engine)
    assert made.refused == (5, 5 + NEXT_SEED)
    assert made.seed == 5 + 2 * NEXT_SEED
    assert len([part for part in made.usage if part.stage == "denoise"]) == 3


def test_after_the_last_seed_nothing_is_delivered_and_the_reason_is_told() -> None:
    engine = GroundEngine(bad={5, 5 + NEXT_SEED})
    with pytest.raises(CheckFailed, match=r"none of 2 seeds .* drawn on beyond its outline \(ext"):
        render_ground(product(), request(), engine, attempts=2)


def test_little_of_a_second_product_is_taken_out_of_the_ground() -> None:
    stage = stage_of(product().cutout, SIDE)
    picture = sand()
    picture[stage.product] = (180, 60, 50)
    beside = grown(stage.fringe, 4) & ~stage.fringe
    beside[:, : SIDE // 2] = False
    picture[beside] = (30, 60, 200)
    ground, strange = cleaned(picture, stage)
    assert 0.02 < strange < LIMITS["extension"].limit
    assert np.abs(ground.astype(int) - sand()).mean() < 4
    assert np.abs(ground.astype(int) - sand()).max() < 40


def test_a_shadow_in_the_ground_is_no_product() -> None:
    stage = stage_of(product().cutout, SIDE)
    picture = sand()
    picture[90:104, 70:125] = (picture[90:104, 70:125] * 0.6).astype(np.uint8)
    assert cleaned(picture, stage)[1] < 0.02


def test_a_horizon_goes_on_behind_the_product() -> None:
    stage = stage_of(product().cutout, SIDE)
    picture = sand()
    picture[:60] = (90, 160, 220)
    picture[stage.product] = (180, 60, 50)
    ground, strange = cleaned(picture, stage)
    assert strange < 0.1
    above, below = ground[50, 40:88].astype(int), ground[72, 40:88].astype(int)
    assert np.abs(above - (90, 160, 220)).mean() < 12
    assert np.abs(below - sand()[72, 40:88]).mean() < 12


def test_the_ground_is_enlarged_and_the_product_is_not() -> None:
    large = product(disc(600, 480, 150), colours(600, 480))
    made = render_ground(large, request(), GroundEngine())
    assert made.scene.picture().size == (600, 480)
    assert made.scene.ground.shape == (480, 600, 3)
    full = disc(600, 480, 150) == 255
    assert (np.asarray(made.scene.picture())[full] == colours(600, 480)[full]).all()


def test_the_same_seed_is_the_same_ground() -> None:
    stage = stage_of(product().cutout, SIDE)
    one, other = (enlarged(sand(), stage, (120, 96), seed) for seed in (1, 2))
    assert (one == enlarged(sand(), stage, (120, 96), 1)).all()
    assert (one != other).any()


@pytest.mark.parametrize("shadow", [True, False])
def test_white_is_white_at_the_border(shadow) -> None:
    scene = white_ground(product())
    if shadow:
        scene, _ = with_shadow(scene, "side light")
        assert (scene.ground < 200).any()
    assert {check.name: check.value for check in verify(file_of(scene), scene)}["border"] == 0
    picture = np.asarray(scene.picture())
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()


def spoilt(scene, change) -> bytes:
    """Return the file of a scene with its pixels changed."""
    picture = np.array(scene.picture())
    change(picture)
    return encode(Image.fromarray(picture), "PNG")


def one_pixel(picture: np.ndarray) -> None:
    picture[48, 60, 1] ^= 1


def all_of_it(picture: np.ndarray) -> None:
    picture[...] = np.clip(picture.astype(int) + 4, 0, 255)


def a_halo(picture: np.ndarray) -> None:
    picture[(disc() > 0) & (disc() < 255)] = (40, 220, 60)


def a_grey_border(picture: np.ndarray) -> None:
    picture[0, 3] = 254


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_pixel, r"a pixel of the product was changed \(core_max 1 of 255, at most 0\)"),
        (all_of_it, "tone was shifted"),
        (a_halo, "a seam or a halo"),
        (a_grey_border, "the border is not pure white"),
    ],
)
def test_what_breaks_a_promise_is_refused_by_its_name(change, said) -> None:
    scene = white_ground(product())
    with pytest.raises(CheckFailed, match=said):
        verify(spoilt(scene, change), scene)


def test_a_sharpened_or_shrunk_picture_is_refused() -> None:
    scene = white_ground(product())
    sharp = scene.picture().filter(ImageFilter.UnsharpMask(1, 80, 0))
    with pytest.raises(CheckFailed, match="pixel of the product was changed"):
        verify(encode(sharp, "PNG"), scene)
    with pytest.raises(CheckFailed, match="has 60x48 pixels, expected 120x96"):
        verify(encode(scene.picture().resize((60, 48)), "PNG"), scene)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_file_has_limits_of_its_own(kind) -> None:
    scene = white_ground(product())
    checks = {check.name: check for check in verify(file_of(scene, kind), scene)}
    assert checks["core_max"].limit == LIMITS["core_max"].lossy
    assert 0 < checks["core_mean"].value < 6
    with pytest.raises(CheckFailed, match="core_mean"):
        verify(file_of(scene, kind, quality=3), scene)


def test_a_lossless_webp_keeps_every_pixel() -> None:
    scene = white_ground(product())
    checks = verify(file_of(scene, "WEBP", lossless=True), scene)
    assert not failures(checks)
    assert checks[0].limit == 0


def test_facts_are_enough_to_check_the_promise_later() -> None:
    facts = product().facts
    assert len(facts["core_sha256"]) == 64
    assert facts["core_pixels"] == int(product().cutout.core.sum())
    assert facts["size"] == [120, 96]


def test_a_product_is_found_once_and_kept_for_the_next_step() -> None:
    photo = replace(photo_of(colours(), disc()), sha256="f" * 64)
    assert product_of(photo) is product_of(photo)
    assert product_of(photo) is not product_of(photo, size=(240, 192))
    with pytest.raises(BadPhoto, match="the mask is 120x95 pixels"):
        product_of(photo, disc()[:-1])


def test_a_photo_without_a_product_asks_for_a_mask() -> None:
    with pytest.raises(MaskNeeded):
        product_of(replace(photo_of(np.full((96, 120, 3), 9, np.uint8)), sha256="e" * 64))


@pytest.mark.parametrize(
    ("brief", "text"),
    [
        ("on a beach, bright daylight", "on a sandy beach, bright daylight, light from the left"),
        ("my mug on marble, light from the right", "on white marble, soft light, light from the r"),
        ("red sneakers on wood", "on a wooden table, soft light, light from the left"),
    ],
)
def test_a_ground_s_caption_names_no_product(brief, text) -> None:
    caption = caption_ground(brief, SMALL)
    assert caption.text.startswith(text)
    assert caption.slots is not None
    assert caption.slots.product is None


def test_a_model_without_a_lexicon_is_told_that_the_ground_is_empty() -> None:
    assert caption_ground("on slate", None).text == "an empty surface, nothing on it, on slate"
    assert caption_ground("on slate", None, raw=True).text == "on slate"


def test_shapes_grow_and_shrink_by_exactly_so_many_pixels() -> None:
    dot = np.zeros((21, 21), bool)
    dot[10, 10] = True
    for by in range(8):
        assert grown(dot, by).sum() == (2 * by + 1) ** 2
        assert (shrunk(grown(dot, by), by) == dot).all()


def test_means_and_blurs_keep_the_mean_and_the_size() -> None:
    values = np.random.default_rng(1).random((30, 41)).astype(np.float32)
    assert boxed(values, 2).shape == values.shape
    assert abs(boxed(values, 2)[10, 10] - values[8:13, 8:13].mean()) < 1e-5
    assert blurred(values, 2.0).std() < 0.3 * values.std()
    assert blurred(values, 0.2) is values


def test_a_hole_is_filled_with_what_is_around_it() -> None:
    picture = np.full((40, 50, 3), 7.0, np.float32)
    hole = np.zeros((40, 50), bool)
    hole[10:30, 10:40] = True
    picture[hole] = 99
    assert np.abs(filled(picture, hole) - 7).max() < 1e-3
    assert (filled(picture, np.ones_like(hole)) == picture).all()


def test_a_scene_s_files_are_pictures() -> None:
    with Image.open(io.BytesIO(file_of(white_ground(product())))) as image:
        assert image.info["icc_profile"] == srgb_profile()
