"""A brief, read: its clauses, what the lexicon knows in each, and which words are its subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from packshot.studio.lexicon import Lexicon
from packshot.studio.phrases import BREAK, PLACE, Match, is_content, longest_matches, words

__all__ = ["Clause", "Reading", "Subject", "find_subject", "read"]

UNKNOWN_WORDS = 4
"""Most words that are taken for the name of an unknown product."""

_PICTURE = frozenset(("photo", "photograph", "picture", "image", "shot", "render", "pair", "set"))
_PARTICIPLE = ("ing", "ed", "ly")


@dataclass(frozen=True, slots=True)
class Clause:
    """A stretch of a brief: ``opener`` is the place word, `BREAK` or nothing that opens it.

    ``loose`` are the positions of words that no match covers and that are not mere filler.
    ``lead`` marks what precedes "photo of": it describes the picture, not its subject.
    """

    opener: str
    matches: tuple[Match, ...]
    loose: tuple[int, ...]
    lead: bool

    @property
    def is_place(self) -> bool:
        """Whether a place word opens it."""
        return self.opener in PLACE


@dataclass(frozen=True, slots=True)
class Reading:
    """The words of a brief, and its clauses in order."""

    words: tuple[str, ...]
    clauses: tuple[Clause, ...]

    @property
    def matches(self) -> Iterator[tuple[Clause, Match]]:
        """Every match with its clause, in order."""
        return ((clause, match) for clause in self.clauses for match in clause.matches)


@dataclass(frozen=True, slots=True)
class Subject:
    """What the picture is of: a product of the lexicon, or ``unknown`` words; positions covered."""

    clause: Clause
    product: str | None
    unknown: tuple[str, ...]
    span: range


def read(brief: str, lexicon: Lexicon) -> Reading:
    """Cut a brief into clauses at punctuation and at place words that are not part of a phrase."""
    text = words(brief)
    matches = longest_matches(text, lexicon)
    inside = {i for match in matches for i in range(match.start + 1, match.stop)}
    lead = max((i for i in range(1, len(text)) if _introduces(text, i)), default=-1)
    starts = [i for i in range(len(text)) if _opens(text, i, inside) or i == lead]
    bounds = sorted({0, *starts, len(text)})
    clauses = [_clause(text, matches, start, stop, lead) for start, stop in pairwise(bounds)]
    return Reading(tuple(text), tuple(clauses))


def find_subject(reading: Reading) -> Subject | None:
    """Return what the brief asks a picture of, or None where it names nothing.

    A product in a place ("jacket on a chair") is the subject only if nothing is named before it.
    """
    plain = [c for c in reading.clauses if not c.is_place]
    for clause in plain:
        if any(match.name("product") for match in clause.matches):
            return _known_subject(reading.words, clause)
    for clause in plain:
        if clause.loose and not clause.lead:
            return _unknown_subject(reading.words, clause)
    for clause in reading.clauses:
        if any(match.name("product") for match in clause.matches):
            return _known_subject(reading.words, clause)
    return None


def _introduces(text: Sequence[str], i: int) -> bool:
    return text[i] == "of" and text[i - 1] in _PICTURE


def _opens(text: Sequence[str], i: int, inside: set[int]) -> bool:
    return text[i] == BREAK or (text[i] in PLACE and i not in inside)


def _clause(
    text: Sequence[str], matches: Sequence[Match], start: int, stop: int, lead: int
) -> Clause:
    own = tuple(match for match in matches if start <= match.start < stop)
    covered = {i for match in own for i in range(match.start, match.stop)}
    loose = tuple(i for i in range(start, stop) if i not in covered and is_content(text[i]))
    opener = text[start] if text[start] in PLACE or text[start] == BREAK else ""
    return Clause(opener, own, loose, stop <= lead)


def _known_subject(text: Sequence[str], clause: Clause) -> Subject:
    """Return the clause's first product, or the last of several that follow at once: "laptop bag".

    A noun right behind it makes it another thing, which is unknown: "lamp shade".
    """
    products = [match for match in clause.matches if match.name("product")]
    first = head = products[0]
    for match in products[1:]:
        head = match if match.start == head.stop else head
    stop = head.stop
    while stop in clause.loose and not text[stop].endswith(_PARTICIPLE):
        stop += 1
    if stop == head.stop:
        return Subject(clause, head.name("product"), (), range(head.start, head.stop))
    return Subject(clause, None, tuple(text[first.start : stop]), range(first.start, stop))


def _unknown_subject(text: Sequence[str], clause: Clause) -> Subject:
    """Return the clause's last run of unmatched words before an "and": "vintage red jacket".

    A participle at its end says what the thing does, not what it is: "jacket hanging".
    """
    loose = [i for i in clause.loose if "and" not in text[clause.loose[0] : i]]
    while len(loose) > 1 and text[loose[-1]].endswith(_PARTICIPLE):
        loose.pop()
    start = stop = loose[-1]
    while start - 1 in loose or (text[start - 1] == "of" and start - 2 in loose):
        start -= 1
    start = max(start, stop + 1 - UNKNOWN_WORDS)
    return Subject(clause, None, tuple(text[start : stop + 1]), range(start, stop + 1))
