"""The finish: from the engine's pixels to the picture that is delivered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packshot.core.errors import InvalidRequest
from packshot.engine.limits import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DEFAULT_SHARPEN", "Sharpen", "finish", "fit", "parse_size"]


@dataclass(frozen=True, slots=True)
class Sharpen:
    """An unsharp mask: blur ``radius`` in source pixels, ``percent`` of the difference added back.

    Differences under ``threshold`` (of 255) are left alone, so that plain grounds stay plain.
    """

    radius: float
    percent: int
    threshold: int


DEFAULT_SHARPEN = Sharpen(radius=0.8, percent=50, threshold=2)
"""Gives back the edge contrast that a VAE and a resize take, short of a visible halo."""


def parse_size(text: str, native: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) for "512x384", or for "512" the longer side in the ``native`` shape.

    Raises:
        InvalidRequest: not a size, not multiples of 8, or a side below 64 or above 4096 pixels.
    """
    sides = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text.strip().lower(), re.ASCII)
    if sides is None:
        raise InvalidRequest(f"size {text!r} is not a size; say e.g. 512 or 768x512")
    width, height = int(sides[1]), int(sides[2] or sides[1])
    for pixels in (width, height):
        if not MIN_SIDE <= pixels <= MAX_SIDE:
            raise InvalidRequest(
                f"size {text!r}: {pixels} is out of range, expected {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        if pixels % SIDE_MULTIPLE:
            below = pixels - pixels % SIDE_MULTIPLE
            raise InvalidRequest(
                f"size {text!r}: {pixels} is not a multiple of {SIDE_MULTIPLE}; "
                f"the nearest are {below} and {below + SIDE_MULTIPLE}"
            )
    if sides[2] is None and native[0] != native[1]:
        longer = max(native)
        return _rounded(width * native[0] / longer), _rounded(height * native[1] / longer)
    return width, height


def _rounded(pixels: float) -> int:
    return round(pixels / SIDE_MULTIPLE) * SIDE_MULTIPLE


def fit(source: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box (left, top, right, bottom) of ``source`` in another shape."""
    scale = min(source[0] / wanted[0], source[1] / wanted[1])
    # The product of a rounded quotient may pass what it was divided from by one last bit.
    width, height = min(source[0], wanted[0] * scale), min(source[1], wanted[1] * scale)
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return left, top, left + width, top + height


def finish(picture: Image, size: tuple[int, int], sharpen: Sharpen | None) -> Image:
    """Return ``picture`` at ``size``, resampled with Lanczos from its centre, then sharpened.

    Nothing is stretched: where the shapes differ, the two longer margins are cut off.
    """
    from PIL.Image import Resampling
    from PIL.ImageFilter import UnsharpMask

    done = picture.convert("RGB")
    if size != done.size:
        done = done.resize(size, Resampling.LANCZOS, box=fit(done.size, size))
    if sharpen is None or sharpen.percent == 0:
        return done
    radius = sharpen.radius * max(1.0, size[0] / picture.width, size[1] / picture.height)
    return done.filter(UnsharpMask(radius, sharpen.percent, sharpen.threshold))
