"""Typed slots: what a request says, taken apart so that it can be compared.

``read`` turns a text into a `Reading`. Patterns come first (`packshot.gateway.cache.patterns`:
quoted words, numbers with units, sizes, codes); the words in between are looked up in the lists of
`packshot.gateway.cache.lexicon`. Nothing is dropped but the listed little words and the opening of
a request, so a word that nobody foresaw is a slot as well.

Order matters too: a *chunk* is a run of slots without a preposition, a conjunction or punctuation
inside (``a red mug | with a blue lid``), a *stretch* one without a comma or an "and". What is bound
to what is read from these.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from packshot.gateway.cache.lexicon import LANGUAGES, LONGEST, Lexicon, Term, lexicon
from packshot.gateway.cache.patterns import PATTERNS, Slot, quantity
from packshot.gateway.cache.templates import Filled

__all__ = ["SLOT_TYPES", "WEAK", "Reading", "read"]

SLOT_TYPES = (
    *("quote", "number", "size", "sku", "colour", "material", "product", "place", "language"),
    *("negation", "relation", "word", "order", "parameter"),
)
"""What a route can ask to agree (``must_match``); all of them unless it says otherwise."""

LONGEST_TEXT = 4_000
"""Characters; a longer text agrees with itself alone. MiniLM reads the first thousand or so anyway,
and a hostile text of this length takes 0.1 s to read."""

MASK = "\x00"
WEAK = "~"
"""Before the name of a preposition that may be left out."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A text, read: its slots in order, its language, and how many little words were left out.

    ``filled`` is what it puts into a template of its partition, for callers that mine templates.
    """

    text: str
    slots: tuple[Slot, ...]
    language: str
    left_out: int
    filled: Filled | None = None

    @property
    def gist(self) -> str:
        """What is embedded: the slots' values alone, so that a long opening changes no vector, and
        sorted, so that phrases in another order do not; their order is the guards' business.
        """
        return " ".join(sorted(slot.value for slot in self.slots))

    def key(self, must_match: Collection[str] = SLOT_TYPES) -> bytes:
        """Return 32 bytes that are the same for requests that agree in ``must_match``.

        The other way round only nearly: equal keys say nothing of what is bound to what. And a slip
        of the hand, or a compound written apart, has another key. So most requests that agree are
        found by their key, without a vector; the rest by their vectors.
        """
        slots = (slot for slot in self.slots if slot.type in must_match)
        said = "\0\0".join(sorted(f"{slot.type}\0{slot.value}" for slot in slots))
        return hashlib.sha256(said.encode(errors="surrogatepass")).digest()


# ---------------------------------------------------------------- words
RUN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|w/o?(?![\w])")
SYMBOL = re.compile(
    r"[^\s\w\x00.,;:!?()\[\]{}/|\\'\"“”„«»‘’–—\-&+*_~`]|[\x1c-\x1f\x85]"
    # C++ is not C, and A- not A: signs that lean on what precedes.
    r"|(?<=[\w\x00])\+|(?<=[\w\x00])-(?![\w\x00-])"
    # Five stars are not five, and about five is not.
    r"|(?<=\x00)\*(?!\*)|(?<!~)~(?=\x00)"
)
BREAK = re.compile(r"[.,;!?()\[\]|\n–—]|\s/\s|\s-\s")
QUESTION = re.compile(r"[?¿]+")
COLON = re.compile(r":")
ASKS = frozenset({"is", "are", "was", "were"})
"""Little words that ask when they come first."""
RANGE = re.compile(r"(?<=\d)–(?=\d)")
RAISED = re.compile(r"[²³¹⁰⁴-⁹₀-₉]")


@dataclass(frozen=True, slots=True)
class _Word:
    """A part of a word between hyphens; ``joined`` to the part before it."""

    text: str
    start: int
    end: int
    joined: bool


def _clean(text: str) -> str:
    """Return ``text`` with one form of each letter, quote and space."""
    if not text.isascii():
        text = RAISED.sub(lambda match: f"^{match[0]}", text)  # 10² is not 102
        text = unicodedata.normalize("NFKC", text)
        text = text.translate({0x2018: "'", 0x2019: "'", 0x2010: "-", 0x2011: "-"})
        text = RANGE.sub("-", text)
    return text.replace(MASK, "\ufffd")


def _mask(text: str, spans: list[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + MASK * (end - start) + text[end:]
    return text


def _language(words: list[_Word]) -> Lexicon:
    """Return the lists of the language most of whose little words occur; English at a tie."""
    said = [word.text for word in words]
    counts = [sum(word in lexicon(name).fillers for word in said) for name in LANGUAGES]
    return lexicon(LANGUAGES[counts.index(max(counts))])


def _parts(text: str) -> list[_Word]:
    found: list[_Word] = []
    for run in RUN.finditer(text):
        start = run.start()
        for number, part in enumerate(run[0].split("-")):
            found.append(_Word(part.lower(), start, start + len(part), number > 0))
            start += len(part) + 1
    return found


def _compound(words: list[_Word], at: int) -> int:
    """Return how many parts the hyphenated word has that begins at ``at``."""
    end = at + 1
    while end < len(words) and words[end].joined:
        end += 1
    return end - at


def _lookup(text: str, words: list[_Word], lists: Lexicon) -> Iterator[Slot]:
    """Yield a slot for each phrase of a list, and for each word that is in none."""
    spelt = [lists.spelt(word.text.removesuffix("'s")) for word in words]
    shouted = text.isupper()
    at = 0
    while at < len(words):
        whole = _compound(words, at)
        count, term = lists.find(tuple(spelt[at : at + LONGEST])) or (0, None)
        cut = at + count < len(words) and words[at + count].joined
        if term is None or count < whole or cut:
            count, term = whole, Term("word", "".join(spelt[at : at + whole]))
        start, end = words[at].start, words[at + count - 1].end
        raw = text[start:end]
        if whole == count > 1 and spelt[at + count - 1] == "free":  # sugar-free
            yield from _free_of(start, end, "".join(spelt[at : at + count - 1]))
        elif term.type == "filler" and raw.isupper() and not shouted and _within(text, start, raw):
            yield Slot("word", raw, start, end, raw)  # IT is not it, plan A is no plan
        elif term.type == "filler" and at == 0 and spelt[count - 1] in ASKS:
            yield Slot("word", term.value, start, end, raw)  # "is it red" is not "it is red"
        else:
            value = quantity(term.value, "") if term.type == "number" else term.value
            surface = "".join(word.text for word in words[at : at + count])
            yield Slot(term.type, value, start, end, surface)
        at += count


def _within(text: str, start: int, raw: str) -> bool:
    """Tell whether a capital is one by itself, and not since a sentence begins."""
    return len(raw) > 1 or text[:start].rstrip(" ")[-1:].isalnum()


def _free_of(start: int, end: int, what: str) -> Iterator[Slot]:
    """Read "sugar-free cola" as "no sugar, cola": what follows is not left out."""
    yield Slot("negation", "not", start, start)
    yield Slot("word", what, start, end, what)
    yield Slot("weak", "", end, end)


def _symbols(text: str) -> Iterator[Slot]:
    """Yield what is neither word nor number nor punctuation: emoji, and what cannot be seen.

    Invisible characters can carry instructions to a model, so they must agree like all else.
    """
    for match in SYMBOL.finditer(text):
        yield Slot("word", match[0], match.start(), match.end(), match[0])


def read(text: str) -> Reading:
    """Take a request apart. The time is linear in the text, about 0.3 ms for thirty words.

    A text over `LONGEST_TEXT` characters is one slot: it agrees with itself alone.
    """
    if len(text) > LONGEST_TEXT:
        return Reading(text, (Slot("quote", text, 0, len(text)),), "en", 0)
    clean = masked = _clean(text)
    found: list[Slot] = []
    for extractors in PATTERNS.values():
        for extract in extractors:
            new = extract(masked)
            found += new
            masked = _mask(masked, [(slot.start, slot.end) for slot in new])
    lists = _language(_parts(masked))
    opening = [match.span() for match in lists.frame.finditer(masked)]
    spoken = masked
    for start, end in opening:
        spoken = spoken[:start] + " " * (end - start) + spoken[end:]
    found += _lookup(spoken, _parts(spoken), lists)
    found += _symbols(spoken)
    if not opening:  # "Could you write …?" asks for no answer of its own
        found += [Slot("word", "?", at.start(), at.end(), "?") for at in QUESTION.finditer(spoken)]
    found.sort(key=lambda slot: (slot.start, slot.end))
    slots = tuple(_bind(spoken, found))
    said = len(_parts(masked))
    kept = sum(slot.type not in {"number", "sku", "quote", "size"} for slot in slots)
    return Reading(clean, slots, lists.language, max(0, said - kept))


def _bind(text: str, found: list[Slot]) -> Iterator[Slot]:
    """Number chunks and stretches, give each slot its relation, and drop the little words."""
    chunk = stretch = end = 0
    relation = ""
    for slot in found:
        between = text[end : slot.start]
        end = max(end, slot.end)
        if BREAK.search(between):
            chunk, stretch, relation = chunk + 1, stretch + 1, ""
        elif COLON.search(between):
            chunk, relation = chunk + 1, ""
        if slot.type == "filler":
            continue
        if slot.type in {"joint", "weak", "relation", "negation"}:
            keeps = slot.type == "joint" and relation == "not"
            chunk, stretch = chunk + 1, stretch + (slot.type == "joint")
            weak = f"{WEAK}{slot.value}" if slot.value else ""
            named = {"joint": relation if keeps else "", "weak": weak}
            relation = named.get(slot.type, slot.value)
            if slot.type in {"joint", "weak"}:
                continue
        yield replace(slot, chunk=chunk, stretch=stretch, relation=relation)
