"""The recipe record survives every format, and what carries none says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import packshot
from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.types import PRECISIONS, SAMPLERS, SCHEDULES, SPACINGS
from packshot.studio.caption import TEXT_LIMIT
from packshot.studio.finish import Sharpen
from packshot.studio.original import Source
from packshot.studio.record import (
    Maker,
    Record,
    code_mark,
    library_versions,
    metadata,
    read_record,
)
from packshot.studio.store import FORMATS, Target, format_of, write_picture

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
MAKER = st.builds(Maker, TEXT, TEXT, TEXT)
RECORDS = st.builds(
    Record,
    brief=TEXT,
    caption=TEXT,
    raw=st.booleans(),
    negative=TEXT,
    seed=st.integers(0, 2**63 - 1),
    width=st.integers(64, 4096),
    height=st.integers(64, 4096),
    steps=st.integers(1, 1000),
    guidance=st.floats(1, 50),
    sampler=st.sampled_from(SAMPLERS),
    schedule=st.sampled_from(SCHEDULES),
    spacing=st.sampled_from(SPACINGS),
    precision=st.sampled_from(PRECISIONS),
    vae_precision=st.sampled_from(PRECISIONS),
    device=st.sampled_from(["cpu", "cuda"]),
    threads=st.integers(1, 256),
    size=st.tuples(st.integers(64, 4096), st.integers(64, 4096)),
    sharpen=st.none() | st.builds(Sharpen, st.floats(0, 5), st.integers(0, 200), st.integers(0, 9)),
    model=MAKER,
    code=MAKER,
    libraries=st.dictionaries(TEXT, TEXT, max_size=3),
    format=st.just(1),
    source=st.none() | st.builds(Source, TEXT, TEXT, st.floats(0.001, 1), TEXT, TEXT),
)
EXAMPLE = Record(
    brief="a shoe",
    caption="shoe",
    raw=False,
    negative="",
    seed=1,
    width=64,
    height=64,
    steps=2,
    guidance=1.0,
    sampler="euler",
    schedule="default",
    spacing="trailing",
    precision="fp32",
    vae_precision="auto",
    device="cpu",
    threads=2,
    size=(64, 64),
    sharpen=None,
    model=Maker("m", "1", "f" * 64),
    code=Maker("packshot", "1", "f" * 16),
    libraries={},
)
PICTURE = Image.new("RGB", (16, 16), "teal")


def write(path: Path, record: Record | None, description: str = "a brief") -> Path:
    extra = metadata(format_of(path), record, description)
    return write_picture(PICTURE, Target(path, overwrite=True), extra)


@pytest.mark.parametrize("extension", FORMATS)
@given(record=RECORDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, extension: str, record: Record) -> None:
    assert read_record(write(tmp_path / f"x{extension}", record, record.brief)) == record


@pytest.mark.parametrize("extension", FORMATS)
def test_the_longest_texts_fit(tmp_path: Path, extension: str) -> None:
    long = "\U0001f45f" * TEXT_LIMIT
    record = replace(EXAMPLE, brief=long, caption=long + ", product photo" * 20, negative=long)
    assert read_record(write(tmp_path / f"x{extension}", record, long)) == record


@pytest.mark.parametrize("extension", FORMATS)
def test_other_programs_find_the_brief_and_the_maker(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"x{extension}", None, "café")
    with Image.open(path) as image:
        if extension == ".png":
            said, maker = image.info["Description"], image.info["Software"]
            assert said == "café"
        else:
            said, maker = image.getexif()[0x010E], image.getexif()[0x0131]
            assert said == "caf?"
    assert maker == f"packshot {packshot.__version__}"


@pytest.mark.parametrize("extension", FORMATS)
def test_a_picture_without_record_says_so(tmp_path: Path, extension: str) -> None:
    bare = tmp_path / f"bare{extension}"
    PICTURE.save(bare)
    sheet = write(tmp_path / f"sheet{extension}", None)
    for path in (bare, sheet):
        with pytest.raises(InvalidRequest, match="carries no packshot record"):
            read_record(path)


def test_a_foreign_comment_is_no_record(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0holiday"
    PICTURE.save(tmp_path / "x.jpg", exif=exif)
    with pytest.raises(InvalidRequest, match="carries no packshot record"):
        read_record(tmp_path / "x.jpg")


def test_a_record_of_another_shape_is_refused(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("packshot", '{"brief": 1}')
    PICTURE.save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(InvalidRequest, match="not one of a single render"):
        read_record(tmp_path / "x.png")


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "x.png"
    text.write_text("hello")
    with pytest.raises(OutputError, match="not a PNG, JPEG or WebP"):
        read_record(text)
    with pytest.raises(OutputError, match="cannot read"):
        read_record(tmp_path / "missing.png")
    with pytest.raises(OutputError, match="cannot read"):
        read_record(tmp_path)


def test_the_code_has_a_fingerprint_and_the_libraries_versions() -> None:
    mark = code_mark()
    assert mark.version == packshot.__version__
    assert len(mark.fingerprint) == 16
    assert library_versions()["pillow"] == Image.__version__
