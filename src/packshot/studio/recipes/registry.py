"""Which steps there are: our own, and those that installed packages bring.

A package brings steps by entry points of the group ``packshot.steps``::

    [project.entry-points."packshot.steps"]
    border = "packshot_border:Border"

The entry's name is the step's name. It is imported when the names of steps are first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, get_args

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.studio.recipes.step import Need, Step

__all__ = ["GROUP", "OWN", "known_steps"]

GROUP = "packshot.steps"

OWN = MappingProxyType(
    {
        "caption": "packshot.studio.recipes.steps:WriteCaption",
        "render": "packshot.studio.recipes.steps:Render",
        "finish": "packshot.studio.recipes.steps:Finish",
        "store": "packshot.studio.recipes.steps:Put",
        "background": "packshot.studio.recipes.product:Background",
        "white": "packshot.studio.recipes.product:White",
        "shadow": "packshot.studio.recipes.product:Shadow",
        "verify": "packshot.studio.recipes.product:Verify",
    }
)
"""Our own steps, as entry points are written, so that naming them imports none."""

NEEDS: frozenset[Any] = frozenset(get_args(Need))


@lru_cache(maxsize=1)
def known_steps() -> Mapping[str, type[Step]]:
    """Return the class of every step by its name; of our own and the installed ones.

    Raises:
        InvalidRequest: a package's step cannot be imported, is not one, or takes another's name.
    """
    found: dict[str, type[Step]] = {}
    whose: dict[str, str] = {}
    for entry, package in _entries():
        if entry.name in found:
            raise InvalidRequest(
                f"two packages bring a step {entry.name!r}: {whose[entry.name]} and {package}; "
                "uninstall one, or have its author rename it"
            )
        found[entry.name] = _loaded(entry, package)
        whose[entry.name] = package
    return MappingProxyType(found)


def _entries() -> list[tuple[EntryPoint, str]]:
    own = [(EntryPoint(name, place, GROUP), "packshot") for name, place in OWN.items()]
    brought = [
        (entry, entry.dist.name if entry.dist else "an unknown package")
        for entry in entry_points(group=GROUP)
    ]
    return own + sorted(brought, key=lambda each: (each[0].name, each[1]))


def _loaded(entry: EntryPoint, package: str) -> type[Step]:
    """Import a step and check that it is one; whatever its module raises is told in one line."""
    try:
        step = entry.load()
    except Exception as error:
        raise InvalidRequest(
            f"the step {entry.name!r} of {package} cannot be imported ({entry.value}): "
            f"{type(error).__name__}: {error}"
        ) from error
    wrong = _fault(step, entry.name)
    if wrong:
        raise InvalidRequest(f"the step {entry.name!r} of {package} ({entry.value}) {wrong}")
    return step


def _fault(step: Any, name: str) -> str:  # noqa: ANN401 - a package may bring anything
    """Return what keeps ``step`` from being one, or nothing."""
    if not (isinstance(step, type) and issubclass(step, msgspec.Struct)):
        return "is not a class derived from msgspec.Struct"
    rules = (
        (step.__struct_config__.frozen, "must be frozen: msgspec.Struct, frozen=True"),
        ("__call__" in dir(step), "has no method __call__(shot, tools)"),
        (getattr(step, "name", None) == name, f"must say name: ClassVar[str] = {name!r}"),
        (isinstance(getattr(step, "version", None), int), "must say version: ClassVar[int] = 1"),
        *(
            (
                _are_needs(step, what),
                f"must say {what}: ClassVar[frozenset[Need]], of {', '.join(sorted(NEEDS))}",
            )
            for what in ("needs", "gives")
        ),
    )
    return next((said for holds, said in rules if not holds), "")


def _are_needs(step: type, what: str) -> bool:
    said = getattr(step, what, None)
    return isinstance(said, frozenset) and said <= NEEDS
