"""What a GPU needs is loaded beside the reading of weights, and none of that is an error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Event, Timer, current_thread

import pytest
import torch

from packshot.engine import engine, runner
from packshot.engine.folder import ModelFolder
from packshot.studio.loading import load_model

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_a_gpus_code_is_loaded_beside_and_is_there_at_the_end(monkeypatch):
    begun, read = Event(), Event()
    loaded: list[object] = []

    def preload(device: torch.device) -> None:
        begun.set()
        assert read.wait(10)
        loaded.append((device, current_thread()))

    monkeypatch.setattr(runner, "_preload", preload)
    with runner.preloading(GPU, "auto"):
        assert begun.wait(10)
        assert not loaded, "what is done inside does not wait for it"
        read.set()
    ((device, thread),) = loaded
    assert device == GPU
    assert thread is not current_thread()


def test_it_is_waited_for_where_weights_cannot_be_read(monkeypatch):
    late, loaded = Event(), list[torch.device]()

    def preload(device: torch.device) -> None:
        assert late.wait(10)
        loaded.append(device)

    monkeypatch.setattr(runner, "_preload", preload)
    later = Timer(0.1, late.set)
    later.start()
    with pytest.raises(KeyError), runner.preloading(GPU, "auto"):
        raise KeyError
    assert loaded == [GPU]
    later.join()


@pytest.mark.parametrize(("device", "precision"), [(CPU, "auto"), (CPU, "fp32"), (GPU, "fp32")])
def test_the_plain_networks_need_none_of_it(monkeypatch, device, precision):
    monkeypatch.setattr(runner, "Thread", lambda **_: pytest.fail("loaded"))
    with runner.preloading(device, precision):
        pass


def test_what_cannot_be_loaded_is_left_to_who_needs_it(monkeypatch):
    asked: list[str] = []

    def missing(name: str) -> None:
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(runner, "import_module", missing)
    runner._preload(CPU)
    assert asked == ["packshot.engine.fast.runner"]


def test_what_is_loaded_is_used_once(monkeypatch):
    """A mistake in it would be an error that nobody sees."""
    used: list[tuple[int, ...]] = []

    def noted(act):
        def run(*args, **options):
            used.append(tuple((made := act(*args, **options)).shape))
            return made

        return run

    monkeypatch.setattr(runner.F, "conv2d", noted(runner.F.conv2d))
    monkeypatch.setattr(torch, "mm", noted(torch.mm))
    monkeypatch.setattr(runner, "import_module", lambda _: None)
    runner._preload(CPU)
    assert used == [(64, 64, 3, 3), (64, 64)]


def test_an_engine_that_is_loaded_has_it_beside(monkeypatch, tiny_sdxl):
    asked: list[tuple[torch.device, str]] = []

    @contextmanager
    def preloading(device: torch.device, precision: str) -> Generator[None]:
        asked.append((device, precision))
        yield

    monkeypatch.setattr(engine, "preloading", preloading)
    monkeypatch.setattr(runner, "preloading", preloading)
    engine.Engine.load(tiny_sdxl, device="cpu")
    load_model(ModelFolder.open(tiny_sdxl), "cpu", ("fp32", "fp32"))
    assert asked == [(CPU, "auto"), (CPU, "fp32")]
