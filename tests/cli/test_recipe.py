"""``packshot recipe``: tables that fit a terminal, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.cli.main import main
from packshot.studio.recipes.recipe import SHIPPED

BAD = "name: x\nversion: 1\nsteps:\n  - step: caption\n  - step: rendr\n"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["recipe", *arguments])
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_list_names_recipes_and_steps(capsys) -> None:
    assert run("list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SHIPPED)
    assert "Steps: " in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("name", SHIPPED)
def test_show_has_every_parameter(capsys, name: str) -> None:
    assert run("show", name) == 0
    said = capsys.readouterr().out
    assert run("show", name, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == name
    for step in facts["steps"]:
        assert step["step"] in said
        assert all(parameter in said for parameter in step["with"])
    assert max(map(len, said.splitlines()[2:])) <= 80


def test_check_tells_the_line_and_exits_with_2(capsys, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    assert run("check", "text", str(file)) == 2
    said = capsys.readouterr()
    assert said.out == "text: ok: caption > render > finish > store\n"
    assert f"{file}, line 5: steps[1]: unknown step 'rendr'. Did you mean 'render'?" in said.err
    assert run("check", "text", str(file), "--json") == 2
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts["recipes"]] == ["text"]
    assert "line 5" in facts["errors"][0]


def test_a_file_that_is_not_there_is_4(capsys, tmp_path: Path) -> None:
    assert run("check", str(tmp_path / "none.yaml")) == 4
    assert "cannot read" in capsys.readouterr().err
