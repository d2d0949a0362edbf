"""What is bound to what: the same words in another order may be another request.

No grammar is parsed. Each slot keeps company: with the others of its *chunk* (no preposition,
conjunction or punctuation between them) and of its *stretch* (no comma, no "and"). Moving whole
phrases about leaves company as it is; making a red mug with a blue lid of a blue mug with a red lid
does not. Where in doubt, it is another request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from packshot.gateway.cache.patterns import Slot
from packshot.gateway.cache.slots import WEAK, Reading

__all__ = ["rebound"]

Turned = tuple[tuple[str, ...], tuple[str, ...]]
ATTRIBUTES = frozenset({"colour", "material", "number", "size"})
"""Types that say something of what stands near, even alone between commas."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: under which relation, in which company."""

    relation: str
    chunk: frozenset[str]
    stretch: frozenset[str]


def rebound(a: Reading, b: Reading) -> Turned | None:
    """Return how the binding of equal slots differs between ``a`` and ``b``, or None.

    The two must have the same slots (`packshot.gateway.cache.guards.compare` sees to it).
    """
    left, right = _places(a), _places(b)
    checks = (_moved(left, right), _regrouped(left, right), _regrouped(right, left), _turned(a, b))
    return next((turned for check in checks for turned in check), None)


def _key(slot: Slot) -> str:
    return f"{slot.type} {slot.value}"


def _things(reading: Reading) -> list[Slot]:
    return [slot for slot in reading.slots if slot.type not in {"relation", "negation"}]


def _places(reading: Reading) -> dict[str, list[_Place]]:
    chunks: dict[int, set[str]] = {}
    stretches: dict[int, set[str]] = {}
    for slot in _things(reading):
        chunks.setdefault(slot.chunk, set()).add(_key(slot))
        stretches.setdefault(slot.stretch, set()).add(_key(slot))
    found: dict[str, list[_Place]] = {}
    for slot in _things(reading):
        own = {_key(slot)}
        company = (frozenset(chunks[slot.chunk] - own), frozenset(stretches[slot.stretch] - own))
        found.setdefault(_key(slot), []).append(_Place(slot.relation, *company))
    return found


def _moved(left: dict[str, list[_Place]], right: dict[str, list[_Place]]) -> Iterator[Turned]:
    """Yield a value that stands under another preposition, or beside other words in its chunk."""
    for key in left.keys() & right.keys():
        ours, theirs = left[key], right[key]
        if len(ours) == len(theirs) == 1:
            fits = _related(ours[0].relation, theirs[0].relation)
            fits &= ours[0].chunk <= theirs[0].chunk or theirs[0].chunk <= ours[0].chunk
        else:
            fits = Counter(ours) == Counter(theirs)
        if not fits:
            yield (_said(key, ours[0]),), (_said(key, theirs[0]),)


def _related(one: str, other: str) -> bool:
    """Tell whether two prepositions mean the same; a weak one may be left out."""
    weak = (one or WEAK).startswith(WEAK) and (other or WEAK).startswith(WEAK)
    return one == other or (weak and not (one and other))


def _regrouped(mine: dict[str, list[_Place]], other: dict[str, list[_Place]]) -> Iterator[Turned]:
    """Yield two that stood together in ``mine``, and in ``other`` stand each with somebody new.

    A table of oak and a lamp of brass: no chunk has two of these words, the stretches tell.
    """
    single = {key: places[0] for key, places in mine.items() if len(places) == 1}
    for key, place in single.items():
        for mate in place.stretch & single.keys():
            parted = all(
                with_ not in there.stretch and there.stretch - single[one].stretch
                for one, with_ in ((key, mate), (mate, key))
                for there in other.get(one, ())
            )
            if parted and key in other and mate in other:
                yield (key, mate), ()


def _turned(a: Reading, b: Reading) -> Iterator[Turned]:
    """Yield two of one type that share a chunk and stand the other way round.

    So must colours that stand alone between commas: mug, red, lid, blue.
    """
    spots = {_key(slot): (at, slot) for at, slot in enumerate(_things(b))}
    things = _things(a)
    lonely = _lonely(a) | _lonely(b)
    for at, slot in enumerate(things):
        for later in things[at + 1 :]:
            one, two = spots.get(_key(slot)), spots.get(_key(later))
            if slot.type != later.type or one is None or two is None or one[0] <= two[0]:
                continue
            together = slot.chunk == later.chunk and one[1].chunk == two[1].chunk
            alike = slot.type != "number" or slot.value.split()[1:] == later.value.split()[1:]
            if together or (alike and {_key(slot), _key(later)} & lonely):
                yield (slot.value, later.value), (later.value, slot.value)


def _lonely(reading: Reading) -> set[str]:
    """Return the attributes that stand alone in their stretch."""
    count = Counter(slot.stretch for slot in _things(reading))
    return {
        _key(slot)
        for slot in _things(reading)
        if slot.type in ATTRIBUTES and count[slot.stretch] == 1
    }


def _said(key: str, place: _Place) -> str:
    return " ".join([place.relation or "·", key, *sorted(place.chunk)])
