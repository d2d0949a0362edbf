"""`packshot render`: what it makes, says and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packshot.core.types import STAGES
from packshot.studio.record import read_record
from tests.cli.conftest import Packshot
from tests.studio.stub import StubEngine

BRIEF = "white sneakers on a sandy beach"


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_a_brief_becomes_a_file_and_a_table(packshot: Packshot, model: str, engine) -> None:
    done = packshot("render", BRIEF, "--model", model, "--seed", "7")
    assert (done.code, done.err) == (0, "")
    assert files() == ["out/white-sneakers-on-a-sandy-beach-7.png"]
    assert f"{files()[0]}  64x64, seed 7" in done.out
    for stage in (*STAGES, "total"):
        assert f" {stage} " in done.out
    assert "20 steps, 35.0 s/it" in done.out
    assert "100.0 %" in done.out
    assert [line.split()[2] for line in done.out.splitlines() if " encode " in line] == ["10.0"]
    assert max(map(len, done.out.splitlines())) <= 80


def test_several_pictures_and_a_random_seed(packshot: Packshot, model: str, engine) -> None:
    facts = packshot("render", BRIEF, "--model", model, "-n", "3", "--json").json
    seeds = [picture["seed"] for picture in facts["pictures"]]
    assert seeds == list(range(seeds[0], seeds[0] + 3))
    assert [picture["path"] for picture in facts["pictures"]] == files()


def test_json_is_all_there_is_on_stdout(packshot: Packshot, model: str, engine) -> None:
    words = ["--out", "x.webp", "--size", "128", "--show-caption", "--seed", "3"]
    done = packshot("render", "vintage kayak", "--model", model, "--json", *words)
    facts = json.loads(done.out)
    assert facts["pictures"] == [{"path": "x.webp", "seed": 3, "width": 128, "height": 128}]
    assert facts["unknown"] == "vintage kayak"
    assert facts["caption"].startswith("vintage kayak on a white studio background")
    assert [part["stage"] for part in facts["usage"]] == list(STAGES)
    assert facts["warnings"][0].startswith("the model was not shown")
    assert facts["model"]["name"] == "model"
    assert "warning: the model was not shown 'vintage kayak'" in done.err


def test_choices_reach_the_engine(packshot: Packshot, model: str, engine: StubEngine) -> None:
    words = ["--steps", "3", "--guidance", "1", "--negative", "blur", "--sampler", "euler"]
    words += ["--schedule", "karras", "--spacing", "leading", "--raw"]
    assert packshot("render", "a thing", "--model", model, *words).code == 0
    (request,) = engine.requests
    assert request.prompt == "a thing"
    assert (request.steps, request.guidance, request.negative_prompt) == (3, 1.0, "blur")
    assert (request.sampler, request.schedule, request.spacing) == ("euler", "karras", "leading")


def test_the_caption_is_shown_and_what_was_left_out(packshot: Packshot, model, engine) -> None:
    done = packshot("render", f"vintage {BRIEF}", "--model", model, "--show-caption")
    assert done.out.startswith("caption  white sneakers on a sandy beach, soft light")
    assert "product: sneakers, colour: white, ground: sandy beach" in done.out
    assert done.err == "note: left out of the caption: vintage\n"


def test_sharpening_can_be_switched_off(packshot: Packshot, model: str, engine) -> None:
    for name, words in (("a.png", []), ("b.png", ["--no-sharpen"])):
        packshot("render", BRIEF, "--model", model, "--seed", "1", "--out", name, *words)
    assert read_record(Path("a.png")).sharpen is not None
    assert read_record(Path("b.png")).sharpen is None
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


def test_a_preview_stands_beside_the_picture(packshot: Packshot, model: str, engine) -> None:
    packshot("render", BRIEF, "--model", model, "--preview", "--out", "d/x.png")
    assert files() == ["d/preview.png", "d/x.png"]


def test_like_makes_the_same_file(packshot: Packshot, model: str, engine) -> None:
    packshot("render", BRIEF, "--model", model, "--out", "x.png", "--size", "96", "-n", "2")
    done = packshot("render", "--like", "x-2.png", "--model", model, "--out", "again.png")
    assert (done.code, done.err) == (0, "")
    assert Path("again.png").read_bytes() == Path("x-2.png").read_bytes()


@pytest.mark.parametrize("words", [["--seed", "5"], ["brief"], ["--steps", "20"], ["--raw"]])
def test_like_takes_no_choice_that_changes_the_bits(packshot, model, engine, words) -> None:
    packshot("render", BRIEF, "--model", model, "--out", "x.png")
    done = packshot("render", *words, "--like", "x.png", "--model", model)
    assert done.code == 2
    assert f"leave out {words[0].lstrip('-')}, or leave out --like" in done.err


def test_like_of_what_is_not_ours(packshot: Packshot, model: str) -> None:
    Image.new("RGB", (8, 8)).save("x.png")
    assert "x.png carries no packshot record" in packshot("render", "--like", "x.png").err
    assert packshot("render", "--like", "none.png").code == 4


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([""], 2, "the brief is empty"),
        ([BRIEF, "--size", "100"], 2, "not a multiple of 8"),
        ([BRIEF, "--sampler", "eular"], 2, "Did you mean 'euler'?"),
        (["a kayak", "--strict"], 2, "the model was not shown 'kayak'"),
        ([BRIEF, "--model", "nowhere"], 3, "no model 'nowhere'"),
        ([BRIEF, "--out", "/proc/no/x.png"], 4, "cannot write"),
        ([BRIEF, "--out", "x.tiff"], 2, "expected .png"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(packshot, model, engine, words, code, said):
    given = ["--model", model] if "--model" not in words else []
    done = packshot("render", *words, *given)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert files() == []
    assert engine.requests == []


def test_the_real_engine_from_brief_to_the_same_bits(packshot: Packshot, tiny_sdxl: Path) -> None:
    words = ["--model", str(tiny_sdxl), "--steps", "2", "--guidance", "2"]
    done = packshot("render", "a red shoe", *words, "--out", "x.png", "--preview", "--json")
    assert done.code == 0, done.err
    assert done.json["device"] in {"cpu", "cuda"}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    packshot("render", "--like", "x.png", "--model", str(tiny_sdxl), "--out", "y.png")
    assert torch.get_num_threads() == threads
    with Image.open("x.png") as x, Image.open("y.png") as y, Image.open("preview.png") as preview:
        assert (np.asarray(x) == np.asarray(y)).all()
        assert x.size == preview.size == (64, 64)


INTERRUPTED = """
import os, signal, sys
from packshot.engine.engine import Engine
steps = []
render = Engine.render
def slow(self, request, on_step=None):
    def tell(progress):
        on_step(progress)
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
    return render(self, request, tell)
Engine.render = slow
from packshot.cli.main import main
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_no_half_file(tiny_sdxl: Path, tmp_path: Path) -> None:
    words = ["render", "a red shoe", "--model", str(tiny_sdxl), "--steps", "4", "--out", "d/x.png"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 130, (done.stderr, signal.SIGINT)
    assert done.stderr == "error: cancelled; no half-written file was left\n"
    assert list((tmp_path / "d").iterdir()) == []
