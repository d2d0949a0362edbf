"""A batch encodes each text once, over pictures and workers; its report says what that saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from packshot.core.types import NOTHING_READ, EmbeddingUse, Usage
from packshot.studio.batch.items import Item
from packshot.studio.batch.perform import load
from packshot.studio.batch.state import Made, RunState
from packshot.studio.embeddings import EmbeddingSettings
from packshot.studio.recipes.recipe import load_recipe


@dataclass
class Job:
    """One item; it is told of steps, and does not mind."""

    item: Item
    render: str = "render-1"
    caption: bytes = b""
    usage: list[Usage] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def step(self) -> None:
        pass


def worker(tiny_sdxl: Path, folder: Path, **settings):
    recipe = load_recipe("text").changed({"render.steps": 1, "render.guidance": 1.0})
    kept = asdict(EmbeddingSettings(**settings))
    told = {"recipe": recipe.facts(), "model": str(tiny_sdxl), "device": "cpu", "embeddings": kept}
    return load(msgspec.msgpack.decode(msgspec.msgpack.encode(told)), folder, lambda _: None)


def counted(made: Made) -> tuple[int, int]:
    return made.embeddings.hits, made.embeddings.misses


def test_a_text_is_encoded_once_over_pictures_and_workers(tiny_sdxl, tmp_path) -> None:
    items = [Item(f"i{n}", brief, n) for n, brief in enumerate(["a shoe", "a mug", "a shoe"])]
    first = worker(tiny_sdxl, tmp_path)
    assert [counted(first(Job(item))) for item in items] == [(0, 1), (0, 1), (1, 0)]
    second = worker(tiny_sdxl, tmp_path / "second")  # of another run, say
    made = second(Job(items[0]))
    assert counted(made) == (1, 0)
    never = worker(tiny_sdxl, tmp_path / "third", keep=False)
    assert never(Job(items[0])).sha256 == made.sha256
    assert never(Job(items[0])).embeddings == NOTHING_READ


def test_the_state_adds_up_what_all_pictures_of_the_plan_saved(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    items = [(n, bytes([n]), Item(f"i{n}", "a shoe", n)) for n in range(1, 4)]
    state.replan(items, "here")
    assert state.embeddings() == NOTHING_READ
    for _, work, item in items[:2]:
        use = EmbeddingUse(item.seed, 1, 0.5)
        made = Made("r", "f", "n", "0" * 64, 1, item.seed, "", {}, (), use)
        state.made(state.begin(work), made)
    assert state.embeddings() == EmbeddingUse(3, 2, 1.0)
    state.replan(items[1:], "there")
    assert state.embeddings() == EmbeddingUse(2, 1, 0.5)


def test_a_picture_made_before_they_were_counted_counts_for_nothing(tmp_path: Path) -> None:
    made = Made("r", "f", "n", "0" * 64, 1, 1, "", {})
    old = {k: v for k, v in msgspec.to_builtins(made).items() if k != "embeddings"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Made) == made


@pytest.mark.parametrize(("use", "said"), [(EmbeddingUse(9, 1, 2.25), True), (NOTHING_READ, False)])
def test_the_report_says_it(capsys, use, said) -> None:
    from packshot.cli.batch_report import show
    from packshot.studio.batch.report import Report

    counts = SimpleNamespace(delivered=0)
    show(Report("b", counts, (), (), use), "out", "", "")  # type: ignore[arg-type]
    line = "90.0 % of 10 texts encoded before, which saved 2.2 s"
    assert (line in capsys.readouterr().out) == said
