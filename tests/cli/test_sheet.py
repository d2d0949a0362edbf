"""`packshot sheet`: one page of many briefs, the model loaded once."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.cli.conftest import Packshot


def test_a_sheet(packshot: Packshot, model: str, engine) -> None:
    Path("briefs.txt").write_text("# two\nwhite sneakers\n\na kayak\n")
    done = packshot("sheet", "briefs.txt", "--model", model, "--seed", "5", "--columns", "2")
    assert done.code == 0
    assert "sheet.png  152x" in done.out
    assert "seed 5" in done.out
    assert "warning: 'a kayak': the model was not shown 'kayak'" in done.err
    with Image.open("sheet.png") as image:
        assert image.width == 8 + 2 * (64 + 8)


def test_a_sheet_as_json(packshot: Packshot, model: str, engine) -> None:
    Path("briefs.txt").write_text("white sneakers\nred vase\n")
    facts = packshot("sheet", "briefs.txt", "--model", model, "--json", "--out", "s.webp").json
    assert facts["path"] == "s.webp"
    assert [tile["brief"] for tile in facts["tiles"]] == ["white sneakers", "red vase"]
    assert {request.seeds for request in engine.requests} == {(facts["seed"],)}


def test_errors_name_the_line(packshot: Packshot, model: str, engine) -> None:
    Path("briefs.txt").write_text("sneakers\n\n...\n")
    done = packshot("sheet", "briefs.txt", "--model", model)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: briefs.txt, line 3: the brief is empty")
    assert engine.requests == []
    assert packshot("sheet", "none.txt", "--model", model).code == 4
