"""What the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.weights import load

# The networks here are tiny: a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def as_written(tiny_sdxl: Path) -> Model:
    """SDXL in miniature on a CPU, its networks as written: what one prepares for it no GPU has."""
    made = Model(ModelFolder.open(tiny_sdxl), torch.device("cpu"), "fp32", "fp32")
    made.unet = load(UNet, made.folder, "unet", channels_last=True)
    made.vae = load(VAE, made.folder, "vae", channels_last=True)
    return made
