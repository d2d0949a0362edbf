"""A model folder is opened only if it is complete, safe and what its manifest says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packshot.core.errors import ModelCorrupt, ModelNotFound, UnsafeModel
from packshot.engine import folder as module
from packshot.engine.folder import ModelFolder, make_manifest

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged."""
    return shutil.copytree(tiny_sdxl, tmp_path / "model")


@pytest.fixture
def listed(model: Path) -> Path:
    """Return a copy with a manifest."""
    manifest = make_manifest(model, name="tiny", version="1.2")
    (model / "manifest.json").write_text(json.dumps(manifest))
    return model


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


def test_a_folder_says_what_it_holds(model: Path) -> None:
    folder = ModelFolder.open(model)
    assert (folder.path, folder.name, folder.version) == (model, "model", "")
    assert folder.config("unet")["cross_attention_dim"] == 64
    assert folder.config("scheduler")["prediction_type"] == "epsilon"
    assert folder.config("feature_extractor")["size"] == {"shortest_edge": 32}
    assert folder.weights("unet") == (model / UNET,)
    assert folder.weights("tokenizer") == ()
    assert folder.directory("tokenizer_2") == model / "tokenizer_2"
    assert folder.has("tiny_vae")
    assert folder.lexicon_path is None


def test_optional_parts_may_be_absent(model: Path) -> None:
    shutil.rmtree(model / "tiny_vae")
    (model / "lexicon.json").write_text("{}")
    folder = ModelFolder.open(model)
    assert not folder.has("tiny_vae")
    assert folder.lexicon_path == model / "lexicon.json"
    with pytest.raises(ModelNotFound, match=r"no component 'tiny_vae'; it holds .*unet, vae"):
        folder.weights("tiny_vae")


def test_name_and_version_come_from_the_manifest(listed: Path) -> None:
    folder = ModelFolder.open(listed, verify=True)
    assert (folder.name, folder.version) == ("tiny", "1.2")


def test_the_manifest_lists_every_file_but_itself_and_hidden_ones(listed: Path) -> None:
    (listed / ".cache").mkdir()
    (listed / ".cache" / "x").write_text("x")
    entries = make_manifest(listed, name="tiny", version="1")["files"]
    assert UNET in entries
    assert entries[UNET]["bytes"] == (listed / UNET).stat().st_size
    assert {"manifest.json", ".cache/x"}.isdisjoint(entries)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model folder at .*nowhere; expected a directory"):
        ModelFolder.open(tmp_path / "nowhere")


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no model_index\.json"):
        ModelFolder.open(tmp_path)


def test_another_family(model: Path) -> None:
    edit(model / "model_index.json", lambda index: index.update(_class_name="FluxPipeline"))
    with pytest.raises(
        ModelCorrupt, match="'FluxPipeline'; supported: 'StableDiffusionXLPipeline'"
    ):
        ModelFolder.open(model)


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"],
)
def test_a_missing_file_is_named(model: Path, file: str) -> None:
    (model / file).unlink()
    with pytest.raises(ModelNotFound, match=f"{file} is missing"):
        ModelFolder.open(model)


def test_missing_weights_say_which_names_would_do(model: Path) -> None:
    (model / UNET).unlink()
    with pytest.raises(ModelNotFound, match=r"expected diffusion_pytorch_model\.safetensors, "):
        ModelFolder.open(model)


@pytest.mark.parametrize("data", [b'{"a": ', b"[]", b"\xff", b"[" * 100_000])
def test_bad_json(model: Path, data: bytes) -> None:
    (model / "vae" / "config.json").write_bytes(data)
    with pytest.raises(ModelCorrupt, match=r"vae/config\.json is (not valid JSON|a list)"):
        ModelFolder.open(model)


def test_what_may_not_be_read_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelNotFound, match=r"cannot be read: .*Permission denied"):
        ModelFolder.open(model)


@pytest.mark.parametrize("name", ["model.bin", "old/unet.ckpt", "a.PT", "b.pth", "c.pkl"])
def test_a_pickle_anywhere_is_refused(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"")
    with pytest.raises(UnsafeModel, match=rf"holds {name}: a pickle can run any code"):
        ModelFolder.open(model)
    with pytest.raises(UnsafeModel):
        make_manifest(model, name="x", version="1")


def test_many_pickles_are_counted(model: Path) -> None:
    for i in range(5):
        (model / f"{i}.bin").write_bytes(b"")
    with pytest.raises(UnsafeModel, match=r"0\.bin, 1\.bin, 2\.bin and 2 more"):
        ModelFolder.open(model)


def test_the_plain_name_comes_before_fp16(model: Path) -> None:
    half = model / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(model / UNET, half)
    assert ModelFolder.open(model).weights("unet") == (model / UNET,)
    (model / UNET).unlink()
    assert ModelFolder.open(model).weights("unet") == (half,)


@pytest.mark.parametrize("variant", ["safetensors.index", "safetensors.index.fp16"])
def test_shards_are_found_by_their_index(model: Path, variant: str) -> None:
    vae = model / "vae"
    names = ["b-2.safetensors", "a-1.safetensors"]
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / names[0])
    shutil.copy(vae / names[0], vae / names[1])
    index = vae / f"diffusion_pytorch_model.{variant}.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1], "z": names[0]}}))
    assert ModelFolder.open(model).weights("vae") == (vae / names[1], vae / names[0])
    (vae / names[0]).unlink()
    with pytest.raises(ModelNotFound, match=r"b-2\.safetensors is missing, and diffusion"):
        ModelFolder.open(model)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map is a NoneType; expected a JSON object"),
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": {"x": "../unet/m.safetensors"}}, "names the shard '../unet/m.safetensors'"),
        ({"weight_map": {"x": "m.txt"}}, "names the shard 'm.txt'"),
    ],
)
def test_a_bad_index(model: Path, index: dict[str, Any], message: str) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelCorrupt, match=message):
        ModelFolder.open(model)


def test_one_changed_bit_is_noticed(listed: Path) -> None:
    flip_a_byte(listed / UNET)
    with pytest.raises(ModelCorrupt, match=rf"{UNET} has SHA-256 [0-9a-f]{{12}}….*Fetch the model"):
        ModelFolder.open(listed)


def test_large_models_are_checked_by_size_unless_asked(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL_CHECK_BYTES", 1000)
    flip_a_byte(listed / UNET)
    assert ModelFolder.open(listed).name == "tiny"
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        ModelFolder.open(listed, verify=True)
    with (listed / UNET).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ModelCorrupt, match=r"has \d+ bytes; manifest\.json says \d+"):
        ModelFolder.open(listed)


def test_verify_needs_a_manifest(model: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no manifest\.json, so its sums cannot"):
        ModelFolder.open(model, verify=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format=2), ModelCorrupt, "format is 2; supported: 1"),
        (lambda m: m.pop("files"), ModelCorrupt, "files is a NoneType"),
        (lambda m: m["files"].pop(UNET), ModelCorrupt, f"does not list {UNET}"),
        (lambda m: m["files"].update({"x.json": {"bytes": 1}}), ModelNotFound, "x.json is missing"),
        (lambda m: m["files"].update({"../x": {}}), ModelCorrupt, "a path inside the folder"),
        (lambda m: m["files"].update({UNET: 7}), ModelCorrupt, f"{UNET} is a int"),
    ],
)
def test_a_bad_manifest(
    listed: Path, change: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    edit(listed / "manifest.json", change)
    with pytest.raises(error, match=message):
        ModelFolder.open(listed)


def test_a_lexicon_that_the_manifest_does_not_list_is_refused(listed: Path) -> None:
    (listed / "lexicon.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match=r"does not list lexicon\.json"):
        ModelFolder.open(listed)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_the_fingerprint_is_of_the_content_not_of_the_place(
    model: Path, tmp_path: Path, *, with_manifest: bool
) -> None:
    def fingerprint(path: Path) -> str:
        if with_manifest:
            manifest = make_manifest(path, name="tiny", version="1")
            (path / "manifest.json").write_text(json.dumps(manifest))
        return ModelFolder.open(path).fingerprint

    first = fingerprint(model)
    assert len(bytes.fromhex(first)) == 32
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert fingerprint(moved) == first
    flip_a_byte(moved / UNET)
    assert fingerprint(moved) != first


def test_opening_imports_no_torch(model: Path) -> None:
    code = (
        "import sys, pathlib; from packshot.engine.folder import ModelFolder;"
        f"ModelFolder.open(pathlib.Path({str(model)!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
