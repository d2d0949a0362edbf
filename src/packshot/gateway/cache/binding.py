"""What is bound to what: the same words in another order may be another request.

No grammar is parsed. Each slot keeps company: with the others of its *chunk* (no preposition,
conjunction or punctuation between them) and of its *stretch* (no comma, no "and"). Moving whole
phrases about leaves company as it is; making a red mug with a blue lid of a blue mug with a red lid
does not. Where in doubt, it is another request.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from packshot.gateway.cache.lexicon import lexicon
from packshot.gateway.cache.patterns import Slot
from packshot.gateway.cache.slots import WEAK, Reading

__all__ = ["rebound"]

Turned = tuple[tuple[str, ...], tuple[str, ...]]
ATTRIBUTES = frozenset({"colour", "material", "number", "size"})
"""Types that say something of what stands near, even alone between commas."""
NAMES = frozenset({"word", "product", "place", "language"})
FOCUS = frozenset({"only", "just", "even", "especially", "mainly", "almost", "nearly", "exactly"})
"""Words that say something of the next one."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: under which relation, in which company (itself included).

    ``heads`` is what its chunk may hang on: the first chunk of its stretch, and the one before.
    """

    relation: str
    chunk: frozenset[str]
    stretch: frozenset[str]
    heads: frozenset[str]


def rebound(a: Reading, b: Reading) -> Turned | None:
    """Return how the binding of equal slots differs between ``a`` and ``b``, or None.

    The two must have the same slots (`packshot.gateway.cache.guards.compare` sees to it).
    """
    left, right = _places(a), _places(b)
    checks = (
        _moved(left, right),
        _exchanged(left, right),
        _regrouped(left, right),
        _turned(a, b),
        _compounded(a, b),
        _refocused(a, b),
    )
    return next((turned for check in checks for turned in check), None)


def _key(slot: Slot) -> str:
    return f"{slot.type} {slot.value}"


def _things(reading: Reading) -> list[Slot]:
    return [slot for slot in reading.slots if slot.type not in {"relation", "negation"}]


def _places(reading: Reading) -> dict[str, list[_Place]]:
    things = _things(reading)
    chunks, stretches = defaultdict[int, set[str]](set), defaultdict[int, set[str]](set)
    for slot in things:
        chunks[slot.chunk].add(_key(slot))
        stretches[slot.stretch].add(_key(slot))
    # One set for all that stand in it: a text of one long chunk would fill memory otherwise.
    chunk = {number: frozenset(keys) for number, keys in chunks.items()}
    heads = _heads(things, chunk)
    stretch = {number: frozenset(keys) for number, keys in stretches.items()}
    found: dict[str, list[_Place]] = {}
    for slot in things:
        company = (chunk[slot.chunk], stretch[slot.stretch], heads[slot.chunk])
        place = _Place(slot.relation, *company)
        found.setdefault(_key(slot), []).append(place)
    return found


def _heads(things: list[Slot], chunk: dict[int, frozenset[str]]) -> dict[int, frozenset[str]]:
    """Return what each chunk may hang on. Attributes, and what a weak preposition leads, hang on
    the last thing before them alone: a mug in red with a lid in blue.
    """
    bare = {slot.chunk for slot in things} - {
        slot.chunk for slot in things if slot.type not in ATTRIBUTES
    }
    first: dict[int, int] = {}
    found: dict[int, frozenset[str]] = {}
    before = thing = -1
    for slot in things:
        if slot.chunk not in found:
            led = first.setdefault(slot.stretch, slot.chunk) != slot.chunk
            hangs = chunk[first[slot.stretch]] | chunk[before] if led else frozenset[str]()
            if led and thing >= 0 and (slot.chunk in bare or slot.relation.startswith(WEAK)):
                hangs = chunk[thing]
            found[slot.chunk] = hangs if slot.relation else frozenset()
            before = slot.chunk
            thing = thing if slot.chunk in bare else before
    return found


def _moved(left: dict[str, list[_Place]], right: dict[str, list[_Place]]) -> Iterator[Turned]:
    """Yield a value that stands under another preposition, or beside other words in its chunk."""
    for key in left.keys() & right.keys():
        ours, theirs = left[key], right[key]
        if len(ours) == len(theirs) == 1:
            fits = _related(ours[0].relation, theirs[0].relation)
            fits &= ours[0].chunk <= theirs[0].chunk or theirs[0].chunk <= ours[0].chunk
            fits &= not (
                ours[0].heads and ours[0].heads.isdisjoint(theirs[0].heads or ours[0].heads)
            )
        else:
            fits = Counter(ours) == Counter(theirs)
        if not fits:
            yield (_said(key, ours[0]),), (_said(key, theirs[0]),)


def _related(one: str, other: str) -> bool:
    """Tell whether two prepositions mean the same; a weak one may be left out."""
    weak = (one or WEAK).startswith(WEAK) and (other or WEAK).startswith(WEAK)
    return one == other or (weak and not (one and other))


def _exchanged(left: dict[str, list[_Place]], right: dict[str, list[_Place]]) -> Iterator[Turned]:
    """Yield what lost a weak preposition while something else got it: the mug in the box."""
    before, after = _led(left), _led(right)
    for relation in before.keys() & after.keys():
        lost, gained = before[relation] - after[relation], after[relation] - before[relation]
        if lost and gained:
            yield tuple(sorted(lost)), tuple(sorted(gained))


def _led(places: dict[str, list[_Place]]) -> dict[str, set[str]]:
    found = defaultdict[str, set[str]](set)
    for key, stands in places.items():
        for place in stands:
            found[place.relation].add(key)
    found.pop("", None)
    return found


def _regrouped(left: dict[str, list[_Place]], right: dict[str, list[_Place]]) -> Iterator[Turned]:
    """Yield two that stood together on the left, and on the right stand each with somebody new.

    A table of oak and a lamp of brass: no chunk has two of these words, the stretches tell.
    """
    single = {
        key: (left[key][0].stretch, right[key][0].stretch)
        for key in left.keys() & right.keys()
        if len(left[key]) == len(right[key]) == 1
    }
    fresh = {key for key, (before, after) in single.items() if after - before}
    for key in fresh:
        before, after = single[key]
        if parted := (before - after) & fresh:
            yield (key, *sorted(parted)), ()


def _turned(a: Reading, b: Reading) -> Iterator[Turned]:
    """Yield those of one type, or names, that share a chunk in both texts and stand the other way
    round: a phone case, a case phone.

    So must attributes of one kind of which one stands alone between commas: mug, red, lid, blue.
    """
    spots = defaultdict[str, list[tuple[int, Slot]]](list)
    for at, slot in enumerate(_things(b)):
        spots[_key(slot)].append((at, slot))
    lonely = _lonely(a) | _lonely(b)
    rows = defaultdict[tuple[object, ...], list[tuple[Slot, int]]](list)
    for slot in _things(a):
        if spots[_key(slot)]:
            at, there = spots[_key(slot)].pop(0)  # what stands twice keeps its order
            kind = "name" if slot.type in NAMES else slot.type
            rows[kind, slot.chunk, there.chunk].append((slot, at))
            if slot.type in ATTRIBUTES:
                rows[_attribute(slot),].append((slot, at))
    for kind, row in rows.items():
        together = len(kind) == 3
        if together or lonely & {_key(slot) for slot, _ in row}:
            turned = sorted(row, key=lambda each: each[1])
            if turned != row:
                yield tuple(s.value for s, _ in row), tuple(s.value for s, _ in turned)


def _compounded(a: Reading, b: Reading) -> Iterator[Turned]:
    """Yield two names that an "and" or a weak preposition parts in one text, and that stand side by
    side in the other: a phone and a case, a phone case; a table with a lamp, a table lamp.
    """
    for one, other in ((a, b), (b, a)):
        if both := _side_by_side(one, parted=False) & _side_by_side(other, parted=True):
            yield tuple(" ".join(pair) for pair in sorted(both)), ()


def _side_by_side(reading: Reading, *, parted: bool) -> set[tuple[str, str]]:
    """Return the keys of names with nothing between them, or parted by what may be left out."""
    joints = lexicon(reading.language).joints
    found: set[tuple[str, str]] = set()
    for left, right in pairwise(_things(reading)):
        if left.type in NAMES and right.type in NAMES:
            between = reading.text[left.end : right.start].lower()
            has = not joints.isdisjoint(between.split()) or "&" in between
            has |= right.relation.startswith(WEAK)
            apart = left.chunk != right.chunk
            if (has and apart) if parted else not apart:
                found.add((_key(left), _key(right)))
    return found


def _refocused(a: Reading, b: Reading) -> Iterator[Turned]:
    """Yield what an "only" or the like says something of, where it is something else."""
    one, other = _focused(a), _focused(b)
    if one != other:
        yield tuple(sorted(one)), tuple(sorted(other))


def _focused(reading: Reading) -> set[str]:
    pairs = pairwise(_things(reading))
    return {f"{left.value} {right.value}" for left, right in pairs if left.value in FOCUS}


def _attribute(slot: Slot) -> str:
    """Return what kind of attribute it is; numbers of two units are never taken for each other."""
    return f"{slot.type} {slot.value.partition(' ')[2]}" if slot.type == "number" else slot.type


def _lonely(reading: Reading) -> set[str]:
    """Return the attributes that stand alone in their stretch."""
    things = _things(reading)
    count = Counter(slot.stretch for slot in things)
    return {_key(slot) for slot in things if slot.type in ATTRIBUTES and count[slot.stretch] == 1}


def _said(key: str, place: _Place) -> str:
    return " ".join([place.relation or "·", key, *sorted(place.chunk - {key})])
