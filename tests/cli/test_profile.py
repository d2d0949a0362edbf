"""`packshot profile` as a user calls it, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main(["profile", *words])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_the_tables_fit_and_name_what_would_help(tiny_sdxl: Path, tmp_path: Path, capsys):
    trace = tmp_path / "trace.json"
    out = run(
        capsys, "a mug", "--model", str(tiny_sdxl), "--device", "cpu", "--steps", "2", "--trace",
        str(trace),
    )  # fmt: skip
    assert max(len(line) for line in out.splitlines() if "trace" not in line) <= 80
    for word in ("denoise", "conv + linear", "attention", "no kernel ran", "TFLOP/s", "1. "):
        assert word in out
    assert trace.exists()


def test_a_machine_reads_the_same(tiny_sdxl: Path, capsys):
    words = ("--model", str(tiny_sdxl), "--device", "cpu", "--steps", "2", "--json")
    facts = json.loads(run(capsys, *words))
    assert {kind["name"] for kind in facts["kinds"]} >= {"conv + linear", "attention"}
    assert facts["seconds"] == pytest.approx(sum(stage["seconds"] for stage in facts["stages"]))
    assert facts["gateway"] is None


def test_a_trace_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tiny_sdxl: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr("packshot.studio.render.load_engine", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    for trace in (tmp_path, tmp_path / "file" / "trace.json"):
        with pytest.raises(SystemExit) as done:
            main(["profile", "--model", str(tiny_sdxl), "--device", "cpu", "--trace", str(trace)])
        assert done.value.code == 4
        assert f"cannot write {trace}" in capsys.readouterr().err.replace("\n", " ")


def test_a_gateway_that_cannot_be_read_is_refused_before_anything_is_measured(
    tiny_sdxl: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr("packshot.studio.profile.profile_plan", lambda *_: pytest.fail("measured"))
    missing = tmp_path / "none.yaml"
    with pytest.raises(SystemExit) as done:
        main(["profile", "--model", str(tiny_sdxl), "--device", "cpu", "--gateway", str(missing)])
    assert done.value.code == 4
    assert "cannot read" in capsys.readouterr().err


def test_another_size_and_what_the_render_warns_of_are_said(tiny_sdxl: Path, capsys):
    words = ("a mug " * 120, "--model", str(tiny_sdxl), "--device", "cpu", "--steps", "1")
    with pytest.raises(SystemExit):
        main(["profile", *words, "--size", "128x64", "--json"])
    said = capsys.readouterr()
    warned = json.loads(said.out)["warnings"]
    assert any("its margins are cut off for 128x64" in text for text in warned)
    assert any("tokens longer than the model reads" in text for text in warned)
    assert all(text in said.err for text in warned)


def test_each_precision_is_set_beside_fp32_where_that_is_asked_for(tiny_sdxl: Path, capsys):
    words = ("--model", str(tiny_sdxl), "--device", "cpu", "--steps", "1", "--drift")
    out = run(capsys, *words)
    assert max(map(len, out.splitlines())) <= 80
    assert "latents off by" in out
    assert [row["name"] for row in json.loads(run(capsys, *words, "--json"))["drift"]] == [
        "fp32", "bf16",
    ]  # fmt: skip
