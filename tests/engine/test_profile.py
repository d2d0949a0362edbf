"""What a profile says: every kernel is of a kind, stages are a render's, hints are ordered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.profile import Hint, _best, _union, classify, profile_render

REQUEST = RenderRequest("white sneakers on a sandy beach", (7,), 64, 64, 3, 4.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_badd_TNT", "conv + linear"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "conv + linear"),
        ("_geglu", "conv + linear"),
        ("aten::addmm", "conv + linear"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("_attend_text", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("_layer_norm", "norm + activation"),
        ("aten::native_group_norm", "norm + activation"),
        ("aten::silu", "norm + activation"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::cat", "copies"),
        ("_advance", "other arithmetic"),
        ("something_else", "other"),
    ],
)
def test_a_kernel_is_of_the_kind_that_its_name_says(name, kind):
    assert classify(name) == kind


def test_a_render_on_a_cpu_is_profiled(tiny_sdxl: Path, tmp_path: Path):
    trace = tmp_path / "trace.json"
    found = profile_render(Engine.load(tiny_sdxl, device="cpu"), REQUEST, trace)
    assert [stage.stage for stage in found.stages] == ["encode", "denoise", "decode"]
    kinds = {kind.name: kind for kind in found.kinds}
    assert kinds["conv + linear"].seconds > 0
    assert kinds["attention"].calls >= 3 * 2  # every step, in every transformer block
    assert found.tflop > 0
    assert found.tflops > 0
    assert found.ceilings.tflops > found.tflops / 10
    assert found.syncs == ()
    assert json.loads(trace.read_text())["traceEvents"]


def test_work_is_counted_in_proportion_to_steps_guidance_and_pictures(tiny_sdxl: Path):
    from dataclasses import replace

    from packshot.engine.folder import ModelFolder
    from packshot.engine.profile import _tflop

    folder = ModelFolder.open(tiny_sdxl)
    one = _tflop(folder, REQUEST)
    assert _tflop(folder, replace(REQUEST, seeds=(1, 2))) == pytest.approx(2 * one)
    steps = [_tflop(folder, replace(REQUEST, steps=steps)) for steps in (1, 2, 3)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0])
    unguided = [_tflop(folder, replace(REQUEST, guidance=1.0, steps=steps)) for steps in (1, 2)]
    assert 2 * (unguided[1] - unguided[0]) == pytest.approx(steps[1] - steps[0])


def test_overlapping_kernels_are_busy_once():
    assert _union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7


def test_three_hints_at_most_the_largest_first():
    hints = [Hint(saves, str(saves)) for saves in (0.1, 0.0, 3.0, 1.0, 2.0)]
    assert [hint.saves_s for hint in _best(hints)] == [3.0, 2.0, 1.0]
