"""`packshot shoot`: a product's photograph and a brief in, the product on a new ground on disk out.

`plan_shoot` refuses what can be refused: the files, the product in them, every option, and where
the pictures are to go. `take` then runs the recipe once for each seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.core.errors import CheckFailed, InvalidRequest, OutputError
from packshot.core.ids import new_id
from packshot.core.types import PRECISIONS, VAE_PRECISIONS, Precision, Usage
from packshot.studio import defaults
from packshot.studio.background import ATTEMPTS
from packshot.studio.caption import check_brief
from packshot.studio.encoding import FORMATS
from packshot.studio.loading import load_model
from packshot.studio.models import open_model
from packshot.studio.photo import load_mask, load_photo
from packshot.studio.plan import check_device, one_of, seeds_of
from packshot.studio.recipes.recipe import Recipe, load_recipe
from packshot.studio.recipes.run import by_rules, prepared, run
from packshot.studio.recipes.step import Kept, Shot, Tools
from packshot.studio.recipes.steps import EXTENSIONS
from packshot.studio.store import FORMATS as SUFFIXES
from packshot.studio.store import Target, probe, targets, write_file

if TYPE_CHECKING:
    from packshot.engine.embeddings import EmbeddingCache
    from packshot.engine.folder import ModelFolder
    from packshot.engine.results import OnStep, Progress
    from packshot.studio.render import Booking, Renderer

__all__ = ["QUARANTINE", "Choices", "Shoot", "Taken", "load", "plan_shoot", "take"]

QUARANTINE = "quarantine"
"""The folder beside the pictures that takes a note of each that was refused, and why."""

WHITE_BRIEF = "on pure white"
"""What a white ground is briefed with where nobody says more; it has no words for the light."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a caller may choose; names and sizes as typed, checked by `plan_shoot`.

    ``format`` None follows the output file, or is PNG. ``size`` None keeps the photograph's.
    """

    photo: Path
    brief: str = ""
    mask: Path | None = None
    white: bool = False
    shadow: bool = True
    mode: str = "blend"
    attempts: int = ATTEMPTS
    count: int = 1
    seed: int | None = None
    size: str | None = None
    format: str | None = None
    out: str | None = None
    raw: bool = False
    steps: int = defaults.STEPS
    guidance: float = defaults.GUIDANCE
    negative: str = ""
    sampler: str = defaults.SAMPLER
    schedule: str = defaults.SCHEDULE
    spacing: str | None = None
    model: str = defaults.MODEL
    device: str = "auto"
    precision: str = "auto"
    vae_precision: str = "auto"


@dataclass(frozen=True, slots=True)
class Shoot:
    """A shoot that nothing speaks against; ``folder`` is None where nothing is rendered."""

    recipe: Recipe
    shots: tuple[Shot, ...] = field(repr=False)
    targets: tuple[Target, ...]
    folder: ModelFolder | None
    device: str
    precision: Precision
    vae_precision: Precision
    steps: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a shoot came to: the finished shots with their files, and the reasons of the refused."""

    done: tuple[tuple[Path, Shot], ...]
    refused: tuple[str, ...]

    @property
    def usage(self) -> tuple[Usage, ...]:
        """What the finished pictures consumed."""
        return tuple(part for _, shot in self.done for part in shot.usage)


def plan_shoot(choices: Choices) -> Shoot:
    """Check ``choices``, read the photograph, and find the product in it.

    Raises:
        BadPhoto: the photograph or the mask cannot be used; `MaskNeeded` where a mask is needed.
        InvalidRequest: a choice is out of range, contradicts another, or names what is not there.
        ModelError: the model is missing or broken.
        OutputError: a file cannot be read, or the picture not be written where it should go.
    """
    white = choices.white
    if not white and not choices.brief.strip():
        raise InvalidRequest(
            "the brief is empty; say on what ground and in which light, e.g. "
            '"on wet slate, dramatic side light", or --white'
        )
    brief = check_brief(choices.brief or WHITE_BRIEF)
    if white and choices.count != 1:
        raise InvalidRequest(
            f"{choices.count} pictures were asked for on white, where all are the same: expected 1"
        )
    if not choices.shadow and not white:
        raise InvalidRequest("--no-shadow is for --white: on a ground, a product has a shadow")
    seeds = (choices.seed or 0,) if white else seeds_of(choices.seed, choices.count)
    kind, files = _files(choices, brief, seeds)
    check_device(choices.device)
    precision: Precision = one_of("precision", choices.precision, PRECISIONS)
    vae_precision: Precision = one_of("VAE precision", choices.vae_precision, VAE_PRECISIONS)
    recipe = _recipe(choices, kind)
    photo = load_photo(choices.photo)
    mask = load_mask(choices.mask, photo) if choices.mask else None
    first = Shot(choices.photo.stem, "", brief, 0, photo, mask, choices.size or "")
    prepared(recipe, first)
    folder = None if white else open_model(choices.model)
    for target in files:
        probe(target.path)
    return Shoot(
        recipe=recipe,
        shots=tuple(replace(first, render=new_id(), seed=seed) for seed in seeds),
        targets=files,
        folder=folder,
        device=choices.device,
        precision=precision,
        vae_precision=vae_precision,
        steps=0 if white else choices.steps,
    )


def load(
    shoot: Shoot,
    on_device: Callable[[str], None] | None = None,
    embeddings: EmbeddingCache | None = None,
) -> Renderer:
    """Return the engine for a shoot's model; this is where torch is imported.

    ``on_device`` is told the kind of the device before anything is loaded there; ``embeddings``
    keeps those of texts (`packshot.studio.embeddings`).
    """
    if shoot.folder is None:
        raise InvalidRequest("a shoot on white renders nothing: it needs no engine")
    precisions = (shoot.precision, shoot.vae_precision)
    return load_model(shoot.folder, shoot.device, precisions, on_device, embeddings)


def take(
    shoot: Shoot,
    engine: Renderer | None = None,
    on_step: OnStep | None = None,
    booking: Booking | None = None,
) -> Taken:
    """Take the pictures of a shoot; what a check refuses is noted beside them, and not written.

    ``engine`` is None where nothing is rendered.

    Raises:
        RenderFailed, OutputError, LedgerError: those before it are there, whole.
    """
    done: list[tuple[Path, Shot]] = []
    refused: list[str] = []
    for number, (shot, target) in enumerate(zip(shoot.shots, shoot.targets, strict=True), 1):
        place = _Place(target)
        tools = Tools(
            caption=by_rules(shoot.folder),
            store=place,
            folder=shoot.folder,
            engine=engine,
            on_step=_numbered(on_step, number, len(shoot.shots)),
            vae_precision=shoot.vae_precision,
        )
        try:
            finished = run(shoot.recipe, shot, tools, booking)
        except CheckFailed as error:
            refused.append(f"seed {shot.seed}: {error}")
            _quarantine(target.path, shoot.recipe, shot, str(error))
        else:
            done.append((place.path, finished))
    return Taken(tuple(done), tuple(refused))


def _recipe(choices: Choices, kind: str) -> Recipe:
    """Return the shipped recipe, with what was chosen."""
    file = {"finish.format": one_of("format", kind, ("png", "jpeg", "webp"))}
    if choices.white:
        recipe = load_recipe("white-background").changed(file)
        steps = (step for step in recipe.steps if choices.shadow or step.name != "shadow")
        return replace(recipe, steps=tuple(steps))
    ground = {
        "mode": one_of("mode", choices.mode, ("blend", "ground")),
        "attempts": choices.attempts,
        "raw": choices.raw,
        "steps": choices.steps,
        "guidance": choices.guidance,
        "negative": choices.negative,
        "sampler": choices.sampler,
        "schedule": choices.schedule,
        "spacing": choices.spacing,
    }
    chosen = {f"background.{name}": value for name, value in ground.items()}
    return load_recipe("background").changed(file | chosen)


def _files(choices: Choices, brief: str, seeds: Sequence[int]) -> tuple[str, tuple[Target, ...]]:
    """Return the format, and the file of each seed."""
    label = f"{choices.photo.stem} {brief}"
    files = targets(choices.out, label, seeds)
    named = choices.out and files[0].overwrite  # the caller said the file's name, and so its format
    if choices.format is None:
        kind = SUFFIXES[files[0].path.suffix.lower()].lower() if named else "png"
        return kind, files
    kind = one_of("format", choices.format, tuple(FORMATS))
    if not named:
        ending = EXTENSIONS[FORMATS[kind]]
        return kind, tuple(Target(file.path.with_suffix(ending), file.overwrite) for file in files)
    if SUFFIXES[files[0].path.suffix.lower()] != FORMATS[kind]:
        raise InvalidRequest(f"--format {kind} contradicts --out {choices.out}: leave out one")
    return kind, files


class _Place:
    """A store of one file: the target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.path = target.path

    def put(self, data: bytes, name: str, /) -> Kept:
        """Write the file under the target's name, whatever ``name`` is."""
        del name

        self.path = write_file(data, self._target)
        return Kept(str(self.path), hashlib.sha256(data).hexdigest(), len(data))


def _numbered(on_step: OnStep | None, number: int, pictures: int) -> OnStep | None:
    if on_step is None:
        return None

    def tell(progress: Progress) -> None:
        on_step(replace(progress, picture=number, pictures=pictures))

    return tell


def _quarantine(path: Path, recipe: Recipe, shot: Shot, reason: str) -> None:
    """Leave a note of a refused picture: what was asked for, and what was wrong with it."""
    note: dict[str, Any] = {
        "photo": shot.photo.name if shot.photo else "",
        "photo_sha256": shot.photo.sha256 if shot.photo else "",
        "brief": shot.brief,
        "seed": shot.seed,
        "render": shot.render,
        "reason": reason,
        "recipe": recipe.facts(),
    }
    place = path.parent / QUARANTINE / f"{path.stem}.json"
    try:
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror}") from error
