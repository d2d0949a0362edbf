"""Models by name or folder, and a copy that is whole or not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from packshot.core.errors import ModelCorrupt, ModelNotFound, OutputError
from packshot.engine.folder import make_manifest
from packshot.studio.models import export_model, find_model, open_model


@pytest.fixture
def mini(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a package in for packshot_mini, with a manifest as the real one has."""
    manifest = make_manifest(folder, name="packshot-mini", version="9.9")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    package = ModuleType("packshot_mini")
    package.model_path = lambda: folder
    monkeypatch.setitem(sys.modules, "packshot_mini", package)
    return folder


def test_a_packaged_model_is_found_by_name(mini: Path) -> None:
    assert find_model("packshot-mini") == mini
    opened = open_model("packshot-mini", verify=True)
    assert (opened.name, opened.version) == ("packshot-mini", "9.9")


def test_a_model_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packshot_mini", None)
    with pytest.raises(ModelNotFound, match="pip install packages/packshot-mini"):
        find_model("packshot-mini")


def test_a_wrong_checksum_is_refused(mini: Path) -> None:
    (mini / "tokenizer" / "vocab.json").write_text("[]")
    with pytest.raises(ModelCorrupt, match=r"vocab\.json has SHA-256"):
        open_model("packshot-mini")


def test_an_export_is_the_same_model(mini: Path, tmp_path: Path) -> None:
    copy = tmp_path / "new" / "copy"
    files = export_model("packshot-mini", copy)
    assert files == sum(f.is_file() for f in mini.rglob("*"))
    assert open_model(str(copy)).fingerprint == open_model("packshot-mini").fingerprint
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_an_export_overwrites_nothing(mini: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(OutputError, match="it exists"):
            export_model("packshot-mini", taken)
    (tmp_path / "empty").mkdir()
    assert export_model("packshot-mini", tmp_path / "empty") > 10


def test_an_export_that_fails_leaves_nothing(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tear(_: Path, to: Path, **__) -> None:
        to.mkdir()
        (to / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", tear)
    before = set(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No space left"):
        export_model("packshot-mini", tmp_path / "copy")
    assert set(tmp_path.iterdir()) == before


def test_an_export_that_cannot_be_written_is_said(mini: Path) -> None:
    with pytest.raises(OutputError, match="cannot write /proc/copy"):
        export_model("packshot-mini", Path("/proc/copy"))
