"""The UNet against diffusers', and its three calls against each other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.unet import UNet
from packshot.engine.weights import load
from tests.tiny import UNET


@pytest.fixture(scope="module")
def ours(folder: ModelFolder) -> UNet:
    return load(UNet, folder, "unet")


@pytest.fixture(scope="module")
def theirs(folder: ModelFolder) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder.path / "unet").eval()


def inputs(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    return {
        "latents": torch.randn(batch, 4, height, width),
        "text": torch.randn(batch, 77, UNET["cross_attention_dim"]),
        "pooled": torch.randn(batch, 24),
        "time_ids": torch.tensor([[64.0, 48.0, 0.0, 8.0, 64.0, 64.0]]).repeat(batch, 1),
    }


def reference(model: UNet2DConditionModel, timestep: int, given: dict[str, Tensor]) -> Tensor:
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    t = torch.tensor(timestep)
    return model(given["latents"], t, given["text"], added_cond_kwargs=added).sample


# 7 x 9 rounds up on the way down, so the way up must not simply double.
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (7, 9)])
@pytest.mark.parametrize("timestep", [999, 421, 0])
def test_equals_the_reference(
    ours: UNet, theirs: UNet2DConditionModel, height: int, width: int, timestep: int
) -> None:
    given = inputs(height, width)
    got = ours.predict(timestep=torch.tensor(timestep), **given)
    expected = reference(theirs, timestep, given)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"use_linear_projection": False},
        {"transformer_layers_per_block": 2, "attention_head_dim": 4},
        {"layers_per_block": (1, 2, 3)},
        {"flip_sin_to_cos": False, "freq_shift": 1},
        {"norm_num_groups": 4, "norm_eps": 1e-3},
        {"down_block_types": ("CrossAttnDownBlock2D",) * 3},
        {"block_out_channels": (16, 16, 32), "attention_head_dim": 2, "layers_per_block": 1},
        {"in_channels": 9},
    ],
    ids=str,
)
def test_each_setting_means_what_it_means_to_the_reference(change: dict[str, Any]) -> None:
    config = UNET | change
    theirs = UNet2DConditionModel(**config).eval()
    ours = UNet.from_config(config).eval()
    ours.load_state_dict(theirs.state_dict())
    given = inputs(8, 8)
    given["latents"] = torch.randn(2, config["in_channels"], 8, 8)
    got = ours.predict(timestep=torch.tensor(500), **given)
    assert (got - reference(theirs, 500, given)).abs().max() <= 1e-5


def test_work_done_beforehand_gives_each_step_its_own_result(ours: UNet) -> None:
    given = inputs(8, 8)
    timesteps = torch.tensor([999, 500, 1])
    emb = ours.embed(timesteps, given["pooled"], given["time_ids"])
    cross_kv = ours.cross_kv(given["text"])
    for i, timestep in enumerate(timesteps):
        got = ours(given["latents"], emb[i], cross_kv)
        expected = ours.predict(timestep=timestep, **given)
        assert (got - expected).abs().max() <= 1e-6


def test_rows_of_a_batch_do_not_mix(ours: UNet) -> None:
    given = inputs(8, 8)
    both = ours.predict(timestep=torch.tensor(300), **given)
    for row in range(2):
        alone = {key: value[row : row + 1] for key, value in given.items()}
        single = ours.predict(timestep=torch.tensor(300), **alone)
        assert (both[row] - single[0]).abs().max() <= 1e-5


def test_channels_last_stays_channels_last(folder: ModelFolder, ours: UNet) -> None:
    nhwc = load(UNet, folder, "unet", channels_last=True)
    given = inputs(8, 8)
    expected = ours.predict(timestep=torch.tensor(300), **given)
    given["latents"] = given["latents"].to(memory_format=torch.channels_last)
    got = nhwc.predict(timestep=torch.tensor(300), **given)
    assert (got - expected).abs().max() <= 1e-5
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', an unknown setting"),
        ({"addition_embed_type": "text"}, "addition_embed_type is 'text'; supported: 'text_time'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; supported: 'silu' or 'swish'"),
        ({"dual_cross_attention": True}, "dual_cross_attention is True"),
        ({"attention_head_dim": (2, 4)}, "attention_head_dim has 2 entries; expected 3"),
        ({"attention_head_dim": 5}, "32 is not a multiple of 5 heads"),
        ({"layers_per_block": "two"}, "layers_per_block"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"mid_block_type": None}, "mid_block_type is None; supported: 'UNetMidBlock2DCrossAttn'"),
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")}, "AttnDown"),
    ],
    ids=str,
)
def test_what_it_cannot_build_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelCorrupt, match=re.escape(message)):
        UNet.from_config(UNET | change)


def test_a_missing_setting_is_named() -> None:
    config = {key: value for key, value in UNET.items() if key != "cross_attention_dim"}
    with pytest.raises(ModelCorrupt, match="cross_attention_dim"):
        UNet.from_config(config)
