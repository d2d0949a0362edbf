"""A batch's worker renders at the nearest bucket, and is warm for what its items ask for."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from packshot.engine.buckets import Size
from packshot.engine.runner import PlainRunner
from packshot.studio.batch.items import Item
from packshot.studio.batch.perform import load
from packshot.studio.batch.planning import sizes_of
from packshot.studio.batch.state import RunState
from packshot.studio.recipes.recipe import load_recipe
from packshot.studio.record import read_making
from tests.studio.batch.test_embeddings import Job

BUCKETS = ((64, 64), (96, 64), (64, 96))


@pytest.mark.parametrize(
    ("recipe", "sizes", "warmed"),
    [
        ("text", None, BUCKETS),
        ("text", ("",), ((64, 64),)),
        ("text", ("144x96", "288x192", ""), ((96, 64), (64, 64))),
        ("text", (), ()),
        ("background", ("144x96",), ((64, 64),)),
    ],
)
def test_the_worker_is_warm_for_the_sizes_that_items_have_and_no_other(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe, sizes, warmed
) -> None:
    seen: list[Size] = []
    monkeypatch.setattr(PlainRunner, "warm", lambda _, sizes, *more: seen.extend(sizes) or 0)
    told = {
        "recipe": load_recipe(recipe).facts(), "model": str(tiny_sdxl), "device": "cpu",
        "embeddings": {"keep": False}, "buckets": BUCKETS, "sizes": sizes,
    }  # fmt: skip
    load(msgspec.msgpack.decode(msgspec.msgpack.encode(told)), tmp_path, lambda _: None)
    assert tuple(seen) == warmed


def test_the_sizes_that_items_have_are_those_of_works_that_wait(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    items = [
        Item("a", "mug", 1, size="96x64"),
        Item("b", "mug", 2),
        Item("c", "mug", 3, parameters={"finish.size": "64"}),
        Item("d", "mug", 4, size="96x64"),
    ]
    state.replan(((n, bytes([n]), item) for n, item in enumerate(items)), "here")
    assert sizes_of(state) == ("96x64", "", "64")
    state.quarantine(bytes([1]), "it is done with")
    assert sizes_of(state) == ("96x64", "64")
    state.close()


@pytest.mark.parametrize(
    ("buckets", "warmed", "made"),
    [
        (((64, 64), (96, 64)), ((64, 64), (96, 64)), (96, 64)),
        (((1024, 1024),), ((64, 64),), (64, 64)),
        (None, ((64, 64),), (64, 64)),
    ],
)
def test_the_worker_is_warm_for_what_it_renders(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets, warmed, made
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(PlainRunner, "warm", lambda _, *given: seen.append(given) or 0)
    recipe = load_recipe("text").changed({"render.steps": 1, "render.guidance": 1.0})
    told = {
        "recipe": recipe.facts(), "model": str(tiny_sdxl), "device": "cpu",
        "embeddings": {"keep": False}, "buckets": buckets,
    }  # fmt: skip
    work = load(msgspec.msgpack.decode(msgspec.msgpack.encode(told)), tmp_path, lambda _: None)
    assert seen == [(warmed, (1,), ("exact",), None)]
    done = work(Job(Item("i", "a shoe", 1, size="144x96")))
    files = [file for file in tmp_path.rglob("*") if file.is_file() and b"PNG" in file.read_bytes()]
    with Image.open(BytesIO(files[0].read_bytes())) as picture:
        assert picture.size == (144, 96)
    record = read_making(files[0]).render
    assert (record.width, record.height) == made
    said = "144x96 is rendered as 96x64, and resized" in done.warnings
    assert said == (made == (96, 64))
