"""The tiny autoencoder against diffusers'."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.tiny_vae import TinyVAE
from packshot.engine.weights import load
from tests.tiny import TINY_VAE as CONFIG


def test_equals_the_reference_both_ways(folder: ModelFolder) -> None:
    ours = load(TinyVAE, folder, "tiny_vae")
    theirs = AutoencoderTiny.from_pretrained(folder.path / "tiny_vae").eval()
    pixels, latents = torch.rand(2, 3, 64, 48) * 2 - 1, 3 * torch.randn(2, 4, 8, 6)
    decoded = theirs.decode(latents).sample
    assert decoded.shape == (2, 3, 64, 48)
    assert (ours.encode(pixels) - theirs.encode(pixels).latents).abs().max() <= 1e-5
    assert (ours.decode(latents) - decoded).abs().max() <= 1e-5
    assert ours.scale == 8


def test_published_depths_equal_the_reference() -> None:
    theirs = AutoencoderTiny().eval()
    ours = TinyVAE.from_config({}).eval()
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(1, 4, 4, 4)
    assert (ours.decode(latents) - theirs.decode(latents).sample).abs().max() <= 1e-5


def test_latents_are_scaled_as_the_unet_sees_them() -> None:
    plain = TinyVAE.from_config(CONFIG)
    scaled = TinyVAE.from_config(CONFIG | {"scaling_factor": 0.5, "shift_factor": 1.0})
    scaled.load_state_dict(plain.state_dict())
    pixels, latents = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    assert torch.allclose(scaled.encode(pixels), (plain.encode(pixels) - 1) / 2, atol=1e-6)
    assert torch.allclose(scaled.decode(latents), plain.decode(2 * latents + 1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; supported: 'relu'"),
        ({"decoder_block_out_channels": [8, 8, 16, 16]}, "[8, 8, 16, 16]; supported: all the same"),
        ({"num_decoder_blocks": [1, 1]}, "num_decoder_blocks has 2 entries; expected 4"),
        ({"new_setting": 3}, "new_setting is 3, an unknown setting"),
    ],
    ids=str,
)
def test_what_it_cannot_build_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelCorrupt, match=re.escape(message)):
        TinyVAE.from_config(CONFIG | change)
