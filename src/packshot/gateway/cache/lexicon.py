"""The words that the guards know, from the lists in ``words/``.

A folder per language, a file per slot type; a line is a name, then what means exactly the same:
``sofa = couch, settee``. A word that stands in no list is compared no less: it is a slot of the
type ``word`` and must agree letter by letter. So a list never makes the cache safer, only more
generous, and a shop whose words we have never seen is as safe as one whose words we know.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = [
    "LANGUAGES",
    "LONGEST",
    "Lexicon",
    "Term",
    "Unit",
    "is_little",
    "lexicon",
    "ranks",
    "split_words",
    "units",
]

LANGUAGES = ("en", "de", "fr", "es")
"""Languages whose little words are known. A text in another one hits when its words are equal."""

TYPES = ("filler", "joint", "weak", "relation", "negation", "number", "same")
NAMED = ("colour", "material", "product", "place", "language")
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|w/o?\b")
LONGEST = 6
"""Words of the longest phrase in a list."""


@dataclass(frozen=True, slots=True)
class Term:
    """What a phrase of a list stands for: a slot type, and the name that its variants share."""

    type: str
    value: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure: its dimension, and what one of it is in the dimension's base."""

    dimension: str
    factor: str


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of ``text`` in lower case, apostrophes kept, hyphens taken apart."""
    return tuple(WORD.findall(text.lower()))


def _lines(file: Traversable) -> Iterator[tuple[str, list[str]]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, variants = line.partition(" = ")
            yield name.strip(), [part.strip() for part in variants.split(", ") if part.strip()]


def _words() -> Traversable:
    return files("packshot.gateway.cache") / "words"


@dataclass(frozen=True)
class Lexicon:
    """The lists of one language. English names of things are known in English texts only."""

    language: str

    @property
    def _folder(self) -> Traversable:
        return _words() / self.language

    @cached_property
    def spelling(self) -> dict[str, str]:
        """British words, each with its American form."""
        return {name: to for name, (to,) in _lines(self._folder / "spelling.txt")}

    def spelt(self, word: str) -> str:
        """Return one spelling for what Britons and Americans spell differently.

        The endings in -ise follow one rule, on both texts alike; the rest is a list.
        """
        if self.language != "en":
            return word
        if len(word) > 6:
            word = re.sub(r"is(e|ed|er|es|ing|ation|ations)$", r"iz\1", word)
        return self.spelling.get(word, word)

    @cached_property
    def phrases(self) -> dict[str, list[tuple[tuple[str, ...], Term]]]:
        """Phrases by their first word, the longest first."""
        found: dict[str, list[tuple[tuple[str, ...], Term]]] = {}
        for kind in (*TYPES, *NAMED):
            for name, variants in _lines(self._folder / f"{kind}.txt"):
                term = Term("word" if kind == "same" else kind, name)
                for variant in (name, *variants):
                    words = tuple(
                        self.spelt(word.removesuffix("'s")) for word in split_words(variant)
                    )
                    if words:
                        found.setdefault(words[0], []).append((words, term))
        for rows in found.values():
            rows.sort(key=lambda row: -len(row[0]))
        return found

    def find(self, words: tuple[str, ...]) -> tuple[int, Term] | None:
        """Return the longest phrase with which ``words`` begins: its length, and its term."""
        for phrase, term in self.phrases.get(words[0], ()):
            if words[: len(phrase)] == phrase:
                return len(phrase), term
        return None

    @cached_property
    def fillers(self) -> frozenset[str]:
        """The single words by which a language is recognised."""
        return frozenset(
            words[0]
            for rows in self.phrases.values()
            for words, term in rows
            if len(words) == 1 and term.type in {"filler", "weak", "joint", "relation", "negation"}
        )

    @cached_property
    def joints(self) -> frozenset[str]:
        """The single words that join: and, plus."""
        rows = (row for rows in self.phrases.values() for row in rows)
        return frozenset(
            words[0] for words, term in rows if len(words) == 1 and term.type == "joint"
        )

    @cached_property
    def frame(self) -> re.Pattern[str]:
        """How a request opens, before it says what it is about: ``Please write a caption for``."""
        part = {
            name: "(?:" + "|".join(sorted(map(_loose, variants), key=len, reverse=True)) + r")\b"
            for name, variants in _lines(self._folder / "frame.txt")
        }
        gap = r"[\s,!.]*"
        who, article, ask = (rf"(?:{part[name]}{gap})" for name in ("who", "article", "asking"))
        what = rf"(?:{part['what']}\s*(?:{part['again']})?)"
        # "a caption contest" is no request for a caption: what it is of must follow.
        noun = rf"(?:{part['noun']}\s*(?:(?=\s*(?:[:.\n]|$))|{part['link']}\s*{what}?))"
        verb = rf"{part['verb']}{gap}"
        opening = (
            rf"(?:{ask}+(?:{verb}{who}?{article}?|{who}?{article})(?:{noun}|{what})?"
            rf"|{ask}*{verb}{who}?{article}?(?:{noun}|{what})|{ask}*{article}?{noun})"
        )
        return re.compile(
            rf"(?:^|(?<=[.!?;\n]))\s*(?:{part['greeting']}{gap})?{opening}[\s:]*"
            rf"|(?<=[,.!?;\n])\s*(?:{part['closing']})[\s.!]*$",
            re.IGNORECASE,
        )


def _loose(phrase: str) -> str:
    return r"[\s-]+".join(re.escape(word) for word in phrase.split())


@cache
def lexicon(language: str) -> Lexicon:
    """Return the lists of a language of `LANGUAGES`, read once."""
    return Lexicon(language)


@cache
def _little_words() -> frozenset[str]:
    little = {"filler", "joint", "weak"}
    rows = [row for name in LANGUAGES for rows in lexicon(name).phrases.values() for row in rows]
    return frozenset(words[0] for words, term in rows if len(words) == 1 and term.type in little)


def is_little(word: str) -> bool:
    """Tell whether a word means nothing by itself in one of the languages: the, is, mit, de."""
    return word.lower() in _little_words()


@cache
def units() -> dict[str, Unit]:
    """Return the units of measure by every way to write them, in lower case."""
    found: dict[str, Unit] = {}
    for name, variants in _lines(_words() / "units.txt"):
        dimension, factor = name.split()
        found.update(dict.fromkeys(variants, Unit(dimension, factor)))
    return found


@cache
def ranks() -> dict[str, int]:
    """Return 82,834 English words, each with its rank (0 is the most frequent).

    What stands here is a word that somebody meant, so it is never taken for another one mistyped.
    The list is SymSpell's (MIT): words of SCOWL, ordered by their counts in Google's Ngrams.
    """
    packed = (_words() / "english.txt.gz").read_bytes()
    words = gzip.decompress(packed).decode().split()
    return {word: rank for rank, word in enumerate(words)}
