"""What a worker does with an item: the steps of the recipe, up to a file in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import NOTHING_READ, EmbeddingUse, Usage
from packshot.engine.buckets import Size, buckets_of
from packshot.studio.batch.renders import KeptRenders
from packshot.studio.batch.spool import Spool
from packshot.studio.batch.state import Made
from packshot.studio.batch.worker import Job, Performer, Rest
from packshot.studio.caption import Caption
from packshot.studio.embeddings import EmbeddingSettings, KeptEmbeddings, open_embeddings
from packshot.studio.loading import load_model
from packshot.studio.models import open_model
from packshot.studio.recipes.recipe import Recipe
from packshot.studio.recipes.registry import known_steps
from packshot.studio.recipes.run import begun, by_rules
from packshot.studio.recipes.step import CaptionWriter, Shot, Tools
from packshot.studio.recipes.steps import Render, finished_size, rendered_at
from packshot.studio.record import code_mark

if TYPE_CHECKING:
    from packshot.engine.results import Progress
    from packshot.studio.render import Renderer

__all__ = ["FACTORY", "Settings", "load", "recipe_of", "with_engine"]

FACTORY = "packshot.studio.batch.perform:load"
KEPT = EmbeddingSettings()


class Settings(msgspec.Struct, frozen=True):
    """What a worker is told: the recipe with all its parameters, the engine's choices, which
    embeddings of texts are kept, and the sizes to render at (`buckets_of` takes them).

    ``sizes`` are those that the items ask for, "" for the recipe's own: the worker is warm for
    them, or, where None are told, for all.
    """

    recipe: dict[str, Any]
    model: str = ""
    device: str = "auto"
    precision: str = "auto"
    vae_precision: str = "auto"
    embeddings: EmbeddingSettings = KEPT
    buckets: tuple[Size, ...] | None = None
    sizes: tuple[str, ...] | None = None


def load(settings: dict[str, Any], folder: Path, on_device: Callable[[str], None]) -> Performer:
    """Return what makes pictures; a `packshot.studio.batch.worker.Factory`.

    Raises:
        InvalidRequest: a step of the recipe is not installed any more.
        ModelError: the model is missing or broken.
    """
    told = msgspec.convert(settings, Settings)
    recipe = recipe_of(told.recipe)
    tools, kept = Tools(by_rules(None), store=Spool(folder)), None
    if "engine" in recipe.needs:
        kept = open_embeddings(told.embeddings)
        tools = _with_engine(tools, recipe, told, on_device, kept)
        tools = replace(tools, engine=_keeping(tools, told, folder))
    else:
        on_device("cpu")
    return _Studio(recipe, tools, kept)


def with_engine(settings: dict[str, Any], folder: Path, engine: Renderer) -> Performer:
    """Return what makes pictures with an ``engine`` that is there already: a hosted provider's.

    Raises:
        InvalidRequest, ModelError: as for `load`.
    """
    told = msgspec.convert(settings, Settings)
    tools = Tools(by_rules(None), store=Spool(folder))
    recipe = recipe_of(told.recipe)
    if "engine" in recipe.needs:
        model = open_model(told.model)
        tools = replace(
            tools, caption=by_rules(model), folder=model, engine=engine, buckets=told.buckets
        )
    return _Studio(recipe, tools, None)


def recipe_of(facts: Mapping[str, Any]) -> Recipe:
    """Return the recipe whose `Recipe.facts` these are, its variants apart: they were made before.

    Raises:
        InvalidRequest: a step is not installed, or is of another version.
    """
    steps: list[Any] = []
    for row in facts["steps"]:
        kind = known_steps().get(row["step"])
        if kind is None or kind.version != row["version"]:
            raise InvalidRequest(
                f"the batch was planned with version {row['version']} of the step {row['step']}, "
                f"and there is {kind.version if kind else 'none'}: plan it again"
            )
        steps.append(msgspec.convert(row["with"], kind))
    return Recipe(facts["name"], facts["version"], "", tuple(steps))


def _with_engine(
    tools: Tools,
    recipe: Recipe,
    told: Settings,
    on_device: Callable[[str], None],
    kept: KeptEmbeddings | None,
) -> Tools:
    folder = open_model(told.model)
    precisions: Any = (told.precision, told.vae_precision)  # checked when the batch was planned
    engine = load_model(folder, told.device, precisions, on_device, kept)
    engine.warm(_warmed(recipe, told, engine.default_size))
    return replace(
        tools,
        caption=by_rules(folder),
        folder=folder,
        engine=engine,
        vae_precision=told.vae_precision,
        buckets=told.buckets,
    )


def _warmed(recipe: Recipe, told: Settings, native: Size) -> tuple[Size, ...]:
    """Return the sizes that the items are rendered at: a ground always at the model's own."""
    buckets = buckets_of(native, told.buckets)
    if told.sizes is None:
        return buckets or (native,)
    made: dict[Size, None] = {}
    for step in recipe.steps:
        if step.name == Render.name:
            own = finished_size(told.recipe)
            asked = [rendered_at(size or own, native, buckets) for size in told.sizes]
            made |= dict.fromkeys(size for _, size in asked)
        elif "engine" in step.needs:
            made[native] = None
    return tuple(made)


def _keeping(tools: Tools, told: Settings, run: Path) -> Renderer:
    """Return the engine with what it made kept: another finish has nothing rendered anew."""
    engine, folder = tools.renderer()
    about = (folder.fingerprint, engine.device_kind, told.precision, told.vae_precision)
    return KeptRenders(engine, run, f"{about} {code_mark().fingerprint}")


@dataclass(frozen=True, slots=True)
class _Studio:
    recipe: Recipe
    tools: Tools
    kept: KeptEmbeddings | None

    def __call__(self, job: Job, /) -> Made:
        return self.begin(job)()

    def begin(self, job: Job, /) -> Rest:
        """Do what needs the engine; see `packshot.studio.batch.worker.Divided`."""
        item, before = job.item, self._read()

        def on_step(_: Progress) -> None:
            job.step()

        shot = Shot(item.id, job.render, item.brief, item.seed, size=item.size)
        shot = _with_photo(shot, item.photo, item.mask)
        tools = replace(self.tools, on_step=on_step)
        if job.caption:
            tools = replace(tools, caption=_as_written(job.caption))
        recipe = self.recipe.changed(item.parameters)
        rest = begun(recipe, shot, tools, _Meter(job), lambda _: job.step())
        read = self._read() - before
        return lambda: _made(job, rest(), recipe, read)

    def _read(self) -> EmbeddingUse:
        return NOTHING_READ if self.kept is None else self.kept.total


def _made(job: Job, done: Shot, recipe: Recipe, read: EmbeddingUse) -> Made:
    if done.kept is None:
        raise InvalidRequest(f"the recipe {recipe.name} has no step that stores a file")
    return Made(
        job.render,
        done.kept.key,
        _name_of(done, done.kept.key),
        done.kept.sha256,
        done.kept.size,
        job.item.seed,
        done.caption.text if done.caption else "",
        _facts(done),
        done.warnings,
        read,
        tuple(job.tags),
    )


def _facts(shot: Shot) -> dict[str, Any]:
    """Return what the manifest has of a picture: what the steps found, and who made it instead."""
    hosted = shot.record.hosted if shot.record else None
    return {**shot.facts, "hosted": asdict(hosted)} if hosted else dict(shot.facts)


def _name_of(shot: Shot, key: str) -> str:
    from packshot.studio.store import slug

    return f"{slug(shot.brief or shot.id)}-{shot.seed}{Path(key).suffix}"


def _with_photo(shot: Shot, photo: str, mask: str) -> Shot:
    """Return the shot with the item's photograph and mask, read with suspicion."""
    if not photo:
        return shot
    from packshot.studio.batch.photos import name_of, read_place
    from packshot.studio.photo import load_mask, load_photo

    loaded = load_photo(read_place(photo), name_of(photo))
    shot = replace(shot, photo=loaded)
    if not mask:
        return shot
    return replace(shot, mask=load_mask(read_place(mask), loaded, name_of(mask)))


def _as_written(content: bytes) -> CaptionWriter:
    """Return a writer that has written already, and booked it."""
    caption = msgspec.msgpack.decode(content, type=Caption)

    def write(brief: str, render: str, /, *, raw: bool = False) -> tuple[Caption, Usage]:
        del brief, render, raw
        return caption, Usage("caption", 0.0, "cpu")

    return write


class _Meter:
    """A `packshot.studio.render.Booking` that tells what was used, and the tags of its rows, for
    the run to book.

    The file in the run's folder is no delivery: what storing takes is booked when it is stored.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    @contextmanager
    def booked(
        self,
        models: Sequence[str],
        meter: list[Usage],
        delivered: Sized,
        renders: Sequence[str],
        *,
        tags: Sequence[str] = (),
    ) -> Generator[None]:
        del models, delivered, renders
        self._job.tags += tags
        try:
            yield
        finally:
            self._job.usage += [part for part in meter if part.stage != "store"]
