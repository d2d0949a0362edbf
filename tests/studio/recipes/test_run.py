"""A run: the text recipe makes what `packshot render` makes, and everything is booked and noted."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from PIL import Image

from packshot.core.errors import InvalidRequest
from packshot.core.types import STAGES, Usage
from packshot.engine.folder import ModelFolder
from packshot.studio.colour import srgb_profile
from packshot.studio.plan import Options, plan
from packshot.studio.recipes.recipe import Recipe, load_recipe
from packshot.studio.recipes.run import by_rules, run
from packshot.studio.recipes.step import Kept, Shot, Tools
from packshot.studio.record import read_making, read_record
from packshot.studio.render import render, total
from tests.studio.stub import StubEngine

BRIEF = "white sneakers on a sandy beach"


class Shelf:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, data: bytes, name: str, /) -> Kept:
        self.files[name] = data
        return Kept(name, "0" * 64, len(data), requests=2)


@pytest.fixture
def tools(folder: Path) -> Tools:
    opened = ModelFolder.open(folder)
    return Tools(by_rules(opened), store=Shelf(), folder=opened, engine=StubEngine())


def shot(**changed) -> Shot:
    return replace(Shot("sneakers", "render-1", BRIEF, 7), **changed)


def text(**parameters) -> Recipe:
    chosen = {"render.steps": 3, **{k.replace("__", "."): v for k, v in parameters.items()}}
    return load_recipe("text").changed(chosen)


def test_the_text_recipe_makes_the_picture_of_render(folder, tmp_path, tools) -> None:
    options = Options(BRIEF, model=str(folder), out=str(tmp_path), seed=7, steps=3, size="96x64")
    (stored,) = render(plan(options), StubEngine()).pictures
    done = run(text(finish__size="96x64"), shot(), tools)
    with Image.open(stored.path) as ours:
        assert (np.asarray(ours) == np.asarray(done.picture)).all()
        assert (np.asarray(ours) == np.asarray(Image.open(BytesIO(done.file)))).all()
    assert done.record == read_record(stored.path)
    (name,) = tools.store.files
    assert name == "white-sneakers-on-a-sandy-beach-7.png"


@pytest.mark.parametrize("by", ["the item", "the recipe"])
def test_the_bucket_is_that_of_render(folder, tmp_path, tools, by) -> None:
    buckets = ((64, 64), (96, 64))
    options = Options(BRIEF, model=str(folder), out=str(tmp_path), seed=7, steps=3, size="144x96")
    planned = plan(replace(options, buckets=buckets))
    render(planned, StubEngine())
    recipe = text(finish__size="144x96") if by == "the recipe" else text()
    size = "" if by == "the recipe" else "144x96"
    done = run(recipe, shot(size=size), replace(tools, buckets=buckets))
    assert (done.record.width, done.record.height) == (96, 64)
    assert done.record == read_record(planned.targets[0].path)
    assert done.warnings == planned.warnings
    assert "144x96 is rendered as 96x64, and resized" in done.warnings


def test_every_step_reports_its_use(tools) -> None:
    done = run(text(), shot(), tools)
    usage = total(done.usage)
    assert tuple(part.stage for part in usage) == STAGES
    store = usage[-1]
    assert store.stored_bytes == len(done.file)
    assert store.requests == 2


def test_the_file_says_how_it_was_made(tools, tmp_path: Path) -> None:
    recipe = text(finish__format="jpeg")
    done = run(recipe, shot(), tools)
    file = tmp_path / "x.jpg"
    file.write_bytes(done.file)
    making = read_making(file)
    assert making.recipe == recipe.facts()
    assert (making.brief, making.seed) == (BRIEF, 7)
    assert making.caption == done.caption.text
    assert making.render == done.record
    with pytest.raises(InvalidRequest, match="was made by the recipe 'text'"):
        read_record(file)


def test_the_same_shot_is_the_same_file(tools) -> None:
    assert run(text(), shot(), tools).file == run(text(), shot(render="other"), tools).file


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_file_is_no_longer_than_allowed(tools, kind: str) -> None:
    free = run(text(finish__format=kind, finish__least_quality=1), shot(), tools)
    limit = len(free.file) * 2 // 3
    tight = text(finish__format=kind, finish__max_bytes=limit, finish__least_quality=1)
    done = run(tight, shot(), tools)
    assert len(done.file) <= limit
    quality = done.facts["finish"]["quality"]
    assert 1 <= quality < 92
    low = tight.changed({"finish.max_bytes": 1024})
    with pytest.raises(InvalidRequest, match="more than max_bytes 1024: choose a smaller size"):
        run(low, shot(), tools)


def test_a_png_too_long_is_told_so(tools) -> None:
    with pytest.raises(InvalidRequest, match=r"a PNG of 64x64 pixels has .* choose format jpeg"):
        run(text(finish__max_bytes=2000), shot(), tools)


def test_a_profile_is_embedded_where_asked(tools) -> None:
    for kind in ("png", "jpeg", "webp"):
        bare = run(text(finish__format=kind), shot(), tools).file
        assert "icc_profile" not in Image.open(BytesIO(bare)).info
        file = run(text(finish__format=kind, finish__profile="srgb"), shot(), tools).file
        assert Image.open(BytesIO(file)).info["icc_profile"] == srgb_profile()


def test_size_of_the_shot_and_largest_side(tools) -> None:
    assert run(text(finish__size="96x64"), shot(size="64x128"), tools).picture.size == (64, 128)
    wide = text(finish__size="128x64", finish__max_side=100)
    assert run(wide, shot(), tools).picture.size == (100, 50)


def test_where_nothing_is_asked_the_pixels_stay(tools) -> None:
    done = run(text(finish__sharpen=None), shot(), tools)
    ours = np.asarray(Image.open(BytesIO(done.file)))
    from tests.studio.stub import picture_of

    (request,) = tools.engine.requests
    assert (ours == picture_of(request, 7)).all()


class Till:
    """A `Booking` that notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []
        self.tags: list[tuple[str, ...]] = []

    def booked(self, models, meter, delivered, renders, *, tags=()):
        from contextlib import contextmanager

        @contextmanager
        def inner():
            try:
                yield
            finally:
                self.seen.append((tuple(models), tuple(meter), len(delivered), tuple(renders)))
                self.tags.append(tags)

        return inner()


def test_what_was_used_is_booked_of_a_run_that_fails_too(tools) -> None:
    till = Till()
    done = run(text(), shot(), tools, till)
    assert till.seen == [(("model",), done.usage, 1, ("render-1",))]
    with pytest.raises(InvalidRequest):
        run(text(finish__max_bytes=2000), shot(), tools, till)
    _, used, delivered, _ = till.seen[1]
    assert delivered == 0
    assert Usage("denoise", 700.0, "cpu", steps=3) in used


def test_stages_are_told_in_their_order(tools) -> None:
    said: list[str] = []
    run(text(), shot(), tools, on_stage=said.append)
    assert said == ["caption", "render", "finish", "store"]


def test_tools_that_are_missing(tools) -> None:
    with pytest.raises(InvalidRequest, match="no engine was given"):
        run(text(), shot(), replace(tools, engine=None))


class Careful(msgspec.Struct, frozen=True):
    """A step that looks before anything is paid for."""

    name: ClassVar[str] = "careful"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset] = frozenset()
    gives: ClassVar[frozenset] = frozenset()

    def prepare(self, shot: Shot, /) -> tuple[str, ...]:
        if shot.brief == "bad":
            raise InvalidRequest("a bad brief")
        return ("zoo=1", f"core={shot.seed}")

    def __call__(self, shot: Shot, _: Tools) -> Shot:
        return shot


def test_steps_may_look_first_and_tag_the_rows(tools) -> None:
    recipe = replace(text(), steps=(Careful(), *text().steps, Careful()))
    till = Till()
    run(recipe, shot(), tools, till)
    assert till.tags == [("core=7", "zoo=1")]
    with pytest.raises(InvalidRequest, match="a bad brief"):
        run(recipe, shot(brief="bad"), tools, till)
    assert len(till.seen) == 1
