"""The new ground: rendered at the model's size around the product, then brought to the photo's.

The product stands in the picture that the model starts from, so that horizon, scale and light fit
it; only what lies around it may change (blended latent diffusion, arXiv:2206.02779). Next to it a
model draws what it knows of products: a second handle, a halo. So a fringe around the product is
taken out of what came back and filled from the ground around, and what is left over of such things
is measured (`packshot.studio.checks`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from packshot.studio.caption import RULES, Caption, caption_text, check_brief
from packshot.studio.colour import lab, linear
from packshot.studio.filters import blurred, filled, grown
from packshot.studio.light import light_of
from packshot.studio.reading import find_subject, read
from packshot.studio.slots import fill

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from packshot.studio.colour import Bytes, Floats
    from packshot.studio.composite import Cutout
    from packshot.studio.filters import Mask
    from packshot.studio.lexicon import Lexicon

__all__ = ["FRINGE", "Mode", "Stage", "caption_ground", "cleaned", "enlarged", "stage_of", "white"]

Mode = Literal["blend", "ground"]
"""``blend`` renders around the product; ``ground`` renders the ground alone, for a model that can
draw an empty one (packshot-mini puts a product on every ground)."""

FRINGE = 0.06
"""Width of what is taken out around the product, as a share of the rendered side: 15 of 256."""

RING = 0.12
"""How far beyond the fringe a product that goes on is looked for, as a share of the same side."""

STRANGE, SHADE = 10.0, 7.0
"""CIELAB distance from the ground expected there, from which on a pixel is none; a darker pixel
whose hue is off by no more than the second is ground in shadow."""

ALONG, ENOUGH, SMOOTH = 6, 0.35, 3.0
"""A hole is filled along its rows (halvings of the width alone: 64 pixels) as far as this share of
a row is known; the result is blurred by so many pixels."""

INSET = 0.03
"""Of the rendered side, what is left over at each border: decoders have their faults there."""

TOUCH = 4.0
"""Most that a detail carried into the fringe may differ, of 255: grain may, edges may not."""

KEPT = 1 / 64
"""How much further than the product the start picture is kept, as a share of the same side: half a
latent of 256 pixels, so that the decoder's edge lies on ground that is thrown away."""

GREY = 127
"""What the start picture has around the product; only its edge matters."""

TEXTURE = 3.0
"""Details finer than about this many rendered pixels are carried into the filled fringe."""

BLUR, GRAIN = 0.30, 1.1
"""Of an enlarged ground: blur in rendered pixels, against the ringing of Lanczos; grain in steps of
8 bits, the standard deviation, without which a smooth ground shows steps and looks painted."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """The product in the model's square: what it is shown, and how the canvas lies in it.

    ``picture`` [side, side, 3] uint8; ``product`` [side, side] is where alpha is over a half;
    ``box`` (left, top, right, bottom) is the canvas in it.
    """

    picture: NDArray[np.uint8]
    product: NDArray[np.bool_]
    box: tuple[int, int, int, int]

    @property
    def free(self) -> Mask:
        """What the model may change."""
        return ~grown(self.product, max(1, round(KEPT * self.product.shape[0])))

    @property
    def fringe(self) -> Mask:
        """The product, and around it what is taken out."""
        return grown(self.product, max(2, round(FRINGE * self.product.shape[0])))


def caption_ground(brief: str, lexicon: Lexicon | None, *, raw: bool = False) -> Caption:
    """Return the caption of a ground: the brief's place and light, and no product.

    Where the brief does not say where the light comes from, the caption says what the shadow will.
    A model without a lexicon gets the brief with a few words before it; with ``raw`` the brief.

    Raises:
        InvalidRequest: the brief is empty or too long.
    """
    stripped = check_brief(brief)
    if raw or lexicon is None:
        text = stripped if raw else f"an empty surface, nothing on it, {stripped}"
        return Caption(text, None)
    reading = read(stripped, lexicon)
    filled_in = fill(reading, find_subject(reading), None, lexicon)
    side = filled_in.slots.side or _side_name(light_of(brief).side.phrase, lexicon)
    slots = replace(filled_in.slots, product=None, colour=None, material=None, side=side)
    text = caption_text(slots, lexicon)
    return Caption(text, slots, warnings=filled_in.warnings, writer=RULES)


def _side_name(phrase: str, lexicon: Lexicon) -> str | None:
    return next((term.name for term in lexicon.sides if term.phrase == phrase), None)


def stage_of(cutout: Cutout, side: int) -> Stage:
    """Return the product, shrunk to a square of ``side`` pixels, the canvas in its middle."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    width, height = cutout.size
    scale = (side - 2 * round(INSET * side)) / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    colours = fromarray(cutout.colours).resize(size, Resampling.BOX)
    alpha = fromarray(cutout.alpha).resize(size, Resampling.BOX)
    picture = fromarray(np.full((side, side, 3), GREY, np.uint8))
    picture.paste(colours, (left, top), alpha)
    cover = fromarray(np.zeros((side, side), np.uint8))
    cover.paste(alpha, (left, top))
    return Stage(
        np.array(picture), np.array(cover) > 127, (left, top, left + size[0], top + size[1])
    )


def cleaned(picture: Bytes, stage: Stage) -> tuple[Bytes, float]:
    """Return a rendered picture [side, side, 3] as ground alone, and how strange it was.

    The product and the fringe around it are filled smoothly, with detail mirrored from beyond the
    edge. So is what else in a ring around is neither ground nor in shadow, a product that goes on;
    its share of the ring, 0 to 1, is the number that `packshot.studio.checks` has a limit for.
    """
    import numpy as np

    hole = stage.fringe
    if not hole.any() or hole.all():
        return picture, 0.0
    ring = grown(hole, max(2, round(RING * hole.shape[0]))) & ~hole
    strange = ring & _strange(picture, hole | ring)
    share = float(strange.sum()) / max(1, int(ring.sum()))
    hole |= grown(strange, 2)
    seen = picture.astype(np.float32)
    smooth = _filled(seen, hole)
    detail = np.clip(seen - blurred(seen, TEXTURE), -TOUCH, TOUCH)
    shown = hole & ~stage.product
    smooth[shown] += _mirrored(detail, hole, shown)
    return np.clip(smooth + 0.5, 0, 255).astype(np.uint8), share


def _filled(seen: Floats, hole: Mask) -> Floats:
    """Fill a hole from its rows, so that a horizon goes on; from all around where a row has little.

    What was filled is blurred a little, as neighbouring rows end in different places.
    """
    import numpy as np

    rows = np.clip((~hole).mean(axis=1) / ENOUGH, 0, 1).astype(np.float32)[:, None, None]
    smooth = rows * filled(seen, hole, ALONG) + (1 - rows) * filled(seen, hole)
    return np.where(hole[..., None], blurred(smooth, SMOOTH), seen)


def _strange(picture: Bytes, around: Mask) -> Mask:
    """Return where a picture is not what lies beyond ``around``, in its rows or about it, nor that
    in shadow.
    """
    import numpy as np

    seen, got = picture.astype(np.float32), lab(linear(picture))
    strange = np.ones_like(around)
    for along in (0, ALONG):
        smooth = np.clip(filled(seen, around, along), 0, 255).astype(np.uint8)
        apart = got - lab(linear(smooth))
        hue = np.hypot(apart[..., 1], apart[..., 2])
        shaded = (apart[..., 0] < 0) & (hue < SHADE)
        strange &= (np.sqrt((apart**2).sum(axis=-1)) > STRANGE) & ~shaded
    return strange


def _mirrored(detail: Floats, hole: Mask, wanted: Mask) -> Floats:
    """Return ``detail`` [n, 3] for the ``wanted`` pixels: as far beyond the hole's edge as they lie
    within it; nothing where that is outside the picture or in the hole again.
    """
    import numpy as np

    edge = np.argwhere(grown(hole, 1) & ~hole)
    inside = np.argwhere(wanted)
    if not len(edge):
        return np.zeros((len(inside), 3), np.float32)
    nearest = np.empty_like(inside)
    for first in range(0, len(inside), 1024):  # 1024 x some hundreds of edge pixels at a time
        part = inside[first : first + 1024]
        apart = ((part[:, None, :] - edge[None, :, :]) ** 2).sum(axis=-1)
        nearest[first : first + 1024] = edge[apart.argmin(axis=1)]
    beyond = 2 * nearest - inside
    height, width = hole.shape
    rows, columns = beyond[:, 0], beyond[:, 1]
    good = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = np.where(good, rows, 0), np.where(good, columns, 0)
    good &= ~hole[rows, columns]
    return detail[rows, columns] * good[:, None]


def enlarged(ground: Bytes, stage: Stage, size: tuple[int, int], seed: int) -> Bytes:
    """Return the canvas' part of a ground at ``size`` (width, height); ``seed`` is the grain's."""
    import numpy as np
    from PIL.Image import Resampling, fromarray
    from PIL.ImageFilter import GaussianBlur

    scale = size[0] / (stage.box[2] - stage.box[0])
    shown = fromarray(ground).resize(size, Resampling.LANCZOS, box=stage.box)
    if scale > 1:
        shown = shown.filter(GaussianBlur(BLUR * scale))
    done = np.array(shown, dtype=np.uint8)
    noise = np.random.default_rng(seed)
    for first in range(0, size[1], 512):
        band = done[first : first + 512].astype(np.float32)
        band += noise.normal(0, GRAIN, band.shape[:2]).astype(np.float32)[..., None]
        done[first : first + 512] = np.clip(band + 0.5, 0, 255).astype(np.uint8)
    return done


def white(size: tuple[int, int]) -> Bytes:
    """Return a pure white ground, 255 everywhere, of ``size`` (width, height)."""
    import numpy as np

    return np.full((size[1], size[0], 3), 255, np.uint8)
