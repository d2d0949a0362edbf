"""Runs a model on a GPU: fused kernels, captured once per shape, replayed for every request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import InvalidRequest
from packshot.engine.buckets import batches_of
from packshot.engine.conditioning import EncodedTexts, together
from packshot.engine.decode import decode_checked, flat
from packshot.engine.denoise import noise_of
from packshot.engine.devices import capability, device_errors, sent
from packshot.engine.fast import cublaslt
from packshot.engine.fast.attention import Attention
from packshot.engine.fast.calibration import EACH, calibrate, to_fp8, to_int8
from packshot.engine.fast.graphs import WINDOW, Captured, Graphs, Shape, StepGraph
from packshot.engine.fast.products import TORCH, Tuned
from packshot.engine.fast.tuning import Tuning, key_of
from packshot.engine.fast.unet import FastUNet
from packshot.engine.fast.vae import FastDecoder
from packshot.engine.limits import SIDE_MULTIPLE, default_size
from packshot.engine.runner import Task
from packshot.engine.samplers import plan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from packshot.engine.buckets import Size
    from packshot.engine.denoise import Watch
    from packshot.engine.fast.maps import Kernels
    from packshot.engine.fast.products import Multiplier
    from packshot.engine.model import Model
    from packshot.engine.results import Picture
    from packshot.engine.runner import Decoded, Tell, Tier

__all__ = ["GRAPHS", "FastRunner"]

GRAPHS = 24
"""Shapes that are kept captured at a time, of each network: nine sizes, a few batches of each."""

CALIBRATION_TEXT = "a product photograph, soft light, shallow depth of field"
CALIBRATION_STEPS = 8


class FastRunner:
    """A `runner.Runner` for a GPU. One request at a time: its graphs have one set of buffers.

    Args:
        model: its networks, in bf16, fp16 or fp32, on their device.
        kernels: the fused operations; None takes those of this device.
        graphs: whether to capture; without, each step is launched kernel by kernel, which is for
            looking for leaks.
        invariant: whether a seed is to give the same bits in company as alone. Pictures are then
            made one at a time: a library's kernels, and what they round to, depend on the batch.
        tuning: the folder that keeps what is measured (`tuning`); None measures in each process.
    """

    name = "fast"

    def __init__(
        self,
        model: Model,
        kernels: Kernels | None = None,
        *,
        graphs: bool = True,
        invariant: bool = False,
        tuning: Path | None = None,
    ) -> None:
        self.model = model
        self.kernels = fused(model.device) if kernels is None else kernels
        self.tuning = Tuning(tuning, key_of(model))
        self.attention = Attention(self.kernels, chosen=self.tuning.attention)
        library = cublaslt.load(model.device)
        self.products: Multiplier = (
            Tuned(library, self.kernels.rehearsing, self.tuning.products) if library else TORCH
        )
        self._unets: dict[Tier, FastUNet] = {}
        self.decoder = FastDecoder(model.vae, self.kernels)
        self.invariant = invariant
        cuda = model.device.type == "cuda"
        self._one_pass = not cuda or capability(model.device) >= (9, 0)
        if cuda:
            torch.backends.cudnn.benchmark = True  # a shape's convolutions are chosen by measuring
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._pool = torch.cuda.graph_pool_handle() if graphs and cuda else None
        self.steps: Graphs[tuple[Tier, Shape], StepGraph] = Graphs(GRAPHS)
        self._decodes: Graphs[tuple[int, int], DecodeGraph] = Graphs(GRAPHS)
        self._reads: Graphs[None, ReadGraph] = Graphs(1)
        self._texts: dict[int, Tensor] = {}
        self._told: list[str] = []

    def choices(self) -> tuple[str, ...]:
        """Tell which attention runs for which shape."""
        return tuple(
            f"attention, {queries} queries, {keys} keys, {heads} heads of {width}, "
            f"batch {batch}: {name}"
            for (batch, heads, queries, width, keys), name in sorted(self.attention.chosen.items())
        )

    def told(self) -> tuple[str, ...]:
        """As `runner.Runner.told`: of the tuning's file, and of too little room to warm up."""
        said = (*self.tuning.told, *self._told)
        self.tuning.told.clear()
        self._told.clear()
        return said

    @property
    def captures(self) -> int:
        """How many graphs were made since this runner was, those that went again too."""
        return self.steps.made + self._decodes.made + self._reads.made

    def warm(
        self,
        sizes: Sequence[Size],
        pictures: Sequence[int] = (1,),
        tiers: Sequence[Tier] = ("exact",),
        tell: Tell | None = None,
    ) -> int:
        """As `runner.Runner.warm`, with guidance.

        Raises:
            InvalidRequest: these are more than `GRAPHS` shapes.
        """
        # The largest first: what comes after fits into the memory that it leaves.
        latents = sorted({(h // SIDE_MULTIPLE, w // SIDE_MULTIPLE) for w, h in sizes}, reverse=True)
        latents.sort(key=prod, reverse=True)

        def fit(count: int, size: tuple[int, int]) -> tuple[int, ...]:
            return self.batches(count, prod(size) * SIDE_MULTIPLE**2)

        shapes: list[tuple[Tier, Shape]] = [
            (tier, Shape(batch, *size))
            for size in latents
            for batch in sorted({b for n in pictures for b in fit(n, size)}, reverse=True)
            for tier in dict.fromkeys(tiers)
        ]
        if len(shapes) > GRAPHS:
            raise InvalidRequest(
                f"{len(latents)} sizes in all their batches and precisions are {len(shapes)} "
                f"shapes, and {GRAPHS} stay prepared; ask for fewer."
            )
        jobs: list[Callable[[], object]] = [lambda: self.encode([CALIBRATION_TEXT])]
        jobs += [partial(self._step_graph, tier, shape) for tier, shape in shapes]
        jobs += [partial(self._decode_graph, *size) for size in latents]
        before = self.captures
        with torch.inference_mode(), device_errors():
            for done, job in enumerate(jobs, 1):
                if not self._has_room(job):
                    break
                if tell:
                    tell(done, len(jobs))
        return self.captures - before

    def _has_room(self, job: Callable[[], object]) -> bool:
        """Do a part of `warm`; where there is no room for it, all of that is given back, and said.

        Renders then capture as they come: what they alone need may fit.
        """
        try:
            job()
        except torch.OutOfMemoryError:
            self._told.append(
                "the GPU has no room to prepare all shapes: each is prepared by the first render "
                "that has it; configure fewer sizes in engine.buckets (packshot plan counts them)."
            )
        else:
            return True
        self.release()
        return False

    def batches(self, pictures: int, pixels: int) -> tuple[int, ...]:
        """As `buckets.batches_of` says, or one by one."""
        return (1,) * pictures if self.invariant else batches_of(pictures, pixels)

    def release(self) -> None:
        """Give back the memory of all graphs; they are captured again when they are needed."""
        self.steps.clear()
        self._decodes.clear()
        self._texts.clear()
        self._reads.clear()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
            torch.cuda.empty_cache()

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """As `runner.Runner.encode`, one by one."""
        read = self._reads.of(None, lambda: ReadGraph(self.model, self._pool))
        return together([read(text) for text in texts])

    def denoise(
        self, task: Task, pictures: int, noise: Iterator[Tensor], watch: Watch | None
    ) -> Tensor:
        """As `runner.Runner.denoise`."""
        graph = self._graph(task, pictures)
        plan, kept = task.plan, task.kept
        self._begin(graph, task, next(noise))
        for index, step in enumerate(plan.steps):
            if index % WINDOW == 0:
                self._load(graph, task, index)
            if plan.draws_noise:
                graph.noise.copy_(graph.rows_of(next(noise)))
            graph.step()
            if kept:
                latents = graph.picture(graph.latents)
                graph.put(kept.under(latents, step.level * graph.first), step.following)
            if watch:
                clean = graph.picture(graph.clean)
                watch(index + 1, kept.under(clean, 0.0) if kept else clean)
        return graph.picture(graph.latents)

    def decode(self, latents: Sequence[Tensor]) -> list[Decoded]:
        """As `runner.Runner.decode`."""
        return [self._decode(row[None]) for row in latents]

    def unet(self, tier: Tier) -> FastUNet:
        """Return the network in a tier; fp8 is calibrated when first asked for, on one task."""
        if tier not in self._unets:
            unet = FastUNet(
                self.model.unet, self.kernels, self.attention, self.products,
                one_pass=self._one_pass,
            )  # fmt: skip
            if tier == "fp8":
                to_fp8(unet, self._largest(unet))
            elif tier == "int8":
                to_int8(unet)
            self._unets[tier] = unet
        return self._unets[tier]

    def _graph(self, task: Task, pictures: int) -> StepGraph:
        shape = Shape(
            pictures,
            task.height // SIDE_MULTIPLE,
            task.width // SIDE_MULTIPLE,
            guided=task.guidance != 1,
        )
        return self._step_graph(task.tier, shape)

    def _step_graph(self, tier: Tier, shape: Shape) -> StepGraph:
        def make() -> StepGraph:
            unet = self.unet(tier)
            graph = StepGraph(unet, shape, self.model.device, self._pool, self._texts)
            self.tuning.keep()
            return graph

        return self.steps.of((tier, shape), make)

    def _begin(self, graph: StepGraph, task: Task, first: Tensor) -> None:
        """Bring a graph to the start of a render."""
        plan, kept, unet = task.plan, task.kept, graph.unet
        latents = first * plan.start
        if kept and plan.from_original:
            latents = latents + kept.latents
        graph.start(first, latents, plan.steps[0].scale)
        if graph.guidance is not None:
            graph.guidance.fill_(task.guidance)
        told = task.texts.tokens.repeat_interleave(graph.shape.pictures, dim=0)
        torch.matmul(told, unet.kv_weight.t(), out=graph.kv)

    def _load(self, graph: StepGraph, task: Task, index: int) -> None:
        """Load the steps from ``index`` on, as many as a graph holds."""
        plan, texts = task.plan, task.texts
        window = slice(index, index + WINDOW)
        sizes = [task.height, task.width, 0, 0, task.height, task.width]
        time_ids = sent([sizes] * len(texts.pooled), texts.pooled.device)
        shifts = self.model.unet.embed(plan.timesteps[window], texts.pooled, time_ids)
        shifts = graph.unet.shifts(shifts).repeat_interleave(graph.shape.pictures, dim=1)
        graph.load(plan.table[window], shifts)

    def _largest(self, unet: FastUNet) -> list[float]:
        """Return what fp8 is scaled by: as it was kept, or seen now."""
        known = self.tuning.fp8_largest
        if len(known) != EACH * sum(1 for _ in unet.blocks()):
            known[:] = self._calibrated(unet)
            self.tuning.keep()
        return known

    def _calibrated(self, unet: FastUNet) -> list[float]:
        """Return what `calibrate` sees over the steps of one fixed render."""
        model = self.model
        width, height = default_size(model.folder)
        steps = plan(
            model.noise, sampler="euler", schedule="default", spacing="leading",
            steps=CALIBRATION_STEPS, device=model.device,
        )  # fmt: skip
        task = Task(steps, self.encode(["", CALIBRATION_TEXT]), width, height, 5.0)
        shape = Shape(1, height // SIDE_MULTIPLE, width // SIDE_MULTIPLE)
        graph = StepGraph(unet, shape, model.device, None)
        first = next(noise_of((0,), (4, shape.height, shape.width), model.device))
        self._begin(graph, task, first)
        self._load(graph, task, 0)
        return calibrate(unet, graph.step, CALIBRATION_STEPS)

    def _decode(self, latents: Tensor) -> Decoded:
        levels, sound = self._decode_graph(latents.shape[-2], latents.shape[-1])(latents)
        if sound:
            return levels, ()
        return decode_checked(latents, self.model.vae, lambda: self.model.vae_fp32)

    def _decode_graph(self, height: int, width: int) -> DecodeGraph:
        """Return the decoder for latents of that size."""

        def make() -> DecodeGraph:
            latents = torch.zeros(1, 4, height, width, device=self.model.device)
            return DecodeGraph(self.decoder, latents, self._pool)

        return self._decodes.of((height, width), make)


class DecodeGraph:
    """The decoder for one size."""

    def __init__(self, decoder: FastDecoder, latents: Tensor, pool: object | None) -> None:
        self._latents = torch.zeros_like(latents)
        self._decoder = decoder
        self.captured = Captured(self._run, latents.device, pool, decoder.kernels.rehearsal)

    def _run(self) -> tuple[Tensor, Tensor]:
        levels, finite = self._decoder(self._latents)
        return levels[0], finite & ~flat(levels[0])

    def __call__(self, latents: Tensor) -> tuple[Picture, bool]:
        """Return [8h,8w,3] uint8 on the host, and whether it shows something."""
        self._latents.copy_(latents)
        levels, sound = self.captured()
        return levels.cpu().numpy(), bool(sound)


class ReadGraph:
    """Both text encoders, for one text."""

    def __init__(self, model: Model, pool: object | None) -> None:
        self._model = model
        context = model.readers[0].network.config.max_position_embeddings
        self._ids = torch.zeros((2, 1, context), dtype=torch.long, device=model.device)
        self._captured = Captured(self._run, model.device, pool)

    def _run(self) -> tuple[Tensor, Tensor]:
        first, second = self._model.readers
        states = second.network(self._ids[1])
        return torch.cat([first.network.hidden(self._ids[0]), states.hidden], -1), states.pooled

    def __call__(self, text: str) -> EncodedTexts:
        """As `conditioning.encode_texts` of one text."""
        read = [reader.tokenizer.encode(text) for reader in self._model.readers]
        self._ids.copy_(torch.tensor([[tokens.ids] for tokens in read]))
        tokens, pooled = (state.clone() for state in self._captured())
        return EncodedTexts(tokens, pooled, (max(tokens.dropped for tokens in read),))


def fused(device: torch.device) -> Kernels:
    """Return the fused kernels for a GPU, their plain meaning elsewhere."""
    if device.type == "cuda":
        from packshot.engine.fast import kernels

        return kernels
    from packshot.engine.fast import reference

    return reference
