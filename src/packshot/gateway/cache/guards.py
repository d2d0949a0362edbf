"""Whether one answer serves two requests: their slots must agree.

``compare`` is a multiset comparison with three allowances, each of which needs both texts' words
and no list of things: a slip of the hand is forgiven where it is certain what was meant, a compound
may be written apart (``back lit``, ``backlit``), and phrases may change places where that leaves it
unchanged what is bound to what (``red mug, blue lid`` is not ``blue mug, red lid``;
`packshot.gateway.cache.binding`).

The rule that matters is the last resort: a word that only one of the two texts has, and that no
list calls a little word, is a difference. It needs no vocabulary, and so it holds for words that
were never seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from packshot.gateway.cache.binding import rebound
from packshot.gateway.cache.lexicon import LANGUAGES, lexicon, ranks, split_words, units
from packshot.gateway.cache.patterns import Slot
from packshot.gateway.cache.slots import SLOT_TYPES, Reading, read
from packshot.gateway.cache.typing_errors import meant

__all__ = ["Difference", "Verdict", "compare", "warm"]

MOST_LEFT_OUT = 24
"""Little words by which two requests may differ: padding is how keys are made to collide."""
MOST_SLIPS = 2
"""Mistyped words that are forgiven in a text."""
WRITTEN = frozenset({"word", "colour", "material", "product", "place", "language"})


@dataclass(frozen=True, slots=True)
class Difference:
    """Slots of one type that do not agree; either side may be empty."""

    type: str
    left: tuple[str, ...]
    right: tuple[str, ...]

    def __str__(self) -> str:
        """Return ``colour: red | blue``."""
        return f"{self.type}: {', '.join(self.left) or '–'} | {', '.join(self.right) or '–'}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What keeps two requests from sharing an answer; nothing means that they may."""

    differences: tuple[Difference, ...]

    @property
    def agree(self) -> bool:
        """True when one answer serves both."""
        return not self.differences


def compare(a: Reading, b: Reading, must_match: Collection[str] = SLOT_TYPES) -> Verdict:
    """Compare two requests in the slot types of ``must_match``.

    A type that is not in ``must_match`` may differ; that is for routes whose answers do not depend
    on it. `Verdict.agree` is the same whichever request comes first. Requests that say nothing but
    little words agree only when they are equal.
    """
    if a.text == b.text:
        return Verdict(())
    a, b = _mended(a, b), _mended(b, a)
    a, b = _joined(a, b), _joined(b, a)
    left, right = _leftover(a, b), _leftover(b, a)
    found = [
        Difference(kind, _values(kind, left), _values(kind, right))
        for kind in SLOT_TYPES
        if kind in must_match and any(slot.type == kind for slot in (*left, *right))
    ]
    if not (a.slots and b.slots) or abs(a.left_out - b.left_out) > MOST_LEFT_OUT:
        found.append(Difference("word", (a.text,), (b.text,)))
    if not found and "order" in must_match and (turned := rebound(a, b)):
        found.append(Difference("order", *turned))
    if not found and "parameter" in must_match:
        found.extend(_parameters(a, b))
    return Verdict(tuple(found))


def warm() -> None:
    """Load the lists (about 0.1 s), so that the first comparison does not wait for them."""
    for name in LANGUAGES:
        _ = lexicon(name).phrases, lexicon(name).frame
    ranks()
    units()


def _parameters(a: Reading, b: Reading) -> Iterator[Difference]:
    """Yield what two texts fill into one template, where it differs even by a little word."""
    if a.filled is None or b.filled is None or a.filled.template != b.filled.template:
        return
    for left, right in zip(a.filled.values, b.filled.values, strict=True):
        if left.lower() != right.lower():
            one, other = read(left), read(right)
            if not compare(one, other).agree:
                yield Difference("parameter", (left,), (right,))


def _values(kind: str, slots: list[Slot]) -> tuple[str, ...]:
    return tuple(slot.value for slot in slots if slot.type == kind)


def _leftover(mine: Reading, other: Reading) -> list[Slot]:
    """Return the slots of ``mine`` that ``other`` has not, or not as often."""
    spare = Counter((slot.type, slot.value) for slot in other.slots)
    rest: list[Slot] = []
    for slot in mine.slots:
        if spare[slot.type, slot.value]:
            spare[slot.type, slot.value] -= 1
        else:
            rest.append(slot)
    return rest


# ---------------------------------------------------------------- allowances


def _mended(mine: Reading, other: Reading) -> Reading:
    """Return ``mine`` with slips of the hand undone, as far as the other text tells what was meant.

    A word in capitals is a name, and names are never mended.
    """
    known = ranks()
    theirs = set(split_words(other.text))
    text, slips = mine.text, 0
    for word in dict.fromkeys(split_words(text)):
        if word in known or word in theirs or slips == MOST_SLIPS:
            continue
        target = meant(word, known)
        if target is not None and target in theirs and word in text:
            text, slips = text.replace(word, target), slips + 1
    return read(text) if slips else mine


def _joined(mine: Reading, other: Reading) -> Reading:
    """Return ``mine`` with words joined that ``other`` writes as one: back lit, backlit."""
    wholes = {slot.surface.lower(): slot for slot in _leftover(other, mine) if slot.type in WRITTEN}
    if not wholes:
        return mine
    slots: list[Slot] = []
    for slot in mine.slots:
        last = slots[-1] if slots else slot
        joined = (last.surface + slot.surface).lower()
        # What a dictionary has as one word may be another thing: a greenhouse, a green house.
        whole = None if joined in ranks() else wholes.get(joined)
        beside = last.chunk == slot.chunk and 0 <= slot.start - last.end <= 1
        if whole and beside and {last.type, slot.type} <= WRITTEN:
            slots[-1] = replace(last, type=whole.type, value=whole.value, end=slot.end)
        else:
            slots.append(slot)
    return replace(mine, slots=tuple(slots))
