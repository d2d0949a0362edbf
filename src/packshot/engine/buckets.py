"""The sizes that a model renders at. Each is a shape that a GPU is prepared for, so they are few.

A request of another size is rendered at the nearest one, and resized afterwards. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log

from packshot.core.errors import InvalidRequest
from packshot.engine.limits import MAX_PIXELS, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

__all__ = [
    "BATCH_PIXELS",
    "MAX_BUCKETS",
    "SDXL",
    "Size",
    "batches_of",
    "buckets_of",
    "nearest",
    "parse_bucket",
]

Size = tuple[int, int]
"""Width and height in pixels."""

SDXL: tuple[Size, ...] = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216),
    (1344, 768), (768, 1344), (1536, 640), (640, 1536),
)  # fmt: skip
"""Of the shapes that SDXL was trained at, the nine that its makers advise.

Podell et al., "SDXL: Improving Latent Diffusion Models", arXiv 2307.01952, appendix I.
"""

MAX_BUCKETS = 24
"""Of a list: as many shapes as stay captured (`packshot.engine.fast.runner.GRAPHS`)."""

BATCH_PIXELS = 8 * 1024 * 1024
"""Pixels that a GPU makes together: eight pictures of 1024x1024."""


def buckets_of(native: Size, configured: Sequence[Size] | None = None) -> tuple[Size, ...]:
    """Return the buckets of a model that was trained at ``native``; none: it has that size alone.

    ``configured`` None takes SDXL's for a model of its size. Of either list those count that have
    half to twice the pixels of ``native``: a model makes no sense of others, and one file may serve
    several models.
    """
    if configured is None:
        return SDXL if native == SDXL[0] else ()
    pixels = native[0] * native[1]
    return tuple(size for size in configured if pixels <= 2 * size[0] * size[1] <= 4 * pixels)


def nearest(wanted: Size, native: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket nearest in shape to ``wanted``, of those the nearest in area.

    Without buckets that is ``native``.
    """

    def distance(bucket: Size) -> tuple[float, float]:
        shape = (wanted[0] * bucket[1]) / (wanted[1] * bucket[0])
        area = (wanted[0] * wanted[1]) / (bucket[0] * bucket[1])
        return abs(log(shape)), abs(log(area))

    return min(buckets, key=distance, default=native)


def batches_of(pictures: int, pixels: int) -> tuple[int, ...]:
    """Return how many of ``pictures`` of ``pixels`` each a GPU makes together, batch by batch.

    As many as fit, in powers of two, so that few shapes are captured.
    """
    fit = max(1, BATCH_PIXELS // pixels)
    batches: list[int] = []
    while pictures:
        batches.append(1 << (min(fit, pictures).bit_length() - 1))
        pictures -= batches[-1]
    return tuple(batches)


def parse_bucket(text: str) -> Size:
    """Return (width, height) of "1216x832".

    Raises:
        InvalidRequest: not a size, or one that no model renders at.
    """
    sides = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip().lower(), re.ASCII)
    size = (int(sides[1]), int(sides[2])) if sides else (0, 0)
    if (
        not all(MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0 for side in size)
        or size[0] * size[1] > MAX_PIXELS
    ):
        raise InvalidRequest(
            f"{text!r} is no size to render at; expected WxH, e.g. 1216x832: multiples of "
            f"{SIDE_MULTIPLE}, {MIN_SIDE} to {MAX_SIDE}, at most {MAX_PIXELS} pixels in all"
        )
    return size
