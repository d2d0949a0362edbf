"""The autoencoder against diffusers'."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.vae import VAE
from packshot.engine.weights import load
from tests.tiny import VAE as CONFIG


@pytest.fixture
def theirs(folder: ModelFolder) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder.path / "vae").eval()


def test_moments_equal_the_reference(folder: ModelFolder, theirs: AutoencoderKL) -> None:
    pixels = torch.rand(2, 3, 64, 48) * 2 - 1
    mean, log_variance = load(VAE, folder, "vae").moments(pixels)
    expected = theirs.encode(pixels).latent_dist
    assert mean.shape == (2, 4, 8, 6)
    assert expected.mean.std() > 0.1
    assert (mean - expected.mean).abs().max() <= 1e-5
    assert (log_variance - expected.logvar).abs().max() <= 1e-5


def test_decode_equals_the_reference(folder: ModelFolder, theirs: AutoencoderKL) -> None:
    latents = torch.randn(2, 4, 8, 6)
    pixels = load(VAE, folder, "vae").decode(latents)
    expected = theirs.decode(latents / CONFIG["scaling_factor"]).sample
    assert pixels.shape == (2, 3, 64, 48)
    assert expected.std() > 0.1
    assert (pixels - expected).abs().max() <= 1e-5


def test_encode_scales_the_mean(folder: ModelFolder) -> None:
    vae = load(VAE, folder, "vae")
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = vae.moments(pixels)[0] * CONFIG["scaling_factor"]
    assert torch.allclose(vae.encode(pixels), expected)
    assert vae.scale == 8
    assert vae.config.force_upcast


def test_a_shift_is_taken_off_and_put_back() -> None:
    config = CONFIG | {"shift_factor": 0.5}
    plain, shifted = VAE.from_config(CONFIG), VAE.from_config(config)
    shifted.load_state_dict(plain.state_dict())
    pixels, latents = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    scale = CONFIG["scaling_factor"]
    assert torch.allclose(shifted.encode(pixels), plain.encode(pixels) - 0.5 * scale, atol=1e-6)
    assert torch.allclose(shifted.decode(latents), plain.decode(latents + 0.5 * scale), atol=1e-5)


def test_old_attention_names_are_the_new_ones() -> None:
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    for before, after in old.items():
        for kind in ("weight", "bias"):
            name = f"decoder.mid_block.attentions.0.{before}.{kind}"
            assert VAE.adapt_key(name) == f"decoder.mid_block.attentions.0.{after}.{kind}"
    assert VAE.adapt_key("encoder.conv_in.weight") == "encoder.conv_in.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_mean": [0.0]}, "latents_mean is [0.0]; supported: None"),
        ({"use_quant_conv": False}, "use_quant_conv is False; supported: True"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "AttnDownEncoderBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types has 3 entries; expected 4"),
        ({"norm_num_groups": "8"}, "norm_num_groups"),
    ],
    ids=str,
)
def test_what_it_cannot_build_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelCorrupt, match=re.escape(message)):
        VAE.from_config(CONFIG | change)
