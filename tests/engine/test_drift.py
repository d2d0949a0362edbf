"""How far each precision is from fp32: on a CPU, and on the plain meaning of a GPU's kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packshot.core.types import RenderRequest
from packshot.engine import drift as module
from packshot.engine import engine as engine_module
from packshot.engine.drift import PLAIN, drifts
from packshot.engine.fast.runner import FastRunner
from packshot.engine.folder import ModelFolder

REQUEST = RenderRequest("white sneakers on a sandy beach", (7, 8), 64, 64, 3, 4.0)
CPU = torch.device("cpu")


def test_on_a_cpu_bf16_is_set_beside_fp32(tiny_sdxl: Path):
    exact, bf16 = drifts(ModelFolder.open(tiny_sdxl), CPU, REQUEST)
    assert (exact.name, exact.latents, exact.mean_levels, exact.most_levels) == ("fp32", 0, 0, 0)
    assert bf16.name == "bf16"
    assert 1e-4 < bf16.latents < 0.1
    assert 0 < bf16.mean_levels <= bf16.most_levels < 64
    assert exact.similarity != bf16.similarity is not None
    assert exact.lossless is bf16.lossless is None


def test_a_folder_without_an_image_encoder_has_no_similarity(tiny_sdxl: Path, monkeypatch):
    has = ModelFolder.has
    monkeypatch.setattr(
        ModelFolder, "has", lambda s, name: name != "image_encoder" and has(s, name)
    )
    assert {each.similarity for each in drifts(ModelFolder.open(tiny_sdxl), CPU, REQUEST)} == {None}


@pytest.mark.parametrize("fp8", [True, False], ids=["Hopper", "Ampere"])
def test_each_tier_of_a_gpu_is_judged_by_the_plain_networks_in_bf16(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch, fp8
):
    monkeypatch.setattr("packshot.engine.model.prepare", lambda _: None)
    monkeypatch.setattr(
        module, "pick_runner", lambda model, tuning: FastRunner(model, tuning=tuning)
    )
    monkeypatch.setattr(module, "has_fp8", lambda _: fp8)
    monkeypatch.setattr(engine_module, "pick_precision", lambda name, _: name)
    found = {
        each.name: each for each in drifts(ModelFolder.open(tiny_sdxl), CPU, REQUEST, tmp_path)
    }
    assert [*found] == ["fp32", PLAIN, "bf16", *(["fp8"] if fp8 else []), "int8"]
    assert found["bf16"].latents != found[PLAIN].latents != 0
    assert (found["fp32"].lossless, found[PLAIN].lossless) == (None, None)
    for name in [*found][2:]:
        within = found[name].latents <= 1.1 * found[PLAIN].latents
        assert found[name].lossless is within
    if fp8:
        assert found["fp8"].latents > 2 * found["bf16"].latents
        assert found["fp8"].lossless is False


def test_what_is_multiplied_in_is_as_it_was_afterwards(tiny_sdxl: Path, monkeypatch):
    seen = []
    made = module._made

    def watched(*given):
        seen.append(torch.backends.cudnn.allow_tf32)
        return made(*given)

    monkeypatch.setattr(module, "_made", watched)
    before = torch.backends.cudnn.allow_tf32
    drifts(ModelFolder.open(tiny_sdxl), CPU, REQUEST)
    assert seen == [before, False]
    assert torch.backends.cudnn.allow_tf32 is before
