"""From the finished picture to the bytes of its file, within the limits that a shop sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packshot.core.errors import InvalidRequest
from packshot.studio.colour import srgb_profile
from packshot.studio.store import SETTINGS, encode

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "QUALITY", "Encoding", "encoded"]

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Formats by the name that a recipe gives them, and Pillow's names for them."""

QUALITY = 92
"""Of JPEG and WebP, as `packshot render` writes them (`packshot.studio.store.SETTINGS`)."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file is to be: ``format`` "PNG", "JPEG" or "WEBP", and at most ``max_bytes`` long.

    ``quality`` (1 to 100) is of JPEG and WebP. Where the file comes out too long it is lowered, to
    ``least_quality`` at the most. ``max_bytes`` 0 is no limit. ``profile`` embeds sRGB's.
    """

    format: str
    quality: int = QUALITY
    least_quality: int = 60
    max_bytes: int = 0
    profile: bool = False


def encoded(picture: Image, chosen: Encoding, extra: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return the file, and the quality that it has: the highest within the limit, 0 of a PNG.

    ``extra`` are Pillow's arguments for the metadata, which counts as well.

    Raises:
        InvalidRequest: it cannot be made as short as it must be.
    """
    extra = dict(extra)
    if chosen.profile:
        extra["icc_profile"] = srgb_profile()
    lossless = "quality" not in SETTINGS[chosen.format]

    def at(quality: int) -> bytes:
        return encode(picture, chosen.format, extra if lossless else {**extra, "quality": quality})

    best = at(chosen.quality)
    if not chosen.max_bytes or len(best) <= chosen.max_bytes:
        return best, 0 if lossless else chosen.quality
    shortest = len(best)
    if not lossless:
        # The highest quality that fits, by halves: `low` fits, `high` does not.
        low, high = chosen.least_quality, chosen.quality
        best = at(low)
        if len(best) <= chosen.max_bytes:
            while high - low > 1:
                middle = (low + high) // 2
                tried = at(middle)
                if len(tried) <= chosen.max_bytes:
                    low, best = middle, tried
                else:
                    high = middle
            return best, low
        shortest = len(best)
    raise InvalidRequest(_too_long(picture, chosen, shortest))


def _too_long(picture: Image, chosen: Encoding, shortest: int) -> str:
    size = f"{picture.width}x{picture.height}"
    if chosen.format == "PNG":
        return (
            f"a PNG of {size} pixels has {shortest} bytes, more than max_bytes {chosen.max_bytes}: "
            "choose format jpeg or webp, or a smaller size"
        )
    return (
        f"{chosen.format} of {size} pixels has {shortest} bytes at quality {chosen.least_quality}, "
        f"more than max_bytes {chosen.max_bytes}: choose a smaller size, or a lower least_quality"
    )
