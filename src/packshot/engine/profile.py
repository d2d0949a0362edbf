"""Where a render's time goes: by stage, by kind of kernel, what waits for what, what would help.

One render is run to warm up, one to be timed by stages, and one under torch's profiler, whose own
cost is not in the stages.
"""

from __future__ import annotations

import linecache
import os
import re
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from packshot.engine.devices import DTYPES, has_fp8
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.weights import build

if TYPE_CHECKING:
    from packshot.core.types import RenderRequest, Usage
    from packshot.engine.engine import Engine
    from packshot.engine.folder import ModelFolder

__all__ = ["KINDS", "Ceilings", "Hint", "Kind", "Profile", "Sync", "classify", "profile_render"]

KINDS: tuple[tuple[str, str], ...] = (
    ("attention", r"sdpa|flash|fmha|attend|scaled_dot_product"),
    ("copies", r"memcpy|memset|copy|aten::cat|catarray|index|gather|upsample|padding|contiguous"),
    ("conv + linear", r"gemm|nvjet|xmma|conv|cutlass|geglu|scaled_mm|mm\b|linear|splitk"),
    (
        "norm + activation",
        r"norm(?!al)|sums|merge|affine|join|interleave|[gs]elu|silu|gate|max|element",
    ),
    ("other arithmetic", r"reduce|int\d|advance|aten::(add|mul|sub|div|sigmoid|sin|cos|exp)_?$"),
)
"""Kinds of kernels, and what in a name says so; the first that fits."""

OTHER = "other"

PRODUCTS = ("linear", "conv2d", "scaled_dot_product_attention")
"""What the networks multiply with, by torch's names."""

MANY_STEPS = 16
"""From so many on, a fifth fewer is worth a try."""

LEAST_TRIES, TRIED_S = 5, 0.5
"""Of a ceiling, whose best is taken: other programs may run beside some of them."""

ROOT = Path(__file__).parents[2]
SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the product that shows what a device can do."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Kernels of one kind, in one render: how many, and their seconds."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sync:
    """A line of Python at which the host waited for the device, and how often in one render.

    ``where`` is "packshot/engine/decode.py:60", ``code`` what stands there.
    """

    where: str
    code: str
    times: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device was measured to do: TFLOP/s of a product, GB/s of a copy, both ways."""

    tflops: float
    copy_gbs: float


@dataclass(frozen=True, slots=True)
class Hint:
    """Something to change, and the seconds of a render that it would save, estimated."""

    saves_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found. ``gaps_s``: of a render's time, what no kernel ran in.

    ``tflop`` and ``gb`` are what the products of denoising and decoding multiply and add, and what
    they read and write where each picture is made alone and nothing is fused. ``warnings`` are
    those of a render.
    """

    stages: tuple[Usage, ...]
    kinds: tuple[Kind, ...]
    gaps_s: float
    syncs: tuple[Sync, ...]
    tflop: float
    gb: float
    ceilings: Ceilings
    attention: tuple[str, ...]
    hints: tuple[Hint, ...]
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The time of a render, without the profiler."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def tflops(self) -> float:
        """TFLOP/s over denoising and decoding."""
        return self.tflop / self._multiplying_s

    @property
    def gbs(self) -> float:
        """GB/s over denoising and decoding, of what is counted in ``gb``."""
        return self.gb / self._multiplying_s

    @property
    def _multiplying_s(self) -> float:
        return sum(s.seconds for s in self.stages if s.stage in ("denoise", "decode"))


def profile_render(engine: Engine, request: RenderRequest, trace: Path | None = None) -> Profile:
    """Profile a render of ``request``; ``trace`` is where to leave a trace for chrome://tracing.

    Raises what `Engine.render` does.
    """
    device = engine.model.device
    told = engine.render(request).warnings
    stages = engine.render(request).usage
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [ProfilerActivity.CUDA]
    with warnings.catch_warnings(), _unheard():
        warnings.simplefilter("ignore")  # the profiler's own, of its cycles
        with profile(activities=activities) as recorded:
            engine.render(request)
    if trace is not None:
        recorded.export_chrome_trace(str(trace))
    kinds, busy_s, spanned_s = _kinds(recorded.events() or [], device)
    tflop, gb = _work(engine.model.folder, request, DTYPES[engine.model.precision])
    found = Profile(
        stages=stages,
        kinds=kinds,
        gaps_s=max(0.0, (spanned_s or sum(stage.seconds for stage in stages)) - busy_s),
        syncs=_syncs(engine, request),
        tflop=tflop,
        gb=gb,
        ceilings=_ceilings(device, DTYPES[engine.model.precision]),
        attention=engine.runner.choices(),
        hints=(),
        warnings=told,
    )
    return replace(found, hints=_hints(found, engine, request))


@contextmanager
def _unheard() -> Generator[None]:
    """Keep from the terminal what torch's profiler writes there from C++ when it starts and stops.

    It is no warning, and nothing that its own settings would turn off.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@cache
def classify(name: str) -> str:
    """Return the kind of a kernel, by its name."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, lower)), OTHER)


def _kinds(events: Iterable[Any], device: torch.device) -> tuple[tuple[Kind, ...], float, float]:
    """Return the kinds of kernels, longest first, and the seconds in which at least one ran.

    And, of a GPU, those from the first one's start to the last one's end: the profiler's own work
    before and after is none of the render's. On a CPU an operation that hands all over to another
    of its kind is one call with it, and not two.
    """
    calls: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    spans: list[tuple[float, float]] = []
    for event in events:
        on_gpu = event.device_type.name == "CUDA"
        if on_gpu != (device.type == "cuda"):
            continue
        spent = event.device_time if on_gpu else event.self_cpu_time_total
        if not on_gpu and "::" not in event.name:
            continue  # no operation: the profiler's own marks
        kind = classify(event.name)
        calls[kind] += on_gpu or kind not in {classify(child.name) for child in event.cpu_children}
        micros[kind] += spent
        spans.append((event.time_range.start, event.time_range.end))
    kinds = tuple(Kind(name, calls[name], spent / 1e6) for name, spent in micros.most_common())
    if device.type != "cuda" or not spans:
        return kinds, sum(micros.values()) / 1e6, 0.0
    spanned = max(end for _, end in spans) - min(start for start, _ in spans)
    return kinds, _union(spans) / 1e6, spanned / 1e6


def _union(spans: list[tuple[float, float]]) -> float:
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _syncs(engine: Engine, request: RenderRequest) -> tuple[Sync, ...]:
    """Return the lines that made the host wait, most frequent first."""
    if engine.model.device.type != "cuda":
        return ()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.render(request)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return _lines(caught)


def _lines(caught: Iterable[warnings.WarningMessage]) -> tuple[Sync, ...]:
    """Return the lines that torch warned of as waiting, most frequent first."""
    lines = Counter((Path(w.filename), w.lineno) for w in caught if "synchroniz" in str(w.message))
    return tuple(
        Sync(
            f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}:{number}",
            linecache.getline(str(file), number).strip(),
            times,
        )
        for (file, number), times in lines.most_common()
    )


class _Moved(TorchDispatchMode):
    """Counts the numbers that `PRODUCTS` read and write."""

    numbers = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (torch's)
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever it returns)
        del types
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            self.numbers += sum(x.numel() for x in (*args, out) if isinstance(x, torch.Tensor))
        return out


def _work(
    folder: ModelFolder, request: RenderRequest, dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Count what denoising and decoding multiply and add, in TFLOP, and what they move, in GB."""
    unet, vae = build(UNet, folder, "unet"), build(VAE, folder, "vae")
    rows = 1 if request.guidance == 1 else 2
    config = unet.config
    with torch.device("meta"), torch.inference_mode():
        latents = torch.empty(rows, 4, request.height // 8, request.width // 8)
        text = torch.empty(rows, 77, config.cross_attention_dim)
        emb, kv = torch.empty(rows, unet.shift_width), unet.cross_kv(text)
        # The counter of products takes operations apart; ours, inside, sees them whole.
        with FlopCounterMode(display=False) as step, _Moved() as step_moves:
            unet(latents, emb, kv)
        with FlopCounterMode(display=False) as decode, _Moved() as decode_moves:
            vae.decode(latents[:1])

    def all_of(a_step: float, a_decoding: float) -> float:
        return len(request.seeds) * (request.steps_taken * a_step + a_decoding)

    flop = all_of(step.get_total_flops(), decode.get_total_flops())
    moved = all_of(step_moves.numbers, decode_moves.numbers) * dtype.itemsize
    return flop / 1e12, moved / 1e9


def _ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a large product and a large copy, on numbers that are not zeros."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(64 * side * side, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    product = _best_s(lambda: a @ b, device)
    copied = _best_s(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product / 1e12, 2 * source.numel() / copied / 1e9)


def _best_s(run: Any, device: torch.device) -> float:  # noqa: ANN401
    best, begun, tries = float("inf"), perf_counter(), 0
    while tries < LEAST_TRIES or perf_counter() - begun < TRIED_S:
        tries += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, perf_counter() - start)
    return best


def _hints(found: Profile, engine: Engine, request: RenderRequest) -> tuple[Hint, ...]:
    """Return the three changes that would save most, by rules of thumb; see docs/gpu.md."""
    seconds = {stage.stage: stage.seconds for stage in found.stages}
    kinds = {kind.name: kind.seconds for kind in found.kinds}
    model = engine.model
    denoise = seconds.get("denoise", 0.0)
    fewer = request.steps // 5 if request.steps >= MANY_STEPS else 0
    candidates: list[Hint] = [
        Hint(
            denoise * fewer / request.steps,
            f"{fewer} steps fewer than {request.steps}: judge it on your own prompts first",
        )
    ]
    if request.negative_prompt:
        candidates.append(
            Hint(seconds.get("encode", 0.0) / 2, "no negative prompt: one text less to read")
        )
    if model.device.type == "cuda":
        if model.precision == "bf16" and has_fp8(model.device) and request.precision is None:
            candidates.append(
                Hint(kinds.get("conv + linear", 0.0) * 0.28, "--precision fp8: look at its drift")
            )
        if found.gaps_s > 0.1 * found.seconds:
            candidates.append(
                Hint(found.gaps_s, "the device waits for its host: leave graphs on, warm up first")
            )
        if model.vae_precision == "fp32":
            candidates.append(Hint(seconds.get("decode", 0.0) * 0.6, "--vae-precision bf16"))
    else:
        candidates.append(Hint(found.seconds * 0.95, "a GPU"))
        if model.precision == "fp32" and torch.backends.cpu.get_cpu_capability() == "AVX512_BF16":
            candidates.append(Hint(denoise * 0.4, "--precision bf16: this CPU multiplies in it"))
    if request.guidance != 1:
        candidates.append(Hint(denoise * 0.45, "--guidance 1: half the work, and another picture"))
    return _best(candidates)


def _best(hints: Sequence[Hint]) -> tuple[Hint, ...]:
    useful = [hint for hint in hints if hint.saves_s > 0]
    return tuple(sorted(useful, key=lambda hint: -hint.saves_s)[:3])
