"""The nearest concept that a model does know, for a product that it does not.

No embedding model runs here: a shared last word ("water bottle" is some bottle), the spelling
("sneekers"), and a hand-written table of everyday products by kind. The first two are near enough
to be rendered in place of what was asked, with a warning; a thing of the same kind is only named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from packshot.studio.kinds import kinds
from packshot.studio.lexicon import Lexicon, Product
from packshot.studio.phrases import key, stem, words

__all__ = ["Nearest", "nearest_product", "nearest_term"]

TYPO = 0.82  # SequenceMatcher ratio from which two spellings are taken for the same word
COMPOUND = 5  # letters from which a noun is looked for at the end of a compound


@dataclass(frozen=True, slots=True)
class Nearest:
    """What the lexicon has nearest to an unknown product.

    ``close`` says that ``name`` may stand for it; otherwise it is only of the same ``kind``, and
    ``others`` are the further ones of that kind.
    """

    name: str
    close: bool
    kind: str
    others: tuple[str, ...] = ()


def nearest_product(phrase: Sequence[str], lexicon: Lexicon) -> Nearest | None:
    """Return the product nearest to the words of ``phrase``; None if nothing is near."""
    asked = key(phrase)
    near = [(name, text) for name, text in _names(lexicon) if _shares_head(phrase, words(text))]
    if near:
        name = max(near, key=lambda pair: _ratio(asked, key(words(pair[1]))))[0]
        return Nearest(name, True, head(phrase))
    misspelt = _best(" ".join(phrase), _names(lexicon))
    if misspelt is not None:
        return Nearest(misspelt, True, head(phrase))
    return _same_kind(phrase, lexicon)


def nearest_term(phrase: str, names: Sequence[str]) -> str | None:
    """Return the name that ``phrase`` misspells or shares a word with; None if nothing is near."""
    found = _best(phrase, [(name, name) for name in names])
    if found is not None:
        return found
    asked = {stem(word) for word in words(phrase)}
    return next((name for name in names if asked & {stem(w) for w in words(name)}), None)


def head(phrase: Sequence[str]) -> str:
    """Return the stem of the noun that says what a phrase names: "bottle" of "bottle of rum"."""
    stop = phrase.index("of") if "of" in phrase[1:] else len(phrase)
    return stem(phrase[stop - 1])


def _shares_head(asked: Sequence[str], known: Sequence[str]) -> bool:
    """Tell whether two names end in one noun, or the known one is a compound of it: sunglasses."""
    noun = head(asked)
    compound = len(noun) >= COMPOUND and "".join(known).endswith((noun, asked[-1]))
    return head(known) == noun or compound


@lru_cache(maxsize=8)
def _names(lexicon: Lexicon) -> tuple[tuple[str, str], ...]:
    """Return (product, name or synonym) pairs."""
    pairs = ((p.name, text) for p in lexicon.products for text in (p.name, *p.synonyms))
    return tuple((name, text) for name, text in pairs if words(text))


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _best(asked: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Return the name whose spelling is nearest to ``asked``, if it is near enough for a slip."""
    scored = [(_ratio(key(words(asked)), key(words(text))), name) for name, text in names]
    score, name = max(scored, key=lambda item: item[0], default=(0.0, ""))
    return name if score >= TYPO else None


def _same_kind(phrase: Sequence[str], lexicon: Lexicon) -> Nearest | None:
    """Return the products of the first kind that both a word of ``phrase`` and a product belong to.

    The head noun goes first: a coffee table is furniture before it is a cup.
    """
    for word in (head(phrase), *(stem(word) for word in reversed(phrase))):
        for kind, listed in kinds().items():
            members = {stem(member) for member in listed}
            if word != stem(kind) and word not in members:
                continue
            known = [p.name for p in lexicon.products if _is_of(p, kind, members)]
            if known:
                return Nearest(known[0], False, kind, tuple(known[1:]))
    return None


def _is_of(product: Product, kind: str, members: set[str]) -> bool:
    return product.category == kind or head(words(product.name)) in members
