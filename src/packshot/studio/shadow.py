"""The shadow: a layer of its own that multiplies the ground, and so cannot touch the product.

Two parts. Contact: dark and narrow along the product's lower edge, where no light comes between it
and the ground. Cast: the silhouette laid on the ground, away from the light, softer and paler with
the height of what casts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packshot.studio.filters import blurred, resized

if TYPE_CHECKING:
    from packshot.studio.colour import Bytes, Floats
    from packshot.studio.light import Light

__all__ = ["CONTACT", "shadow_layer"]

CONTACT = ((0.90, 0.013), (0.50, 0.045))
"""Strength, and width in heights of the product, of the two shades along its lower edge."""

FOOT = 0.14
"""Height above its lowest point, in heights of the product, up to which its edge stands on the
ground: seen from above, a round foot is a curve."""

WORKING_SIDE = 640
MARGIN, BLOCK = 0.06, 16
"""Share of each side in which the shadow fades out, and pixels at the border that have none: a JPEG
or WebP codes blocks of so many, and one with a shadow in it is not pure white anywhere."""


def shadow_layer(alpha: Bytes, light: Light) -> Floats:
    """Return the share of light that the ground keeps [height, width]: 1 where there is no shadow.

    ``alpha`` [height, width] is the product's. The layer says nothing of the product itself.
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    height, width = alpha.shape
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(fromarray(alpha).resize(size, Resampling.BOX), dtype=np.float32) / 255
    rows = np.flatnonzero((small > 0.5).any(axis=1))
    if not len(rows):
        return np.ones((height, width), np.float32)
    top, foot = int(rows[0]), int(rows[-1]) + 1
    tall = max(1, foot - top)
    layer = np.ones_like(small)
    for strength, wide in CONTACT:
        layer *= 1 - strength * _contact(small, tall, wide)
    layer *= 1 - light.kind.strength * _cast(small, foot, tall, light)
    layer = 1 - (1 - layer) * _window(layer.shape, BLOCK * scale)
    full = resized(layer, (width, height))
    return np.where(full > 0.997, 1.0, full).astype(np.float32)  # under half a step of 8 bits


def _contact(alpha: Floats, tall: int, wide: float) -> Floats:
    """Return the shade along the lower edge of what stands on the ground, 0 to 1."""
    import numpy as np

    solid = alpha > 0.5
    rows = np.arange(alpha.shape[0], dtype=np.float32)[:, None]
    lowest = np.where(solid, rows, -1).max(axis=0)  # of each column; -1 where there is none
    stands = lowest >= lowest.max() - FOOT * tall
    above = np.clip((lowest.max() - lowest) / (FOOT * tall), 0, 1)  # 0 at the very foot
    deviation = max(1.0, wide * tall)
    shade = np.exp(-0.5 * ((rows - lowest) / deviation) ** 2) * stands * (1 - above**2)
    return blurred(shade.astype(np.float32), deviation)


def _cast(alpha: Floats, foot: int, tall: int, light: Light) -> Floats:
    """Return the silhouette laid on the ground, 0 to 1: sharp at the foot, soft at its far end."""
    import numpy as np
    from PIL.Image import Resampling, Transform, fromarray

    length = light.kind.length
    right, back = light.side.right * length, light.side.back * length
    # The foot is a patch of ground, not a line: the shadow starts in its middle.
    columns = np.flatnonzero((alpha[max(0, foot - max(1, tall // 8)) : foot] > 0.5).any(axis=0))
    patch = 0.09 * (columns[-1] - columns[0] + 1) if len(columns) else 0.0
    start = foot - min(patch, 0.1 * tall)
    # Output (X, Y) shows the height h = (start - Y) / back, and of it the column X - right * h.
    across = (1.0, right / back, -right * start / back)
    upward = (0.0, 1 / back, start - start / back)
    heights = (start - np.arange(alpha.shape[0], dtype=np.float32)[:, None]) / tall
    total = np.zeros_like(alpha)
    for share, low, high, wide in ((0.80, 0.0, 0.45, 0.4), (0.70, 0.25, 1.0, 1.1)):
        part = alpha * np.clip(1.2 - heights, 0, 1)
        part = part if low == 0 else part * np.clip((heights - low + 0.25) / 0.25, 0, 1)
        part = part * np.clip((high + 0.25 - heights) / 0.25, 0, 1) if high < 1 else part
        laid = fromarray(part.astype(np.float32)).transform(
            (alpha.shape[1], alpha.shape[0]),
            Transform.AFFINE,
            (*across, *upward),
            Resampling.BILINEAR,
        )
        soft = blurred(np.asarray(laid, np.float32), light.kind.blur * tall * wide)
        total = 1 - (1 - total) * (1 - share * soft)
    return np.clip(total, 0, 1)


def _window(shape: tuple[int, ...], edge: float) -> Floats:
    """Return 1 inside, falling smoothly to 0 at ``edge`` pixels from the picture's border."""
    import numpy as np

    def ramp(length: int) -> Floats:
        at = np.minimum(np.arange(length), np.arange(length)[::-1])
        t = np.clip((at - edge - 1) / max(1.0, MARGIN * length), 0, 1)
        return t * t * (3 - 2 * t)

    return np.minimum.outer(ramp(shape[0]), ramp(shape[1]))
