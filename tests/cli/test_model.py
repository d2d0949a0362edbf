"""`packshot model`: what a model knows, whether it is whole, and a copy."""

from __future__ import annotations

import json
from pathlib import Path

from packshot.engine.folder import make_manifest
from tests.cli.conftest import Packshot
from tests.studio.lexicons import SMALL
from tests.studio.stub import make_folder


def test_show_lists_everything_in_80_columns(packshot: Packshot, model: str) -> None:
    done = packshot("model", "show", "--model", model)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    known = (*SMALL.products, *SMALL.colours, *SMALL.grounds, *SMALL.lights, *SMALL.sides)
    for entry in (*known, *SMALL.views):
        assert entry.name in done.out
    assert "13 products" in done.out
    assert "white studio *" in done.out
    assert "* where the brief says nothing" in done.out


def test_show_as_json_is_the_lexicon(packshot: Packshot, model: str) -> None:
    facts = packshot("model", "show", "--model", model, "--json").json
    assert facts["name"] == "model"
    assert len(facts["lexicon"]["products"]) == len(SMALL.products)


def test_show_of_a_general_model(packshot: Packshot, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "general", lexicon=False)
    assert "no lexicon" in packshot("model", "show", "--model", str(folder)).out
    assert packshot("model", "show", "--model", str(folder), "--json").json["lexicon"] is None


def test_verify(packshot: Packshot, model: str) -> None:
    assert "no manifest.json" in packshot("model", "verify", "--model", model).err
    manifest = make_manifest(Path(model), name="m", version="1.0")
    (Path(model) / "manifest.json").write_text(json.dumps(manifest))
    done = packshot("model", "verify", "--model", model)
    assert (done.code, done.out) == (0, "ok: every file of m 1.0 is as its manifest says\n")
    (Path(model) / "unet" / "config.json").write_text("{}  ")
    done = packshot("model", "verify", "--model", model)
    assert done.code == 3
    assert "unet/config.json has" in done.err


def test_export(packshot: Packshot, model: str) -> None:
    done = packshot("model", "export", "copy", "--model", model)
    assert done.code == 0
    assert done.out.startswith("copy: ")
    assert packshot("model", "show", "--model", "copy").code == 0
    done = packshot("model", "export", "copy", "--model", model)
    assert (done.code, done.out) == (4, "")
