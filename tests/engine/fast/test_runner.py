"""The fast runner against the plain one, on the plain meaning of its kernels, in fp32 on a CPU.

What runs here is all of the fast path but the kernels themselves (`test_kernels`) and the capture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from packshot.core.errors import InvalidRequest
from packshot.engine.conditioning import together
from packshot.engine.denoise import Kept, noise_of
from packshot.engine.engine import Engine
from packshot.engine.fast import graphs, reference
from packshot.engine.fast.calibration import calibrate, to_fp8, to_int8
from packshot.engine.fast.dense import Dense, DenseFp8
from packshot.engine.fast.graphs import Graphs, Shape, StepGraph
from packshot.engine.fast.runner import GRAPHS, FastRunner
from packshot.engine.fast.unet import FastUNet
from packshot.engine.model import Model
from packshot.engine.runner import PlainRunner, Task
from packshot.engine.samplers import SAMPLERS, plan

TEXTS = ("a red mug", "white sneakers on a sandy beach")


@pytest.fixture(scope="module")
def model(as_written: Model) -> Model:
    return as_written


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def task_of(model: Model, sampler: str, guidance: float, kept: Kept | None, steps: int = 5) -> Task:
    texts = TEXTS[1:] if guidance == 1 else TEXTS
    read = PlainRunner(model).encode(texts)
    steps_ = plan(
        model.noise, sampler=sampler, schedule="karras", spacing="leading", steps=steps,
        device=model.device,
    )  # fmt: skip
    return Task(steps_, read, 96, 64, guidance, kept)


def kept_half() -> Kept:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 8, 12, generator=generator)
    return Kept(latents, torch.rand(1, 1, 8, 12, generator=generator) > 0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("masked", [False, True])
def test_latents_and_previews_are_the_plain_ones(model, sampler, guidance, masked):
    task = task_of(model, sampler, guidance, kept_half() if masked else None)
    seen: list[list[torch.Tensor]] = [[], []]
    ends: list[torch.Tensor] = []
    with torch.inference_mode():
        for runner, clean in zip((FastRunner(model), PlainRunner(model)), seen, strict=True):
            noise = noise_of((1, 2), (4, 8, 12), model.device)
            ends.append(runner.denoise(task, 2, noise, lambda _, c, clean=clean: clean.append(c)))
    assert difference(*ends) < 1e-5
    assert difference(*(torch.stack(clean) for clean in seen)) < 1e-5


def test_more_steps_than_lie_on_the_device_are_loaded_as_they_come(model, monkeypatch):
    from packshot.engine.fast import runner as module

    monkeypatch.setattr(graphs, "WINDOW", 3)
    monkeypatch.setattr(module, "WINDOW", 3)
    task = task_of(model, "dpmpp-2m", 5.0, None, steps=8)
    with torch.inference_mode():
        ends = [
            runner.denoise(task, 1, noise_of((1,), (4, 8, 12), model.device), None)
            for runner in (FastRunner(model), PlainRunner(model))
        ]
    assert difference(*ends) < 1e-5


def test_pictures_are_the_plain_ones_within_a_level(model):
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fast, plain = (r.decode(list(latents)) for r in (FastRunner(model), PlainRunner(model)))
    for (a, told), (b, _) in zip(fast, plain, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
        assert told == ()


def test_a_picture_of_one_colour_is_decoded_again_and_said(model, monkeypatch):
    runner = FastRunner(model)
    monkeypatch.setattr(reference, "to_uint8", lambda x: torch.zeros(x.shape, dtype=torch.uint8))
    latents = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ((picture, _),) = runner.decode([latents])
    assert picture.std() > 0


def test_an_odd_size_goes_the_plain_way_up(model):
    task = replace(task_of(model, "euler", 5.0, None), width=88, height=72)
    with torch.inference_mode():
        ends = [
            runner.denoise(task, 1, noise_of((1,), (4, 9, 11), model.device), None)
            for runner in (FastRunner(model), PlainRunner(model))
        ]
    assert difference(*ends) < 1e-5


def test_texts_are_read_alone_and_bit_for_bit_as_plainly(model):
    plain = PlainRunner(model)
    with torch.inference_mode():
        got = FastRunner(model).encode(TEXTS)
        want = together([plain.encode([text]) for text in TEXTS])
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.pooled, want.pooled)


def test_an_engine_on_the_fast_runner_makes_the_plain_engine_s_picture(model):
    from packshot.core.types import RenderRequest

    request = RenderRequest(TEXTS[1], (7, 8), 64, 64, 4, 5.0)
    fast = Engine(model, runner=FastRunner(model)).render(request)
    plain = Engine(model, runner=PlainRunner(model)).render(request)
    for a, b in zip(fast.images, plain.images, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.mark.parametrize("one_pass", [True, False], ids=["Hopper", "Ada"])
def test_fp8_stays_near_and_says_how_near(model, one_pass):
    unet = FastUNet(model.unet, reference, reference.attend, one_pass=one_pass)
    graph = StepGraph(unet, Shape(1, 8, 8), model.device, None)
    x = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(2))
    shifts = torch.randn(2, sum(unet.widths), generator=torch.Generator().manual_seed(3))
    text = torch.randn(2, 77, unet.kv_weight.shape[1], generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        kv = unet.split_kv(text @ unet.kv_weight.t())
        exact = unet(x, (8, 8), shifts, kv)
        graph.put(torch.randn(1, 4, 8, 8), torch.tensor(1.0))
        to_fp8(unet, calibrate(unet, graph.step, 3))
        got = difference(unet(x, (8, 8), shifts, kv), exact)
    assert 1e-3 < got < 0.1
    for block in unet.blocks():
        assert isinstance(block.out_1, DenseFp8 if one_pass else Dense), "a library writes no fp8"
        assert isinstance(block.out_2, DenseFp8)
        assert isinstance(block.out_3, DenseFp8)


def test_int8_stays_near(model):
    unet = FastUNet(model.unet, reference, reference.attend)
    x = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(2))
    shifts = torch.randn(2, sum(unet.widths), generator=torch.Generator().manual_seed(3))
    text = torch.randn(2, 77, unet.kv_weight.shape[1], generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        kv = unet.split_kv(text @ unet.kv_weight.t())
        exact = unet(x, (8, 8), shifts, kv)
        to_int8(unet)
        got = difference(unet(x, (8, 8), shifts, kv), exact)
    assert 1e-4 < got < 0.05


def test_without_the_gated_kernel_the_network_is_the_same(model):
    """What a GPU before Hopper runs."""
    nets = [
        FastUNet(model.unet, reference, reference.attend, one_pass=one) for one in (True, False)
    ]
    x = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(2))
    shifts = torch.zeros(2, sum(nets[0].widths))
    with torch.inference_mode():
        text = torch.ones(2, 77, nets[0].kv_weight.shape[1])
        a, b = (net(x, (8, 8), shifts, net.split_kv(text @ net.kv_weight.t())) for net in nets)
    assert difference(a, b) < 1e-5


@pytest.mark.parametrize(
    ("pictures", "side", "expected"),
    [(9, 1024, (8, 1)), (7, 1024, (4, 2, 1)), (3, 2048, (2, 1)), (1, 4096, (1,))],
)
def test_batches_are_powers_of_two(model, pictures, side, expected):
    assert FastRunner(model).batches(pictures, side * side) == expected
    assert FastRunner(model, invariant=True).batches(pictures, side * side) == (1,) * pictures


def test_the_least_recently_used_graph_goes_first():
    held: Graphs[int, str] = Graphs(2)
    made: list[int] = []
    for key in (1, 2, 1, 3, 1, 2):
        held.of(key, lambda key=key: made.append(key) or str(key))
    assert made == [1, 2, 3, 2]
    assert list(held) == [1, 2]


def test_after_warming_up_mixed_renders_prepare_nothing(model):
    from packshot.core.types import RenderRequest

    runner, told = FastRunner(model), []
    engine = Engine(model, runner=runner)
    sizes = ((64, 64), (96, 64), (64, 96), (88, 72))
    made = engine.warm(sizes, (3,), lambda done, total: told.append((done, total)))
    assert made == runner.captures == 1 + 2 * len(sizes) + len(sizes)  # batches of two and of one
    assert told == [(done, 13) for done in range(1, 14)]
    for number, (width, height) in enumerate((*sizes, *sizes[::-1])):
        seeds = tuple(range(1 + number % 3))
        sampler = ("dpmpp-2m", "euler")[number % 2]
        for steps in (1, 2):
            engine.render(RenderRequest("a mug", seeds, width, height, steps, 5.0, sampler=sampler))
    assert runner.captures == made
    assert engine.warm(sizes, (1, 2)) == 0
    engine.render(RenderRequest("a mug", (1,), 72, 72, 1, 5.0))
    assert runner.captures == made + 2


def test_warming_up_is_told_of_tiers_and_what_is_too_much(model):
    runner = FastRunner(model)
    assert runner.warm(((64, 64),), (1,), ("exact", "int8")) == 1 + 2 + 1
    many = tuple((64, 64 + 8 * n) for n in range(GRAPHS // 2 + 1))
    with pytest.raises(InvalidRequest, match=r"13 sizes .* are 26 shapes, and 24 stay prepared"):
        runner.warm(many, (3,))
    assert FastRunner(model).warm(many[:4], (1,)) == 9
    assert PlainRunner(model).warm(many) == 0


def test_warming_up_begins_with_the_largest(model):
    """What comes after fits into the memory that it leaves."""
    runner = FastRunner(model)
    runner.warm(((64, 64), (96, 72), (72, 72)), (1, 3))
    made = [(shape.pictures, shape.height * shape.width) for _, shape in runner.steps]
    assert made == [(n, pixels) for pixels in (9 * 12, 9 * 9, 8 * 8) for n in (2, 1)]


def test_scales_of_fp8_are_kept_between_processes(model, tmp_path, monkeypatch):
    with torch.inference_mode():
        first = FastRunner(model, tuning=tmp_path)
        first.unet("fp8")
        monkeypatch.setattr(FastRunner, "_calibrated", lambda *_: pytest.fail("calibrated again"))
        second = FastRunner(model, tuning=tmp_path)
        second.unet("fp8")
    assert second.tuning.fp8_largest == first.tuning.fp8_largest != []
    assert first.told() == second.told() == ()


def test_without_room_for_all_shapes_renders_go_on_and_it_is_said_once(model, monkeypatch):
    from packshot.core.types import RenderRequest
    from packshot.engine.fast import runner as module

    class Small(StepGraph):
        made = 0

        def __init__(self, *given: Any) -> None:
            Small.made += 1
            if Small.made == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().__init__(*given)

    monkeypatch.setattr(module, "StepGraph", Small)
    engine = Engine(model, runner=FastRunner(model))
    assert engine.warm(((64, 64), (96, 64), (64, 96), (72, 72))) == 3  # the texts, and two
    assert len(engine.runner.steps) == 0
    request = RenderRequest("a mug", (1,), 64, 64, 1, 5.0)
    said = [[w for w in engine.render(request).warnings if "no room" in w] for _ in range(2)]
    assert [len(each) for each in said] == [1, 0]


def test_a_stale_tuning_is_a_warning_of_the_next_picture(model, tmp_path, monkeypatch):
    from packshot.core.types import RenderRequest
    from packshot.engine.fast import tuning

    before = FastRunner(model, tuning=tmp_path)
    before.tuning.attention[2, 2, 64, 8, 64] = "cudnn"
    before.tuning.keep()
    monkeypatch.setattr(tuning, "_code", lambda: "another")
    engine = Engine(model, runner=FastRunner(model, tuning=tmp_path))
    request = RenderRequest("a mug", (1,), 64, 64, 1, 5.0)
    first, second = (engine.render(request).warnings for _ in range(2))
    assert any("and this is another" in text for text in first)
    assert not any("tuning" in text for text in second)


def test_what_is_given_back_is_all_that_was_prepared(model):
    from packshot.core.types import RenderRequest

    runner = FastRunner(model)
    engine = Engine(model, runner=runner)
    request = RenderRequest("a mug", (1,), 64, 64, 1, 5.0)
    want = engine.render(request).images[0]
    held = (runner.steps, runner._decodes, runner._reads, runner._texts)
    assert all(held)
    runner.release()
    assert not any(held)
    assert np.array_equal(engine.render(request).images[0], want)
