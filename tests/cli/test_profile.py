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
