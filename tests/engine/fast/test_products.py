"""Who multiplies: the fastest of what a library lists, measured once, and torch where it cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from packshot.core.errors import RenderFailed
from packshot.engine.fast import cublaslt, graphs, products
from packshot.engine.fast.products import TORCH, Tuned
from packshot.engine.fast.reference import FP8, to_fp8

TIMES = [3.0, 1.0, 2.0]


class Library:
    """A library whose algorithms all multiply, and tell that they did."""

    def __init__(self, count: int = len(TIMES)) -> None:
        self.count = count
        self.planned: list[Any] = []
        self.ran: list[int] = []

    def plan(self, problem: Any) -> Any:
        self.planned.append(problem)
        return SimpleNamespace(adds=problem.adds, algorithms=tuple(range(self.count)))

    def run(
        self, plan: Any, algorithm: int, x: Tensor, weight: Tensor, sums: Tensor, scales: Any = None
    ) -> None:
        self.ran.append(algorithm)
        product = x.float() @ weight.float().T * (1 if scales is None else scales[0] * scales[1])
        sums.copy_(product + sums.float() if plan.adds else product)


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """Time algorithms by `TIMES`, having run them."""

    def device_s(run: Any, _device: torch.device) -> float:
        run()
        return TIMES[run.args[-1]]

    monkeypatch.setattr(graphs, "device_s", device_s)
    monkeypatch.setattr(products, "ALIGNMENT", 1)


def drawn(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-5))


def test_the_fastest_is_measured_once_for_a_shape_and_kept():
    library, chosen = Library(), {}
    by = Tuned(library, lambda: False, chosen)
    x, weight = drawn(6, 4), drawn(5, 4)
    assert close(by.times(x, weight, x.dtype), x @ weight.T)
    assert library.ran == [0, 1, 2, 1]
    assert close(by.times(x + 1, weight, x.dtype), (x + 1) @ weight.T)
    assert library.ran[4:] == [1]
    assert chosen == {(6, 5, 4, 32, 0): 1}
    again = Library()
    Tuned(again, lambda: False, chosen).times(x, weight, x.dtype)
    assert again.ran == [1]


def test_what_is_measured_adds_nothing():
    by = Tuned(Library(), lambda: False)
    sums, x, weight = drawn(6, 5), drawn(6, 4), drawn(5, 4)
    want = sums + x @ weight.T
    assert by.add(sums, x, weight)
    assert close(sums, want)
    assert by.chosen == {(6, 5, 4, 32, 1): 1}


def test_a_place_that_the_list_does_not_have_is_measured_anew():
    library, chosen = Library(), {(6, 5, 4, 32, 0): 7}
    Tuned(library, lambda: False, chosen).times(drawn(6, 4), drawn(5, 4), torch.float32)
    assert library.ran == [0, 1, 2, 1]
    assert chosen == {(6, 5, 4, 32, 0): 1}


@pytest.mark.parametrize("why", ["no algorithm", "apart", "elsewhere", "too many"])
def test_what_the_library_cannot_is_torchs(monkeypatch, why):
    library = Library(0 if why == "no algorithm" else 3)
    x, weight = drawn(6, 4), drawn(5, 4)
    if why == "apart":
        x = drawn(4, 6).T
    if why == "elsewhere":
        monkeypatch.setattr(products, "ALIGNMENT", 1 << 60)
    if why == "too many":
        monkeypatch.setattr(products, "MAX_PLANS", 0)
    by = Tuned(library, lambda: False)
    sums = drawn(6, 5)
    want = sums + x @ weight.T
    assert close(by.times(x, weight, x.dtype), x @ weight.T)
    assert by.add(sums, x, weight)
    assert close(sums, want)
    assert library.ran == []
    rounded = to_fp8(x, torch.tensor(8.0)), to_fp8(weight, torch.tensor(4.0))
    assert not by.add(sums, *rounded, (torch.tensor(1 / 8), torch.tensor(1 / 4)))
    assert close(sums, want)


def test_in_fp8_scales_are_undone_and_sums_added_to():
    scales = torch.tensor(1 / 8), torch.tensor(1 / 4)
    x, weight = to_fp8(drawn(6, 4), torch.tensor(8.0)), to_fp8(drawn(5, 4), torch.tensor(4.0))
    exact = (x.float() / 8) @ (weight.float() / 4).T
    for by in (TORCH, Tuned(Library(), lambda: False)):
        assert close(by.times(x, weight, torch.float32, scales), exact)
    by = Tuned(Library(), lambda: False)
    sums = torch.ones(6, 5)
    assert by.add(sums, x, weight, scales)
    assert close(sums, exact + 1)
    assert by.chosen == {(6, 5, 4, 8, 1): 1}
    assert x.dtype == FP8


def failing(monkeypatch, at: int, error: Exception) -> Tuned:
    """Return a multiplier whose algorithms fail from a place on."""
    library = Library()
    run = library.run

    def fails(plan: Any, algorithm: int, *args: Any, **kwargs: Any) -> None:
        if algorithm >= at:
            raise error
        run(plan, algorithm, *args, **kwargs)

    monkeypatch.setattr(library, "run", fails)
    return Tuned(library, lambda: False)


@pytest.mark.parametrize("at", [0, 1])
def test_what_fails_while_it_is_measured_is_not_chosen(monkeypatch, at):
    by = failing(monkeypatch, at, RenderFailed("cuBLASLt refused cublasLtMatmul with status 15."))
    sums, x, weight = drawn(6, 5), drawn(6, 4), drawn(5, 4)
    want = sums + x @ weight.T
    assert by.add(sums, x, weight)
    assert close(sums, want)
    assert by.chosen == ({(6, 5, 4, 32, 1): 0} if at else {})


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: device-side assert")],
    ids=["no room", "lost"],
)
def test_trouble_of_the_device_is_no_word_about_an_algorithm(monkeypatch, error):
    by = failing(monkeypatch, 1, error)
    with pytest.raises(type(error)):
        by.times(drawn(6, 4), drawn(5, 4), torch.float32)
    assert by.chosen == {}


def test_a_rehearsal_runs_nothing():
    library = Library()
    by = Tuned(library, lambda: True)
    by.times(drawn(6, 4), drawn(5, 4), torch.float32)
    assert (library.ran, by.chosen) == ([], {})
    assert len(library.planned) == 1


def test_without_a_gpu_there_is_no_library():
    assert cublaslt.load(torch.device("cpu")) is None
    assert cublaslt.version() is None or cublaslt.version() > 100_000
