"""From a table of items to a plan of works: everything that can be refused is refused here.

A work is the fingerprint of all that decides a picture: the item, the photograph's content, the
recipe with the item's own parameters, and the model. Where neither the table nor any of these has
changed since the last plan, nothing is read again: the run goes on at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from packshot.core.clock import wall_us
from packshot.core.errors import InvalidRequest, OutputError
from packshot.ledger.reports.forecast import ENOUGH, Forecast, forecast
from packshot.ledger.reports.period import period_of
from packshot.ledger.settings import state_folder
from packshot.ledger.stores.base import Store as LedgerStore
from packshot.studio.batch.items import Item, Value, read_items
from packshot.studio.batch.photos import Photos
from packshot.studio.batch.state import RunState
from packshot.studio.finish import parse_size
from packshot.studio.objects import is_address
from packshot.studio.recipes.recipe import Recipe
from packshot.studio.recipes.step import Shot

__all__ = ["Source", "foretold", "plan_batch", "run_folder", "sizes_of"]

LOOKED_AT = 10_000
"""Works whose sizes a worker is warm for; another size is prepared when it first comes."""

OWN_SIZE = "finish.size"
"""The parameter by which an item has a size of its own, beside its column."""

FORMAT = "1"
"""Of plans; another number has everything planned anew."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a batch is made of: a table of items, a recipe, and the fingerprint of the model.

    ``captions`` is who writes them, "rules" or a route: it decides the pictures, too.
    """

    items: Path
    recipe: Recipe
    model: str = ""
    captions: str = "rules"

    @property
    def wants_briefs(self) -> bool:
        """Whether every item has to say something."""
        says = any("caption" in step.gives for step in self.recipe.steps)
        return says and not self.recipe.variants.grounds


def run_folder(out: str) -> Path:
    """Return where the state of the batch that goes to ``out`` is kept: in it, or, where that is a
    bucket, in this user's own folder.
    """
    if not is_address(out):
        return Path(out).expanduser().absolute() / ".packshot-batch"
    name = hashlib.sha256(out.rstrip("/").encode()).hexdigest()[:16]
    return state_folder() / "batches" / name


def plan_batch(state: RunState, source: Source) -> bool:
    """Have the plan of ``state`` be that of ``source``; return whether it had to be made.

    Raises:
        InvalidRequest, OutputError: the table, or items in it, cannot be used; the plan that was is
            still in force.
    """
    _check_recipe(source)
    mark = _mark_of(source)
    photos = Photos(state)
    if state.plan and state.noted("source") == mark and not photos.changed():
        return False
    state.replan(_rows(source, photos), mark)
    return True


def sizes_of(state: RunState) -> tuple[str, ...]:
    """Return the sizes that the next `LOOKED_AT` works ask for, each once; "" is the recipe's."""
    items = (todo.item for todo in islice(state.waiting("todo"), LOOKED_AT))
    return tuple(
        dict.fromkeys(str(item.size or item.parameters.get(OWN_SIZE, "")) for item in items)
    )


def foretold(store: LedgerStore, left: int, recipe: str, batch: str) -> Forecast | None:
    """Return what ``left`` pictures will take and cost, by those of the last 30 days.

    The batch's own pictures count where there are enough of them, else all of the recipe; None
    where there is none.
    """
    period = period_of("", "", "", wall_us())
    found: Forecast | None = None
    for only in ({"batch": batch}, {"recipe": recipe}):
        try:
            seen = forecast(store, period, max(left, 1), only)
        except InvalidRequest:  # none was delivered in the period
            continue
        if found is None or seen.observed > found.observed:
            found = seen
        if found.observed >= ENOUGH:
            break
    return found


def _check_recipe(source: Source) -> None:
    names = [step.name for step in source.recipe.steps]
    if "store" not in names:
        raise InvalidRequest(
            f"the recipe {source.recipe.name} stores nothing ({', '.join(names)}): a batch "
            "delivers files, so let its last step be `- step: store`"
        )


def _mark_of(source: Source) -> str:
    """Return what tells whether the plan made from a source would be the same."""
    digest = hashlib.sha256()
    facts = (FORMAT, str(source.items.absolute().parent), source.recipe.facts(), source.model)
    digest.update(msgspec.json.encode((*facts, source.captions), order="sorted"))
    try:
        with source.items.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise OutputError(f"cannot read {source.items}: {error.strerror or error}") from error
    return digest.hexdigest()


def _rows(source: Source, photos: Photos) -> Iterator[tuple[int, bytes, Item]]:
    """Yield (row, work, item) of every picture that is to be made."""

    @lru_cache(maxsize=256)
    def recipe_with(parameters: tuple[tuple[str, Value], ...]) -> Recipe:
        return source.recipe.changed(dict(parameters))

    def recipe_for(item: Item) -> Recipe:
        return recipe_with(tuple(sorted(item.parameters.items())))

    def check(item: Item) -> None:
        recipe_for(item)
        _check_item(item, source, photos)

    for row, item in read_items(source.items, brief=source.wants_briefs, check=check):
        recipe = recipe_for(item)
        digests = _digests(item, photos)
        for shot in recipe.shots(Shot(item.id, "", item.brief, item.seed, size=item.size)):
            given = {
                "brief": shot.brief,
                "seed": shot.seed,
                "size": shot.size,
                "captions": source.captions,
                **digests,
            }
            work = bytes.fromhex(recipe.fingerprint(given, model=source.model))
            one = msgspec.structs.replace(
                item, id=shot.id, brief=shot.brief, seed=shot.seed, size=shot.size
            )
            yield row, work, one


def _digests(item: Item, photos: Photos) -> Mapping[str, Any]:
    return {
        "photo": photos.digest(item.photo) if item.photo else "",
        "mask": photos.digest(item.photo, item.mask) if item.mask else "",
    }


def _check_item(item: Item, source: Source, photos: Photos) -> None:
    """Refuse an item that the recipe could make nothing of."""
    recipe = source.recipe
    if "photo" in recipe.needs and not item.photo:
        raise InvalidRequest(f"the recipe {recipe.name} needs a photo: give the column photo")
    if "photo" not in recipe.needs and item.photo:
        raise InvalidRequest(
            f"a photo is given, and the recipe {recipe.name} has no use for it: leave it out, or "
            "take --recipe background"
        )
    if item.size:
        parse_size(item.size, (1, 1))
    _digests(item, photos)
