"""From what a caller chose to a plan: what can be refused is refused here, before torch loads."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

from packshot.core.errors import InvalidRequest, ModelError, ModelNotFound, unknown_name
from packshot.core.ids import new_id
from packshot.core.types import (
    PRECISIONS,
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    VAE_PRECISIONS,
    Precision,
    RenderRequest,
    Spacing,
    Usage,
)
from packshot.engine.buckets import Size, buckets_of, nearest
from packshot.engine.folder import ModelFolder
from packshot.engine.limits import MAX_PICTURES, MAX_SEED, default_size, validate
from packshot.studio import defaults
from packshot.studio.caption import Caption, caption_brief, check_brief, check_length
from packshot.studio.finish import DEFAULT_SHARPEN, Sharpen, parse_size
from packshot.studio.lexicon import load_lexicon
from packshot.studio.models import PACKAGED, open_model
from packshot.studio.original import Source, Start, open_start, start_again
from packshot.studio.record import Record, code_mark, library_versions
from packshot.studio.store import Target, probe, targets

__all__ = [
    "Options",
    "Plan",
    "Sampling",
    "captioned",
    "draw_seed",
    "plan",
    "plan_like",
    "request_of",
    "seeds_of",
    "size_warning",
]

RANDOM_SEEDS = 2**32
"""Seeds that we draw are below it: short enough to read out, and what most tools accept."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose; names and sizes as typed, checked by `plan`.

    ``seed`` None draws one. ``size`` None keeps the model's own. ``out`` is a file, a folder, or
    None for ``out/``. ``sharpen`` None leaves the unsharp mask away. ``image`` is a file to start
    from, ``mask`` one that marks in white what may change of it, ``strength`` how much (0 to 1,
    None for that of `defaults`). ``buckets`` are sizes to render at, as
    `packshot.engine.buckets.buckets_of` takes them. ``graphs`` and ``invariant`` are for GPUs:
    whether steps are captured, and whether a seed is to give the same bits in company as alone;
    ``fine_texture`` keeps from eight bits what shows cloth and the like.
    """

    brief: str
    count: int = 1
    seed: int | None = None
    size: str | None = None
    steps: int = defaults.STEPS
    guidance: float = defaults.GUIDANCE
    negative: str = ""
    sampler: str = defaults.SAMPLER
    schedule: str = defaults.SCHEDULE
    spacing: str | None = None
    model: str = defaults.MODEL
    precision: str = "auto"
    vae_precision: str = "auto"
    graphs: bool = True
    invariant: bool = False
    fine_texture: bool = False
    device: str = "auto"
    out: str | None = None
    raw: bool = False
    strict: bool = False
    sharpen: Sharpen | None = DEFAULT_SHARPEN
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None
    buckets: tuple[Size, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A render that nothing speaks against.

    ``usage`` is what the caption took to make; ``threads`` None leaves the CPU as torch sets it.
    """

    brief: str
    raw: bool
    caption: Caption
    request: RenderRequest
    size: tuple[int, int]
    sharpen: Sharpen | None
    targets: tuple[Target, ...]
    folder: ModelFolder = field(repr=False)
    precision: Precision
    vae_precision: Precision
    graphs: bool
    invariant: bool
    device: str
    usage: Usage
    warnings: tuple[str, ...] = ()
    threads: int | None = None
    renders: tuple[str, ...] = ()
    """The pictures' ids in the ledger, one for each seed."""
    source: Source | None = None
    """The files that the request's original came from."""


def plan(options: Options, folder: ModelFolder | None = None) -> Plan:
    """Check ``options`` and work out everything that follows from them.

    ``folder`` is the model where the caller has opened it already; ``options.model`` is not read.

    Raises:
        InvalidRequest: a choice is out of range or names something that does not exist.
        UnknownConcept: ``strict``, and the model was not shown the brief's product.
        BadPhoto: the picture to start from, or its mask, is none that can be used.
        ModelError: the model is missing, broken, or holds a pickle.
        OutputError: the picture could not be written where it should go, or a file not read.
    """
    brief = check_brief(options.brief)
    seeds = seeds_of(options.seed, options.count)
    files = targets(options.out, brief, seeds)
    precision: Precision = one_of("precision", options.precision, PRECISIONS)
    vae_precision: Precision = one_of("VAE precision", options.vae_precision, VAE_PRECISIONS)
    check_device(options.device)
    asked = request_of(options, brief, seeds)
    folder = folder or open_model(options.model)
    native = default_size(folder)
    size = parse_size(options.size, native) if options.size else native
    buckets = buckets_of(native, options.buckets)
    made = nearest(size, native, buckets)
    caption, usage = captioned(brief, folder, raw=options.raw, strict=options.strict)
    start = open_start(options.image, options.mask, options.strength, made)
    request = replace(asked, prompt=caption.text, width=made[0], height=made[1])
    request = replace(_started(request, start), fine_texture=options.fine_texture)
    validate(request)
    for target in files:
        probe(target.path)
    return Plan(
        brief=brief,
        raw=options.raw,
        caption=caption,
        request=request,
        size=size,
        sharpen=options.sharpen,
        targets=files,
        folder=folder,
        precision=precision,
        vae_precision=vae_precision,
        graphs=options.graphs,
        invariant=options.invariant,
        device=options.device,
        usage=usage,
        warnings=(*caption.warnings, *_told(start), *size_warning(made, size, buckets)),
        renders=_ids(seeds),
        source=start.source if start else None,
    )


def plan_like(
    record: Record,
    *,
    model: str | None,
    out: str | None,
    image: Path | None = None,
    mask: Path | None = None,
) -> Plan:
    """Return the plan that makes the picture of ``record`` again, with the same bits.

    ``image`` and ``mask`` are the files that it started from, where it did: the record has their
    names and hashes only. ``model`` None takes the packaged model of the record's name. What else
    decides the bits and has changed since (our source, a library) is a warning.

    Raises:
        ModelError: the model is missing, or is not the one that made the picture.
        InvalidRequest: the record asks for what cannot be done; it was tampered with. Or the files
            are not those that it started from.
        BadPhoto, OutputError: as for `plan`.
    """
    if record.hosted is not None:
        raise InvalidRequest(
            f"the picture was made by {record.model.name}, a hosted provider, and cannot be made "
            "again here; render its brief anew"
        )
    if model is None and record.model.name not in PACKAGED:
        raise ModelNotFound(
            f"the picture was made by {record.model.name!r}, which is not one of the packaged "
            f"models ({', '.join(PACKAGED)}). Give --model its folder"
        )
    folder = open_model(model or record.model.name)
    if folder.fingerprint != record.model.fingerprint:
        raise ModelError(
            f"the picture was made by {record.model.name} {record.model.version} "
            f"({record.model.fingerprint[:12]}); {folder.path} is {folder.name} {folder.version} "
            f"({folder.fingerprint[:12]}). Give --model the folder that made it"
        )
    start = start_again(record.source, image, mask, (record.width, record.height))
    request = _started(_recorded(record), start)
    validate(request)
    check_device(record.device)
    files = targets(out, record.brief, request.seeds)
    probe(files[0].path)
    return Plan(
        brief=record.brief,
        raw=record.raw,
        caption=Caption(record.caption, None, writer=record.writer),
        request=request,
        size=parse_size(f"{record.size[0]}x{record.size[1]}", default_size(folder)),
        sharpen=record.sharpen,
        targets=files,
        folder=folder,
        precision=record.precision,
        vae_precision=record.vae_precision,
        graphs=True,
        invariant=False,
        device=record.device,
        usage=Usage("caption", 0.0, "cpu"),
        warnings=(*_told(start), *_drift(record)),
        threads=record.threads,
        renders=_ids(request.seeds),
        source=start.source if start else None,
    )


N = TypeVar("N", bound=str)


def one_of(what: str, got: str, valid: tuple[N, ...]) -> N:
    """Return ``got`` as one of the ``valid`` names; `InvalidRequest` names the nearest if not."""
    for name in valid:
        if name == got:
            return name
    raise unknown_name(what, got, valid)


class Sampling(Protocol):
    """How a picture is denoised, by the names that a caller types; `Options` is one."""

    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def negative(self) -> str: ...
    @property
    def sampler(self) -> str: ...
    @property
    def schedule(self) -> str: ...
    @property
    def spacing(self) -> str | None: ...


def request_of(
    chosen: Sampling, prompt: str, seeds: tuple[int, ...], size: tuple[int, int] = (512, 512)
) -> RenderRequest:
    """Return the request for pictures of ``size``, the model's own, checked.

    Raises:
        InvalidRequest: a number is out of range, or a name unknown.
    """
    check_length("negative prompt", chosen.negative)
    request = RenderRequest(
        prompt=prompt,
        seeds=seeds,
        width=size[0],
        height=size[1],
        steps=chosen.steps,
        guidance=chosen.guidance,
        negative_prompt=chosen.negative,
        sampler=one_of("sampler", chosen.sampler, SAMPLERS),
        schedule=one_of("schedule", chosen.schedule, SCHEDULES),
        spacing=_spacing(chosen.spacing),
    )
    validate(request)
    return request


def _recorded(record: Record) -> RenderRequest:
    return RenderRequest(
        prompt=record.caption,
        seeds=(record.seed,),
        width=record.width,
        height=record.height,
        steps=record.steps,
        guidance=record.guidance,
        negative_prompt=record.negative,
        sampler=record.sampler,
        schedule=record.schedule,
        spacing=record.spacing,
    )


def _started(request: RenderRequest, start: Start | None) -> RenderRequest:
    return request if start is None else replace(request, original=start.original)


def _told(start: Start | None) -> tuple[str, ...]:
    return start.warnings if start else ()


def check_device(name: str) -> None:
    """Raise `InvalidRequest` for what is no device; whether it is there, only torch can tell."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name, re.ASCII) is None:
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0"))


def _spacing(name: str | None) -> Spacing | None:
    if name is None:
        return None
    known: Spacing = one_of("spacing", name, SPACINGS)
    return known


def draw_seed() -> int:
    """Return a seed that nobody chose."""
    return secrets.randbelow(RANDOM_SEEDS)


def seeds_of(seed: int | None, count: int) -> tuple[int, ...]:
    """Return ``count`` seeds from ``seed`` on, None draws it; `InvalidRequest` if out of range."""
    if not 1 <= count <= MAX_PICTURES:
        raise InvalidRequest(f"{count} pictures were asked for, expected 1 to {MAX_PICTURES}")
    first = draw_seed() if seed is None else seed
    if not 0 <= first <= MAX_SEED - count + 1:
        raise InvalidRequest(f"seed is {first}, expected 0 to {MAX_SEED - count + 1}")
    return tuple(range(first, first + count))


def _ids(seeds: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(new_id() for _ in seeds)


def captioned(brief: str, folder: ModelFolder, *, raw: bool, strict: bool) -> tuple[Caption, Usage]:
    """Return the caption that the rules write of a brief, and what that took."""
    start = perf_counter()
    caption = caption_brief(brief, load_lexicon(folder.lexicon_path), raw=raw, strict=strict)
    return caption, Usage("caption", perf_counter() - start, "cpu")


def size_warning(made: Size, wanted: Size, buckets: tuple[Size, ...]) -> tuple[str, ...]:
    """Say what a picture that is ``made`` at one size loses on the way to the ``wanted`` one.

    Where there are ``buckets``, also that it is made at another size at all.
    """
    ours, theirs = ("x".join(map(str, size)) for size in (made, wanted))
    same_shape = made[0] * wanted[1] == made[1] * wanted[0]
    if buckets and made != wanted:
        cut = "" if same_shape else ", its margins cut off"
        return (f"{theirs} is rendered as {ours}{cut}, and resized",)
    return (
        () if same_shape else (f"the model renders {ours}; its margins are cut off for {theirs}",)
    )


def _drift(record: Record) -> list[str]:
    """Name what the bits depend on and has changed since ``record`` was written."""
    changed: list[str] = []
    code = code_mark()
    if code.fingerprint != record.code.fingerprint:
        changed.append(f"packshot {record.code.version} ({record.code.fingerprint})")
    here = library_versions()
    changed += [f"{name} {v}" for name, v in record.libraries.items() if here.get(name) != v]
    if not changed:
        return []
    return [f"the picture was made with {', '.join(changed)}; the bits may differ here"]
