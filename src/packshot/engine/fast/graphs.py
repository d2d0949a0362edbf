"""Captured graphs: one per shape, each a fixed sequence of kernels on buffers of its own.

A step's graph reads the row of its coefficients by an index that lies on the device, so that the
same graph serves any number of steps, any sampler, and each picture's own guidance; between two
steps the host may look, show or stop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from packshot.engine.devices import lost

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.engine.fast.unet import FastUNet

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

__all__ = ["WINDOW", "Captured", "Graphs", "Shape", "StepGraph", "beside", "fastest"]

WINDOW = 128
"""Steps whose coefficients and shifts lie on the device at a time; more are loaded as they come."""


TOKENS = 77
"""Tokens of a text, as CLIP reads it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step's graph is captured for; ``height`` and ``width`` are those of the latents."""

    pictures: int
    height: int
    width: int
    guided: bool = True

    @property
    def rows(self) -> int:
        """How many the network sees at once."""
        return self.pictures * (2 if self.guided else 1)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def beside(device: torch.device) -> Generator[None]:
    """Run what is inside on a stream of its own, as what is to be captured must be run once.

    It is always the same one: what a stream has used, torch keeps for that stream.
    """
    here, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        yield
    here.wait_stream(side)


def device_s(run: Callable[[], object], device: torch.device) -> float:
    """Return the best of three replays of eight runs, each in seconds: of the device, not its host.

    Not to be called while something is captured.
    """
    with beside(device):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(8):
            run()
    best = float("inf")
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 8e3)
    return best


def fastest(runs: Mapping[K, Callable[[], object]], device: torch.device) -> tuple[K | None, str]:
    """Return which of ``runs`` takes the device least time, and why others were refused, in a line.

    None where all were. What says nothing of a run, that there is no room or that the device is
    lost, is raised as torch has it.
    """
    times: dict[K, float] = {}
    refused: list[str] = []
    for name, run in runs.items():
        try:
            times[name] = device_s(run, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a library or a compiler says of what it cannot
            if lost(error):
                raise
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # a lost device says so here, if not before
            said = str(error).partition("\n")[0]
            refused.append(f"{name}: {said}")
    return min(times, key=times.__getitem__, default=None), "; ".join(refused)


class Captured(Generic[T]):
    """A function without arguments as a graph; on a CPU, or with graphs off, just the function.

    It is run once in ``rehearsal``, in which its own kernels are only compiled. What it returned
    when it was captured is what it returns ever after: with other numbers in it.
    """

    def __init__(
        self,
        run: Callable[[], T],
        device: torch.device,
        pool: object | None,
        rehearsal: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        if pool is None or device.type != "cuda":
            return
        with beside(device):  # our kernels compile and libraries choose before the capture
            with rehearsal():
                run()
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]
            self._returned = run()
        self._graph = graph

    def __call__(self) -> T:
        """Run, or queue the graph."""
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._returned


class StepGraph:
    """One step of a render of ``shape``, on buffers that a request's numbers are copied into."""

    def __init__(
        self,
        unet: FastUNet,
        shape: Shape,
        device: torch.device,
        pool: object | None,
        texts: dict[int, Tensor] | None = None,
    ) -> None:
        self.shape = shape
        self.unet = unet
        pixels, dtype = shape.height * shape.width, unet.dtype

        def made(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.first = made(shape.pictures, 4, shape.height, shape.width)
        self.latents = made(shape.pictures, pixels, 4)
        self.clean = torch.zeros_like(self.latents)
        self.noise = made(shape.pictures, pixels, 4)
        self.guidance = made(shape.pictures) if shape.guided else None
        self.network_in = made(shape.rows, pixels, 4, dtype=dtype)
        self.shifts = made(WINDOW, shape.rows, sum(unet.widths), dtype=dtype)
        self.table = made(WINDOW, 9)
        self.index = made(1, dtype=torch.int32)
        # Keys and values of the texts, 50 MB for two, lie in one place for all graphs of so many:
        # each render fills them anew.
        texts = {} if texts is None else texts
        if shape.rows not in texts:
            texts[shape.rows] = made(shape.rows, TOKENS, len(unet.kv_weight), dtype=dtype)
        self.kv = texts[shape.rows]
        self._captured = Captured(self._step, device, pool, unet.kernels.rehearsal)

    def _step(self) -> None:
        shape = self.shape
        shifts = self.shifts.index_select(0, self.index)[0]
        output = self.unet(
            self.network_in, (shape.height, shape.width), shifts, self.unet.split_kv(self.kv)
        )
        self.unet.kernels.advance(
            self.latents, self.clean, output, self.network_in, self.noise, self.table, self.index,
            self.guidance,
        )  # fmt: skip
        self.index.add_(1)

    def start(self, noise: Tensor, latents: Tensor, scale: Tensor) -> None:
        """Begin with ``latents`` [n,4,h,w] fp32, made of ``noise``; ``scale`` as `put` takes it."""
        self.first = noise
        self.clean.zero_()
        self.noise.zero_()
        self.put(latents, scale)

    def put(self, latents: Tensor, scale: Tensor) -> None:
        """Replace the latents; ``scale`` is what the next step multiplies its input by."""
        self.latents.copy_(self.rows_of(latents))
        scaled = self.latents * scale
        self.network_in.copy_(torch.cat([scaled, scaled]) if self.shape.guided else scaled)

    def rows_of(self, latents: Tensor) -> Tensor:
        """Return [n,4,h,w] as the buffers have it."""
        return latents.flatten(2).transpose(1, 2)

    def load(self, table: Tensor, shifts: Tensor) -> None:
        """Load the next steps, at most WINDOW: ``table`` [S,9], ``shifts`` [S,rows,E]."""
        self.table[: len(table)].copy_(table)
        self.shifts[: len(shifts)].copy_(shifts)
        self.index.zero_()

    def step(self) -> None:
        """Queue one step."""
        self._captured()

    def picture(self, buffer: Tensor) -> Tensor:
        """Return ``latents`` or ``clean`` as [n,4,h,w], a copy."""
        shape = self.shape
        return buffer.transpose(1, 2).reshape(shape.pictures, 4, shape.height, shape.width).clone()


class Graphs(OrderedDict[K, V]):
    """At most ``limit`` graphs, the least recently used of which goes first; ``made`` counts."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.made = 0

    def of(self, key: K, make: Callable[[], V]) -> V:
        """Return the graph of ``key``, made now if it is not there."""
        if key in self:
            self.move_to_end(key)
            return self[key]
        while len(self) >= self.limit:
            self.popitem(last=False)
        self[key] = make()
        self.made += 1
        return self[key]
