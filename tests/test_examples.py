"""Every example runs, is short, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from packshot.gateway.plan import build_plan
from packshot.gateway.settings import load_gateway

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40


def test_three_seeds_makes_three_pictures(
    tiny_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runpy.run_path(str(ROOT / "examples" / "three_seeds.py"))
    run["main"](str(tiny_sdxl), f"{tmp_path}/out/")
    pictures = sorted((tmp_path / "out").iterdir())
    assert [picture.stem.rpartition("-")[2] for picture in pictures] == ["7", "8", "9"]
    said = capsys.readouterr().out
    assert "picture 3 of 3" in said
    assert all(stage in said for stage in ("caption", "encode", "denoise", "decode", "store"))
    for picture in pictures:
        assert str(picture) in said


def test_the_gateway_s_example_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_KEY_PRIMARY", "OPENAI_KEY_BACKUP", "ANTHROPIC_KEY"):
        monkeypatch.setenv(name, "none")
    plan = build_plan(load_gateway(ROOT / "examples" / "gateway.yaml"))
    assert plan.notes == ()
    assert [target.name for target in plan.routes["prompt-rewrite"].targets] == [
        "openai/gpt-4o-mini",
        "anthropic/claude-haiku-4-5",
    ]
