"""Files: where they go, that none is overwritten by accident, and that none is ever half there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio.store import Target, format_of, probe, slug, targets, write_picture

PICTURE = Image.new("RGB", (16, 16), "red")


@pytest.mark.parametrize("name", ["x.png", "x.JPG", "x.jpeg", "x.webp"])
def test_formats_go_by_extension(tmp_path: Path, name: str) -> None:
    path = write_picture(PICTURE, Target(tmp_path / name, overwrite=True))
    with Image.open(path) as image:
        assert image.format == format_of(path)


@pytest.mark.parametrize("name", ["x.gif", "x.tiff", "x.bmp", "x.png.exe"])
def test_other_extensions_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"expected \.png, \.jpg, \.jpeg, \.webp"):
        targets(name, "brief", (1,))


def test_names_without_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [t.path for t in targets(None, "White Sneakers!", (7, 8))] == [
        Path("out/white-sneakers-7.png"),
        Path("out/white-sneakers-8.png"),
    ]


def test_names_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dotted.png").mkdir()
    for out in ("new", "new/", "dotted.png"):
        (target,) = targets(str(tmp_path / out) + ("/" if out.endswith("/") else ""), "a b", (1,))
        assert target == Target(tmp_path / out.rstrip("/") / "a-b-1.png", overwrite=False)


def test_a_file_is_taken_as_named_and_numbered_where_there_are_several() -> None:
    assert targets("x/y.webp", "b", (5,)) == (Target(Path("x/y.webp"), overwrite=True),)
    several = targets("x/y.jpg", "b", (5, 6, 7))
    assert [t.path.name for t in several] == ["y-1.jpg", "y-2.jpg", "y-3.jpg"]


def test_a_generated_name_never_overwrites(tmp_path: Path) -> None:
    target = Target(tmp_path / "x.png", overwrite=False)
    names = [write_picture(PICTURE, target).name for _ in range(3)]
    assert names == ["x.png", "x-2.png", "x-3.png"]


def test_a_given_name_does(tmp_path: Path) -> None:
    target = Target(tmp_path / "x.png", overwrite=True)
    write_picture(PICTURE, target)
    write_picture(Image.new("RGB", (8, 8)), target)
    with Image.open(target.path) as image:
        assert image.size == (8, 8)
    assert list(tmp_path.iterdir()) == [target.path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch, failure) -> None:
    def torn(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise failure

    kept = tmp_path / "x.png"
    kept.write_bytes(b"before")
    expected = OutputError if isinstance(failure, OSError) else failure
    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(expected):
        write_picture(Image.new("RGB", (8, 8)), Target(kept, overwrite=True))
    assert kept.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [kept]


def test_probe_makes_the_folder_and_leaves_no_trace(tmp_path: Path) -> None:
    probe(tmp_path / "a" / "b" / "x.png")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_probe_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is not a folder"):
        probe(tmp_path / "file" / "x.png")
    with pytest.raises(OutputError, match="file is not a folder"):
        probe(tmp_path / "file" / "deep" / "x.png")
    with pytest.raises(OutputError, match="cannot write /proc"):
        probe(Path("/proc/nowhere/x.png"))
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        probe(tmp_path / "x.png")


@given(st.text(max_size=200))
def test_a_slug_is_a_safe_file_name(text: str) -> None:
    name = slug(text)
    assert 1 <= len(name) <= 48
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-")
    assert slug(name) == name


def test_slugs_end_at_a_word() -> None:
    long = "white sneakers on a sandy beach, bright daylight, light from the left"
    assert slug(long) == "white-sneakers-on-a-sandy-beach-bright-daylight"
    assert slug("Crème brûlée № 5") == "creme-brulee-no-5"
    assert slug("靴") == "render"


def test_a_bucket_is_no_folder_of_that_name() -> None:
    with pytest.raises(InvalidRequest, match="`packshot batch` writes to buckets"):
        targets("s3://bucket/prefix", "a mug", (1,))
