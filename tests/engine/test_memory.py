"""What a model takes of a GPU: by its headers, near what was measured, less for less."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from packshot.core.errors import ModelCorrupt
from packshot.engine import memory
from packshot.engine.buckets import SDXL, batches_of
from packshot.engine.fast import reference
from packshot.engine.fast.calibration import EACH, to_fp8, to_int8
from packshot.engine.fast.graphs import TOKENS, WINDOW
from packshot.engine.fast.reference import FP8
from packshot.engine.fast.runner import GRAPHS
from packshot.engine.fast.unet import FastUNet
from packshot.engine.folder import ModelFolder
from packshot.engine.memory import (
    CUDA_BYTES,
    Ask,
    Footprint,
    Shapes,
    footprint,
    read_shapes,
    smaller,
)
from packshot.engine.networks.unet import UNet
from packshot.engine.weights import load

GOLDEN = Path(__file__).parent / "golden"
ONE = ((1024, 1024),)


def published(name: str) -> Shapes:
    lines = gzip.decompress((GOLDEN / f"{name}.keys.gz").read_bytes()).decode().splitlines()
    parts = (line.split() for line in lines)
    return {key: tuple(map(int, shape[0].split("x"))) for key, *shape in parts if shape}


@pytest.fixture(scope="module")
def sdxl() -> Mapping[str, Shapes]:
    return {name: published(name) for name in ("text_encoder", "text_encoder_2", "unet", "vae")}


def part(found: Footprint, start: str) -> int:
    (size,) = [part.size for part in found.parts if part.what.startswith(start)]
    return size


@pytest.mark.parametrize(
    ("gigabytes", "ask"),
    [
        (16.3, Ask(ONE, tiers=("bf16", "fp8"))),
        (16.3, Ask(SDXL, tiers=("bf16", "fp8"))),
        (17.5, Ask(ONE, (8,), ("bf16", "fp8"))),
    ],
)
def test_it_is_near_what_torch_reserved(sdxl, gigabytes, ask):
    """Of `memory.MEASURED`, which the constants were fitted to: it sees them changed, no more."""
    assert footprint(sdxl, ask).total - CUDA_BYTES == pytest.approx(gigabytes * 1e9, rel=0.03)


def test_weights_are_sdxl_s(sdxl):
    found = footprint(sdxl, Ask(ONE))
    assert part(found, "weights") == 2 * 3_468_837_867
    assert found.total < found.room <= 1.1 * found.total + 1


def test_copies_are_those_that_the_fast_network_makes(tiny_sdxl):
    """Whatever it does not share with the plain network, counted in bf16."""
    folder = ModelFolder.open(tiny_sdxl)
    plain = load(UNet, folder, "unet", channels_last=True)
    unet = FastUNet(plain, reference, lambda q, _k, _v: q)
    made = [unet.kv_weight, *(level.up.weight for level in unet.up if level.up)]
    made += [matrix.weight for block in unet.blocks() for matrix in (block.qkv, block.gated)]
    shapes = dict(read_shapes(folder))
    shapes["vae"] = {k: v for k, v in shapes["vae"].items() if "upsamplers" not in k}
    copied = 2 * sum(tensor.numel() for tensor in made)
    assert part(footprint(shapes, Ask(((64, 64),))), "copies") == copied


@pytest.mark.parametrize(("tier", "kept"), [("fp8", FP8), ("int8", torch.int8)])
def test_rounded_copies_are_those_that_the_fast_network_makes(sdxl, monkeypatch, tier, kept):
    """Of SDXL's true shape, without memory: a byte for each number that is rounded."""
    monkeypatch.setattr(torch.Tensor, "__float__", lambda _: 1.0)  # of what has no memory
    config = json.loads((GOLDEN / "unet.json").read_text())
    with torch.device("meta"), torch.inference_mode():
        unet = FastUNet(UNet.from_config(config), reference, lambda q, _k, _v, **_: q)
        if tier == "fp8":
            to_fp8(unet, [1.0] * EACH * sum(1 for _ in unet.blocks()))
        else:
            to_int8(unet)
    rounded = sum(tensor.numel() for tensor in all_of(unet) if tensor.dtype == kept)
    assert rounded > 10**9
    assert memory.rounded(sdxl["unet"], tier) == rounded


def all_of(root: object) -> list[torch.Tensor]:
    """Return the tensors within an object's fields, each once."""
    found: dict[int, torch.Tensor] = {}
    waiting, known = [root], set()
    while waiting:
        each = waiting.pop()
        if id(each) in known or isinstance(each, torch.nn.Module | type | ModuleType):
            continue
        known.add(id(each))
        if isinstance(each, torch.Tensor):
            found[id(each)] = each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        else:
            waiting += vars(each).values() if hasattr(each, "__dict__") else ()
            waiting += [getattr(each, name) for name in getattr(each, "__slots__", ())]
    return [*found.values()]


@pytest.mark.parametrize("tier", ["bf16", "fp8", "int8"])
def test_more_is_never_less(sdxl, tier):
    totals = [
        footprint(sdxl, Ask(sizes, (pictures,), (tier,))).total
        for sizes, pictures in ((ONE, 1), (ONE, 2), (ONE, 8), (SDXL, 8))
    ]
    assert totals == sorted(totals)
    assert len({*totals}) == 4


def test_what_is_smaller_is_smaller_and_ends_at_one_picture_of_one_size(sdxl):
    ask = Ask(SDXL, (8,), ("bf16", "fp8"))
    said, asks = zip(*smaller(ask), strict=True)
    assert said == (
        "bf16 alone", "bf16 alone, 4 at a time", "bf16 alone, 2 at a time",
        "bf16 alone, 1 at a time", "bf16 alone, 1 at a time, 1024x1024 alone",
    )  # fmt: skip
    totals = [footprint(sdxl, each).total for each in (ask, *asks)]
    assert totals == sorted(totals, reverse=True)
    assert smaller(Ask(ONE)) == []


def test_limits_are_the_runner_s(sdxl):
    assert (memory.WINDOW, memory.TOKENS, memory.MAX_BUCKETS) == (WINDOW, TOKENS, GRAPHS)
    many = Ask(SDXL, (15,), ("bf16", "fp8"))
    assert len(many.shapes()) == 36
    assert part(footprint(sdxl, many), "34 captured graphs") == 34 * memory.GRAPH_BYTES
    assert [batches_of(n, 1024**2) for n in (1, 9, 15)] == [(1,), (8, 1), (8, 4, 2, 1)]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (9).to_bytes(8, "little") + b"[1, 2, 3]", b"\x02" + b"\0" * 7]
)
def test_what_is_no_safetensors_file_is_refused(tiny_sdxl, tmp_path, content):
    import shutil

    folder = ModelFolder.open(Path(shutil.copytree(tiny_sdxl, tmp_path / "model")))
    folder.weights("vae")[0].write_bytes(content)
    with pytest.raises(ModelCorrupt, match="is no safetensors file"):
        read_shapes(folder)


def test_headers_are_read_without_torch(tiny_sdxl):
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path\n"
        "from packshot.engine.folder import ModelFolder\n"
        "from packshot.engine.memory import Ask, footprint, read_shapes\n"
        f"shapes = read_shapes(ModelFolder.open(Path({str(tiny_sdxl)!r})))\n"
        "print(footprint(shapes, Ask(((64, 64),))).total)\n"
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, capture_output=True
    )
    assert json.loads(done.stdout) > CUDA_BYTES
