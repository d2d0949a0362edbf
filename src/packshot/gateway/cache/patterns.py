"""Slots that a pattern finds: quoted words, sizes, numbers with units, codes.

Each extractor is a function of one signature, text to slots, and `PATTERNS` is the table of them in
the order in which they claim their part of a text. Units are brought to one of their dimension, so
that 2 l is 2000 ml; what the units are is data (``words/units.txt``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from packshot.gateway.cache.lexicon import units

__all__ = ["PATTERNS", "Extractor", "Slot", "quantity"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing that is said. ``value`` is equal where two ways to say it mean the same.

    ``start`` and ``end`` are offsets into the cleaned text; ``chunk`` and ``stretch`` number what
    it stands in; ``relation`` is the preposition that leads its chunk, a weak one after a ``~``.
    """

    type: str
    value: str
    start: int
    end: int
    surface: str = ""
    chunk: int = 0
    stretch: int = 0
    relation: str = ""


Extractor = Callable[[str], tuple[Slot, ...]]

NUMBER = r"(?<![\w.,])[-−+]?\d+(?:[.,]\d+)*"
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}")
TIMES = r"\s*(?:x|×|\*|by)\s*"


def _unit_pattern() -> str:
    names = sorted((name for name in units() if name not in {"$", "€", "£", "¥"}), key=len)
    written = "|".join(r"\s+".join(map(re.escape, name.split())) for name in reversed(names))
    # "in" is an inch only where no word follows: "42 in white" is not a length.
    return rf"(?:(?:{written})(?![\w])|in\.|in(?=\s*(?:[,;)x×]|$)))"


def _decimal(text: str) -> Decimal:
    """Read 1,000 and 1.000,5 and 1,5: a comma before exactly three digits parts thousands."""
    text = text.replace("−", "-")
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return Decimal(text.replace(",", ""))
    if re.fullmatch(r"[-+]?\d{1,3}(?:\.\d{3})+,\d+", text):
        return Decimal(text.replace(".", "").replace(",", "."))
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        return Decimal(text.replace(",", "."))
    if re.match(r"[-+]?0\d", text):
        return Decimal("NaN")  # 007 is a name
    # 1.000 may be one or a thousand, so it is neither.
    plain = re.fullmatch(r"[-+]?\d+(?:\.\d+)?", text)
    return Decimal(text) if plain and not THOUSANDS.fullmatch(text) else Decimal("NaN")


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def quantity(number: str, unit: str) -> str:
    """Return ``2000 volume`` for both ``2 l`` and ``2000ml``; codes like 1.2.3 stay as written."""
    value = _decimal(number)
    if value.is_nan():
        return f"{number} {unit}"
    name = re.sub(r"\s+", " ", unit.lower()).rstrip(".")
    known = units().get("inch" if name == "in" else name)
    if known is None:
        return f"{_plain(value)} {name}".rstrip()
    return f"{_plain(value * Decimal(known.factor))} {known.dimension}"


def _slots(pattern: str, kind: str, value: Callable[[re.Match[str]], str]) -> Extractor:
    compiled = re.compile(pattern, re.IGNORECASE)

    def extract(text: str) -> tuple[Slot, ...]:
        return tuple(
            Slot(kind, value(match), match.start(), match.end(), match[0])
            for match in compiled.finditer(text)
        )

    return extract


def _dimensions(match: re.Match[str]) -> str:
    parts = re.findall(rf"(\d+(?:[.,]\d+)?)\s*({_unit_pattern()})?", match[0], re.IGNORECASE)
    last = next((unit for _, unit in reversed(parts) if unit), "")
    return " x ".join(quantity(number, unit or last) for number, unit in parts)


def _size(match: re.Match[str]) -> str:
    """Return ``EU 42`` for a bare size that only the European scale has."""
    scale, value = (match["scale"] or match["scale2"] or "").upper(), match["value"].upper()
    value = {"SMALL": "S", "MEDIUM": "M", "LARGE": "L"}.get(value, value.replace(",", "."))
    european = re.fullmatch(r"(3[4-9]|4\d|50)(\.5)?", value) is not None
    return f"{scale or ('EU' if european else '')} {value}".strip()


LETTERS = r"x{0,3}s|x{0,4}l|[2-5]xl|m|small|medium|large|one\s+size"
UNIT = _unit_pattern()
PATTERNS: dict[str, tuple[Extractor, ...]] = {
    "quote": (
        _slots(
            r"(?<!\d)\"([^\"\n]{1,400})\"|[“„«]([^”“»\n]{1,400})[”“»]|(?<!\w)'([^'\n]{1,400})'(?!\w)",
            "quote",
            lambda match: " ".join((match[1] or match[2] or match[3]).split()),
        ),
    ),
    "sku": (
        _slots(
            r"(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+\.\w[\w.]*",
            "sku",
            lambda match: match[0],
        ),
    ),
    "size": (
        _slots(
            rf"\b(?:(?P<scale>eu|us|uk)\s*)?(?:size|gr\.|größe|taille|talla)\s*"
            rf"(?:(?P<scale2>eu|us|uk)\s*)?(?P<value>\d{{1,2}}(?:[.,]5)?|{LETTERS})\b"
            rf"(?!\s*(?:{UNIT}|x\s*\d|×))(?![-\w.]*\d)",
            "size",
            _size,
        ),
        _slots(
            r"\b(?P<scale>eu|us|uk)[\s-]?(?P<scale2>)(?P<value>\d{1,2}(?:[.,]5)?)\b(?![-\w.]*\d)",
            "size",
            _size,
        ),
    ),
    "number": (
        _slots(
            rf"{NUMBER}(?:\s*{UNIT})?(?:{TIMES}\d+(?:[.,]\d+)?(?:\s*{UNIT})?){{1,3}}(?![\w])",
            "number",
            _dimensions,
        ),
        _slots(
            # Case tells mega from milli, where both are said of things.
            rf"(?P<n>{NUMBER})\s*(?P<u>(?-i:M)(?:w|wh|v|a|j|pa|g))(?!\w)",
            "number",
            lambda match: quantity(match["n"], f"mega{match['u'][1:]}"),
        ),
        _slots(
            rf"(?P<n>{NUMBER})[\s-]*(?P<u>{UNIT}|[€£$])",
            "number",
            lambda match: quantity(match["n"], match["u"]),
        ),
        _slots(
            r"(?P<u>[€$£¥]|\b(?:eur|usd|gbp|chf)\b)\s*(?P<n>\d+(?:[.,]\d+)*)",
            "number",
            lambda match: quantity(match["n"], match["u"]),
        ),
    ),
    "code": (
        # Letters and digits in one, or digits joined by signs: article codes, dates, versions.
        _slots(
            r"(?<![\w])(?=[\w\-./:#]*\d)(?!\d+-[^\W\d]{3,}(?![\w\-./:#]))"
            r"(?:#?\w+(?:[-./:#]\w+)+|#?\d+[^\W\d_]\w*|#?[^\W\d_]+\d\w*|#\d+)",
            "sku",
            lambda match: match[0].upper(),
        ),
        _slots(NUMBER, "number", lambda match: quantity(match[0], "")),
    ),
}
"""The patterns in the order in which they claim their part of a text."""
