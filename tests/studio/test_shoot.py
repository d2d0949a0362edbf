"""A shoot from end to end: refused before any cost, delivered with its record, or noted why not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packshot.core.errors import BadPhoto, InvalidRequest, MaskNeeded, OutputError
from packshot.studio.recipes.recipe import load_recipe
from packshot.studio.record import read_making, read_record
from packshot.studio.shoot import Choices, plan_shoot, take
from tests.studio.products import colours, disc
from tests.studio.stub import StubEngine
from tests.studio.test_background import GroundEngine

CUTOUT = np.dstack((colours(), disc()))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "mug.png"
    Image.fromarray(CUTOUT).save(path)
    return path


@pytest.fixture
def choices(photo: Path, folder: Path, tmp_path: Path) -> Choices:
    return Choices(
        photo,
        "on a sandy beach, side light",
        model=str(folder),
        out=f"{tmp_path}/out/",
        seed=5,
        steps=2,
    )


def core_of(path: Path, facts) -> np.ndarray:
    """Return the core's pixels, found from the photo alone: what a customer could do."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB"))
    full = disc() == 255
    margin = facts["core_margin"]
    core = full.copy()
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            core &= np.roll(full, (dy, dx), (0, 1))
    return picture[core]


def test_a_shoot_is_the_shipped_recipe_with_what_was_chosen(choices) -> None:
    shipped = load_recipe("background").changed({"background.steps": 2})
    assert plan_shoot(choices).recipe == shipped
    white = load_recipe("white-background").changed({"finish.format": "jpeg"})
    assert plan_shoot(replace(choices, white=True, format="jpeg")).recipe == white
    bare = plan_shoot(replace(choices, white=True, format="jpeg", shadow=False)).recipe
    assert bare.steps == tuple(step for step in white.steps if step.name != "shadow")


def test_a_picture_is_delivered_with_its_product_and_its_record(choices, tmp_path) -> None:
    taken = take(plan_shoot(choices), GroundEngine())
    ((path, shot),) = taken.done
    assert path == tmp_path / "out" / "mug-on-a-sandy-beach-side-light-5.png"
    making = read_making(path)
    facts = making.facts["product"]
    core = core_of(path, facts)
    assert len(core) == facts["core_pixels"]
    assert hashlib.sha256(core.tobytes()).hexdigest() == facts["core_sha256"]
    assert (core_of(choices.photo, facts) == core).all()
    assert making.facts["shadow"] == {"side": "left", "kind": "studio"}
    assert [row["passed"] for row in shot.facts["verified"]] == [True] * 4
    assert making.photo == hashlib.sha256(choices.photo.read_bytes()).hexdigest()
    assert [row["step"] for row in making.recipe["steps"]] == [
        "background", "shadow", "finish", "verify", "store",
    ]  # fmt: skip
    assert {part.stage for part in taken.usage} >= {"caption", "encode", "denoise", "decode"}
    with pytest.raises(InvalidRequest, match="run the recipe again"):
        read_record(path)


def test_the_same_choices_make_the_same_file(choices, tmp_path) -> None:
    files = []
    for name in ("a", "b"):
        shoot = plan_shoot(replace(choices, out=f"{tmp_path}/{name}.png"))
        files.append(take(shoot, GroundEngine()).done[0][0].read_bytes())
    assert files[0] == files[1]


def test_several_pictures_have_a_seed_each(choices) -> None:
    taken = take(plan_shoot(replace(choices, count=3)), GroundEngine())
    assert [shot.seed for _, shot in taken.done] == [5, 6, 7]
    assert len({shot.render for _, shot in taken.done}) == 3


def test_white_needs_no_engine_and_no_model(choices) -> None:
    shoot = plan_shoot(replace(choices, white=True, brief="", model="none such"))
    assert shoot.folder is None
    ((path, shot),) = take(shoot).done
    with Image.open(path) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)
    assert {row["check"]: row["value"] for row in shot.facts["verified"]}["border"] == 0


def test_without_a_shadow_all_of_the_ground_is_white(choices) -> None:
    ((path, _),) = take(plan_shoot(replace(choices, white=True, shadow=False))).done
    with Image.open(path) as image:
        assert (np.asarray(image)[disc() == 0] == 255).all()


@pytest.mark.parametrize(
    ("out", "format_", "ending"),
    [
        (None, None, ".png"), ("x.jpg", None, ".jpg"), ("x.webp", "webp", ".webp"),
        ("folder/", "jpeg", ".jpg"), ("folder/", "webp", ".webp"),
    ],
)  # fmt: skip
def test_the_format_is_that_of_the_file_or_as_asked(
    choices, tmp_path, monkeypatch, out, format_, ending
) -> None:
    monkeypatch.chdir(tmp_path)
    shoot = plan_shoot(replace(choices, white=True, out=out, format=format_))
    ((path, _),) = take(shoot).done
    assert path.suffix == ending
    with Image.open(path) as image:
        assert {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}[str(image.format)] == ending
        assert "icc_profile" in image.info


def test_a_larger_canvas_leaves_the_product_as_it_is(choices) -> None:
    shoot = plan_shoot(replace(choices, size="240x160"))
    ((path, shot),) = take(shoot, GroundEngine()).done
    with Image.open(path) as image:
        picture = np.asarray(image)
    assert picture.shape == (160, 240, 3)
    assert shot.facts["product"]["scale"] == 1
    middle = picture[32:128, 60:180]
    assert (middle[disc() == 255] == colours()[disc() == 255]).all()


def test_a_photograph_larger_than_any_render_is_delivered_at_its_size(choices, tmp_path) -> None:
    alpha = np.zeros((70, 4200), np.uint8)
    alpha[10:60, 100:4000] = 255
    wide = tmp_path / "wide.png"
    Image.fromarray(np.dstack((colours(4200, 70), alpha))).save(wide)
    ((path, _),) = take(plan_shoot(replace(choices, photo=wide, white=True))).done
    with Image.open(path) as image:
        assert image.size == (4200, 70)
        assert (np.asarray(image)[alpha == 255] == colours(4200, 70)[alpha == 255]).all()


def test_a_refused_picture_is_noted_and_not_delivered_and_the_others_are(choices, tmp_path) -> None:
    engine = GroundEngine(bad={6})
    shoot = plan_shoot(replace(choices, count=2, attempts=1))
    taken = take(shoot, engine)
    assert [shot.seed for _, shot in taken.done] == [5]
    assert len(taken.refused) == 1
    assert "drawn on beyond its outline" in taken.refused[0]
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["mug-on-a-sandy-beach-side-light-5.png"]
    (note,) = (tmp_path / "out" / "quarantine").iterdir()
    said = json.loads(note.read_text())
    assert said["seed"] == 6
    assert "drawn on beyond its outline" in said["reason"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"brief": " "}, InvalidRequest, "say on what ground"),
        ({"mode": "blnd"}, InvalidRequest, "Did you mean 'blend'"),
        ({"format": "gif"}, InvalidRequest, "unknown format"),
        ({"format": "png", "out": "x.jpg"}, InvalidRequest, "contradicts"),
        ({"attempts": 0}, InvalidRequest, "attempts is 0, expected 1 to 10"),
        ({"count": 0}, InvalidRequest, "0 pictures"),
        ({"count": 2, "white": True}, InvalidRequest, "all are the same"),
        ({"shadow": False}, InvalidRequest, "--no-shadow is for --white"),
        ({"size": "33"}, InvalidRequest, "33"),
        ({"size": "99999"}, InvalidRequest, "out of range"),
        ({"steps": 0}, InvalidRequest, "steps is 0"),
        ({"device": "gpu"}, InvalidRequest, "unknown device"),
        ({"photo": Path("none.png")}, OutputError, "No such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    choices, tmp_path, monkeypatch, change, error, said
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        plan_shoot(replace(choices, **change))
    assert not (tmp_path / "out").exists()


def test_a_photo_or_mask_that_cannot_be_used_is_refused_before_anything_is_loaded(
    choices, tmp_path
) -> None:
    plain = tmp_path / "plain.png"
    Image.fromarray(np.full((80, 90, 3), 77, np.uint8)).save(plain)
    with pytest.raises(MaskNeeded, match="Give --mask"):
        plan_shoot(replace(choices, photo=plain))
    with pytest.raises(BadPhoto, match=r"90x80 pixels, and mug\.png is 120x96"):
        plan_shoot(replace(choices, mask=plain))
    hollow = tmp_path / "hollow.png"
    Image.fromarray(np.dstack((colours(), disc() // 2))).save(hollow)
    with pytest.raises(BadPhoto, match="0 pixels are product alone"):
        plan_shoot(replace(choices, photo=hollow))


def test_a_mask_says_where_the_product_is(choices, tmp_path) -> None:
    mask, flat = tmp_path / "mask.png", tmp_path / "flat.png"
    Image.fromarray(disc()).save(mask)
    Image.fromarray(colours()).save(flat)
    shoot = plan_shoot(replace(choices, photo=flat, mask=mask))
    ((path, shot),) = take(shoot, GroundEngine()).done
    assert shot.facts["product"]["matte"] == "mask"
    assert (core_of(path, shot.facts["product"]) == core_of(flat, shot.facts["product"])).all()


def test_noise_for_a_ground_is_never_delivered(choices) -> None:
    """The stub draws noise: wherever one looks, it is not what is around it."""
    taken = take(plan_shoot(choices), StubEngine())
    assert not taken.done
    assert "none of 3 seeds" in taken.refused[0]
