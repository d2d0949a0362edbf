"""A recipe: a YAML file that names steps and their parameters, read, checked and never run here.

::

    name: my-shop
    version: 1
    about: Square pictures on pure white, for the marketplace.
    variants:
      seeds: 2
    steps:
      - step: caption
      - step: render
        with: {steps: 30, guidance: 3.5}
      - step: finish
        with: {size: 1024x1024, format: jpeg, max_bytes: 500000}
      - step: store

Recipes of our own come with the package (`SHIPPED`). Values in a recipe stand for themselves: it
may be somebody else's file, and what it says is written into every picture, so nothing of the
environment or of other files is put into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import msgspec

from packshot.core.config import Document, read
from packshot.core.errors import InvalidRequest, OutputError, unknown_name
from packshot.studio.finish import parse_size
from packshot.studio.recipes.registry import known_steps
from packshot.studio.recipes.step import Need, Shot, Step, fingerprint

__all__ = ["MAX_STEPS", "MAX_VARIANTS", "SHIPPED", "Recipe", "Variants", "load_recipe"]

SHIPPED = ("background", "text", "variants", "white-background")
"""Names of the recipes that come with packshot."""

SECTIONS = frozenset(("name", "version", "about", "variants", "steps"))
SUFFIXES = (".yaml", ".yml")
NATIVE = (1024, 1024)
"""Of no model in particular: a size is only checked here."""

MAX_STEPS = 32
"""Steps of a recipe; ours have four or five."""

MAX_VARIANTS = 64
"""Pictures that a recipe makes of one item."""

GIVEN: frozenset[Need] = frozenset(("photo", "engine", "store"))
"""What the caller has to have; what else a step needs, a step before it gives."""


class Variants(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe makes of one item: a picture for each ground, size and seed, in that order.

    ``seeds`` are counted up from the item's own. ``sizes`` are "WxH". ``grounds`` are added to the
    brief, or are the brief where the item has none.
    """

    seeds: int = 1
    sizes: tuple[str, ...] = ()
    grounds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse none, and too many."""
        if self.seeds < 1:
            raise InvalidRequest(f"seeds is {self.seeds}, expected at least 1")
        if self.count > MAX_VARIANTS:
            raise InvalidRequest(
                f"{self.count} variants of each item ({len(self.grounds) or 1} grounds, "
                f"{len(self.sizes) or 1} sizes, {self.seeds} seeds); at most {MAX_VARIANTS}"
            )
        for size in self.sizes:
            parse_size(size, NATIVE)
        for what, names in (("size", self.sizes), ("ground", self.grounds)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InvalidRequest(f"the {what} {twice!r} is there twice")

    @property
    def count(self) -> int:
        """How many pictures are made of one item."""
        return (len(self.grounds) or 1) * (len(self.sizes) or 1) * self.seeds


ONE = Variants()


@dataclass(frozen=True)
class Recipe:
    """A recipe that nothing speaks against: its steps are there, and each has what it needs."""

    name: str
    version: int
    about: str
    steps: tuple[Step, ...]
    variants: Variants = ONE
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse steps in an order that cannot work."""
        _check_order(self.steps)

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What the caller has to have: a "photo", an "engine", a "store"."""
        return GIVEN.intersection(need for step in self.steps for need in step.needs)

    def fingerprint(
        self, given: Mapping[str, Any], upto: int | None = None, model: str = ""
    ) -> str:
        """Return what the result of step ``upto`` depends on: `step.fingerprint`."""
        return fingerprint(self.steps, given, upto, model)

    def shots(self, shot: Shot) -> tuple[Shot, ...]:
        """Return a shot for each variant of an item; the ids of several end in "-1", "-2", … .

        They share the item's ``render``: a caller that books each gives each an id of its own.
        """
        chosen = self.variants
        if chosen.count == 1 and not (chosen.sizes or chosen.grounds):
            return (shot,)
        made = [
            replace(
                shot,
                brief=", ".join(part for part in (shot.brief, ground) if part),
                size=size or shot.size,
                seed=shot.seed + number,
            )
            for ground in chosen.grounds or ("",)
            for size in chosen.sizes or ("",)
            for number in range(chosen.seeds)
        ]
        if len(made) == 1:
            return (made[0],)
        return tuple(replace(one, id=f"{shot.id}-{k}") for k, one in enumerate(made, start=1))

    def changed(self, parameters: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other parameters, each called "step.parameter".

        A value may be text ("30" for a number), as a table of items has it.

        Raises:
            InvalidRequest: there is no such step or parameter, or the value is not of its type.
        """
        if not parameters:
            return self
        by_step: dict[str, dict[str, Any]] = {}
        for name, value in parameters.items():
            step, _, parameter = name.partition(".")
            by_step.setdefault(step, {})[parameter] = value
        names = [step.name for step in self.steps]
        for name in by_step:
            if name not in names:
                raise unknown_name(f"step of the recipe {self.name}", name, names)
        steps = tuple(_changed(step, by_step.get(step.name, {})) for step in self.steps)
        return replace(self, steps=steps)

    def facts(self) -> dict[str, Any]:
        """Return the recipe with every parameter, as values that JSON has."""
        said = {
            "name": self.name,
            "version": self.version,
            "variants": self.variants,
            "steps": [
                {"step": step.name, "version": step.version, "with": step} for step in self.steps
            ],
        }
        return msgspec.json.decode(msgspec.json.encode(said))


def load_recipe(name: str) -> Recipe:
    """Return a recipe of ours by its name, or one in a file by its path.

    Raises:
        InvalidRequest: there is no such recipe; or it has a mistake, and the message has its line.
        OutputError: the file cannot be read.
    """
    if name in SHIPPED:
        with as_file(files("packshot.studio.recipes") / "shipped" / f"{name}.yaml") as path:
            return _read(path, name)
    path = Path(name).expanduser()
    if path.suffix not in SUFFIXES and not path.is_file():
        said = unknown_name("recipe", name, SHIPPED)
        raise InvalidRequest(f"{said} A recipe of your own is a file: its name ends in .yaml.")
    return _read(path, name)


def _read(path: Path, name: str) -> Recipe:
    document = read(path, SECTIONS, literal=True)
    for wanted in ("name", "version", "steps"):
        if wanted not in document.sections:
            raise InvalidRequest(f"{path}: {wanted} must be given")
    steps = document.tagged("steps", "step", "with", known_steps())
    try:
        return Recipe(
            name=_name(document),
            version=document.section("version", int) or 0,
            about=document.section("about", str) or "",
            steps=steps,
            variants=document.section("variants", Variants) or ONE,
            source=name,
        )
    except OutputError:
        raise
    except InvalidRequest as error:
        where = f"{path}, line {document.sections['steps'].start_mark.line + 1}: "
        raise InvalidRequest(
            str(error) if str(path) in str(error) else f"{where}{error}"
        ) from error


def _name(document: Document) -> str:
    name = document.section("name", str) or ""
    if not name.replace("-", "").isalnum() or not name.isascii() or len(name) > 48:
        raise InvalidRequest(f"name is {name!r}, expected up to 48 letters, digits and hyphens")
    return name


def _check_order(steps: tuple[Step, ...]) -> None:
    """Refuse a recipe of no steps or too many, and a step that lacks what it needs."""
    if not 1 <= len(steps) <= MAX_STEPS:
        raise InvalidRequest(f"{len(steps)} steps, expected 1 to {MAX_STEPS}")
    have = set(GIVEN)
    for step in steps:
        lacking = sorted(step.needs - have)
        if lacking:
            givers = sorted(n for n, s in known_steps().items() if s.gives.intersection(lacking))
            raise InvalidRequest(
                f"the step {step.name} needs a {lacking[0]}, and no step before it gives one; "
                f"these do: {', '.join(givers)}"
            )
        have |= step.gives
        if "picture" in step.gives and "file" not in step.gives:
            have.discard("file")  # what was encoded is no longer the picture


def _changed(step: Step, parameters: Mapping[str, Any]) -> Step:
    if not parameters:
        return step
    kind: Any = type(step)
    fields: tuple[str, ...] = kind.__struct_fields__
    for name in parameters:
        if name not in fields:
            raise unknown_name(f"parameter of the step {step.name}", name, fields)
    values = {**msgspec.to_builtins(step), **parameters}
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the step {step.name}: {error}") from error
