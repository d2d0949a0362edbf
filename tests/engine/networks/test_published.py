"""SDXL's published weights will load: same names, same shapes, same number of parameters.

The lists in ``tests/engine/golden`` are written by its ``make.py``.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from packshot.engine.networks.base import Network
from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("network", "name", "parameters"),
    [
        (UNet, "unet", 2_567_463_684),
        (VAE, "vae", 83_653_863),
        (CLIPText, "text_encoder", 123_060_480),
        (CLIPText, "text_encoder_2", 694_659_840),
    ],
)
def test_published_weights_fit(network: type[Network], name: str, parameters: int) -> None:
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    with torch.device("meta"):
        net = network.from_config(config)
    published = gzip.decompress((GOLDEN / f"{name}.keys.gz").read_bytes()).decode().splitlines()
    ours = {f"{k} {'x'.join(map(str, v.shape))}" for k, v in net.state_dict().items()}
    assert ours == set(published)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert [network.adapt_key(k) for k in net.state_dict()] == list(net.state_dict())
