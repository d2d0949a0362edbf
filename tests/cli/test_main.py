"""The command line as a whole: help, versions, errors on one line, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import packshot as package
from packshot.cli.terminal import pace
from packshot.core.errors import PackshotError, RenderFailed
from tests.cli.conftest import Packshot


def test_the_version(packshot: Packshot) -> None:
    done = packshot("--version")
    assert (done.code, done.out, done.err) == (0, f"packshot {package.__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["-h"],
        ["render", "-h"],
        ["sheet", "--help"],
        ["model"],
        ["model", "show", "-h"],
    ],
)
def test_help_fits_the_terminal(packshot: Packshot, words: list[str]) -> None:
    done = packshot(*words)
    assert done.code == 0
    assert done.out.startswith("Usage: packshot")
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_commands_are_these(packshot: Packshot) -> None:
    listed = packshot("--help").out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [
        "render",
        "shoot",
        "sheet",
        "batch",
        "profile",
        "plan",
        "doctor",
        "recipe",
        "model",
        "cost",
        "prices",
        "ledger",
        "keys",
        "gateway",
        "config",
        "cache",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rendre"], "No such command 'rendre'"),
        (["render", "x", "--stepz", "3"], "No such option: --stepz"),
        (["render", "x", "--steps", "many"], "Invalid value for '--steps'"),
        (["sheet"], "Missing argument 'BRIEFS.txt'"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(packshot: Packshot, words, said: str) -> None:
    done = packshot(*words)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("error", [RenderFailed("it came out\nflat"), PackshotError("no")])
def test_an_error_of_ours_is_one_line_and_its_code(
    packshot: Packshot, monkeypatch: pytest.MonkeyPatch, error: PackshotError
) -> None:
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("packshot.studio.plan.plan", fail)
    done = packshot("render", "x")
    assert done.code == error.exit_code
    assert done.err == f"error: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize(
    ("steps", "seconds", "said"),
    [
        (20, 2.0, "10.0 it/s"),
        (1, 1.0, "1.0 it/s"),
        (1, 2.5, "2.5 s/it"),
        (0, 1.0, ""),
        (1, 0.0, ""),
    ],
)
def test_slow_steps_are_told_in_seconds_each(steps: int, seconds: float, said: str) -> None:
    assert pace(steps, seconds) == said


def test_debug_shows_the_traceback(packshot: Packshot) -> None:
    for words in (["--debug", "render", ""], ["render", "", "--debug"]):
        with pytest.raises(PackshotError, match="brief is empty"):
            packshot(*words)


def test_an_interrupt_is_said_and_is_code_130(
    packshot: Packshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("packshot.studio.plan.plan", interrupt)
    done = packshot("render", "x")
    assert (done.code, done.out) == (130, "")
    assert "cancelled" in done.err


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(
    packshot: Packshot, monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    packshot("--version")
    assert os.environ["OMP_WAIT_POLICY"] == kept


def test_the_module_runs_as_the_command_does() -> None:
    words = [sys.executable, "-m", "packshot", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"packshot {package.__version__}\n"


def test_bad_input_is_refused_without_torch(packshot: Packshot, model: str) -> None:
    """Every refusal that `plan` makes; `tests/studio/test_plan.py` has them one by one."""
    script = (
        "import sys\n"
        "from packshot.cli.main import main\n"
        "try:\n"
        f"    main(['render', 'x', '--model', {model!r}, '--sampler', 'oiler'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert time.perf_counter() - start < 20
