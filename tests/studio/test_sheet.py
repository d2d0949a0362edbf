"""The contact sheet: briefs by line, one tile each, every word under its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from packshot.core.errors import InvalidRequest, OutputError, UnknownConcept
from packshot.core.types import STAGES
from packshot.studio.plan import Options
from packshot.studio.sheet import (
    MAX_BRIEFS,
    Brief,
    compose,
    plan_sheet,
    read_briefs,
    render_sheet,
    wrap,
)
from tests.studio.stub import StubEngine

FILE = Path("briefs.txt")
FONT = ImageFont.load_default(14)


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options("", model=str(folder), out=str(tmp_path / "sheet.png"), steps=2)


def test_blank_lines_and_comments_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "briefs.txt"
    file.write_text("# shoes\n\n white sneakers \n\tred handbag\n", encoding="utf-8")
    assert read_briefs(file) == (Brief(3, "white sneakers"), Brief(4, "red handbag"))


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"# nothing\n\n", InvalidRequest, "has 0 briefs, expected 1 to 100"),
        (b"x\n" * (MAX_BRIEFS + 1), InvalidRequest, "has 101 briefs"),
        (b"\xff\xfe\x00", InvalidRequest, "not UTF-8"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, error, said: str) -> None:
    file = tmp_path / "briefs.txt"
    file.write_bytes(content)
    with pytest.raises(error, match=said):
        read_briefs(file)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(OutputError, match=r"cannot read nowhere\.txt: No such file"):
        read_briefs(Path("nowhere.txt"))


def test_a_bad_brief_is_named_by_its_line(options: Options) -> None:
    briefs = (Brief(2, "white sneakers"), Brief(5, "??"))
    with pytest.raises(InvalidRequest, match=r"briefs\.txt, line 5: the brief is empty"):
        plan_sheet(FILE, briefs, options, 4)
    strict = Options("", model=options.model, out=options.out, strict=True)
    with pytest.raises(UnknownConcept, match=r"line 9: the model was not shown 'kayak'"):
        plan_sheet(FILE, (Brief(9, "kayak"),), strict, 4)


@pytest.mark.parametrize("columns", [0, 13])
def test_columns_have_a_limit(options: Options, columns: int) -> None:
    with pytest.raises(InvalidRequest, match=f"columns is {columns}, expected 1 to 12"):
        plan_sheet(FILE, (Brief(1, "sneakers"),), options, columns)


def test_tiles_have_a_limit(options: Options) -> None:
    large = Options("", model=options.model, out=options.out, size="2048")
    with pytest.raises(InvalidRequest, match="a tile of 2048 pixels"):
        plan_sheet(FILE, (Brief(1, "sneakers"),), large, 4)


def test_all_tiles_share_a_drawn_seed_and_one_opened_folder(options: Options) -> None:
    briefs = (Brief(1, "sneakers"), Brief(2, "handbag"), Brief(3, "vase"))
    plans = plan_sheet(FILE, briefs, options, 4)
    assert len({p.request.seeds for p in plans}) == 1
    assert all(p.folder is plans[0].folder for p in plans)


def test_a_sheet_is_rendered_and_written(options: Options, tmp_path: Path) -> None:
    briefs = tuple(Brief(i, text) for i, text in enumerate(["sneakers", "a kayak", "red vase"], 1))
    engine = StubEngine()
    steps: list[int] = []
    sheet = render_sheet(
        plan_sheet(FILE, briefs, options, 2), engine, 2, lambda p: steps.append(p.step)
    )
    assert [r.prompt.split(" on ")[0] for r in engine.requests] == ["sneakers", "kayak", "vase"]
    assert steps == [1, 2] * 3
    assert tuple(part.stage for part in sheet.usage) == STAGES
    assert [w.partition(":")[0] for w in sheet.warnings] == ["'a kayak'", "'red vase'"]
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == sheet.size
        assert "contact sheet of 3 briefs" in image.info["Description"]


@pytest.mark.parametrize(("tiles", "columns"), [(1, 4), (4, 4), (5, 4), (3, 1)])
def test_tiles_stand_where_they_should(tiles: int, columns: int) -> None:
    colours = [(200, 40 * i, 0) for i in range(tiles)]
    page = compose([(Image.new("RGB", (128, 96), c), "a brief") for c in colours], columns)
    gap = 128 // 14
    across = min(columns, tiles)
    assert page.width == gap + across * (128 + gap)
    row_height = (page.height - gap) // -(-tiles // across)
    for i, colour in enumerate(colours):
        left, top = gap + i % across * (128 + gap), gap + i // across * row_height
        assert page.getpixel((left + 64, top + 48)) == colour
        under = page.crop((left, top + 100, left + 128, top + row_height - gap))
        assert len(under.getcolors(4096) or ()) > 2, "text is drawn under the tile"


def test_text_is_wrapped_and_cut() -> None:
    assert wrap("a few words", 500, FONT) == ["a few words"]
    lines = wrap("white sneakers on a sandy beach, bright daylight " * 5, 200, FONT)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert wrap("x" * 200, 100, FONT)[0].endswith("…")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=200))
def test_no_line_is_wider_than_its_tile(text: str) -> None:
    lines = wrap(text, 120, FONT)
    assert 1 <= len(lines) <= 3
    assert all(FONT.getlength(line) <= 120 for line in lines)
