"""What a GPU needs is loaded beside the reading of weights, and none of that is an error."""

from __future__ import annotations

from threading import Event, current_thread

import pytest
import torch

from packshot.engine import runner

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_a_gpus_code_is_loaded_beside_and_is_there_at_the_end(monkeypatch):
    begun, read = Event(), Event()
    loaded: list[object] = []

    def preload(device: torch.device) -> None:
        begun.set()
        assert read.wait(10)
        loaded.append((device, current_thread()))

    monkeypatch.setattr(runner, "_preload", preload)
    with runner.preloading(GPU):
        assert begun.wait(10)
        assert not loaded, "what is done inside does not wait for it"
        read.set()
    ((device, thread),) = loaded
    assert device == GPU
    assert thread is not current_thread()


def test_it_is_waited_for_where_weights_cannot_be_read(monkeypatch):
    loaded: list[torch.device] = []
    monkeypatch.setattr(runner, "_preload", loaded.append)
    with pytest.raises(KeyError), runner.preloading(GPU):
        raise KeyError
    assert loaded == [GPU]


def test_a_cpu_needs_none_of_it(monkeypatch):
    monkeypatch.setattr(runner, "_preload", lambda _: pytest.fail("loaded"))
    with runner.preloading(CPU):
        pass


def test_what_cannot_be_loaded_is_left_to_who_needs_it(monkeypatch):
    asked: list[str] = []

    def missing(name: str) -> None:
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(runner, "import_module", missing)
    runner._preload(CPU)
    assert asked == ["packshot.engine.fast.runner"]
