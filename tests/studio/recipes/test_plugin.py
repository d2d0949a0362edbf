"""The example's step, installed as a user would install it: recipes know it, and it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from packshot.core.errors import InvalidRequest
from packshot.engine.folder import ModelFolder
from packshot.studio.recipes import registry
from packshot.studio.recipes.recipe import load_recipe
from packshot.studio.recipes.registry import known_steps
from packshot.studio.recipes.run import by_rules, run
from packshot.studio.recipes.step import Kept, Shot, Tools
from tests.studio.stub import StubEngine

EXAMPLE = Path(__file__).parents[3] / "examples" / "steps" / "packshot-border"
RECIPE = str(EXAMPLE / "bordered.yaml")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)),
            str(EXAMPLE),
        ],
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    known_steps.cache_clear()
    yield
    known_steps.cache_clear()
    sys.modules.pop("packshot_border", None)


class Nowhere:
    def put(self, data: bytes, name: str, /) -> Kept:
        return Kept(name, "", len(data))


@pytest.mark.usefixtures("installed")
def test_the_step_runs_within_a_recipe(folder: Path) -> None:
    recipe = load_recipe(RECIPE).changed({"render.steps": 2, "border.width": 5})
    opened = ModelFolder.open(folder)
    tools = Tools(by_rules(opened), store=Nowhere(), folder=opened, engine=StubEngine())
    done = run(recipe, Shot("mug", "r", "a red mug", 7), tools)
    assert done.facts["border"] == {"width": 5}
    made = np.asarray(done.picture)
    assert (made[:2] == (0x1D, 0x35, 0x57)).mean() > 0.7  # but for the sharpening
    plain = run(
        recipe.changed({"border.colour": "#000000"}), Shot("mug", "r", "a red mug", 7), tools
    )
    assert (np.asarray(plain.picture)[8:-8, 8:-8] == made[8:-8, 8:-8]).all()


@pytest.mark.usefixtures("installed")
def test_its_parameters_are_checked_with_the_line(tmp_path: Path) -> None:
    text = Path(RECIPE).read_text()
    file = tmp_path / "bad.yaml"
    for instead, said in (
        ("{widht: 12}", "line 8: border: unknown key 'widht'. Did you mean 'width'"),
        ("{width: 0}", "line 8: border: width is 0, expected 1 to 512"),
        ('{colour: "red"}', "line 8: border: colour is 'red', expected"),
    ):
        file.write_text(text.replace('{width: 12, colour: "#1d3557"}', instead))
        with pytest.raises(InvalidRequest, match=said):
            load_recipe(str(file))


def test_without_the_package_the_step_is_unknown() -> None:
    known_steps.cache_clear()
    with pytest.raises(InvalidRequest, match=r"line 7: steps\[2\]: unknown step 'border'"):
        load_recipe(RECIPE)


def test_the_command_line_knows_it(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "packshot", "recipe", "check", RECIPE, "--json"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["recipes"]
    assert [step["step"] for step in said["steps"]][2] == "border"


# ---- packages that bring what is no step

NOT_A_STEP = """
import msgspec
from typing import ClassVar
class Base(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "odd"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset] = frozenset()
    gives: ClassVar[frozenset] = frozenset()
    def __call__(self, shot, tools): return shot
class Thawed(msgspec.Struct):
    name: ClassVar[str] = "odd"
class Misnamed(Base, frozen=True):
    name: ClassVar[str] = "even"
class Unversioned(Base, frozen=True):
    version: ClassVar[None] = None
class Needy(Base, frozen=True):
    needs: ClassVar[frozenset] = frozenset(("money",))
class Silent(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "odd"
function = print
"""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    (tmp_path / "odd_steps.py").write_text(NOT_A_STEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    known_steps.cache_clear()

    def bring(*entries: EntryPoint) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: list(entries))

    yield lambda *names: bring(*(EntryPoint(n, p, registry.GROUP) for n, p in names))
    known_steps.cache_clear()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("function", "is not a class derived from msgspec.Struct"),
        ("Thawed", "must be frozen"),
        ("Silent", "has no method __call__"),
        ("Misnamed", "must say name: .* = 'odd'"),
        ("Unversioned", "must say version"),
        ("Needy", "must say needs: .* caption, engine, file, photo, picture, store"),
        ("Nothing", "cannot be imported .*AttributeError"),
    ],
)
def test_what_is_no_step_is_told(brought, what: str, said: str) -> None:
    brought(("odd", f"odd_steps:{what}"))
    with pytest.raises(InvalidRequest, match=f"the step 'odd' of .*{said}"):
        known_steps()


def test_two_steps_of_one_name(brought) -> None:
    brought(("finish", "odd_steps:Base"))
    with pytest.raises(InvalidRequest, match="two packages bring a step 'finish': packshot and"):
        known_steps()
