"""Running a recipe: each step in its turn, every stage booked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from packshot.core.types import Usage
from packshot.studio.caption import caption_brief
from packshot.studio.lexicon import load_lexicon
from packshot.studio.recipes.recipe import Recipe
from packshot.studio.recipes.step import CaptionWriter, OnStage, Preparing, Shot, Step, Tools

if TYPE_CHECKING:
    from packshot.engine.folder import ModelFolder
    from packshot.studio.caption import Caption
    from packshot.studio.render import Booking

__all__ = ["begun", "by_rules", "prepared", "run"]


def run(
    recipe: Recipe,
    shot: Shot,
    tools: Tools,
    booking: Booking | None = None,
    on_stage: OnStage | None = None,
) -> Shot:
    """Return ``shot`` with every step of ``recipe`` done, each booked under its stage.

    First the steps that can (`Preparing`) look at what they are given: what they refuse costs
    nothing, and what they say of it are tags of the ledger's rows.

    ``booking`` None books nothing. A step that raises ends the run; what was used before it, and by
    it, is booked as waste.

    Raises:
        PackshotError: whatever a step raises (`Step.__call__`).
        LedgerError: ``booking`` refused the picture before it began.
    """
    return begun(recipe, shot, tools, booking, on_stage)()


def begun(
    recipe: Recipe,
    shot: Shot,
    tools: Tools,
    booking: Booking | None = None,
    on_stage: OnStage | None = None,
) -> Callable[[], Shot]:
    """Do of `run` what the engine is needed for, and return what does the rest.

    It is to be called once, in any thread: the engine may be used for another shot meanwhile. A
    recipe that renders nothing is done whole.
    """
    tools = replace(tools, recipe=recipe.facts())
    meter: list[Usage] = []
    delivered: list[Shot] = []
    model = tools.folder.name if tools.folder else ""

    def through(shot: Shot, steps: Iterable[Step]) -> Shot:
        for step in steps:
            if on_stage is not None:
                on_stage(step.name)
            done = step(shot, tools)
            meter.extend(done.usage[len(shot.usage) :])
            shot = done
        return shot

    tags = prepared(recipe, shot)
    with ExitStack() as opened:
        if booking:
            opened.enter_context(
                booking.booked([model], meter, delivered, [shot.render], tags=tags)
            )
        last = _last_on_device(recipe)
        rendered = through(shot, recipe.steps[:last])
        books = opened.pop_all()

    def rest() -> Shot:
        with books:
            done = through(rendered, recipe.steps[last:])
            delivered.append(done)
        return done

    return rest


def _last_on_device(recipe: Recipe) -> int:
    """Return how many steps there are up to the last that needs the engine; all, if none does."""
    places = [place for place, step in enumerate(recipe.steps, 1) if "engine" in step.needs]
    return max(places, default=len(recipe.steps))


def prepared(recipe: Recipe, shot: Shot) -> tuple[str, ...]:
    """Return the tags that the steps give a picture's rows in the ledger, sorted, each once.

    Raises:
        InvalidRequest: what is given cannot be used; nothing has been paid for.
    """
    steps = (step for step in recipe.steps if isinstance(step, Preparing))
    return tuple(sorted({tag for step in steps for tag in step.prepare(shot)}))


def by_rules(folder: ModelFolder | None, *, strict: bool = False) -> CaptionWriter:
    """Return who writes captions by the rules, with the lexicon of the model in ``folder``.

    With ``strict`` a product that the model was not shown is `UnknownConcept`.
    """
    lexicon = load_lexicon(folder.lexicon_path) if folder else None

    def write(brief: str, render: str, /, *, raw: bool = False) -> tuple[Caption, Usage]:
        del render  # the rules book nothing
        start = perf_counter()
        caption = caption_brief(brief, lexicon, raw=raw, strict=strict)
        return caption, Usage("caption", perf_counter() - start, "cpu")

    return write
