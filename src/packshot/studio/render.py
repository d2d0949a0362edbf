"""The main path: a plan and an engine in, finished pictures on disk out, every stage metered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import msgspec

from packshot.core.types import (
    NOTHING_READ,
    STAGES,
    EmbeddingUse,
    Precision,
    RenderRequest,
    Stage,
    Usage,
)
from packshot.studio.caption import Caption
from packshot.studio.finish import Sharpen, finish
from packshot.studio.loading import load_model
from packshot.studio.plan import Plan
from packshot.studio.record import Hosted, Maker, Record, code_mark, library_versions, metadata
from packshot.studio.store import format_of, write_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from packshot.engine.embeddings import EmbeddingCache
    from packshot.engine.folder import ModelFolder
    from packshot.engine.results import OnStep, RenderResult

__all__ = [
    "Booking",
    "Delivery",
    "Origin",
    "Renderer",
    "Stored",
    "finished",
    "load_engine",
    "metered",
    "record_of",
    "render",
    "total",
]


class Renderer(Protocol):
    """What the studio asks of an engine; `packshot.engine.engine.Engine` is one."""

    @property
    def device_kind(self) -> str:
        """What its device is called where prices are: "cpu", "h100"."""
        ...

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> RenderResult:
        """Return one picture per seed, telling ``on_step`` of each step."""
        ...


class Origin(Protocol):
    """What a picture was made from: a `Plan` is one."""

    @property
    def brief(self) -> str: ...
    @property
    def raw(self) -> bool:
        """Whether the brief itself was the caption."""
        ...

    @property
    def caption(self) -> Caption: ...
    @property
    def folder(self) -> ModelFolder: ...
    @property
    def vae_precision(self) -> Precision: ...


class Booking(Protocol):
    """Who is told of what a render uses; `packshot.studio.booking.Bookkeeper` is one."""

    def booked(
        self,
        models: Sequence[str],
        meter: list[Usage],
        delivered: Sized,
        renders: Sequence[str],
        *,
        tags: Sequence[str] = (),
    ) -> AbstractContextManager[None]:
        """Book what happens inside: a picture for each of ``models``, what ``meter`` then holds.

        ``renders`` are the pictures' ids in the ledger, ``tags`` what its rows are tagged with.

        What is raised inside comes out again; pictures beyond ``delivered`` then count as waste.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """One finished picture on disk."""

    path: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """The pictures of a plan, what each stage consumed (once per stage), and what to tell the user.

    ``device`` and ``precision`` are those that were used, where the plan said "auto"; ``hosted``
    has who made each picture, where a hosted provider did; ``embeddings`` says how many texts the
    cache had, and what that saved.
    """

    pictures: tuple[Stored, ...]
    usage: tuple[Usage, ...]
    warnings: tuple[str, ...]
    device: str
    precision: Precision
    hosted: tuple[Hosted, ...] = ()
    embeddings: EmbeddingUse = NOTHING_READ


def load_engine(
    plan: Plan,
    on_device: Callable[[str], None] | None = None,
    embeddings: EmbeddingCache | None = None,
) -> Renderer:
    """Return the engine for a plan's model, whose folder is not checked a second time.

    This is where torch is imported, and not before. ``on_device`` is told the kind of the device
    before anything is loaded there; what it raises comes out. ``embeddings`` keeps those of texts
    (`packshot.studio.embeddings`).
    """
    if plan.threads is not None:
        from packshot.engine.threads import use_threads

        use_threads(plan.threads)
    return load_model(
        plan.folder,
        plan.device,
        (plan.precision, plan.vae_precision),
        on_device,
        embeddings,
        graphs=plan.graphs,
        invariant=plan.invariant,
    )


def render(
    plan: Plan, engine: Renderer, on_step: OnStep | None = None, booking: Booking | None = None
) -> Delivery:
    """Make the pictures of ``plan`` and put them where it says; ``booking`` None books nothing.

    Raises:
        RenderFailed: the network produced no picture.
        OutputError: a file could not be written; those before it are there, whole.
        LedgerError: ``booking`` refused the render before it began.
    """
    from PIL.Image import fromarray

    from packshot.studio.hosted import HostedResult

    meter = [plan.usage]
    stored: list[Stored] = []
    models = [plan.folder.name] * len(plan.targets)
    with booking.booked(models, meter, stored, plan.renders) if booking else nullcontext():
        result = engine.render(plan.request, on_step=on_step)
        meter += result.usage
        made = zip(result.images, plan.request.seeds, plan.targets, strict=True)
        for pixels, seed, target in made:
            picture = finished(fromarray(pixels), plan.size, plan.sharpen, meter)
            record = replace(
                record_of(plan, result, seed),
                size=plan.size,
                sharpen=plan.sharpen,
                source=plan.source,
            )
            with metered(meter, "store"):
                extra = metadata(format_of(target.path), record, plan.brief)
                stored.append(Stored(write_picture(picture, target, extra), seed))
    warnings = (*plan.warnings, *result.warnings)
    hosted = result.hosted if isinstance(result, HostedResult) else ()
    return Delivery(
        pictures=tuple(stored),
        usage=total(meter),
        warnings=warnings,
        device=result.device,
        precision=result.precision,
        hosted=hosted,
        embeddings=result.embeddings,
    )


def record_of(origin: Origin, result: RenderResult, seed: int) -> Record:
    """Return the record of the picture of ``seed``, as the engine made it: not yet finished."""
    from packshot.studio.hosted import HostedResult

    if isinstance(result, HostedResult):
        return result.record(origin, seed)
    from packshot.engine.threads import thread_count

    done = result.request
    return Record(
        brief=origin.brief,
        caption=done.prompt,
        raw=origin.raw,
        negative=done.negative_prompt,
        seed=seed,
        width=done.width,
        height=done.height,
        steps=done.steps,
        guidance=done.guidance,
        sampler=done.sampler,
        schedule=done.schedule,
        spacing=done.spacing or "leading",
        precision=result.precision,
        vae_precision=origin.vae_precision,
        device=result.device.partition(":")[0],
        threads=thread_count(),
        size=(done.width, done.height),
        sharpen=None,
        model=Maker(origin.folder.name, origin.folder.version, origin.folder.fingerprint),
        code=code_mark(),
        libraries=library_versions(),
        writer=origin.caption.writer,
    )


def finished(
    picture: Image, size: tuple[int, int], sharpen: Sharpen | None, meter: list[Usage]
) -> Image:
    """Return a picture at its final size and sharpness, with the time noted in ``meter``."""
    with metered(meter, "finish", size[0] * size[1]):
        return finish(picture, size, sharpen)


@contextmanager
def metered(meter: list[Usage], stage: Stage, pixels: int = 0) -> Generator[None]:
    """Add to ``meter`` the time that the block takes on this machine's CPU."""
    start = perf_counter()
    yield
    meter.append(Usage(stage, perf_counter() - start, "cpu", pixels=pixels))


def total(meter: Iterable[Usage]) -> tuple[Usage, ...]:
    """Return one `Usage` per stage, in the order of a render, with sums over the pictures."""
    sums: dict[Stage, Usage] = {}
    for part in meter:
        before = sums.get(part.stage)
        sums[part.stage] = (
            part
            if before is None
            else msgspec.structs.replace(
                before,
                seconds=before.seconds + part.seconds,
                steps=before.steps + part.steps,
                pixels=before.pixels + part.pixels,
                stored_bytes=before.stored_bytes + part.stored_bytes,
                requests=before.requests + part.requests,
            )
        )
    return tuple(sums[stage] for stage in STAGES if stage in sums)
