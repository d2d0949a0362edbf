"""The promise: where alpha is full, the delivered file has the photograph's own pixels."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from packshot.core.errors import BadPhoto
from packshot.studio.colour import difference, lab, linear, srgb, srgb_profile
from packshot.studio.composite import composite, cutout_of, placed, shaded
from packshot.studio.encoding import Encoding, encoded
from packshot.studio.light import KINDS, SIDES, Light
from packshot.studio.matte import Matte
from packshot.studio.photo import load_photo
from packshot.studio.shadow import shadow_layer
from tests.studio.products import HEIGHT, WIDTH, colours, disc, photo_of, seen
from tests.studio.test_photo import encode, swapped_profile

sides = st.integers(64, 90)
lights = st.builds(Light, st.sampled_from(SIDES), st.sampled_from(KINDS))


@st.composite
def alphas(draw: st.DrawFn) -> np.ndarray:
    """Alphas of any content, with a block of full alpha somewhere, or a few values only."""
    shape = (draw(sides), draw(sides))
    some = draw(st.sampled_from((st.integers(0, 255), st.sampled_from((0, 254, 255)))))
    alpha = draw(hnp.arrays(np.uint8, shape, elements=some, fill=some))
    top, left = draw(st.integers(0, shape[0] - 12)), draw(st.integers(0, shape[1] - 12))
    alpha[top : top + 12, left : left + 12] = 255
    return alpha


def noise(alpha: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*alpha.shape, 3), dtype=np.uint8)


@settings(max_examples=120)
@given(
    alpha=alphas(),
    light=lights,
    source=st.sampled_from(("alpha", "mask")),
    mixed=st.booleans(),
    file=st.sampled_from(("PNG", "TIFF")),
    profile=st.sampled_from((None, "srgb", "other")),
    out=st.sampled_from(("PNG", "WEBP")),
    seed=st.integers(0, 99),
)
def test_the_core_is_the_photograph_s_in_the_encoded_file(
    alpha, light, source, mixed, file, profile, out, seed
) -> None:
    profiles = {None: None, "srgb": srgb_profile(), "other": swapped_profile()}
    raw = encode(np.dstack((noise(alpha, seed), alpha)), file, icc_profile=profiles[profile])
    photo = load_photo(raw)
    assert photo.alpha is not None or (alpha == 255).all()
    assume(photo.alpha is not None)
    cutout = cutout_of(photo, Matte(alpha, source, mixed=mixed))
    ground = shaded(noise(alpha, seed + 1), shadow_layer(alpha, light))
    picture = Image.fromarray(composite(cutout, ground))
    data, _ = encoded(
        picture, Encoding(out, profile=True), {"lossless": True} if out == "WEBP" else {}
    )
    with Image.open(io.BytesIO(data)) as image:
        again = np.asarray(image.convert("RGB"))
        assert image.info["icc_profile"] == srgb_profile()
    assert (again[cutout.core] == photo.pixels[cutout.core]).all()
    assert (again[alpha == 255] == photo.pixels[alpha == 255]).all()
    assert hashlib.sha256(again[cutout.core].tobytes()).hexdigest() == cutout.digest
    assert (again[alpha == 0] == ground[alpha == 0]).all()


@settings(max_examples=60)
@given(alpha=alphas(), width=sides, height=sides, seed=st.integers(0, 99))
def test_a_shrunk_product_is_the_photograph_resampled_and_nothing_else(
    alpha, width, height, seed
) -> None:
    pixels = noise(alpha, seed)
    cutout = cutout_of(photo_of(pixels, alpha), Matte(alpha, "alpha", mixed=False))
    scale = min(1.0, width / alpha.shape[1], height / alpha.shape[0])
    try:
        small = placed(cutout, (width, height))
    except BadPhoto:
        assert scale < 1  # nothing is left of the core, and nobody says that there is
        return
    assert small.size == (width, height)
    shown = (max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale)))
    resampled = np.asarray(Image.fromarray(pixels).resize(shown, Image.Resampling.LANCZOS))
    left, top = (width - shown[0]) // 2, (height - shown[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + shown[1], left : left + shown[0]] = resampled
    assert (small.colours[small.core] == canvas[small.core]).all()


@pytest.mark.parametrize("row", range(85))
def test_one_pixel_that_is_not_full_is_never_overlooked(row) -> None:
    alpha = np.full((85, 68), 255, np.uint8)
    alpha[row, 33] = 254
    small = placed(cutout_of(photo_of(colours(68, 85)), Matte(alpha, "mask")), (64, 70))
    assert (small.alpha[:, 4:60] < 255).any()


def test_a_product_is_never_enlarged() -> None:
    cutout = cutout_of(photo_of(colours()), Matte(disc(), "mask"))
    large = placed(cutout, (480, 384))
    assert large.scale == 1
    assert large.core.sum() == cutout.core.sum()
    assert large.digest == cutout.digest


def test_a_canvas_that_is_a_pixel_larger_is_a_pixel_larger() -> None:
    cutout = cutout_of(photo_of(colours()), Matte(disc(), "mask"))
    assert placed(cutout, (WIDTH, HEIGHT)) is cutout
    assert placed(cutout, (WIDTH, HEIGHT + 1)).size == (WIDTH, HEIGHT + 1)


def test_the_core_keeps_its_distance_from_what_is_not_all_product() -> None:
    alpha = np.zeros((70, 70), np.uint8)
    alpha[20:50, 20:50] = 255
    alpha[30, 30] = 254
    core = cutout_of(photo_of(colours(70, 70)), Matte(alpha, "mask")).core
    assert core.sum() == 28 * 28 - 9
    assert not core[29:32, 29:32].any()


def test_without_a_core_there_is_no_promise() -> None:
    alpha = np.zeros((70, 70), np.uint8)
    alpha[::2] = 255
    with pytest.raises(BadPhoto, match="no pixel is product alone with 1 pixels"):
        cutout_of(photo_of(colours(70, 70)), Matte(alpha, "mask"))


@pytest.mark.parametrize("old", [(255, 255, 255), (0, 0, 0), (40, 200, 60)])
@pytest.mark.parametrize("new", [(255, 255, 255), (20, 20, 26), (210, 190, 140)])
def test_no_halo_of_the_old_ground_is_left(old, new) -> None:
    """Compared with the ideal: the same product, seen before the new ground."""
    flat = np.full_like(colours(), 0) + np.array((180, 60, 50), np.uint8)
    alpha = disc()
    photo = photo_of(seen(flat, alpha, old))
    ground = np.full_like(flat, 0) + np.array(new, np.uint8)
    rim = (alpha > 0) & (alpha < 255)
    ideal = lab(linear(seen(flat, alpha, new)))[rim]

    def error(pixels: np.ndarray) -> float:
        return float(difference(lab(linear(pixels))[rim], ideal).mean())

    ours = error(composite(cutout_of(photo, Matte(alpha, "mask")), ground))
    assert ours < 0.6
    pasted = (alpha / 255)[..., None] * photo.pixels + (1 - alpha / 255)[..., None] * ground
    if old != new:
        assert ours < 0.3 * error(pasted.astype(np.uint8))


def test_colours_that_are_the_product_s_own_are_kept_on_the_rim() -> None:
    alpha, own = disc(), colours()
    hidden = own * (alpha > 0)[..., None].astype(np.uint8)
    cutout = cutout_of(photo_of(hidden, alpha), Matte(alpha, "alpha", mixed=False))
    most = (alpha > 200) & (alpha < 255)
    assert np.abs(cutout.colours[most].astype(int) - own[most]).mean() < 3


def test_a_shadow_of_one_leaves_the_ground_as_it_is() -> None:
    ground = colours()
    assert (shaded(ground, np.ones(ground.shape[:2], np.float32)) == ground).all()
    half = np.full(ground.shape[:2], 0.5, np.float32)
    assert np.abs(linear(shaded(ground, half)) - linear(ground) / 2).max() < 0.01


def test_linear_light_and_back_is_the_same_for_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert (srgb(linear(every)) == every).all()


def test_lab_agrees_with_known_colours() -> None:
    """Lindbloom's values for sRGB's white, red and blue, D65."""
    got = lab(np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]], np.float32))
    known = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert np.abs(got - np.array(known)).max() < 0.1


def test_sizes_are_what_they_are_called() -> None:
    cutout = cutout_of(photo_of(colours()), Matte(disc(), "mask"))
    assert cutout.size == (WIDTH, HEIGHT)
