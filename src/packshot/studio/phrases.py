"""Words to phrases: how a brief is cut into words, and which runs of words the lexicon knows.

Every text, the lexicon's and the customer's, goes through `words` and `key`, so that case, hyphens,
articles, plurals and the space in "wrist watch" make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from packshot.studio.lexicon import Colour, Lexicon, Product, Term

__all__ = [
    "BREAK",
    "FILLER",
    "PLACE",
    "Match",
    "Slot",
    "is_content",
    "key",
    "longest_matches",
    "stem",
    "words",
]

Slot = Literal["product", "colour", "material", "ground", "light", "side", "view", "suffix"]

Meanings = tuple[tuple[Slot, str], ...]
"""What a phrase can mean: the name that it gives to each slot."""

BREAK = ","
"""The word that stands for any punctuation: no phrase reaches across it."""

PLACE = frozenset(
    "above against among at atop before behind below beside by in inside near on onto outside over "
    "under upon with within".split()
)
"""Words after which a brief speaks of where the product is, or of what is with it."""

ARTICLES = frozenset(("a", "an", "the"))

FILLER = frozenset(
    "advert advertising and brand catalogue catalog close closeup commercial displayed "
    "for from front hero image is isolated its lying make me my new of or our pack packshot pair "
    "photo photograph photography picture placed please posed product render resting s set shot "
    "sitting size some standing style that this to up view your".split()
)
"""Words that say nothing about the picture's content; they are neither matched nor reported."""

_SAME = {"lighting": "light", "lit": "light", "backdrop": "background", "gray": "grey"}
_ALONE: frozenset[Slot] = frozenset(("product", "colour", "material", "suffix"))
"""Slots whose phrases mean one thing only."""


@dataclass(frozen=True, slots=True)
class Match:
    """Words ``start`` to ``stop`` of a brief, and what they can mean: (slot, name) pairs."""

    start: int
    stop: int
    length: int
    meanings: Meanings

    def name(self, slot: Slot) -> str | None:
        """Return the name that this match gives to ``slot``, if any."""
        return dict(self.meanings).get(slot)


@dataclass(frozen=True, slots=True)
class Phrasebook:
    """Everything the lexicon can say: as it is written, and by `key`.

    ``longest`` is the most words in one phrase.
    """

    exact: Mapping[str, Meanings]
    stemmed: Mapping[str, Meanings]
    longest: int

    def meanings(self, run: Sequence[str]) -> Meanings:
        """Return what a run of words can mean; as it stands ("woods") before its stem ("wood")."""
        return self.exact.get("".join(run)) or self.stemmed.get(key(run), ())


def words(text: str) -> list[str]:
    """Split ``text`` into lower-case words without articles; punctuation becomes `BREAK`."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("'s ", " ").replace("’s ", " ")
    found = re.findall(r"[^\W_]+|[^\w\s'’\-/&_]+", plain)
    return [w if w[0].isalnum() else BREAK for w in found if w not in ARTICLES]


def stem(word: str) -> str:
    """Return the word without its English plural; enough for nouns, and the same on both sides."""
    word = _SAME.get(word, word)
    if len(word) < 4 or word == "glasses":  # not the plural of the material
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def key(phrase: Iterable[str]) -> str:
    """Return what a run of words is looked up by: its stems, joined."""
    return "".join(stem(word) for word in phrase)


def longest_matches(text: Sequence[str], lexicon: Lexicon) -> list[Match]:
    """Return the phrases of the lexicon in ``text``, longest first choice, none overlapping.

    A ground that stands right before a product is no ground: "white marble vase".
    """
    found = list(_candidates(text, phrasebook(lexicon)))
    starts = {match.start for match in found if match.name("product")}
    found = [m for m in found if not (_qualifies_product(m, starts, text) or _goes_on(m, text))]
    taken: set[int] = set()
    chosen: list[Match] = []
    for match in sorted(found, key=lambda m: (-m.length, m.start)):
        span = range(match.start, match.stop)
        if taken.isdisjoint(span):
            taken.update(span)
            chosen.append(match)
    return sorted(chosen, key=lambda m: m.start)


@lru_cache(maxsize=8)
def phrasebook(lexicon: Lexicon) -> Phrasebook:
    """Index every name, phrase and synonym of the lexicon.

    Where two share a phrase, the earlier slot of `Slot` wins, but a phrase may name a place and its
    light at once ("sunset").
    """
    exact: dict[str, dict[Slot, str]] = {}
    stemmed: dict[str, dict[Slot, str]] = {}
    longest = 1
    for slot, name, phrase in _phrases(lexicon):
        run = words(phrase)
        _learn(exact.setdefault("".join(run), {}), slot, name)
        _learn(stemmed.setdefault(key(run), {}), slot, name)
        longest = max(longest, len(run))
    return Phrasebook(_frozen(exact), _frozen(stemmed), longest)


def _learn(known: dict[Slot, str], slot: Slot, name: str) -> None:
    """Add a meaning to those ``known`` of a phrase, unless an earlier one excludes it."""
    if not known or (slot not in known and not _ALONE & {slot, *known}):
        known[slot] = name


def _frozen(index: Mapping[str, Mapping[Slot, str]]) -> dict[str, Meanings]:
    return {phrase: tuple(known.items()) for phrase, known in index.items() if phrase}


def _phrases(lexicon: Lexicon) -> Iterator[tuple[Slot, str, str]]:
    """Yield (slot, name, a phrase for it) in the order in which slots win, names first."""
    known: dict[Slot, Sequence[Product | Colour | Term]] = {
        "product": lexicon.products,
        "colour": lexicon.colours,
        "material": [Term(material, material) for material in lexicon.materials],
        "ground": lexicon.grounds,
        "light": lexicon.lights,
        "side": lexicon.sides,
        "view": lexicon.views,
        "suffix": [Term(part, part) for part in lexicon.suffix.split(",")],
    }
    for slot, entries in known.items():
        for entry in entries:
            yield slot, entry.name, entry.name
            for phrase in _term_phrases(entry) if isinstance(entry, Term) else ():
                yield slot, entry.name, phrase
        for entry in entries:
            for synonym in entry.synonyms:
                yield slot, entry.name, synonym
                if slot == "ground" and synonym in lexicon.materials:  # fabric; on fabric
                    yield slot, entry.name, f"on {synonym}"


def _term_phrases(term: Term) -> Iterator[str]:
    """Yield how captions say a term, and for a plain coloured ground the ways that people do."""
    yield term.phrase
    colour = term.name.removesuffix(" studio")
    if colour != term.name:
        yield from (f"{colour} background", f"{colour} wall", f"on {colour}", f"against {colour}")


def _candidates(text: Sequence[str], book: Phrasebook) -> Iterator[Match]:
    """Yield every run of words that the book knows; a compound may be written apart or joined.

    None reaches across a `BREAK`, for no phrase holds one.
    """
    for start in range(len(text)):
        for stop in range(start + 1, min(start + book.longest + 1, len(text)) + 1):
            run = text[start:stop]
            meanings = book.meanings(run)
            if meanings:
                yield Match(start, stop, len(key(run)), meanings)


def _goes_on(match: Match, text: Sequence[str]) -> bool:
    """Tell whether the next word makes a match mean something else.

    A material can be a vessel ("glass of water"), a colour that of the ground ("red background"),
    and a coloured ground a thing that stands there ("on white tiles").
    """
    after = text[match.stop] if match.stop < len(text) else BREAK
    if match.name("material"):
        return after == "of"
    if match.name("colour"):
        return stem(after) in {"background", "studio", "wall"}
    plain = match.stop - match.start == 2 and text[match.start] in PLACE
    return bool(match.name("ground")) and plain and is_content(after)


def is_content(word: str) -> bool:
    """Tell whether a word that no phrase covers can name something."""
    return word != BREAK and word not in FILLER and word not in PLACE and not word[0].isdigit()


def _qualifies_product(match: Match, starts: set[int], text: Sequence[str]) -> bool:
    """Tell whether a ground match runs into a product and is not introduced as a place."""
    if match.name("ground") is None or match.name("product") is not None:
        return False
    introduced = any(word in PLACE for word in text[max(0, match.start - 1) : match.start + 1])
    return not introduced and any(i in starts for i in range(match.start + 1, match.stop + 1))
