"""`packshot plan` as a user calls it: for SDXL's headers, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.cli.plan import memory_of
from packshot.core.errors import InvalidRequest
from tests.engine.test_memory import published
from tests.studio.stub import make_folder


@pytest.fixture
def sdxl(tmp_path: Path) -> str:
    """Return a folder of SDXL's shape whose safetensors files end after their headers."""
    folder = make_folder(tmp_path / "sdxl")
    (folder / "unet" / "config.json").write_text('{"sample_size": 128}')
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        rows = {k: {"dtype": "F16", "shape": s} for k, s in published(name).items()}
        header = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode()
        (file,) = (folder / name).glob("*.safetensors")
        file.write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)


def test_it_fits_or_says_what_would(packshot, sdxl):
    done = packshot("plan", "--gpu", "24GB", "--model", sdxl)
    assert done.code == 0
    assert "fits 24 GB" in done.out
    assert "1536x640" in done.out
    many = packshot("plan", "--gpu", "17GB", "--model", sdxl, "-n", "8", "--precision", "fp8")
    assert many.code == 1
    assert "would fit: 4 at a time" in many.out
    assert "would fit: a GPU of 24 GB" in many.out
    shown = done.out + done.err + many.out + many.err
    assert max(map(len, shown.splitlines())) <= 80
    assert "fitted to three runs" in done.err


def test_one_size_and_two_tiers(packshot, sdxl):
    call = ("plan", "--gpu", "80", "--model", sdxl, "--size", "640x512", "--json")
    one = packshot(*call).json
    two = packshot(*call, "--precision", "bf16", "--precision", "fp8").json
    assert one["fits"]
    assert one["gpu_bytes"] == 80 * 10**9
    assert one["bytes"] == sum(part["size"] for part in one["parts"]) < two["bytes"]
    assert "3 captured graphs, 2 MB each" in {part["what"] for part in one["parts"]}


def test_the_nearest_bucket_is_taken_and_said(packshot, sdxl):
    call = ("plan", "--gpu", "80", "--model", sdxl, "--size", "1920x1080")
    done = packshot(*call)
    assert "1 at a time; 1344x768" in done.out
    (warning,) = packshot(*call, "--json").json["warnings"]
    assert warning == "1920x1080 is rendered as 1344x768, its margins cut off, and resized"
    assert warning in done.err


def test_small_cards_are_named_for_small_models(packshot, tiny_sdxl):
    done = packshot("plan", "--gpu", "1", "--model", str(tiny_sdxl), "-n", "8")
    assert done.code == 1
    assert "would fit: a GPU of 8 GB" in done.out


def test_what_may_not_fit_is_not_promised(packshot, sdxl):
    needed = packshot("plan", "--gpu", "80", "--model", sdxl, "--json").json["bytes"]
    done = packshot("plan", "--gpu", f"{needed / 1e9 + 0.1:.2f}", "--model", sdxl)
    assert done.code == 1
    assert "may or may not fit" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "big"), "'big' is no memory of a GPU"),
        (("--gpu", "0"), "'0' is no memory of a GPU"),
        (("--gpu", "24GB", "--precision", "fp32"), "unknown precision 'fp32'"),
        (("--gpu", "24GB", "-n", "0"), "0 pictures were asked for"),
    ],
)
def test_what_cannot_be_asked_is_refused(packshot, sdxl, words, said):
    done = packshot("plan", *words, "--model", sdxl)
    assert done.code == 2
    assert said in done.err


def test_memory_is_decimal_unless_said():
    assert memory_of("24") == memory_of("24gb") == memory_of(" 24 GB ") == 24 * 10**9
    assert memory_of("22.5GiB") == int(22.5 * 2**30)
    with pytest.raises(InvalidRequest):
        memory_of("-3")
