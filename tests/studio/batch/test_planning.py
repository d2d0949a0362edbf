"""From a table to works: what is the same, what is done, what changed, and what can never be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest
from packshot.studio.batch.planning import Source, foretold, plan_batch, run_folder
from packshot.studio.batch.state import RunState
from packshot.studio.recipes.recipe import Recipe, load_recipe
from tests.ledger.world import World as Books

TEXT = """
name: test
version: 1
steps:
  - step: caption
  - step: render
    with: {steps: 4}
  - step: finish
  - step: store
"""


def recipe_in(folder: Path, text: str = TEXT, name: str = "r.yaml") -> Recipe:
    (folder / name).write_text(text)
    return load_recipe(str(folder / name))


def table_in(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


@pytest.fixture
def state(tmp_path: Path):
    opened = RunState(tmp_path / "run")
    yield opened
    opened.close()


def works(state: RunState) -> dict[str, bytes]:
    return {row.item.id: row.work for row in state.rows()}


def test_the_same_again_is_not_planned_again(tmp_path: Path, state: RunState) -> None:
    source = Source(table_in(tmp_path, "id,brief\na,mug\nb,mug\nc,shoe\n"), recipe_in(tmp_path))
    assert plan_batch(state, source)
    assert not plan_batch(state, source)
    counts = state.counts()
    assert (counts.items, counts.works, counts.repeated, counts.left) == (3, 2, 1, 2)


def test_what_decides_a_picture_decides_its_work(tmp_path: Path, state: RunState) -> None:
    table, recipe = table_in(tmp_path, "id,brief\na,mug\n"), recipe_in(tmp_path)
    seen: set[bytes] = set()
    other = recipe_in(tmp_path, TEXT.replace("steps: 4", "steps: 5"), "o.yaml")
    for source in (
        Source(table, recipe),
        Source(table, other),
        Source(table, recipe, model="another"),
        Source(table, recipe, captions="prompt-rewrite"),
    ):
        assert plan_batch(state, source)
        seen.add(works(state)["a"])
    assert len(seen) == 4


def test_a_changed_row_changes_its_own_work_alone(tmp_path: Path, state: RunState) -> None:
    recipe = recipe_in(tmp_path)
    plan_batch(state, Source(table_in(tmp_path, "id,brief,seed\na,mug,1\nb,cup,1\n"), recipe))
    before = works(state)
    plan_batch(state, Source(table_in(tmp_path, "id,brief,seed\na,mug,1\nb,cup,2\n"), recipe))
    after = works(state)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_parameters_of_one_row(tmp_path: Path, state: RunState) -> None:
    table = table_in(tmp_path, "id,brief,render.steps\na,mug,\nb,mug,8\nc,mug,4\n")
    plan_batch(state, Source(table, recipe_in(tmp_path)))
    found = works(state)
    assert found["a"] == found["c"] != found["b"], "4 steps are what the recipe says"


def test_variants_are_works_of_their_own(tmp_path: Path, state: RunState) -> None:
    recipe = recipe_in(tmp_path, TEXT + "variants: {seeds: 2, sizes: [64x64, 128x128]}\n")
    plan_batch(state, Source(table_in(tmp_path, "id,brief,seed\na,mug,1\n"), recipe))
    assert sorted(works(state)) == ["a-1", "a-2", "a-3", "a-4"]
    assert {row.item.size for row in state.rows()} == {"64x64", "128x128"}
    assert {row.item.seed for row in state.rows()} == {1, 2}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,brief\na,mug\na,cup\n", "these ids come more than once: 'a' (2 times)"),
        ("id,brief\na,mug\na,mug\n", "these ids come more than once"),
        ("brief,render.stpes\nmug,3\n", "Did you mean 'steps'"),
        ("brief,rendr.steps\nmug,3\n", "Did you mean 'render'"),
        ("brief,render.steps\nmug,many\n", "line 2: the step render"),
        ("brief,render.steps\nmug,-3\n", "line 2"),
        ("brief,size\nmug,huge\n", "line 2"),
        ("brief,photo\nmug,x.png\n", "has no use for it"),
        ("id\na\n", "no row has a brief"),
    ],
)
def test_what_can_never_be_is_refused_and_the_plan_before_stands(
    tmp_path: Path, state: RunState, table: str, said: str
) -> None:
    recipe = recipe_in(tmp_path)
    plan_batch(state, Source(table_in(tmp_path, "id,brief\na,mug\n"), recipe))
    before = works(state)
    with pytest.raises(InvalidRequest) as caught:
        plan_batch(state, Source(table_in(tmp_path, table), recipe))
    assert said in str(caught.value)
    assert works(state) == before


def test_a_recipe_that_stores_nothing(tmp_path: Path, state: RunState) -> None:
    recipe = recipe_in(tmp_path, TEXT.replace("  - step: store\n", ""))
    with pytest.raises(InvalidRequest, match="stores nothing"):
        plan_batch(state, Source(table_in(tmp_path, "brief\nmug\n"), recipe))


def photo_in(folder: Path, name: str, size: tuple[int, int] = (96, 96), level: int = 255) -> None:
    from PIL import Image

    picture = Image.new("RGBA", size, (200, 30, 30, 0))
    picture.paste((200, 30, 30, level), (20, 20, size[0] - 20, size[1] - 20))
    picture.save(folder / name)


def with_photos(recipe: Recipe) -> Recipe:
    from dataclasses import replace

    found = replace(recipe)
    object.__setattr__(found, "needs", frozenset(("photo", "store")))
    return found


def test_photographs_are_read_once_and_again_where_they_changed(
    tmp_path: Path, state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_in(tmp_path, "a.png")
    photo_in(tmp_path, "b.png", (96, 80))
    table = table_in(tmp_path, "id,brief,photo\na,wet slate,a.png\nb,wet slate,b.png\n")
    source = Source(table, with_photos(recipe_in(tmp_path)))
    assert plan_batch(state, source)
    before = works(state)
    assert before["a"] != before["b"]
    assert not plan_batch(state, source)
    photo_in(tmp_path, "b.png", (96, 88))
    os.utime(tmp_path / "b.png", (1, 1))
    assert plan_batch(state, source)
    after = works(state)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_bad_photographs_are_said_before_anything_is_done(tmp_path: Path, state: RunState) -> None:
    photo_in(tmp_path, "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("hello")
    table = table_in(
        tmp_path,
        "id,brief,photo\na,slate,good.png\nb,slate,cut.png\nc,slate,text.png\nd,slate,no.png\n"
        "e,slate,\n",
    )
    with pytest.raises(InvalidRequest) as caught:
        plan_batch(state, Source(table, with_photos(recipe_in(tmp_path))))
    said = str(caught.value)
    assert "4 rows of 5 cannot be used" in said
    for part in (
        "line 3",
        "cut.png",
        "line 4",
        "text.png",
        "line 5",
        "No such file",
        "needs a photo",
    ):
        assert part in said
    assert not state.plan


def test_a_mask_is_checked_with_its_photograph(tmp_path: Path, state: RunState) -> None:
    photo_in(tmp_path, "a.png")
    photo_in(tmp_path, "m.png", (96, 80))
    table = table_in(tmp_path, "id,brief,photo,mask\na,slate,a.png,m.png\n")
    with pytest.raises(InvalidRequest, match=r"the mask m\.png is 96x80"):
        plan_batch(state, Source(table, with_photos(recipe_in(tmp_path))))


def test_where_the_state_is_kept(tmp_path: Path, state_home: Path) -> None:
    assert run_folder(str(tmp_path / "out")) == tmp_path / "out" / ".packshot-batch"
    kept = run_folder("s3://shop/pictures/")
    assert kept == run_folder("s3://shop/pictures")
    assert kept.is_relative_to(state_home)
    assert kept != run_folder("s3://shop/other")


def test_the_batch_itself_foretells_best(tmp_path: Path) -> None:
    from packshot.core.clock import wall_us

    books = Books(tmp_path, now=wall_us())
    store = books.store
    assert foretold(store, 10, "packshot", "b1") is None
    for k in range(40):
        books.render(f"r{k}")
    found = foretold(store, 100, "packshot", "b1")
    assert found is not None
    assert found.amount == 100 * 10_000
    assert found.observed == 40
    store.close()
