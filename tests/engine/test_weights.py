"""Weights are loaded whole and exactly, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.weights import load, uploaded

State = dict[str, Tensor]


@pytest.fixture
def model(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged."""
    return shutil.copytree(tiny_sdxl, tmp_path / "model")


def vae_file(model: Path) -> Path:
    return model / "vae" / "diffusion_pytorch_model.safetensors"


def rewrite(file: Path, change: Callable[[State], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def shard(file: Path, count: int) -> None:
    """Cut a file into ``count`` and write the index as the libraries do."""
    state = load_file(file)
    file.unlink()
    names = [f"{file.stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    placed = {key: i % count for i, key in enumerate(state)}
    for i, name in enumerate(names):
        save_file({k: v for k, v in state.items() if placed[k] == i}, file.parent / name)
    index = {"metadata": {}, "weight_map": {key: names[i] for key, i in placed.items()}}
    file.with_suffix(".safetensors.index.json").write_text(json.dumps(index))


def test_a_network_is_ready_to_run(tiny_sdxl: Path) -> None:
    vae = load(VAE, ModelFolder.open(tiny_sdxl), "vae")
    stored = load_file(vae_file(tiny_sdxl))
    assert vae.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[key]) for key, value in vae.state_dict().items())
    assert not vae.training
    assert not any(p.requires_grad or p.is_meta for p in vae.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_type_that_is_asked_for(tiny_sdxl: Path, dtype: torch.dtype) -> None:
    vae = load(VAE, ModelFolder.open(tiny_sdxl), "vae", dtype=dtype)
    assert {p.dtype for p in vae.parameters()} == {dtype}


def test_half_precision_on_disk_becomes_single(model: Path) -> None:
    rewrite(vae_file(model), lambda s: s.update({k: v.half() for k, v in s.items()}))
    vae = load(VAE, ModelFolder.open(model), "vae")
    assert {p.dtype for p in vae.parameters()} == {torch.float32}


def test_channels_last_is_for_convolutions(tiny_sdxl: Path) -> None:
    unet = load(UNet, ModelFolder.open(tiny_sdxl), "unet", channels_last=True)
    weight = unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in unet.parameters() if p.dim() == 2)


def test_shards_make_the_same_network(model: Path, tiny_sdxl: Path) -> None:
    shard(vae_file(model), 3)
    folder = ModelFolder.open(model)
    assert len(folder.weights("vae")) == 3
    whole = load(VAE, ModelFolder.open(tiny_sdxl), "vae").state_dict()
    for key, value in load(VAE, folder, "vae").state_dict().items():
        assert torch.equal(value, whole[key])


def test_clip_l_loads_with_and_without_the_first_part_of_its_names(
    model: Path, tiny_sdxl: Path
) -> None:
    file = model / "text_encoder" / "model.safetensors"
    state = load_file(file)
    assert not any(key.startswith("text_model.") for key in state)  # as transformers 5 writes it
    published = {f"text_model.{key}": value for key, value in state.items()}
    published["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(published, file)
    without = load(CLIPText, ModelFolder.open(tiny_sdxl), "text_encoder")
    with_it = load(CLIPText, ModelFolder.open(model), "text_encoder")
    for key, value in without.state_dict().items():
        assert torch.equal(value, with_it.state_dict()[key])


def test_a_vae_with_the_old_names_loads(model: Path, tiny_sdxl: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(state: State) -> None:
        for key in [key for key in state if ".attentions." in key]:
            for new, old in names.items():
                if f".{new}." in key:
                    state[key.replace(f".{new}.", f".{old}.")] = state.pop(key)

    rewrite(vae_file(model), age)
    assert any(".query." in key for key in load_file(vae_file(model)))
    new = load(VAE, ModelFolder.open(tiny_sdxl), "vae").state_dict()
    old = load(VAE, ModelFolder.open(model), "vae").state_dict()
    assert all(torch.equal(old[key], value) for key, value in new.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("quant_conv.bias"), r"1 missing \(quant_conv\.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"quant_conv.bias": torch.zeros(7)}),
            r"1 of the wrong shape \(quant_conv\.bias is \[7\], expected \[8\]\)",
        ),
        (lambda s: s.clear(), r"\d+ missing \([^,]+, [^,]+, [^,]+, …\)"),
    ],
)
def test_what_does_not_fit_is_said(
    model: Path, change: Callable[[State], object], message: str
) -> None:
    rewrite(vae_file(model), change)
    with pytest.raises(ModelCorrupt, match=message):
        load(VAE, ModelFolder.open(model), "vae")


def test_a_weight_that_two_shards_hold_is_refused(model: Path) -> None:
    shard(vae_file(model), 2)
    first, second = ModelFolder.open(model).weights("vae")
    key = next(iter(load_file(first)))
    rewrite(second, lambda state: state.update({key: load_file(first)[key]}))
    with pytest.raises(ModelCorrupt, match=f"the weight {key} is there twice"):
        load(VAE, ModelFolder.open(model), "vae")


@pytest.mark.parametrize("size", [0, 6, 100, 5000])
def test_a_cut_file_is_refused(model: Path, size: int) -> None:
    file = vae_file(model)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelCorrupt, match="cannot be read as safetensors"):
        load(VAE, ModelFolder.open(model), "vae")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("norm_num_groups", 7, r"vae/config\.json cannot be built: .*divisible"),
        ("norm_num_groups", 0, r"vae/config\.json cannot be built"),
        ("latent_channels", -1, r"vae/config\.json cannot be built"),
        ("act_fn", "relu", r"vae/config\.json: act_fn is 'relu'; supported: 'silu' or 'swish'"),
        ("layers_per_block", "two", r"vae/config\.json: Expected `int`, got `str`"),
    ],
)
def test_a_config_that_cannot_be_built_is_named(
    model: Path, setting: str, value: object, message: str
) -> None:
    file = model / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    with pytest.raises(ModelCorrupt, match=message):
        load(VAE, ModelFolder.open(model), "vae")


class Read:
    """A buffer's event. Its buffer is read, and holds nothing more, when either is done."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.waited, self.sent = buffer, 0, 0

    def record(self) -> None:
        self.sent += 1
        self.buffer.fill_(0xAA)

    def synchronize(self) -> None:
        self.waited += 1
        self.buffer.fill_(0xAA)


def test_weights_go_by_two_buffers_in_turn_and_arrive_as_they_were() -> None:
    drawn = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    weights = {
        "several pieces": drawn, "half a number over a piece": drawn.bfloat16()[:3].flatten()[:13],
        "eight bits": drawn.to(torch.float8_e4m3fn), "one number": torch.tensor(3.0),
        "none": torch.empty(0, 4), "whole numbers": torch.arange(9),
    }  # fmt: skip
    stages = [torch.empty(24, dtype=torch.uint8) for _ in range(2)]
    sent = [Read(stage) for stage in stages]
    got = dict(uploaded(weights.items(), torch.device("cpu"), stages, sent))
    assert got.keys() == weights.keys()
    for name, weight in weights.items():
        assert got[name].dtype == weight.dtype, name
        assert got[name].shape == weight.shape, name
        assert torch.equal(got[name].view(-1).view(torch.uint8), weight.view(-1).view(torch.uint8))
        assert not weight.numel() or got[name].data_ptr() != weight.data_ptr(), "a copy"
    pieces = sum(-(-weight.nbytes // 24) for weight in weights.values())
    assert [each.sent for each in sent] == [each.waited for each in sent]
    assert [each.sent for each in sent] == [-(-pieces // 2), pieces // 2], "in turn"


def test_what_does_not_lie_in_one_piece_is_refused() -> None:
    stages = [torch.empty(24, dtype=torch.uint8)]
    apart = {"apart": torch.ones(3, 4).t()}
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        dict(uploaded(apart.items(), torch.device("cpu"), stages, [Read(stages[0])]))
