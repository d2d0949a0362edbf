"""Every example runs, is short, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

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
