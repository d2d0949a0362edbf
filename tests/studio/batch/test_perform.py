"""What a worker tells of a product's picture: the file in the run's folder, and its rows' tags."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from packshot.core.errors import CheckFailed
from packshot.core.types import Usage
from packshot.studio.batch.items import Item
from packshot.studio.batch.perform import load, with_engine
from packshot.studio.batch.worker import Divided
from packshot.studio.recipes.recipe import load_recipe
from tests.studio.test_background import GroundEngine
from tests.studio.test_shoot import CUTOUT


@dataclass
class Job:
    item: Item
    render: str = "render-1"
    caption: bytes = b""
    usage: list[Usage] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def step(self) -> None:
        pass


@pytest.fixture
def job(tmp_path: Path) -> Job:
    Image.fromarray(CUTOUT).save(tmp_path / "mug.png")
    return Job(Item("mug", "on a sandy beach", 3, photo=str(tmp_path / "mug.png")))


def test_a_product_s_rows_are_tagged_with_its_core(job: Job, folder: Path, tmp_path: Path) -> None:
    told = {"recipe": load_recipe("background").facts(), "model": str(folder)}
    made = with_engine(told, tmp_path, GroundEngine())(job)
    assert made.tags == (f"core={made.facts['product']['core_sha256']}",)
    assert tuple(job.tags) == made.tags


def test_so_are_those_of_a_picture_that_is_refused(job: Job, folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("background").changed({"background.attempts": 1})
    engine = GroundEngine()
    engine.bad = {3}
    with pytest.raises(CheckFailed):
        with_engine({"recipe": recipe.facts(), "model": str(folder)}, tmp_path, engine)(job)
    assert [tag.partition("=")[0] for tag in job.tags] == ["core"]


def test_white_is_tagged_too(job: Job, tmp_path: Path) -> None:
    told = {"recipe": load_recipe("white-background").facts()}
    made = load(told, tmp_path, lambda _: None)(job)
    assert made.tags == (f"core={made.facts['product']['core_sha256']}",)


def test_the_engine_is_free_before_the_picture_is_finished(
    job: Job, folder: Path, tmp_path: Path
) -> None:
    told = {"recipe": load_recipe("background").facts(), "model": str(folder)}
    engine = GroundEngine()
    work = with_engine(told, tmp_path, engine)
    assert isinstance(work, Divided)
    rest = work.begin(job)
    rendered = len(engine.requests)
    assert rendered == 1
    assert not list(tmp_path.glob("made/*")), "it is not finished"
    assert job.usage == [], "it is told whole"
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(rest).result()
    assert len(engine.requests) == rendered
    whole = replace(job, usage=[], tags=[])
    again = with_engine(told, tmp_path, GroundEngine())(whole)
    assert (made.sha256, made.facts) == (again.sha256, again.facts)
    assert [part.stage for part in job.usage] == [part.stage for part in whole.usage] != []


def test_what_renders_nothing_is_done_whole_before_the_next(job: Job, tmp_path: Path) -> None:
    told = {"recipe": load_recipe("white-background").facts()}
    work = load(told, tmp_path, lambda _: None)
    assert isinstance(work, Divided)
    rest = work.begin(job)
    assert list(tmp_path.glob("made/*"))
    assert rest().tags == tuple(job.tags)
