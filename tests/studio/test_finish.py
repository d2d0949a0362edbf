"""The finish: sizes that can be had, nothing stretched, edges sharper, plain grounds untouched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from packshot.core.errors import InvalidRequest
from packshot.studio.finish import DEFAULT_SHARPEN, Sharpen, finish, fit, parse_size

SQUARE = (256, 256)


@pytest.mark.parametrize(
    ("text", "native", "expected"),
    [
        ("512", SQUARE, (512, 512)),
        ("512x384", SQUARE, (512, 384)),
        (" 512 X 384".replace(" ", ""), SQUARE, (512, 384)),
        ("768×512", SQUARE, (768, 512)),
        ("608", (832, 1216), (416, 608)),
        ("608", (1216, 832), (608, 416)),
        ("64", SQUARE, (64, 64)),
        ("4096", SQUARE, (4096, 4096)),
    ],
)
def test_sizes_that_can_be_had(text, native, expected) -> None:
    assert parse_size(text, native) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("100", "100 is not a multiple of 8; the nearest are 96 and 104"),
        ("512x100", "100 is not a multiple of 8"),
        ("4104", "4104 is out of range, expected 64 to 4096"),
        ("56", "56 is out of range"),
        ("0", "0 is out of range"),
        ("3", "3 is out of range"),
        ("big", "'big' is not a size"),
        ("512x", "is not a size"),
        ("512x512x512", "is not a size"),
        ("-512", "is not a size"),
        ("５１２", "is not a size"),
        ("9" * 40, "is not a size"),
        ("", "is not a size"),
    ],
)
def test_sizes_that_cannot(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse_size(text, SQUARE)


@given(st.text(max_size=12))
def test_no_text_breaks_the_size(text: str) -> None:
    try:
        width, height = parse_size(text, SQUARE)
    except InvalidRequest:
        return
    assert width % 8 == height % 8 == 0
    assert 64 <= min(width, height) <= max(width, height) <= 4096


def disc(size: int = 256) -> Image.Image:
    y, x = np.mgrid[:size, :size]
    inside = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 4) ** 2
    return Image.fromarray(np.where(inside[..., None], 200, 60).astype(np.uint8).repeat(3, 2))


def test_without_size_or_sharpening_the_pixels_are_the_engine_s() -> None:
    picture = disc()
    assert finish(picture, picture.size, None).tobytes() == picture.tobytes()


@pytest.mark.parametrize("size", [(512, 512), (512, 256), (256, 512), (128, 128), (640, 360)])
def test_a_circle_stays_a_circle(size: tuple[int, int]) -> None:
    done = np.asarray(finish(disc(), size, None))[..., 0] > 130
    assert done.shape == size[::-1]
    tall, wide = done.any(axis=1).sum(), done.any(axis=0).sum()
    assert abs(int(tall) - int(wide)) <= 2
    assert tall == pytest.approx(max(size) / 2, abs=3)


@given(*[st.integers(8, 4096)] * 4)
@example(8, 29, 8, 56)
def test_the_cut_is_centred_and_of_the_wanted_shape(sw: int, sh: int, w: int, h: int) -> None:
    left, top, right, bottom = fit((sw, sh), (w, h))
    assert 0 <= left <= right <= sw
    assert 0 <= top <= bottom <= sh
    assert left + right == pytest.approx(sw)
    assert top + bottom == pytest.approx(sh)
    assert (right - left) * h == pytest.approx((bottom - top) * w)
    assert right - left == pytest.approx(sw) or bottom - top == pytest.approx(sh)


def contrast(picture: Image.Image) -> int:
    row = np.asarray(picture)[picture.height // 2, :, 0].astype(int)
    return int(np.abs(np.diff(row)).max())


def test_sharpening_steepens_edges_and_leaves_plain_ground_alone() -> None:
    soft = disc(64).resize((256, 256), Image.Resampling.BICUBIC)
    sharp = finish(soft, (256, 256), DEFAULT_SHARPEN)
    assert contrast(sharp) > contrast(soft)
    plain = Image.effect_noise((64, 64), 0.5).convert("RGB")
    assert finish(plain, (64, 64), DEFAULT_SHARPEN).tobytes() == plain.tobytes()
    assert finish(soft, (256, 256), Sharpen(1.0, 0, 0)).tobytes() == soft.tobytes()


def test_the_default_makes_no_glaring_halo() -> None:
    """Edges as a VAE leaves them, some a pixel or two wide."""
    soft = disc().filter(ImageFilter.GaussianBlur(0.5))
    done = np.asarray(finish(soft, (512, 512), DEFAULT_SHARPEN)).astype(int)
    assert 60 - 20 <= done.min() <= done.max() <= 200 + 20


@given(st.integers(8, 96), st.integers(8, 96), st.integers(1, 12), st.integers(1, 12))
def test_any_picture_comes_out_at_any_size(w: int, h: int, a: int, b: int) -> None:
    picture = Image.new("RGB", (w, h), "#456")
    done = finish(picture, (a * 8, b * 8), DEFAULT_SHARPEN)
    assert done.size == (a * 8, b * 8)
    assert done.getcolors() == [(a * b * 64, (0x44, 0x55, 0x66))]
