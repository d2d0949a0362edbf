"""Templates, found in traffic: what stays the same is the template, what varies its parameters.

Services fill forms: ``Write a caption for {product} in {tone} tone``. In such a text even a little
word or a letter may be the whole difference (``option: a`` and ``option: b``), so the parameters of
two texts of one template must agree one by one (`packshot.gateway.cache.guards`).

The miner is Drain's (He et al., "Drain: an online log parsing approach with fixed depth tree", ICWS
2017) with its two levels kept: texts are parted by their number of tokens, then by the first, and
merged with the template that shares the most tokens in place. Memory is bounded: `MOST_TEMPLATES`,
the one least lately seen goes first.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field

from packshot.gateway.cache.lexicon import is_little

__all__ = ["MOST_TEMPLATES", "Filled", "Template", "TemplateMiner"]

MOST_TEMPLATES = 1_000
MOST_IN_GROUP = 50
"""Templates of one length and first token that a text is compared with."""
MOST_TOKENS = 400
"""Longer texts are not mined."""
LEAST_ALIKE = 0.6
"""Share of tokens in place that two texts of one template have in common."""
LEAST_SEEN = 5
"""Texts after which a template is taken for one; two alike may be chance."""
LEAST_CONSTANT = 3
"""Constant tokens of a template: fewer hold nothing together."""
TOKEN = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Filled:
    """A text as its template's number and what it fills in, in order."""

    template: int
    values: tuple[str, ...]


@dataclass(slots=True)
class Template:
    """Constant tokens, None where they vary.

    ``said`` are the places where something other than a little word was seen: where people write
    now "a", now "the", nothing is filled in.
    """

    number: int
    tokens: list[str | None]
    seen: int = 1
    said: set[int] = field(default_factory=set[int])

    def note(self, tokens: list[str]) -> None:
        """Take the words of a text into account."""
        self.said |= {at for at, token in enumerate(tokens) if not is_little(token)}

    def values(self, tokens: list[str]) -> tuple[str, ...]:
        """Return what a text fills in."""
        return tuple(
            token
            for at, (constant, token) in enumerate(zip(self.tokens, tokens, strict=True))
            if constant is None and at in self.said
        )

    def __str__(self) -> str:
        """Return ``Write a caption for {} in {} tone``."""
        return " ".join("{}" if token is None else token for token in self.tokens)

    @property
    def known(self) -> bool:
        """True when it was seen often enough, varies, and is constant enough to mean something."""
        constant = sum(token is not None and token.isalnum() for token in self.tokens)
        varies = None in self.tokens
        return varies and self.seen >= LEAST_SEEN and constant >= LEAST_CONSTANT


class TemplateMiner:
    """Templates of one partition. Fed with each request that missed."""

    def __init__(self, most: int = MOST_TEMPLATES) -> None:
        self._most = most
        self._groups: OrderedDict[tuple[int, str], list[Template]] = OrderedDict()
        self._count = self._made = 0

    def __len__(self) -> int:
        """Return the number of templates that are kept."""
        return self._count

    def learn(self, text: str) -> None:
        """Take a text into account."""
        tokens = TOKEN.findall(text)
        if not tokens or len(tokens) > MOST_TOKENS:
            return
        group = self._groups.setdefault((len(tokens), tokens[0]), [])
        self._groups.move_to_end((len(tokens), tokens[0]))
        best = max(group, key=lambda template: _alike(template, tokens), default=None)
        if best is not None and _alike(best, tokens) >= LEAST_ALIKE:
            best.seen += 1
            best.note(tokens)
            best.tokens = [
                mine if mine == theirs else None
                for mine, theirs in zip(best.tokens, tokens, strict=True)
            ]
            group.remove(best)
            group.append(best)
            return
        self._made += 1
        group.append(Template(self._made, list(tokens)))
        group[-1].note(tokens)
        self._count += 1
        if len(group) > MOST_IN_GROUP:
            del group[0]
            self._count -= 1
        while self._count > self._most:
            key, oldest = next(iter(self._groups.items()))
            del oldest[0]
            self._count -= 1
            if not oldest:
                del self._groups[key]

    def filled(self, text: str) -> Filled | None:
        """Return what ``text`` fills into its template, or None where it has none that is known."""
        tokens = TOKEN.findall(text)
        if not tokens or len(tokens) > MOST_TOKENS:
            return None
        for template in self._groups.get((len(tokens), tokens[0]), ()):
            if template.known and _fits(template, tokens):
                return Filled(template.number, template.values(tokens))
        return None


def _alike(template: Template, tokens: list[str]) -> float:
    """Return the share of tokens that are the same in the same place; parameters count for none."""
    same = sum(mine == theirs for mine, theirs in zip(template.tokens, tokens, strict=True))
    return same / len(tokens)


def _fits(template: Template, tokens: list[str]) -> bool:
    return all(mine in {None, theirs} for mine, theirs in zip(template.tokens, tokens, strict=True))
