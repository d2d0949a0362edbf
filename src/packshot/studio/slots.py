"""From a reading to slots: which colour, material, ground, light, side and view there will be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packshot.studio.lexicon import Defaults, Lexicon, Product
from packshot.studio.nearest import nearest_term
from packshot.studio.phrases import BREAK, Match, Slot, stem, words
from packshot.studio.reading import Clause, Reading, Subject

__all__ = ["Filled", "Slots", "fill"]


_TERMS: tuple[Slot, ...] = ("ground", "light", "side", "view")


@dataclass(frozen=True, slots=True)
class Slots:
    """What was understood, by the lexicon's names. ``product`` may be a word it does not have."""

    product: str | None = None
    colour: str | None = None
    material: str | None = None
    ground: str | None = None
    light: str | None = None
    side: str | None = None
    view: str | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """Slots, the words of the brief that had no effect, and what could not be had as asked."""

    slots: Slots
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]


def fill(
    reading: Reading, subject: Subject | None, product: str | None, lexicon: Lexicon
) -> Filled:
    """Fill the slots for ``product`` from what the brief says, and from the lexicon's defaults."""
    known = next((p for p in lexicon.products if p.name == product), None)
    colour = _attribute(reading, subject, "colour")
    material = _attribute(reading, subject, "material")
    terms: dict[Slot, Match | None] = {slot: _term(reading, slot) for slot in _TERMS}
    refused = [*_refused("colour", colour, known), *_refused("material", material, known)]
    used = [m for m in (colour, material, *terms.values()) if m is not None]
    place = None if terms["ground"] else _unknown_place(reading, subject, used)
    slots = Slots(
        product=product,
        colour=_accepted("colour", colour, known) or (known.colour if known else "") or None,
        material=_unless_named(_accepted("material", material, known), product),
        ground=_term_name("ground", terms, lexicon.default),
        light=_term_name("light", terms, lexicon.default),
        side=_term_name("side", terms, lexicon.default),
        view=_term_name("view", terms, lexicon.default),
    )
    spent = {i for match in used for i in range(match.start, match.stop)}
    spent.update(place or (), subject.span if subject else (), _repeats(reading, slots))
    if place:
        refused.append(_no_such_ground(" ".join(reading.words[i] for i in place), lexicon))
    return Filled(slots, tuple(_ignored(reading, spent, known)), tuple(refused))


def _attribute(reading: Reading, subject: Subject | None, slot: Slot) -> Match | None:
    """Return the colour or material nearest to the subject: in its clause, after "in", or apart."""
    apart = [c for c in reading.clauses if c.opener in ("in", BREAK, "") and not c.loose]
    own = [subject.clause] if subject else []
    span = subject.span if subject else range(0)
    for clause in (*own, *sorted(apart, key=lambda c: c.opener != "in")):
        for match in clause.matches:
            if match.name(slot) and match.start not in span:
                return match
    return None


def _term(reading: Reading, slot: Slot) -> Match | None:
    """Return the first match for ``slot``; one that a place word introduces goes before others."""
    found = [(clause, match) for clause, match in reading.matches if match.name(slot)]
    return min(found, key=lambda pair: not pair[0].is_place)[1] if found else None


def _term_name(slot: Slot, terms: Mapping[Slot, Match | None], default: Defaults) -> str | None:
    match = terms[slot]
    return match.name(slot) if match else getattr(default, slot) or None


def _allowed(slot: Slot, product: Product | None) -> tuple[str, ...] | None:
    """Return the names that ``product`` was shown in; None where anything goes."""
    if product is None:
        return None
    return product.colours if slot == "colour" else product.materials


def _accepted(slot: Slot, match: Match | None, product: Product | None) -> str | None:
    name = match.name(slot) if match else None
    allowed = _allowed(slot, product)
    return name if allowed is None or name in allowed else None


def _unless_named(material: str | None, product: str | None) -> str | None:
    """Return the material, unless the product's name says it: leather shoes."""
    return None if product and material in product.split() else material


def _refused(slot: Slot, match: Match | None, product: Product | None) -> Iterator[str]:
    """Yield the warning for a colour or material that the product was never shown in."""
    name = match.name(slot) if match else None
    allowed = _allowed(slot, product)
    if product is None or name is None or allowed is None or name in allowed:
        return
    if stem(name) in _vocabulary(product):  # "red wine bottle": the word is part of its name
        return
    shown = f"only in {', '.join(allowed)}" if allowed else f"in no other {slot} than its own"
    yield f"the model was shown {product.name!r} {shown}; {name!r} is left out"


def _unknown_place(
    reading: Reading, subject: Subject | None, used: Iterable[Match]
) -> tuple[int, ...] | None:
    """Return the positions of the words after "on", "in", … that name no ground of the lexicon."""
    taken = set(used)
    for clause in reading.clauses:
        if not _tells_place(reading, clause) or (subject and clause == subject.clause):
            continue
        if taken.isdisjoint(clause.matches) and (clause.loose or clause.matches):
            covered = (i for m in clause.matches for i in range(m.start, m.stop))
            return tuple(sorted({*clause.loose, *covered}))
    return None


def _tells_place(reading: Reading, clause: Clause) -> bool:
    backdrop = any(stem(reading.words[i]) == "background" for i in clause.loose)
    return backdrop or (clause.is_place and clause.opener != "with")


def _no_such_ground(place: str, lexicon: Lexicon) -> str:
    near = nearest_term(place, [ground.name for ground in lexicon.grounds])
    hint = f" (nearest: {near!r})" if near else ""
    default = lexicon.default.ground
    instead = f"{default!r} is taken" if default else "none is taken"
    return f"the model knows no ground {place!r}{hint}; {instead}"


def _repeats(reading: Reading, slots: Slots) -> Iterator[int]:
    """Yield the positions of phrases that say a slot again: "on concrete, in a loft"."""
    for _, match in reading.matches:
        if any(getattr(slots, slot, None) == name for slot, name in match.meanings):
            yield from range(match.start, match.stop)


def _ignored(reading: Reading, spent: set[int], product: Product | None) -> Iterator[str]:
    """Yield the words that were neither used nor reported nor part of the product's own names."""
    own = _vocabulary(product) if product else frozenset[str]()
    for clause in reading.clauses:
        matches = [match for match in clause.matches if not match.name("suffix")]
        matched = {i for match in matches for i in range(match.start, match.stop)}
        for i in sorted(matched.union(clause.loose) - spent):
            if stem(reading.words[i]) not in own:
                yield reading.words[i]


def _vocabulary(product: Product) -> frozenset[str]:
    names = (product.name, *product.synonyms)
    return frozenset(stem(word) for name in names for word in words(name))
