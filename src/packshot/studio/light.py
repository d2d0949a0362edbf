"""Light as a brief says it: where it comes from and how hard it is, for the shadow and the caption.

Every row is data; the first whose words are in the brief is taken, else the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["KINDS", "SIDES", "Kind", "Light", "Side", "light_of"]


@dataclass(frozen=True, slots=True)
class Side:
    """Where light comes from. ``right`` and ``back`` say where its shadow goes.

    They are the length of the shadow on the ground in heights of the product, as the camera sees
    it: to the right of the picture, and away from the camera (up in the picture); negative is the
    other way. ``words`` is a regular expression over the brief in lower case, ``phrase`` what a
    caption without such words is given.
    """

    name: str
    right: float
    back: float
    words: str
    phrase: str


@dataclass(frozen=True, slots=True)
class Kind:
    """How hard light is: ``strength`` of the shadow (1 is black), ``blur`` of its edge and length.

    ``blur`` is in heights of the product, ``length`` multiplies that of the side.
    """

    name: str
    strength: float
    blur: float
    length: float
    words: str


@dataclass(frozen=True, slots=True)
class Light:
    """The light of one picture."""

    side: Side
    kind: Kind


LEFT, RIGHT = "light from the left", "light from the right"

BEHIND, FRONT = "light from behind", "light from the front"

_LEFT = r"(from|on|at) (the |its )?left|left[- ](hand |side )?light"
_RIGHT = r"(from|on|at) (the |its )?right|right[- ](hand |side )?light"
_BACK = r"back[- ]?(light|lit)|from behind|contre[- ]?jour|rim light"

SIDES = (
    Side("top left", 0.50, 0.20, r"(top|upper|above)[- ]?(and )?(the )?left", LEFT),
    Side("top right", -0.50, 0.20, r"(top|upper|above)[- ]?(and )?(the )?right", RIGHT),
    Side("left", 0.85, 0.17, _LEFT, LEFT),
    Side("right", -0.85, 0.17, _RIGHT, RIGHT),
    Side("left", 0.85, 0.17, r"\bside[- ]?(light|lit)|\blight from (the|one) side", LEFT),
    Side("behind", 0.10, -0.30, _BACK, BEHIND),
    Side("front", 0.05, 0.22, r"front(al)?[- ]?(light|lit)|from (the )?front", FRONT),
    Side("top", 0.04, 0.03, r"overhead|top[- ]?(light|lit)|from (above|the top)|zenith", ""),
    Side("top left", 0.50, 0.20, "", LEFT),
)
"""The last row is what holds where the brief says nothing."""

KINDS = (
    Kind("dramatic", 0.62, 0.030, 1.25, r"dramatic|hard|low[- ]?key|moody|spot ?light|harsh"),
    Kind("evening", 0.45, 0.045, 1.55, r"evening|sunset|golden hour|dusk|late sun"),
    Kind("morning", 0.40, 0.050, 1.30, r"morning|sunrise|dawn"),
    Kind("daylight", 0.48, 0.028, 0.90, r"daylight|sun(ny|light|shine)?\b|bright|noon"),
    Kind("soft", 0.26, 0.090, 0.75, r"soft|diffuse|overcast|cloud|gentle|even light|window"),
    Kind("studio", 0.34, 0.060, 0.85, ""),
)
"""The last row is what holds where the brief says nothing."""


def light_of(brief: str) -> Light:
    """Return the light that a brief asks for."""
    text = brief.lower()
    side = next(row for row in SIDES if not row.words or re.search(row.words, text))
    kind = next(row for row in KINDS if not row.words or re.search(row.words, text))
    return Light(side, kind)
