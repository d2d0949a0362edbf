"""`packshot render`: what it makes, says and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from packshot.core.money import show_eur
from packshot.core.types import STAGES
from packshot.ledger.stores import open_store
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


def start_files() -> None:
    Image.new("RGB", (64, 64), "teal").save("start.png")
    marks = Image.new("L", (64, 64))
    marks.paste(255, (0, 0, 32, 64))
    marks.save("mask.png")


def test_a_picture_to_start_from_reaches_the_engine_and_the_record(packshot, model, engine) -> None:
    start_files()
    words = ["--model", model, "--image", "start.png", "--mask", "mask.png", "--strength", "0.7"]
    facts = packshot("render", BRIEF, *words, "--out", "x.png", "--json").json
    (request,) = engine.requests
    assert request.original.picture.shape == (64, 64, 3)
    assert (request.original.strength, request.steps_taken) == (0.7, 14)
    assert request.original.mask[0].tolist() == [1.0] * 32 + [0.0] * 32
    source = read_record(Path("x.png")).source
    assert facts["original"] == msgspec.to_builtins(source)
    assert (source.image, source.mask, source.strength) == ("start.png", "mask.png", 0.7)
    denoise = next(part for part in facts["usage"] if part["stage"] == "denoise")
    assert (facts["steps"], denoise["steps"]) == (20, 14)


def test_like_wants_the_picture_that_it_started_from(packshot, model, engine) -> None:
    start_files()
    words = ["--model", model, "--image", "start.png"]
    packshot("render", BRIEF, *words, "--out", "x.png")
    done = packshot("render", "--like", "x.png", *words, "--out", "again.png")
    assert (done.code, done.err) == (0, "")
    assert Path("again.png").read_bytes() == Path("x.png").read_bytes()
    done = packshot("render", "--like", "x.png", "--model", model)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "made from start.png; give --image that file" in done.err
    packshot("render", BRIEF, "--model", model, "--out", "y.png")
    done = packshot("render", "--like", "y.png", *words)
    assert "made without start.png; leave out --image" in done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--mask", "mask.png"], 2, "a mask was given, and no picture to start from"),
        (["--strength", "0.5"], 2, "a strength was given, and no picture to start from"),
        (["--image", "start.png", "--strength", "0"], 2, "strength is 0, expected more than 0"),
        (["--image", "start.png", "--strength", "0.01"], 2, "less than one step"),
        (["--image", "none.png"], 4, "cannot read none.png"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_any_work(
    packshot, model, engine, words, code, said
) -> None:
    start_files()
    done = packshot("render", BRIEF, "--model", model, *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert engine.requests == []


def test_the_real_engine_starts_from_a_picture_again(packshot: Packshot, tiny_sdxl: Path) -> None:
    start_files()
    files = ["--image", "start.png", "--mask", "mask.png", "--model", str(tiny_sdxl)]
    for name in ("x.png", "y.png"):
        words = ["a red shoe", "--steps", "2", "--seed", "1"] if name == "x.png" else []
        words = words or ["--like", "x.png"]
        done = packshot("render", *words, *files, "--out", name)
        assert done.code == 0, done.err
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


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


def test_a_text_that_was_encoded_before_is_told(packshot: Packshot, tiny_sdxl: Path) -> None:
    words = ["a red shoe", "--model", str(tiny_sdxl), "--steps", "1", "--negative", "blur"]
    first = packshot("render", *words, "--seed", "1", "--out", "x.png", "--json").json
    assert first["embeddings"] == {
        "hits": 0,
        "misses": 2,
        "hit_rate": 0,
        "saved_seconds": 0,
    }
    done = packshot("render", *words, "--seed", "1", "--out", "y.png")
    assert re.search(
        r"^2 of 2 texts encoded before, which saved -?0\.\d{3} s$", done.out, re.MULTILINE
    )
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    Path("packshot.yaml").write_text("studio: {embeddings: {keep: false}}")
    again = packshot("render", *words, "--out", "z.png", "--json").json
    assert again["embeddings"]["misses"] == 2


def rows(state_home: Path, columns: str, *, accrued: bool = False) -> list[tuple]:
    """Return columns of the store's entries: of renders, or of what accrued beside them."""
    store = open_store(str(state_home / "packshot" / "ledger.db"), read_only=True)
    try:
        beside = "select {} from entries where outcome {} 'accrual' order by seq"
        return store.query(beside.format(columns, "=" if accrued else "<>"))
    finally:
        store.close()


RATE = "ledger: {gpu_eur_per_hour: {cpu: 0.05}}"


def test_the_table_has_the_cost_and_the_store_the_entries(packshot, model, engine, state_home):
    Path("packshot.yaml").write_text(RATE)
    done = packshot("render", BRIEF, "--model", model, "-n", "2")
    assert (done.code, done.err) == (0, "")
    match = re.search(
        r"^cost (0\.01[34]\d{6}) EUR \(cpu at 0\.05 EUR/h\)\nrender ([0-9a-f]{32}) and 1 more$",
        done.out,
        re.MULTILINE,
    )
    assert match, done.out
    assert f" {match[1]}" in next(row for row in done.out.splitlines() if " total " in row)
    assert " 0.009722222 " in next(row for row in done.out.splitlines() if " denoise " in row)
    entries = rows(state_home, "render, stage, outcome, amount, depreciation, device, recipe")
    assert match[2] in {row[0] for row in entries}
    assert len(entries) == 2 * len(STAGES)
    assert show_eur(sum(row[3] for row in entries), 9) == match[1]
    assert {row[2:3] + row[5:] for row in entries} == {("succeeded", "cpu", "render")}
    assert all(row[3] == row[4] for row in entries)
    beside = rows(state_home, "account, render, device, priced", accrued=True)
    assert beside == [(account, "", "cpu", 1) for account in ("load", "idle", "idle")]


def test_json_has_the_cost_and_the_ids(packshot, model, engine, state_home) -> None:
    Path("packshot.yaml").write_text(RATE)
    facts = packshot("render", BRIEF, "--model", model, "-n", "3", "--json").json
    assert len(facts["renders"]) == 3
    assert facts["cost_nano_eur"] == sum(part["cost_nano_eur"] for part in facts["usage"])
    entries = rows(state_home, "render, amount")
    assert {row[0] for row in entries} == set(facts["renders"])
    assert sum(row[1] for row in entries) == facts["cost_nano_eur"] > 0


def test_a_device_without_a_price_is_not_free(packshot, model, engine, state_home) -> None:
    engine.device_kind = "b9000"
    done = packshot("render", BRIEF, "--model", model)
    assert " unpriced " in next(row for row in done.out.splitlines() if " denoise " in row)
    assert " unpriced " in next(row for row in done.out.splitlines() if " total " in row)
    assert "b9000 has no price: set ledger.gpu_eur_per_hour.b9000 in packshot.yaml" in done.out
    facts = packshot("render", BRIEF, "--model", model, "--json").json
    assert facts["cost_nano_eur"] is None
    assert {p["stage"] for p in facts["usage"] if p["cost_nano_eur"] is None} == {
        "encode",
        "denoise",
        "decode",
    }
    assert sum(not row[0] for row in rows(state_home, "priced")) == 6
    assert {row[0] for row in rows(state_home, "priced", accrued=True)} == {0}


def test_a_cancelled_render_is_waste_in_the_store(packshot, model, engine, state_home) -> None:
    engine.fail_at = 2
    assert packshot("render", BRIEF, "--model", model).code == 130
    entries = rows(state_home, "stage, outcome, account, reason")
    assert ("denoise", "failed_billed", "waste", "cancelled") in entries
    assert {row[1] for row in entries} <= {"failed_billed", "failed_free"}
    beside = rows(state_home, "account, device", accrued=True)
    assert beside == [("load", "cpu"), ("idle", "cpu"), ("idle", "cpu")]


def test_without_a_journal_there_is_no_render(packshot, model, engine, state_home) -> None:
    (state_home / "packshot").write_text("not a folder")
    done = packshot("render", BRIEF, "--model", model)
    assert (done.code, done.out) == (5, "")
    assert engine.requests == []


def test_a_store_that_cannot_be_reached_is_a_warning(packshot, model, engine, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    Path("packshot.yaml").write_text(f"ledger: {{store: {tmp_path / 'folder'}}}")
    done = packshot("render", BRIEF, "--model", model)
    assert done.code == 0
    assert "warning: the cost is in the journal, and not in the store yet" in done.err


def test_an_exhausted_cap_refuses_the_render(packshot, model, engine) -> None:
    Path("packshot.yaml").write_text(
        "ledger: {gpu_eur_per_hour: {cpu: 100}, caps: [{scope: total, eur: 0.01}]}"
    )
    done = packshot("render", BRIEF, "--model", model)
    assert (done.code, done.out) == (5, "")
    assert engine.requests == []


def test_a_mistake_in_the_configuration_is_named(packshot, model, engine) -> None:
    Path("packshot.yaml").write_text("ledger:\n  stroe: x\n")
    done = packshot("render", BRIEF, "--model", model)
    assert done.code == 2
    assert "packshot.yaml, line 2: ledger: unknown key 'stroe'. Did you mean 'store'?" in done.err


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
