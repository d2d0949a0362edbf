"""The scales of fp8: what was seen, with room above it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packshot.engine.fast import reference
from packshot.engine.fast.calibration import EACH, MARGIN, to_fp8
from packshot.engine.fast.dense import DenseFp8
from packshot.engine.fast.reference import FP8_MAX
from packshot.engine.fast.unet import FastUNet
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.unet import UNet
from packshot.engine.weights import load


def test_each_product_s_inputs_may_get_some_times_as_large_as_was_seen(tiny_sdxl: Path):
    plain = load(UNet, ModelFolder.open(tiny_sdxl), "unet", channels_last=True)
    unet = FastUNet(plain, reference, torch.nn.functional.scaled_dot_product_attention)
    blocks = [*unet.blocks()]
    seen = [1.0 + place for place in range(EACH * len(blocks))]
    to_fp8(unet, seen)
    for number, block in enumerate(blocks):
        products = (block.out_1, block.out_2, block.out_3)
        for product, top in zip(products, seen[EACH * number :], strict=False):
            assert isinstance(product, DenseFp8)
            assert float(FP8_MAX / product.quant) == pytest.approx(MARGIN * top)
    assert MARGIN > 1
