"""Filters on arrays that several parts of the studio share: means, grown shapes, filled holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from packshot.studio.colour import Floats

    Mask = NDArray[np.bool_]

__all__ = ["blurred", "boxed", "filled", "grown", "resized", "shrunk"]


def boxed(values: Floats, radius: int) -> Floats:
    """Return the mean in a window of 2 * ``radius`` + 1 pixels a side; the borders repeat.

    ``values`` are [height, width] or [height, width, channels].
    """
    import numpy as np

    side = 2 * radius + 1
    for axis in (0, 1):
        pad = [(radius + 1, radius) if axis == a else (0, 0) for a in range(values.ndim)]
        sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float64)
        length = sums.shape[axis]
        ends = np.take(sums, range(side, length), axis) - np.take(sums, range(length - side), axis)
        values = (ends / side).astype(np.float32)
    return values


def blurred(values: Floats, sigma: float) -> Floats:
    """Return ``values`` blurred by about a Gaussian of ``sigma`` pixels: three means in a row."""
    radius = round(sigma)  # three windows of 2r+1 have a variance of r(r+1)
    if radius < 1:
        return values
    for _ in range(3):
        values = boxed(values, radius)
    return values


def grown(shape: Mask, by: int) -> Mask:
    """Return a shape grown by ``by`` pixels in all eight directions."""
    return _ranked(shape, by, most=True)


def shrunk(shape: Mask, by: int) -> Mask:
    """Return a shape without what lies within ``by`` pixels of its outside (the frame is none)."""
    return _ranked(shape, by, most=False)


def _ranked(shape: Mask, by: int, *, most: bool) -> Mask:
    """Take the largest or least of each window of 2 * ``by`` + 1, first along one axis, then two.

    Windows of three, ``by`` times, would do the same; doubling them takes log2 of that.
    """
    import numpy as np

    better = np.logical_or if most else np.logical_and
    for axis in (0, 1):
        shape = np.moveaxis(shape, axis, 0).copy()
        left, reach = by, 1
        while left:
            step = min(reach, left)
            wider = shape.copy()
            wider[step:] = better(wider[step:], shape[:-step])
            wider[:-step] = better(wider[:-step], shape[step:])
            shape, left, reach = wider, left - step, reach + step
        shape = np.moveaxis(shape, 0, axis)
    return shape


def resized(values: Floats, size: tuple[int, int]) -> Floats:
    """Return ``values`` [height, width] at ``size`` (width, height), linear in between."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    shown = fromarray(values.astype(np.float32))
    return np.asarray(shown.resize(size, Resampling.BILINEAR), dtype=np.float32)


def filled(picture: Floats, hole: Mask, along: int = 0) -> Floats:
    """Return a picture [h, w, c] whose ``hole`` is filled smoothly from around it.

    Push and pull (Gortler et al., "The Lumigraph", SIGGRAPH 1996): means of what is known at ever
    coarser sizes, each taken where the finer one knows nothing. The first ``along`` halvings are of
    the width alone, so that a hole is filled from its own rows as far as 2 ** ``along`` pixels: a
    horizon goes on behind what stood before it.
    """
    import numpy as np

    weight = (~hole).astype(np.float32)[..., None]
    if not hole.any() or hole.all():
        return picture
    return np.where(hole[..., None], _pulled(picture * weight, weight, along), picture)


def _pulled(sums: Floats, weight: Floats, along: int) -> Floats:
    import numpy as np

    known = sums / np.maximum(weight, 1e-6)
    height, width = weight.shape[:2]
    tall = 1 if along > 0 else 2
    if width < 2 or height < tall or weight.min() > 0:
        return known
    padded = [(0, height % tall), (0, width % 2), (0, 0)]
    halves = [np.pad(part, padded, mode="edge") for part in (sums, weight)]
    halves = [
        part.reshape(part.shape[0] // tall, tall, part.shape[1] // 2, 2, -1).sum(axis=(1, 3))
        for part in halves
    ]
    share = np.maximum(1.0, halves[1])  # a pixel counts for one at most, or far ones would drown it
    coarse = _pulled(halves[0] / share, halves[1] / share, along - 1)
    size = (coarse.shape[1] * 2, coarse.shape[0] * tall)
    layers = [resized(coarse[..., k], size)[:height, :width] for k in range(coarse.shape[-1])]
    over = np.stack(layers, axis=-1)
    certain = np.minimum(weight, 1.0)
    return known * certain + over * (1 - certain)
