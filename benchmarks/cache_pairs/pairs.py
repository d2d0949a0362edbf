"""A labelled pair of requests, and what the generators of such pairs share.

The two generators (`dev.py`, `heldout.py`) share neither grammars nor words: what is here is the
record, the drawing of kinds, and the typing errors of a hurried hand.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Pair", "Scene", "draw", "mistype", "plural", "read", "write"]

Scene = dict[str, str]
"""What a request asks for: slot name to words."""

NEIGHBOURS = {
    "q": "wa",
    "w": "qes",
    "e": "wrd",
    "r": "etf",
    "t": "ryg",
    "y": "tuh",
    "u": "yij",
    "i": "uok",
    "o": "ipl",
    "p": "ol",
    "a": "qsz",
    "s": "adwx",
    "d": "sfec",
    "f": "dgrv",
    "g": "fhtb",
    "h": "gjyn",
    "j": "hkum",
    "k": "jlim",
    "l": "kop",
    "z": "asx",
    "x": "zsdc",
    "c": "xdfv",
    "v": "cfgb",
    "b": "vghn",
    "n": "bhjm",
    "m": "njk",
}
"""Keys beside each other on a QWERTY keyboard."""
SHORTEST_MISTYPED = 6


@dataclass(frozen=True, slots=True)
class Pair:
    """Two requests; ``same`` says whether one answer serves both; ``kind`` how they were made."""

    a: str
    b: str
    same: bool
    kind: str
    language: str = "en"


def draw(rng: random.Random, table: dict[str, float]) -> str:
    """Draw a name by its weight."""
    return rng.choices(list(table), weights=list(table.values()))[0]


def plural(words: str) -> str:
    """Return the regular English plural of the last word."""
    if words.endswith("s"):
        return words
    if re.search(r"(x|ch|sh|z)$", words):
        return words + "es"
    if re.search(r"[^aeiou]y$", words):
        return words[:-1] + "ies"
    return words + "s"


def mistype(rng: random.Random, text: str, keep: Iterable[str] = ()) -> str:
    """Return ``text`` with one slip in one long lower-case word that is not part of ``keep``."""
    kept = " ".join(keep).lower()
    words = [
        match
        for match in re.finditer(rf"(?<![\w-])[a-z]{{{SHORTEST_MISTYPED},}}(?![\w-])", text)
        if match[0] not in kept
    ]
    if not words:
        return text
    match = rng.choice(words)
    word = match[0]
    at = rng.randrange(1, len(word) - 1)
    slips: Sequence[Callable[[], str]] = (
        lambda: word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        lambda: word[:at] + word[at + 1 :],
        lambda: word[:at] + word[at] + word[at:],
        lambda: word[:at] + rng.choice(NEIGHBOURS[word[at]]) + word[at + 1 :],
    )
    return text[: match.start()] + rng.choice(slips)() + text[match.end() :]


def write(path: Path, pairs: Iterable[Pair]) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[Pair]:
    """Read what `write` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Pair(**json.loads(line)) for line in lines]
