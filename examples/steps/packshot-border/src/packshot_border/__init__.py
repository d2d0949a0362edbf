"""A step of one's own: a plain border, drawn over the picture's edge so that its size stays.

Install it beside packshot (``pip install examples/steps/packshot-border``), and recipes may say
``- step: border``. docs/recipes.md goes through it line by line.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import Usage
from packshot.studio.recipes.step import Need, Shot, Tools
from packshot.studio.render import metered

__all__ = ["Border"]


class Border(msgspec.Struct, frozen=True, kw_only=True):
    """Draws a border ``width`` pixels wide, of the ``colour`` "#rrggbb"."""

    name: ClassVar[str] = "border"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = frozenset(("picture",))
    gives: ClassVar[frozenset[Need]] = frozenset(("picture",))
    width: int = 8
    colour: str = "#ffffff"

    def __post_init__(self) -> None:
        """Refuse what could never be drawn, before anything is rendered."""
        if not 1 <= self.width <= 512:
            raise InvalidRequest(f"width is {self.width}, expected 1 to 512 pixels")
        if not re.fullmatch("#[0-9a-f]{6}", self.colour):
            raise InvalidRequest(f"colour is {self.colour!r}, expected e.g. '#ffffff'")

    def __call__(self, shot: Shot, _: Tools) -> Shot:
        """Return the shot with its border; the picture that came in is not touched."""
        from PIL.ImageDraw import Draw

        meter: list[Usage] = []
        with metered(meter, "finish"):
            picture = shot.shown().copy()
            corner = (picture.width - 1, picture.height - 1)
            Draw(picture).rectangle((0, 0, *corner), outline=self.colour, width=self.width)
        return shot.then(*meter, picture=picture, facts={"border": {"width": self.width}})
