"""`packshot cache`: requests compared, thresholds tried, the model's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from packshot.cli.cache import app
from packshot.core.errors import InvalidRequest, ModelNotFound, OutputError, PackshotError
from packshot.gateway.cache import embed

Cache = Callable[..., str]


class Fake:
    """A model to which all texts are the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed, "MiniLM", Fake)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, PackshotError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [
        {"a": "red mug", "b": "a red mug", "same": True, "route": "captions"},
        {"a": "red mug", "b": "blue mug", "same": False, "route": "captions"},
        {"a": "red mug", "b": "a red mug", "same": False, "route": "titles"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_compare_says_what_differs(cache: Cache) -> None:
    assert cache("compare", "red mug", "please, a red mug") == "they may share an answer\n"
    assert "  colour: red | blue" in cache("compare", "red mug", "blue mug")
    assert "may share" in cache("compare", "red mug", "blue mug", "--must-match", "product, number")
    facts = json.loads(cache("compare", "red mug", "blue mug", "--json"))
    assert facts["differences"] == [{"type": "colour", "left": ["red"], "right": ["blue"]}]


def test_an_unknown_type_lists_the_known(cache: Cache) -> None:
    with pytest.raises(InvalidRequest, match="no slot type color; there are quote, number"):
        cache("compare", "a", "b", "--must-match", "color")


def test_tune_recommends_for_each_route(cache: Cache, pairs: str) -> None:
    said = cache("tune", "--pairs", pairs, "--eur-per-call", "0.002")
    assert max(map(len, said.splitlines())) <= 80
    assert "captions: 1 pairs that share an answer, 1 that do not" in said
    assert "recommended: 0.99" in said
    assert "0.0020" in said
    assert "3,688 pairs" in said
    assert "leave the tier off" in said
    routes = json.loads(cache("tune", "--pairs", pairs, "--json"))["routes"]
    assert [(row["route"], row["recommended"]) for row in routes] == [
        ("captions", 0.99),
        ("titles", None),
    ]
    first = routes[0]["thresholds"][0]
    assert (first["guarded"]["false"], first["alone"]["false"]) == (0, 1)


def test_tune_draws_a_plot_for_each_route(cache: Cache, pairs: str, tmp_path: Path) -> None:
    cache("tune", "--pairs", pairs, "--plot", "plot.svg")
    assert sorted(file.name for file in tmp_path.glob("*.svg")) == [
        "plot-captions.svg",
        "plot-titles.svg",
    ]
    with pytest.raises(InvalidRequest, match=r"\.svg"):
        cache("tune", "--pairs", pairs, "--plot", "plot.png")
    with pytest.raises(OutputError, match="cannot write"):
        cache("tune", "--pairs", pairs, "--plot", "no/where.svg")


def test_without_a_model_it_says_how_to_make_one(
    cache: Cache, pairs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    with pytest.raises(ModelNotFound, match="packshot cache model"):
        cache("tune", "--pairs", pairs, "--folder", str(tmp_path / "none"))


def test_a_model_that_is_there_is_left_alone(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    assert cache("model", "--folder", str(folder)) == f"{folder}\n"
