"""Where the product is: given, or found with a confidence that is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packshot.core.errors import BadPhoto, MaskNeeded
from packshot.studio.matte import FULL, MIN_CONFIDENCE, cut_out, matte_of
from packshot.studio.photo import load_photo
from tests.studio.products import colours, disc, photo_of, seen

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    a, b = found > 127, true > 127
    return float((a & b).sum() / (a | b).sum())


def on(name: str, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a sample photograph on a ground [height, width, 3], and its true alpha."""
    photo = load_photo(PHOTOS / name)
    assert photo.alpha is not None
    share = (photo.alpha / 255)[..., None]
    behind = np.broadcast_to(ground, photo.pixels.shape)
    return (photo.pixels * share + behind * (1 - share)).astype(np.uint8), photo.alpha


def test_a_mask_goes_before_the_alpha_and_the_alpha_before_looking() -> None:
    alpha, mask = disc(radius=20), disc(radius=30)
    photo = photo_of(colours(), alpha)
    assert matte_of(photo, mask).source == "mask"
    assert (matte_of(photo, mask).alpha == mask).all()
    assert matte_of(photo).source == "alpha"
    assert (matte_of(photo).alpha == alpha).all()


def test_an_alpha_over_the_old_ground_is_told_from_one_over_nothing() -> None:
    alpha = disc()
    over_nothing = colours() * (alpha > 0)[..., None].astype(np.uint8)
    assert not matte_of(photo_of(over_nothing, alpha)).mixed
    rows = np.linspace(90, 200, alpha.shape[0]).astype(np.uint8)[:, None, None]
    over_wall = np.where((alpha > 0)[..., None], colours(), rows)
    assert matte_of(photo_of(over_wall, alpha)).mixed


@pytest.mark.parametrize("name", ["mug.png", "sneaker.png"])
@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_product_on_a_plain_wall_is_found(name: str, shade: int) -> None:
    pixels, true = on(name, np.full(3, shade))
    matte = cut_out(pixels)
    assert overlap(matte.alpha, true) > 0.97
    assert matte.confidence > 0.9
    assert matte.alpha.shape == true.shape
    kept_of_the_wall = (matte.alpha == FULL) & (true == 0)
    assert kept_of_the_wall.sum() < 25, "of a quarter of a million: specks that no blend can mend"


def test_a_product_on_a_graded_wall_with_grain_is_found() -> None:
    rows = np.linspace(150, 210, 900)[:, None, None]
    grain = np.random.default_rng(1).normal(0, 3, (900, 900, 1))
    pixels, true = on("mug.png", rows + grain)
    matte = cut_out(pixels)
    assert overlap(matte.alpha, true) > 0.97
    assert matte.confidence > MIN_CONFIDENCE


def test_a_handle_s_hole_is_no_product() -> None:
    pixels, true = on("mug.png", np.full(3, 200))
    inside = np.zeros_like(true, bool)
    inside[330:460, 650:715] = True
    hole = inside & (true == 0)
    assert hole.sum() > 5000
    assert (cut_out(pixels).alpha[hole] == 0).mean() > 0.9


def test_the_sample_on_a_sweep_is_found_without_its_shadow() -> None:
    photo = load_photo(PHOTOS / "bottle.jpg")
    matte = matte_of(photo)
    assert matte.source == "cut-out"
    assert matte.confidence > 0.9
    assert (matte.alpha[815:845, 550:] < 128).all()  # where its shadow begins
    assert (matte.alpha[400:800, 300:500] == 255).all()


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.random.default_rng(1).integers(0, 256, (300, 300, 3)), "confidence 0"),
        (np.full((300, 300, 3), 128), "nothing in it differs from its borders"),
        (np.repeat(np.arange(300)[:, None], 300, 1)[..., None].repeat(3, -1) // 2, "."),
    ],
)
def test_where_nothing_is_certain_a_mask_is_asked_for(pixels: np.ndarray, why: str) -> None:
    with pytest.raises(MaskNeeded, match=why) as caught:
        matte_of(photo_of(pixels.astype(np.uint8), name="shop.jpg"))
    assert "the column mask, a picture of the same size" in str(caught.value)
    assert "shop.jpg" in str(caught.value)


def test_a_product_that_is_cut_off_by_the_border_is_not_certain() -> None:
    pixels = np.full((200, 200, 3), 230, np.uint8)
    pixels[60:, 80:140] = (30, 60, 160)
    pixels[60:, 40:160] = (30, 60, 160)
    assert cut_out(pixels).confidence < MIN_CONFIDENCE


def test_two_products_are_not_one() -> None:
    pixels = np.full((200, 300, 3), 230, np.uint8)
    pixels[60:140, 40:110] = pixels[60:140, 190:260] = (160, 40, 40)
    matte = cut_out(pixels)
    assert matte.confidence < MIN_CONFIDENCE
    assert "several parts" in matte.reason


def test_what_was_found_is_full_inside_and_soft_at_the_edge() -> None:
    pixels = seen(colours(240, 200), disc(240, 200, radius=60), (220, 220, 225))
    alpha = cut_out(pixels).alpha
    assert (alpha[80:120, 100:140] == 255).all()
    assert (alpha[:30] == 0).all()
    assert 0 < ((alpha > 0) & (alpha < 255)).mean() < 0.05


def test_next_to_no_product_is_refused() -> None:
    alpha = np.full((96, 120), 200, np.uint8)
    with pytest.raises(BadPhoto, match="0 pixels are product alone"):
        matte_of(photo_of(colours(), alpha))
