"""The product on its new ground: its own pixels where it is all product, light mixed on the rim.

The promise: where alpha is full, the picture has the very pixels of the photograph. What lies on
the rim is ``alpha * F + (1 - alpha) * B`` in linear light, ``F`` being the product's own colour
there, estimated, and never the old ground.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packshot.core.errors import BadPhoto
from packshot.studio.colour import linear, srgb
from packshot.studio.filters import boxed, shrunk

if TYPE_CHECKING:
    from packshot.studio.colour import Bytes, Floats
    from packshot.studio.filters import Mask
    from packshot.studio.matte import Matte
    from packshot.studio.photo import Photo

__all__ = ["CORE_MARGIN", "Cutout", "composite", "cutout_of", "placed", "shaded"]

CORE_MARGIN = 1
"""Pixels between the core and whatever is not all product (r in docs/background.md)."""

LANCZOS_REACH = 3
"""Pixels, of the smaller picture, that Lanczos' kernel reaches to each side."""

GUIDE_SIDE = 1600
"""Longer side of the copy in which colours of the rim are estimated: they change slowly."""

WINDOWS = (72, 6)
"""Radii of the estimates of a rim colour, one upon the other: 90 and 6 pixels in the paper, whose
pictures are a little larger."""

SURE = 4
"""Power of alpha that weighs a pixel's part in the product's colour: one that is half ground says
less than half of it."""

BAND = 512
"""Rows that are shaded at a time, so that memory does not grow with the photograph."""


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """A product ready to be put on a ground.

    ``colours`` [height, width, 3] uint8 sRGB: the photograph's where ``alpha`` [height, width] is
    255, the estimated colour of the product elsewhere. ``core`` is where the promise holds and is
    checked: alpha 255 there and ``margin`` pixels around. ``digest`` is the SHA-256, in hex, of the
    core's pixels: R, G, B, row by row. ``scale`` is 1, or what the photograph was shrunk by.
    """

    colours: Bytes = field(repr=False)
    alpha: Bytes = field(repr=False)
    core: Mask = field(repr=False)
    digest: str
    margin: int = CORE_MARGIN
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.alpha.shape[1], self.alpha.shape[0]


def cutout_of(photo: Photo, matte: Matte) -> Cutout:
    """Return the product of a photo, with its own colours on the rim and beyond.

    Raises:
        BadPhoto: no pixel is product alone, with a margin.
    """
    import numpy as np

    colours = np.where(
        (matte.alpha == 255)[..., None], photo.pixels, _own_colours(photo.pixels, matte)
    )
    return _cutout(colours, matte.alpha, CORE_MARGIN, 1.0, photo.name)


def placed(cutout: Cutout, size: tuple[int, int]) -> Cutout:
    """Return a cutout on a canvas of ``size`` (width, height), in its middle.

    It is shrunk, by Lanczos, where it would not fit, and never enlarged.
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    width, height = cutout.size
    if size == cutout.size:
        return cutout
    scale = min(1.0, size[0] / width, size[1] / height)
    colours, alpha, margin = fromarray(cutout.colours), fromarray(cutout.alpha), cutout.margin
    if scale < 1:
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        colours = colours.resize(small, Resampling.LANCZOS)
        # 254 among many of 255 would be rounded away, and it is no pixel that stays untouched. The
        # filter is not BOX, whose rounded windows leave out a row now and then.
        rim = fromarray((cutout.alpha < 255).astype(np.float32)).resize(small, Resampling.BILINEAR)
        most = np.where(np.asarray(rim) > 0, 254, 255).astype(np.uint8)
        alpha = fromarray(np.minimum(np.asarray(alpha.resize(small, Resampling.BOX)), most))
        margin = cutout.margin + LANCZOS_REACH
    at = ((size[0] - colours.width) // 2, (size[1] - colours.height) // 2)
    canvas = fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    canvas.paste(colours, at)
    cover = fromarray(np.zeros((size[1], size[0]), np.uint8))
    cover.paste(alpha, at)
    return _cutout(np.array(canvas), np.array(cover), margin, scale, "the photograph")


def composite(cutout: Cutout, ground: Bytes) -> Bytes:
    """Return the product on ``ground`` [height, width, 3].

    Where alpha is 255 the pixels are the cutout's, whatever the ground is.
    """
    import numpy as np

    done = ground.copy()
    full = cutout.alpha == 255
    rim = (cutout.alpha > 0) & ~full
    share = (cutout.alpha[rim].astype(np.float32) / 255)[:, None]
    mixed = share * linear(cutout.colours[rim]) + (1 - share) * linear(ground[rim])
    done[rim] = srgb(mixed)
    done[full] = cutout.colours[full]
    return done


def shaded(ground: Bytes, layer: Floats) -> Bytes:
    """Return a ground [height, width, 3] under a shadow: ``layer`` is the share of light it keeps.

    Where the layer is 1 the ground stays as it is.
    """
    import numpy as np

    done = ground.copy()
    for first in range(0, ground.shape[0], BAND):
        rows = slice(first, first + BAND)
        dark = layer[rows] < 1
        lit = linear(ground[rows][dark]) * layer[rows][dark][:, None]
        done[rows][dark] = srgb(lit.astype(np.float32))
    return done


def _cutout(colours: Bytes, alpha: Bytes, margin: int, scale: float, name: str) -> Cutout:
    core = shrunk(alpha == 255, margin)
    if not core.any():
        raise BadPhoto(
            f"{name}: no pixel is product alone with {margin} pixels of product around it; "
            "is its alpha full where the product is?"
        )
    digest = hashlib.sha256(colours[core].tobytes()).hexdigest()
    return Cutout(colours, alpha, core, digest, margin, scale)


def _own_colours(pixels: Bytes, matte: Matte) -> Bytes:
    """Estimate the product's colour where it is mixed with the ground, and carry it outwards.

    Blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021), in linear
    light, and in a copy of at most `GUIDE_SIDE`, as the estimate is smooth. Where the file
    holds the product's own colours (`Matte.mixed` is false), those are kept, and fade into the
    estimate as alpha does: what is nearly transparent has no reliable colour.
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    height, width = matte.alpha.shape
    scale = min(1.0, GUIDE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    seen = linear(np.asarray(fromarray(pixels).resize(size, Resampling.BOX), dtype=np.uint8))
    cover = np.asarray(fromarray(matte.alpha).resize(size, Resampling.BOX), np.float32)[..., None]
    cover = cover / 255
    product, ground = seen, seen
    for radius in WINDOWS:
        near, behind = _means(product, cover**SURE, radius), _means(ground, 1 - cover, radius)
        over = seen - cover * near - (1 - cover) * behind if matte.mixed else seen - near
        # A matte that was found is not right to the last per cent: nothing is to be read from it.
        trust = 0 if matte.source == "cut-out" else cover
        product = np.clip(near + trust * over, 0, 1)
        ground = np.clip(behind + (1 - cover) * over, 0, 1) if matte.mixed else ground
    smooth = fromarray(srgb(product))
    estimate = np.asarray(smooth.resize((width, height), Resampling.BILINEAR), dtype=np.uint8)
    if matte.mixed or scale == 1:
        return estimate
    rim = (matte.alpha > 0) & (matte.alpha < 255)
    share = (matte.alpha[rim].astype(np.float32) / 255)[:, None]
    own = estimate.copy()
    own[rim] = srgb(share * linear(pixels[rim]) + (1 - share) * linear(estimate[rim]))
    return own


def _means(colours: Floats, weight: Floats, radius: int) -> Floats:
    """Return the weighted mean around each pixel; where nothing has weight, the whole's."""
    import numpy as np

    sums, weights = boxed(colours * weight, radius), boxed(weight, radius)
    whole = (colours * weight).sum((0, 1)) / max(float(weight.sum()), 1e-6)
    return np.where(weights > 1e-4, sums / np.maximum(weights, 1e-4), whole).astype(np.float32)
