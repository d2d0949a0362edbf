"""`packshot shoot`: what it makes, says, books and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from packshot.ledger.stores import open_store
from packshot.studio.photo import load_photo
from tests.cli.conftest import Packshot
from tests.studio.test_background import GroundEngine
from tests.studio.test_shoot import CUTOUT

BRIEF = "on a sandy beach, side light"


@pytest.fixture
def photo(packshot: Packshot) -> str:
    Image.fromarray(CUTOUT).save("mug.png")
    return "mug.png"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> GroundEngine:
    stub = GroundEngine()

    def load(plan: object, on_device: Callable[[str], None], kept: object) -> GroundEngine:
        on_device(stub.device_kind)
        return stub

    monkeypatch.setattr("packshot.studio.shoot.load", load)
    return stub


def rows(state_home: Path, columns: str) -> list[tuple]:
    store = open_store(str(state_home / "packshot" / "ledger.db"), read_only=True)
    try:
        asked = "select {} from entries where outcome <> 'accrual' order by seq"
        return store.query(asked.format(columns))
    finally:
        store.close()


def test_a_photo_and_a_brief_become_a_file_and_a_table(packshot, model, engine, photo) -> None:
    done = packshot("shoot", photo, BRIEF, "--model", model, "--seed", "7")
    assert (done.code, done.err) == (0, "")
    assert "out/mug-on-a-sandy-beach-side-light-7.png  120x96, seed 7" in done.out
    for said in ("encode", "denoise", "finish", "total", "core_max 0 of 0", "light left, studio"):
        assert said in done.out
    assert "product by alpha" in done.out


def test_white_is_made_without_a_model(packshot, photo) -> None:
    done = packshot("shoot", photo, "--white", "--out", "w.png")
    assert (done.code, done.err) == (0, "")
    assert "nothing was rendered" in done.out
    assert "border 0 of 0" in done.out
    assert Path("w.png").is_file()


def test_json_says_everything(packshot, model, engine, photo) -> None:
    words = ("--model", model, "--seed", "3", "-n", "2", "--format", "jpeg", "--json")
    facts = packshot("shoot", photo, BRIEF, *words).json
    assert [row["seed"] for row in facts["pictures"]] == [3, 4]
    first = facts["pictures"][0]
    assert first["path"].endswith("-3.jpg")
    assert first["product"]["matte"] == "alpha"
    assert all(row["passed"] for row in first["verified"])
    assert facts["refused"] == []
    assert facts["renders"] == [row["render"] for row in facts["pictures"]]
    assert facts["cost_nano_eur"] > 0


def test_each_row_of_the_ledger_has_the_core_s_hash(packshot, model, engine, photo, state_home):
    facts = packshot("shoot", photo, BRIEF, "--model", model, "--seed", "3", "--json").json
    booked = rows(state_home, "render, stage, outcome, recipe, tags")
    core = facts["pictures"][0]["product"]["core_sha256"]
    assert {row[1] for row in booked} >= {"encode", "denoise", "decode", "finish", "store"}
    assert {row[0] for row in booked} == {facts["renders"][0]}
    assert {row[2] for row in booked} <= {"succeeded", "failed_free"}
    assert {row[3:] for row in booked} == {("background", f"core={core}")}


def test_a_refused_picture_costs_what_it_took_and_is_waste(
    packshot, model, engine, photo, state_home
) -> None:
    engine.bad = {3}
    done = packshot("shoot", photo, BRIEF, "--model", model, "--seed", "3", "--attempts", "1")
    assert done.code == 1
    assert "1 of 1 pictures are not delivered" in done.err
    assert "drawn on beyond its outline" in done.err
    assert not list(Path("out").glob("*.png"))
    assert json.loads(next(Path("out/quarantine").iterdir()).read_text())["seed"] == 3
    booked = rows(state_home, "outcome, reason")
    assert ("failed_billed", "CheckFailed") in booked
    assert all(outcome != "succeeded" for outcome, _ in booked)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("none.png", BRIEF), 4, "cannot read none.png"),
        (("mug.png",), 2, "say on what ground"),
        (("text.png", BRIEF), 2, "no picture that we know"),
        (("flat.png", BRIEF), 2, "Give --mask"),
        (("mug.png", BRIEF, "--mask", "small.png"), 2, "the mask small.png is 70x80 pixels"),
        (("mug.png", BRIEF, "--out", "mug.png/x.png"), 4, "is not a folder"),
        (("mug.png", BRIEF, "--mode", "mix"), 2, "unknown mode 'mix'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_cost(
    packshot, model, engine, photo, state_home, words, code, said
) -> None:
    Path("text.png").write_text("not a picture")
    Image.new("RGB", (90, 80), (99, 99, 99)).save("flat.png")
    Image.new("L", (70, 80), 255).save("small.png")
    done = packshot("shoot", *words, "--model", model)
    assert done.code == code
    assert said in done.err
    assert not engine.requests
    assert not (state_home / "packshot" / "ledger.db").exists()


def test_a_jpeg_without_alpha_takes_a_mask(packshot, model, engine, photo) -> None:
    with Image.open(photo) as image:
        image.convert("RGB").save("flat.jpg", quality=95)
        image.getchannel("A").save("mask.png")
    done = packshot("shoot", "flat.jpg", BRIEF, "--mask", "mask.png", "--model", model, "--json")
    (picture,) = done.json["pictures"]
    assert picture["product"]["matte"] == "mask"
    full = load_photo(Path("mask.png")).pixels[..., 0] == 255
    out, source = load_photo(Path(picture["path"])), load_photo(Path("flat.jpg"))
    assert (out.pixels[full] == source.pixels[full]).all()


def test_a_ground_that_was_encoded_before_is_told(packshot, tiny_sdxl, photo) -> None:
    # What an untrained model draws passes no check: the texts are read all the same.
    words = ("--model", str(tiny_sdxl), "--steps", "1", "--attempts", "1", "--json")
    first = packshot("shoot", photo, BRIEF, *words).json["embeddings"]
    assert first["hits"] == 0
    assert first["misses"] > 0
    again = packshot("shoot", photo, BRIEF, *words).json["embeddings"]
    assert (again["hits"], again["misses"]) == (first["misses"], 0)
    Path("packshot.yaml").write_text("studio: {embeddings: {keep: false}}")
    never = packshot("shoot", photo, BRIEF, *words).json["embeddings"]
    assert never["hits"] == 0
