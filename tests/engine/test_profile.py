"""What a profile says: every kernel is of a kind, stages are a render's, hints are ordered."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine
from packshot.engine.profile import (
    OTHER,
    Hint,
    _best,
    _kinds,
    _lines,
    _union,
    _work,
    classify,
    profile_render,
)
from tests.studio.stub import make_folder

REQUEST = RenderRequest("white sneakers on a sandy beach", (7,), 64, 64, 3, 4.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_badd_TNT", "conv + linear"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "conv + linear"),
        ("_geglu", "conv + linear"),
        ("aten::addmm", "conv + linear"),
        ("mkldnn::_convolution_pointwise", "conv + linear"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("_attend_text", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("_layer_norm", "norm + activation"),
        ("aten::native_group_norm", "norm + activation"),
        ("aten::silu", "norm + activation"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::cat", "copies"),
        ("_advance", "other arithmetic"),
        ("aten::add_", "other arithmetic"),
        ("aten::expand", "other"),
        ("something_else", "other"),
    ],
)
def test_a_kernel_is_of_the_kind_that_its_name_says(name, kind):
    assert classify(name) == kind


def test_a_render_on_a_cpu_is_profiled_without_a_word(tiny_sdxl: Path, tmp_path: Path, capfd):
    trace = tmp_path / "trace.json"
    found = profile_render(Engine.load(tiny_sdxl, device="cpu"), REQUEST, trace)
    assert capfd.readouterr() == ("", "")
    assert [stage.stage for stage in found.stages] == ["encode", "denoise", "decode"]
    kinds = {kind.name: kind for kind in found.kinds}
    assert kinds["conv + linear"].seconds > 0
    assert kinds["attention"].calls >= 3 * 2  # every step, in every transformer block
    assert found.tflop > 0
    assert found.tflops > 0
    assert found.gbs > 0
    assert found.ceilings.tflops > found.tflops / 10
    assert found.syncs == ()
    assert json.loads(trace.read_text())["traceEvents"]


def test_work_is_counted_in_proportion_to_steps_guidance_and_pictures(tiny_sdxl: Path):
    from packshot.engine.folder import ModelFolder

    folder = ModelFolder.open(tiny_sdxl)

    def work(**change: Any) -> np.ndarray:
        return np.array(_work(folder, replace(REQUEST, **change)))

    assert work(seeds=(1, 2)) == pytest.approx(2 * work())
    steps = [work(steps=steps) for steps in (1, 2, 3)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0])
    tflop, gb = work(guidance=1.0, steps=2) - work(guidance=1.0, steps=1)
    assert 2 * tflop == pytest.approx((steps[1] - steps[0])[0])
    assert gb < (steps[1] - steps[0])[1] < 2 * gb  # the weights are read once for both halves


def test_the_work_of_sdxl_is_what_the_literature_counts(tmp_path):
    """6.76 TFLOP a forward at 1024x1024 (twice that, guided), 10.47 a decoding; and its traffic."""
    from packshot.engine.folder import ModelFolder

    golden = Path(__file__).parent / "golden"
    folder = make_folder(tmp_path / "sdxl")
    for name in ("unet", "vae"):
        shutil.copy(golden / f"{name}.json", folder / name / "config.json")
    opened, request = ModelFolder.open(folder), replace(REQUEST, width=1024, height=1024)
    one, two = (_work(opened, replace(request, steps=n), torch.bfloat16) for n in (1, 2))
    assert two[0] - one[0] == pytest.approx(13.52, rel=0.01)
    assert 2 * one[0] - two[0] == pytest.approx(10.47, rel=0.01)
    assert 15 < two[1] - one[1] < 25


def test_every_operation_counts_and_one_that_hands_over_counts_once():
    def event(name: str, self_us: float, *children: Any) -> Any:
        span = SimpleNamespace(start=0.0, end=self_us)
        return SimpleNamespace(
            name=name, device_type=SimpleNamespace(name="CPU"), self_cpu_time_total=self_us,
            cpu_children=children, time_range=span,
        )  # fmt: skip

    packed = event("mkldnn::_convolution_pointwise", 3e6)
    product = event("aten::addmm", 2e6)
    linear = event("aten::linear", 1e6, event("aten::t", 0.0), product)
    mark = event("ProfilerStep#1", 9e6)
    kinds, busy, spanned = _kinds([packed, linear, product, mark], torch.device("cpu"))
    assert [(kind.name, kind.calls, kind.seconds) for kind in kinds] == [("conv + linear", 2, 6.0)]
    assert (busy, spanned) == (6.0, 0.0)


def test_no_large_kernel_of_the_packaged_model_is_left_out(tiny_sdxl: Path):
    """Packed convolutions are no operations of torch's own namespace."""
    engine = Engine.load(tiny_sdxl, device="cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        engine.render(replace(REQUEST, steps=1))
    names = {each.name for each in recorded.events() or [] if "::" in each.name}
    large = {name for name in names if re.search(r"conv|mm$|attention|_norm|[gs]elu|silu", name)}
    assert len(large) > 8
    assert [name for name in large if classify(name) == OTHER] == []


def test_a_line_that_waits_is_named_with_its_code():
    here = Path(profile_render.__code__.co_filename)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn_explicit(
                "called a synchronizing CUDA operation", UserWarning, str(here), 1
            )
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "/x/y.py", 3)
        warnings.warn_explicit("of something else", UserWarning, str(here), 2)
    assert [(sync.where, sync.times) for sync in _lines(caught)] == [
        ("packshot/engine/profile.py:1", 2),
        ("y.py:3", 1),
    ]
    assert _lines(caught)[0].code == here.read_text().splitlines()[0].strip() != ""


def test_overlapping_kernels_are_busy_once():
    assert _union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7


def test_three_hints_at_most_the_largest_first():
    hints = [Hint(saves, str(saves)) for saves in (0.1, 0.0, 3.0, 1.0, 2.0)]
    assert [hint.saves_s for hint in _best(hints)] == [3.0, 2.0, 1.0]
