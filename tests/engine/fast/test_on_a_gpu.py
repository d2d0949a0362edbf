"""What the fast runner chooses only where there is a GPU, on one that is played."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from packshot.core.errors import RenderFailed
from packshot.engine import runner as picking
from packshot.engine.fast import attention, graphs, reference, tuning
from packshot.engine.fast import runner as module
from packshot.engine.fast.attention import Attention
from packshot.engine.fast.products import TORCH, Tuned
from packshot.engine.fast.runner import FastRunner
from packshot.engine.fast.tuning import key_of
from packshot.engine.model import Model


@pytest.fixture
def model(as_written: Model, monkeypatch) -> Model:
    """Return a model that says it is on an H100, for which torch answers, too."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(module, "fused", lambda _: reference)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(version=lambda: 91900))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    monkeypatch.setattr(module.cublaslt, "load", lambda _: None)
    made = copy(as_written)
    made.device, made.precision = torch.device("cuda"), "bf16"
    return made


# ---------------------------------------------------------------- which way


@pytest.mark.parametrize(("said", "one_pass"), [(None, True), ("8.9", False), ("8.0", False)])
def test_what_is_a_hopper_s_is_left_aside_on_older_chips(model, monkeypatch, said, one_pass):
    monkeypatch.delenv("PACKSHOT_COMPUTE_CAPABILITY", raising=False)
    if said:
        monkeypatch.setenv("PACKSHOT_COMPUTE_CAPABILITY", said)
    blocks = [*FastRunner(model).unet("exact").blocks()]
    assert blocks
    assert all(block.one_pass is one_pass for block in blocks)


def test_steps_are_captured_unless_that_is_switched_off(model):
    assert FastRunner(model)._pool is not None
    assert FastRunner(model, graphs=False)._pool is None


def test_what_is_chosen_at_the_terminal_comes_to_the_runner(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch
):
    from packshot.cli.main import main
    from packshot.studio.embeddings import cache_folder

    monkeypatch.chdir(tmp_path)
    asked: list[dict[str, object]] = []
    pick = picking.pick_runner

    def seen(model: Model, **options: object) -> object:
        asked.append(options)
        return pick(model)

    monkeypatch.setattr(picking, "pick_runner", seen)
    words = ["render", "a mug", "--model", str(tiny_sdxl), "--device", "cpu", "--steps", "1"]
    for more in ([], ["--no-graphs"], ["--invariant"]):
        with pytest.raises(SystemExit) as done:
            main([*words, "--out", str(tmp_path / "out.png"), *more])
        assert done.value.code == 0
    kept = {"tuning": cache_folder() / "tuning"}
    assert asked == [
        {"graphs": True, "invariant": False} | kept,
        {"graphs": False, "invariant": False} | kept,
        {"graphs": True, "invariant": True} | kept,
    ]


def test_the_runner_is_made_as_it_was_asked_for(model, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module, "FastRunner", lambda *_, **options: asked.append(options))
    options = {"graphs": False, "invariant": True, "tuning": tmp_path}
    picking.pick_runner(model, **options)
    assert asked == [options]
    model.precision = "fp32"
    assert picking.pick_runner(model, **options).name == "plain"


# ---------------------------------------------------------------- what a tuning holds for


def test_a_tuning_is_of_this_gpu_driver_torch_model_and_code(model, monkeypatch, tmp_path):
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX  580.159.04\nGCC version: 13\n")
    monkeypatch.setattr(tuning, "NVIDIA_DRIVER", version)
    key = key_of(model)
    assert key.device == "NVIDIA H100 80GB HBM3"
    assert key.driver == "NVRM version: NVIDIA UNIX  580.159.04"
    assert torch.__version__ in key.torch
    assert "cuDNN 91900" in key.torch
    assert (key.model, key.precision) == (model.folder.fingerprint, "bf16")
    assert len(key.code) == 16
    version.unlink()
    assert key_of(model).driver == "unknown"


# ---------------------------------------------------------------- attention


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


Q, K = (torch.zeros(2, 4, n, 8).as_subclass(OnGpu) for n in (64, 77))


def timed(monkeypatch, seconds: dict[str, float]) -> list[str]:
    """Have each kernel take so long, or refuse where it is not named; return what is tried."""
    tried: list[str] = []

    def measured(run: Callable[[], object], _: torch.device) -> float:
        name = run.args[0]
        tried.append(name)
        if name not in seconds:
            raise RuntimeError(f"no {name} here\nand more")
        return seconds[name]

    monkeypatch.setattr(graphs, "device_s", measured)
    monkeypatch.setattr(Attention, "_run", lambda _, name, *__: name)
    return tried


def test_the_fastest_attention_is_measured_once_for_a_shape_and_kept(monkeypatch):
    tried = timed(monkeypatch, {"flash": 3e-5, "efficient": 2e-5, "packshot": 4e-5})
    chosen: dict[tuple[int, ...], str] = {}
    attend = Attention(reference, chosen=chosen)
    assert attend(Q, K, K) == attend(Q, K, K) == "efficient"
    assert tried == ["cudnn", "flash", "efficient", "packshot"]
    assert chosen == {(2, 4, 64, 8, 77): "efficient"}
    assert Attention(reference, chosen={(2, 4, 64, 8, 77): "flash"})(Q, K, K) == "flash"
    assert len(tried) == 4


def test_where_no_fast_attention_runs_that_is_an_error_and_no_slow_picture(monkeypatch):
    timed(monkeypatch, {})
    with pytest.raises(RenderFailed, match=r"queries \[2, 4, 64, 8\].*cudnn: no cudnn here; flash"):
        Attention(reference)(Q, K, K)


def test_plain_arithmetic_is_never_among_them():
    from torch.nn.attention import SDPBackend

    assert SDPBackend.MATH not in attention.BACKENDS.values()
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(RuntimeError):  # on a CPU none of a GPU's kernels runs
        Attention(reference)._run("cudnn", q, q, q)


def test_what_is_measured_of_attention_and_of_products_goes_into_the_tuning(model, monkeypatch):
    assert FastRunner(model).products is TORCH
    monkeypatch.setattr(module.cublaslt, "load", lambda _: object())
    runner = FastRunner(model)
    assert isinstance(runner.products, Tuned)
    assert runner.products.chosen is runner.tuning.products
    assert runner.attention.chosen is runner.tuning.attention
