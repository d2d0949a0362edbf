"""Photographs from customers: whatever a file is, it is read rightly or refused clearly."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from packshot.core.errors import BadPhoto, OutputError
from packshot.studio import photo as module
from packshot.studio.colour import srgb_profile
from packshot.studio.photo import load_mask, load_photo

PIXELS = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def swapped_profile() -> bytes:
    """An RGB profile that is not sRGB: its red and blue primaries are each other's."""
    data = bytearray(srgb_profile())
    swap = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    for row in range(struct.unpack(">I", data[128:132])[0]):
        at = 132 + 12 * row
        data[at : at + 4] = swap.get(bytes(data[at : at + 4]), data[at : at + 4])
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_a_lossless_file_gives_its_own_pixels(kind, options) -> None:
    photo = load_photo(encode(PIXELS, kind, **options), f"a.{kind.lower()}")
    assert (photo.pixels == PIXELS).all()
    assert photo.alpha is None
    assert photo.notes == ()
    assert photo.size == (90, 70)


def test_alpha_is_kept_and_one_that_is_full_is_none() -> None:
    alpha = np.full((70, 90), 255, np.uint8)
    assert load_photo(encode(np.dstack((PIXELS, alpha)))).alpha is None
    alpha[:, :40] = 7
    photo = load_photo(encode(np.dstack((PIXELS, alpha))))
    assert photo.alpha is not None
    assert (photo.alpha == alpha).all()
    assert (photo.pixels == PIXELS).all()


def test_a_palette_s_transparency_is_alpha() -> None:
    image = Image.fromarray(PIXELS[..., 0] // 128 * 255).convert("P")
    photo = load_photo(encode(image, "PNG", transparency=0))
    assert photo.alpha is not None
    assert set(np.unique(photo.alpha)) == {0, 255}


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_photograph(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = Image.fromarray(PIXELS)
    photo = load_photo(encode(upright, "TIFF", exif=exif), "a.tif")
    expected = {1: upright, 3: upright.rotate(180), 6: upright.rotate(-90, expand=True)}
    if turn in expected:
        assert (photo.pixels == np.asarray(expected[turn])).all()
    assert photo.size == ((90, 70) if turn < 5 else (70, 90))
    assert photo.notes == (("a.tif was turned as its EXIF says",) if turn > 1 else ())


def test_a_profile_of_srgb_changes_no_pixel_and_another_one_does() -> None:
    same = load_photo(encode(PIXELS, icc_profile=srgb_profile()))
    assert (same.pixels == PIXELS).all()
    assert same.notes == ()
    other = load_photo(encode(PIXELS, icc_profile=swapped_profile()))
    assert np.abs(other.pixels.astype(int) - PIXELS).mean() > 20
    assert "converted to sRGB" in other.notes[0]


def test_a_broken_profile_is_left_out_and_told() -> None:
    photo = load_photo(encode(PIXELS, icc_profile=b"no profile"))
    assert (photo.pixels == PIXELS).all()
    assert "cannot be used" in photo.notes[0]


def test_the_profile_that_we_write_is_srgb_and_the_same_every_day() -> None:
    assert "sRGB" in ImageCms.getProfileDescription(
        ImageCms.getOpenProfile(io.BytesIO(srgb_profile()))
    )
    assert srgb_profile()[24:36] == bytes((7, 226, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))


def test_sixteen_bits_are_brought_to_eight_and_told() -> None:
    deep = np.random.default_rng(2).integers(0, 65536, (70, 90), dtype=np.uint16)
    grey = load_photo(encode(deep))
    assert np.abs(grey.pixels[..., 0].astype(int) - np.round(deep / 257)).max() <= 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.repeat(deep[..., None], 3, 2))
    colour = load_photo(png(90, 70, 16, rows))
    assert np.abs(colour.pixels[..., 0].astype(int) - deep // 256).max() <= 1
    assert all("16 bits" in photo.notes[0] for photo in (grey, colour))


def test_a_name_of_another_kind_is_told() -> None:
    assert "named like a JPEG and is a PNG" in load_photo(encode(PIXELS), "a.jpg").notes[0]


ANIMATED = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1])], "duration": 90}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"GIF89a\1\1", "is a GIF; expected a PNG, JPEG, WebP or TIFF"),
        (b"%PDF-1.7", "is a PDF"),
        (b"\0\0\0\x18ftypheic", "is a HEIC"),
        (b"just text", "no picture that we know"),
        (encode(PIXELS)[:9000], "cut off"),
        (encode(PIXELS, "JPEG")[:3000], "cut off"),
        (encode(PIXELS, "WEBP")[:3000], "WebP|cut off|damaged"),
        (encode(PIXELS)[:20], "damaged"),
        (encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), "CMYK without a colour profile"),
        (encode(Image.fromarray(PIXELS).convert("LAB"), "TIFF"), "LAB pixels"),
        (encode(PIXELS, "WEBP", **ANIMATED), "2 frames: it is animated"),
        (encode(PIXELS, "PNG", **ANIMATED), "2 frames: it is animated"),
        (encode(PIXELS, "TIFF", **ANIMATED), "2 pages"),
        (encode(np.zeros((70, 90, 4), np.uint8)), "transparent everywhere"),
        (encode(PIXELS[:40]), "at least 64 a side"),
        (png(7000, 7000, 8, b"\0" * 99), "at most 40,000,000 are decoded"),
        (png(60000, 60000, 8, b"\0" * 99), "more than 40,000,000 pixels"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, said: str) -> None:
    with pytest.raises(BadPhoto, match=said):
        load_photo(data, "a.png")


def test_a_bomb_is_refused_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_decoded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadPhoto):
        load_photo(png(7000, 7000, 8, b""), "bomb.png")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    with pytest.raises(BadPhoto, match="at most 67,108,864 are read"):
        load_photo(path)


def test_a_missing_file_is_an_error_of_files(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        load_photo(tmp_path / "none.png")


def test_a_mask_is_the_brightness_or_the_alpha_of_its_file() -> None:
    photo = load_photo(encode(PIXELS), "a.png")
    mask = np.zeros((70, 90), np.uint8)
    mask[20:50, 30:60] = 255
    assert (load_mask(encode(mask), photo) == mask).all()
    clear = np.dstack((PIXELS, mask))
    assert (load_mask(encode(clear), photo) == mask).all()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.full((90, 70), 9, np.uint8), "70x90 pixels, and a.png is 90x70"),
        (np.zeros((70, 90), np.uint8), "no product"),
        (np.full((70, 90), 255, np.uint8), "white everywhere"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(mask: np.ndarray, said: str) -> None:
    photo = load_photo(encode(PIXELS), "a.png")
    with pytest.raises(BadPhoto, match=said):
        load_mask(encode(mask), photo, "m.png")


@settings(max_examples=150)
@given(
    kind=st.sampled_from(("PNG", "JPEG", "WEBP", "TIFF")),
    hits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    cut=st.floats(0.05, 1),
)
def test_a_damaged_file_is_read_or_refused_and_never_anything_else(kind, hits, cut) -> None:
    data = bytearray(encode(PIXELS, kind))
    for where, value in hits:
        data[int(where * (len(data) - 1))] = value
    with contextlib.suppress(BadPhoto):
        photo = load_photo(bytes(data[: int(cut * len(data)) + 1]), "a")
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.shape[2] == 3
