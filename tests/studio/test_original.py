"""A picture to start from: what the engine gets of its file, and what a record asks for again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packshot.core.errors import BadPhoto, InvalidRequest, OutputError
from packshot.studio.defaults import MASKED_STRENGTH, STRENGTH
from packshot.studio.original import Start, open_start, start_again

SIZE = (64, 64)


def gradient(width: int, height: int) -> Image.Image:
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    gradient(128, 128).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White on the left half."""
    white = Image.new("L", (128, 128))
    white.paste(255, (0, 0, 64, 128))
    white.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def start(image: Path, mask: Path | None = None, strength: float | None = None) -> Start:
    made = open_start(image, mask, strength, SIZE)
    assert made is not None
    return made


def test_the_picture_is_of_the_renders_size_and_its_file_is_named(image: Path) -> None:
    made = start(image, strength=0.3)
    assert made.original.picture.shape == (64, 64, 3)
    assert made.original.picture.dtype == np.uint8
    assert np.diff(made.original.picture[0, :, 0].astype(int)).min() >= 0
    assert (made.original.strength, made.original.mask) == (0.3, None)
    assert (made.source.image, made.source.strength, made.source.mask) == ("a.png", 0.3, "")
    assert len(made.source.image_sha256) == 64
    assert made.warnings == ()


def test_the_mask_is_free_where_it_is_white(image: Path, mask: Path) -> None:
    made = start(image, mask)
    free = made.original.mask
    assert free is not None
    assert free.shape == (64, 64)
    assert (free[:, :32] == 1).all()
    assert (free[:, 32:] == 0).all()
    assert made.source.mask == "mask.png"
    assert made.source.mask_sha256 not in {"", made.source.image_sha256}


def test_strength_has_a_default_of_its_own_within_a_mask(image: Path, mask: Path) -> None:
    assert start(image).source.strength == STRENGTH
    assert start(image, mask).source.strength == MASKED_STRENGTH
    assert start(image, mask, 0.2).source.strength == 0.2


def test_another_shape_loses_its_margins_in_picture_and_mask_alike(tmp_path: Path) -> None:
    wide, marks = tmp_path / "wide.png", tmp_path / "marks.png"
    picture = Image.new("RGB", (256, 128), "red")
    picture.paste("blue", (64, 0, 192, 128))
    picture.save(wide)
    edge = Image.new("L", (256, 128), 255)
    edge.paste(0, (64, 0, 192, 128))
    edge.paste(255, (64, 0, 66, 128))
    edge.save(marks)
    made = start(wide, marks)
    assert (made.original.picture[:, 4:-4] == (0, 0, 255)).all()
    free = made.original.mask
    assert free is not None
    assert (free[:, 0] == 1).all()
    assert (free[:, 1:] == 0).all()
    assert made.warnings == ("wide.png is 256x128; its margins are cut off for the model's 64x64",)


def test_what_is_transparent_is_white_and_said(tmp_path: Path) -> None:
    cut = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    cut.paste((200, 0, 0, 255), (64, 0, 128, 128))
    cut.save(tmp_path / "cut.png")
    made = start(tmp_path / "cut.png")
    assert (made.original.picture[:, :24] == 255).all()
    assert (made.original.picture[:, 40:] == (200, 0, 0)).all()
    assert made.warnings == ("cut.png is transparent in places; they are white to start with",)


def test_a_mask_that_is_not_of_the_picture_is_refused(image: Path, tmp_path: Path) -> None:
    gradient(128, 64).save(tmp_path / "low.png")
    with pytest.raises(InvalidRequest, match=r"low\.png is 128x64 pixels, and a\.png is 128x128"):
        start(image, tmp_path / "low.png")
    clear = Image.new("RGBA", (128, 128), (255, 255, 255, 100))
    clear.save(tmp_path / "clear.png")
    with pytest.raises(InvalidRequest, match="transparent in places, which may mean either"):
        start(image, tmp_path / "clear.png")


def test_what_is_no_picture_is_refused(image: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("a picture")
    with pytest.raises(BadPhoto, match=r"x\.png"):
        start(tmp_path / "x.png")
    with pytest.raises(BadPhoto, match=r"x\.png"):
        start(image, tmp_path / "x.png")
    with pytest.raises(OutputError, match="cannot read"):
        start(tmp_path / "none.png")


def test_without_a_picture_there_is_no_start(mask: Path) -> None:
    assert open_start(None, None, None, SIZE) is None
    for words in ((mask, None), (None, 0.0)):
        with pytest.raises(InvalidRequest, match="no picture to start from; give --image"):
            open_start(None, *words, SIZE)


# ---------------------------------------------------------------- again


def test_the_same_files_start_again(image: Path, mask: Path) -> None:
    first = start(image, mask, 0.7)
    again = start_again(first.source, image, mask, SIZE)
    assert again is not None
    assert again.source == first.source
    assert np.array_equal(again.original.picture, first.original.picture)
    assert start_again(None, None, None, SIZE) is None


def test_other_files_are_refused(image: Path, mask: Path, tmp_path: Path) -> None:
    source = start(image, mask).source
    other = tmp_path / "other.png"
    gradient(128, 128).rotate(90).save(other)
    for files, said in (
        ((None, mask), r"made from a\.png; give --image that file"),
        ((image, None), r"made from mask\.png; give --mask that file"),
        ((other, mask), r"--image is not the file.*expected .* \(a\.png\)"),
        ((image, other), r"--mask is not the file.*expected .* \(mask\.png\)"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            start_again(source, *files, SIZE)
    with pytest.raises(InvalidRequest, match="leave out --mask"):
        start_again(start(image).source, image, mask, SIZE)
    with pytest.raises(InvalidRequest, match="leave out --image"):
        start_again(None, image, None, SIZE)
