"""Where the product is: a matte from the photo's own alpha, from a mask, or by cutting it out.

Cutting out is GrabCut (Rother, Kolmogorov, Blake: "GrabCut", SIGGRAPH 2004): two mixtures of
colours, one of the product, one of the ground, told from each other and from where they lie by a
minimal cut. The cut is taken in its continuous form, whose solution after thresholding is the
minimum of the same energy (Chan, Esedoglu, Nikolova, SIAM J. Appl. Math. 66, 2006), found by a
primal-dual iteration (Chambolle & Pock, JMIV 40, 2011): a few dozen lines of array arithmetic, and
no library of 150 MB. A guided filter (He, Sun, Tang, ECCV 2010) then finds the soft edge in the
photograph at its full size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from packshot.core.errors import BadPhoto, MaskNeeded
from packshot.studio.colour import lab, linear
from packshot.studio.filters import boxed, grown, shrunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from packshot.studio.colour import Bytes, Floats
    from packshot.studio.photo import Photo

__all__ = ["MIN_CONFIDENCE", "Matte", "cut_out", "matte_of"]

MIN_CONFIDENCE = 0.6
"""Below it a mask is asked for. See docs/background.md for what was measured."""

FULL = 255
"""Alpha of a pixel that is all product; whatever is less lies on the rim."""

MIN_FULL = 64
"""Fewest pixels of full alpha: the promise that the product is untouched is about these."""

WORKING_SIDE = 192
"""Longer side of the copy in which the product is looked for."""

BORDER = 0.04
"""Share of each side that is taken for ground to begin with."""

TENTH = 0.1
"""CIELAB is taken in tens here, so that its numbers are of the order of one."""

MIXTURE, ROUNDS, STEPS = 5, 4, 120
"""Colours in a mixture and rounds (both as in the paper), steps of one cut."""

PINHOLES = 0.005
"""Holes in a product that are filled, if all of them are no larger a share of it."""

SKIRT_HEIGHT, SKIRT_WIDTH, SKIRT_HUE = 0.2, 3, 0.9
"""Of what is taken for the end of a shadow: the part of the product's height from its foot in which
it lies, half its width in working pixels, and the distance in hue, in tens of CIELAB."""

GUIDE_SIDE, GUIDE_NOISE = 1600, 1e-4
"""Longer side of the copy in which the soft edge is found, and the variance that counts as none."""

EDGE, SOFT = 0.6, 0.35
"""Of the guided filter's result, what is product; and how soft its outline becomes: a pixel on the
edge has this alpha, and the softness falls inwards, where the product's own colours are."""

SMOOTHNESS, CONTRAST = 3.0, 0.5
"""What an edge costs where there is no contrast; how fast it gets cheaper with contrast."""


@dataclass(frozen=True, slots=True, eq=False)
class Matte:
    """How much of each pixel is product: ``alpha`` [height, width] uint8, 255 is all of it.

    ``confidence`` is 1 for an alpha or a mask that was given, and 0 to 1 for one that was found.
    ``mixed`` says what the photo's colours on the rim are: product and old ground mixed, as any
    camera sees them, or the product's own, as a cut-out file has them. ``reason`` says what speaks
    most against a matte that was found.
    """

    alpha: NDArray[np.uint8] = field(repr=False)
    source: Literal["alpha", "mask", "cut-out"]
    confidence: float = 1.0
    mixed: bool = True
    reason: str = ""


def matte_of(photo: Photo, mask: NDArray[np.uint8] | None = None) -> Matte:
    """Return the matte of a photo: its ``mask`` if there is one, else its alpha, else cut out.

    Raises:
        MaskNeeded: neither is there, and what was found is less certain than `MIN_CONFIDENCE`.
        BadPhoto: next to no pixel is product alone, or none is ground.
    """
    if mask is not None:
        matte = Matte(mask, "mask")
    elif photo.alpha is not None:
        matte = Matte(photo.alpha, "alpha", mixed=_hides_ground(photo.pixels, photo.alpha))
    else:
        matte = cut_out(photo.pixels)
        if matte.confidence < MIN_CONFIDENCE:
            raise MaskNeeded(
                f"{photo.name} has no alpha, and where the product is in it is not certain: "
                f"{matte.reason} (confidence {matte.confidence:.2f}, expected {MIN_CONFIDENCE:.2f} "
                "or more). Give --mask, in a table the column mask, a picture of the same size, "
                "white where the product is"
            )
    full = int((matte.alpha == FULL).sum())
    if full < MIN_FULL:
        raise BadPhoto(
            f"{photo.name}: {full} pixels are product alone (alpha 255); at least {MIN_FULL} are "
            "needed, as those are what stays untouched"
        )
    return matte


def cut_out(pixels: Bytes) -> Matte:
    """Find the product in a photograph: what differs from its borders.

    ``pixels`` [height, width, 3] uint8. The matte is at their size.
    """
    import numpy as np

    small = _shrunk(pixels)
    colours = lab(linear(small)) * TENTH
    edges = _edge_costs(colours)
    inside = _prior(small.shape[:2])
    posterior = inside.astype(np.float32)
    before = inside
    for _ in range(ROUNDS):
        if not 0 < inside.sum() < inside.size:
            return _nothing(pixels.shape[:2], "nothing in it differs from its borders")
        posterior = _posterior(colours, inside)
        before, inside = inside, _cut(posterior, edges) & _prior(small.shape[:2])
    kept = _without_skirt(_largest(inside), colours, 1.0)
    confidence, reason = _confidence(kept, inside, before, posterior)
    if not kept.any():
        return _nothing(pixels.shape[:2], reason)
    return Matte(_soft_edge(pixels, kept), "cut-out", confidence, mixed=True, reason=reason)


def _hides_ground(pixels: Bytes, alpha: Bytes) -> bool:
    """Tell whether the old ground is still there behind the alpha: it is not one flat colour."""
    hidden = pixels[alpha == 0]
    hidden = hidden[:: max(1, len(hidden) // 100_000)]
    return len(hidden) > 0 and float(hidden.std(axis=0).max()) > 2.0


def _nothing(shape: tuple[int, ...], reason: str) -> Matte:
    import numpy as np

    return Matte(np.zeros(shape, np.uint8), "cut-out", 0.0, mixed=True, reason=reason)


def _shrunk(pixels: Bytes) -> Bytes:
    """Return the working copy, averaged down; a small photograph stays as it is."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    image = fromarray(pixels)
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Resampling.BOX)
    return np.asarray(image, dtype=np.uint8)


def _prior(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where the product may be: all but a frame."""
    import numpy as np

    height, width = shape
    y, x = max(2, round(height * BORDER)), max(2, round(width * BORDER))
    inside = np.zeros((height, width), bool)
    inside[y:-y, x:-x] = True
    return inside


def _edge_costs(colours: Floats) -> Floats:
    """Return what an edge costs at each pixel [h, w]: little where the colours change."""
    import numpy as np

    down = np.diff(colours, axis=0, append=colours[-1:])
    right = np.diff(colours, axis=1, append=colours[:, -1:])
    change = (down**2).sum(-1) + (right**2).sum(-1)
    cost = SMOOTHNESS * np.exp(-CONTRAST * change / max(float(change.mean()), 1e-6))
    return cost.astype(np.float32)


def _posterior(colours: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return log p(colour | ground) - log p(colour | product), clipped: below 0 is product."""
    import numpy as np

    flat = colours.reshape(-1, 3)
    ground = _mixture(flat[~inside.ravel()])
    product = _mixture(flat[inside.ravel()])
    ratio = _likelihood(flat, ground) - _likelihood(flat, product)
    return np.clip(ratio, -12, 12).reshape(inside.shape).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """Gaussians in colour space: log weights [k], means [k, 3], inverses, log determinants."""

    weights: Floats
    means: Floats
    inverses: Floats
    spreads: Floats


def _mixture(samples: Floats) -> _Mixture:
    """Fit a mixture by splitting the widest cluster along its axis (Orchard & Bouman 1991)."""
    import numpy as np

    clusters = [samples]
    while len(clusters) < MIXTURE:
        widths = [_axis(c)[0] * len(c) for c in clusters]
        widest = clusters.pop(int(np.argmax(widths)))
        _, axis = _axis(widest)
        side = (widest - widest.mean(axis=0)) @ axis > 0
        if not 0 < int(side.sum()) < len(widest):
            clusters.append(widest)
            break
        clusters += [widest[side], widest[~side]]
    # 0.004 is a shade of one step of 8 bits, or grain: a flat paper ground has no spread at all.
    covers = [np.cov(c.T, bias=True) + np.eye(3) * 0.004 if len(c) > 1 else None for c in clusters]
    shapes = np.stack([np.eye(3) * 0.004 if c is None else c for c in covers])
    return _Mixture(
        weights=np.log(np.array([len(c) / len(samples) for c in clusters], np.float32)),
        means=np.stack([c.mean(axis=0) for c in clusters]).astype(np.float32),
        inverses=np.linalg.inv(shapes).astype(np.float32),
        spreads=np.log(np.linalg.det(shapes)).astype(np.float32),
    )


def _axis(samples: Floats) -> tuple[float, Floats]:
    """Return the largest variance of some colours, and its direction."""
    import numpy as np

    values, vectors = np.linalg.eigh(
        np.cov(samples.T, bias=True) if len(samples) > 1 else np.eye(3) * 0
    )
    return float(values[-1]), vectors[:, -1].astype(np.float32)


def _likelihood(samples: Floats, mixture: _Mixture) -> Floats:
    """Return the logarithm of the mixture's density at each sample, up to a constant."""
    import numpy as np

    apart = samples[:, None, :] - mixture.means
    squares = np.einsum("nki,kij,nkj->nk", apart, mixture.inverses, apart)
    logs = mixture.weights - 0.5 * (squares + mixture.spreads)
    top = logs.max(axis=1)
    return top + np.log(np.exp(logs - top[:, None]).sum(axis=1))


def _cut(ratio: Floats, edges: Floats) -> NDArray[np.bool_]:
    """Return the minimal cut: ``u`` of 0 to 1 that minimises sum(ratio * u) + sum(edges * |∇u|)."""
    import numpy as np

    u = (ratio < 0).astype(np.float32)
    ahead, p, q = u, np.zeros_like(u), np.zeros_like(u)
    tau = sigma = np.float32(0.35)  # tau * sigma * |∇|² <= 1, and |∇|² <= 8
    for _ in range(STEPS):
        p[:-1] += sigma * np.diff(ahead, axis=0)
        q[:, :-1] += sigma * np.diff(ahead, axis=1)
        over = np.maximum(np.hypot(p, q) / np.maximum(edges, 1e-6), 1)
        p /= over
        q /= over
        divergence = p + q
        divergence[1:] -= p[:-1]
        divergence[:, 1:] -= q[:, :-1]
        before = u
        u = np.clip(u + tau * (divergence - ratio), 0, 1)
        ahead = 2 * u - before
    return u > 0.5


def _largest(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest part that hangs together, without its pinholes; a handle's hole stays."""
    kept = _part(inside)
    holes = ~kept & ~_part(~kept)
    return kept | holes if holes.sum() < PINHOLES * kept.sum() else kept


def _without_skirt(kept: NDArray[np.bool_], colours: Floats, scale: float) -> NDArray[np.bool_]:
    """Return a product without the dark end of its shadow: low, thin, and of the ground's hue.

    ``scale`` is how much larger these arrays are than the working copy.
    """
    import numpy as np

    rows = np.flatnonzero(kept.any(axis=1))
    if not len(rows):
        return kept
    low = np.arange(len(kept)) > rows[-1] - SKIRT_HEIGHT * (rows[-1] - rows[0])
    ground = np.median(colours[~kept], axis=0)
    apart = colours - ground
    shade = (apart[..., 0] < 0) & (np.hypot(apart[..., 1], apart[..., 2]) < SKIRT_HUE)
    width = max(1, round(SKIRT_WIDTH * scale))
    thick = grown(shrunk(kept, width), width)
    return kept & ~(shade & ~thick & low[:, None])


def _part(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest part: labels spread along rows and columns until none changes."""
    import numpy as np

    if not inside.any():
        return inside
    label = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    while True:
        before = label
        for turn in range(4):
            label = np.rot90(_swept(np.rot90(label, turn)), -turn)
        if (label == before).all():
            break
    return (label == np.bincount(label[inside]).argmax()) & inside


def _swept(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest label so far in each run along a row; 0 ends a run."""
    import numpy as np

    run = np.cumsum(label == 0, axis=1) * (label.size + 1)
    return np.where(label == 0, 0, np.maximum.accumulate(label + run, axis=1) - run)


def _confidence(
    kept: NDArray[np.bool_], inside: NDArray[np.bool_], before: NDArray[np.bool_], ratio: Floats
) -> tuple[float, str]:
    """Return how sure a cut is, 0 to 1: its weakest sign, and what that says."""
    share = float(kept.mean())
    frame = ~_prior(kept.shape)
    near = grown(frame, 1) & ~frame
    both = max(1, int((inside | before).sum()))
    signs = (
        (min(1.0, share / 0.02), "what differs from the borders is very small"),
        (min(1.0, max(0.0, (0.92 - share) / 0.1)), "nearly everything differs from the borders"),
        (1 - min(1.0, 4 * float(kept[near].mean())), "it reaches the picture's borders"),
        (kept.sum() / max(1, inside.sum()), "it is in several parts"),
        ((inside & before).sum() / both, "where it ends is not certain"),
        (1 - 2 * float((ratio[kept] > 0).mean()), "its colours are those of the ground"),
        (1 - 2 * float((ratio[~kept] < -2).mean()), "the ground has its colours"),
    )
    worst, why = min((max(0.0, float(sign)), said) for sign, said in signs)
    return worst, "" if worst >= MIN_CONFIDENCE else why


def _soft_edge(pixels: Bytes, kept: NDArray[np.bool_]) -> Bytes:
    """Return the alpha at the photograph's size: full and none but for a band along the edge.

    The guide is the photograph, seen along the line from the ground's colour to the product's.
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    height, width = pixels.shape[:2]
    fit = min(1.0, GUIDE_SIDE / max(height, width))
    size = (max(1, round(width * fit)), max(1, round(height * fit)))
    seen = np.asarray(fromarray(pixels).resize(size, Resampling.BOX), dtype=np.uint8)
    guide = seen.astype(np.float32) / 255
    coarse = fromarray(kept.astype(np.uint8) * 255)
    rough = np.asarray(coarse.resize(size, Resampling.BICUBIC), dtype=np.float32) / 255
    between = guide[rough > 0.9].mean(axis=0) - guide[rough < 0.1].mean(axis=0)
    line = guide @ (between / max(float(np.linalg.norm(between)), 1e-6))
    radius = max(2, round(1.5 * max(size) / max(kept.shape)))
    soft = _guided(line.astype(np.float32), rough, radius)
    # Highlights near the edge would come out half transparent: only where it is, is taken from it.
    # A little inside of the middle, as ground on the rim is worse than product lost there.
    scale = max(size) / max(kept.shape)
    sharp = _without_skirt(soft > EDGE, lab(linear(seen)) * TENTH, scale).astype(np.float32)
    alpha = np.clip(boxed(boxed(sharp, 1), 1) * 2 - 1 + SOFT, 0, 1)
    alpha = np.where(grown(rough > 0.5, radius), alpha, 0)
    alpha = np.where(grown(rough < 0.5, radius), alpha, 1)
    found = fromarray((alpha * 255 + 0.5).astype(np.uint8))
    return np.asarray(found.resize((width, height), Resampling.BILINEAR), dtype=np.uint8)


def _guided(guide: Floats, rough: Floats, radius: int) -> Floats:
    """Return ``rough`` with the edges of ``guide``: in each window a line of it (He et al.)."""
    mean, target = boxed(guide, radius), boxed(rough, radius)
    together = boxed(guide * rough, radius) - mean * target
    slope = together / (boxed(guide * guide, radius) - mean * mean + GUIDE_NOISE)
    return boxed(slope, radius) * guide + boxed(target - slope * mean, radius)
