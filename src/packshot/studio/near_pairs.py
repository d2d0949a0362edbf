"""What a threshold of the cache does to pictures: captions of near pairs, rendered with one seed.

A hit renders the caption that was made for another request. Both captions of a pair are rendered
with one seed and one model, so that whatever differs in the two pictures is the captions' doing.
Two figures, both this model's own and no measure of anything else: how much of the picture changed
(mean difference of 8-bit values), and how much worse the served picture fits the caption that the
caller would have had, by the model's own CLIP pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Protocol

import numpy as np

from packshot.core.errors import InvalidRequest
from packshot.studio.plan import Options, Plan, plan
from packshot.studio.record import metadata
from packshot.studio.sheet import INK, PAPER, wrap
from packshot.studio.store import Target, format_of, write_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from packshot.core.types import RenderRequest
    from packshot.engine.results import Picture, RenderResult

__all__ = [
    "BANDS",
    "BandRow",
    "Compared",
    "NearPair",
    "Pictures",
    "chosen",
    "compare",
    "knower",
    "plans_of",
    "rows",
    "sheet",
    "told",
]

BANDS = ((0.80, 0.85), (0.85, 0.90), (0.90, 0.94), (0.94, 0.97), (0.97, 1.01))
"""Similarities of the requests, from and up to; the last has its end in it."""

MOST_PER_BAND = 12
TRIED = 20
"""Pairs of a band that are looked at for one that is rendered."""
MOST_ACROSS = 4
TILE = 192
SIGNS = {ord("€"): "EUR ", ord("£"): "GBP "}
"""Which Pillow's own font has not."""


@dataclass(frozen=True, slots=True)
class NearPair:
    """Captions of two near requests: ``served`` from the cache for the one that would have had
    ``own``. ``hit`` says whether the guards let it through, ``raw`` that they are captions as the
    model gets them, and no requests.
    """

    served: str
    own: str
    similarity: float
    hit: bool
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """A pair's two pictures. ``change`` is the mean difference of their values, 0 to 255; ``fit``
    what the served one lacks in cosine with the caller's own caption (negative: fits better).
    """

    pair: NearPair
    pictures: tuple[Picture, Picture]
    change: float
    fit: float
    known: bool
    """Whether the model knows what both captions name; else their pictures differ by chance."""


@dataclass(frozen=True, slots=True)
class BandRow:
    """What is told of a band's pairs that were served, or stopped by the guards."""

    low: float
    high: float
    hit: bool
    count: int
    change: float
    fit: float
    unchanged: int
    """Pairs whose two pictures are equal to the bit."""
    known: int
    """Pairs of which the model knows what both captions name."""


class Pictures(Protocol):
    """What is asked of an engine."""

    def render(self, request: RenderRequest) -> RenderResult: ...

    def similarity(
        self, images: Sequence[Picture], texts: Sequence[str]
    ) -> NDArray[np.float32]: ...


def band_of(similarity: float) -> tuple[float, float] | None:
    """Return the band that a similarity lies in; None below all."""
    return next(((low, high) for low, high in BANDS if low <= similarity < high), None)


def chosen(
    pairs: Sequence[NearPair], per_band: int, known: Callable[[NearPair], bool] = bool
) -> list[NearPair]:
    """Return up to ``per_band`` pairs of each band that are served, and as many that are stopped:
    those with other captions, of pairs spread evenly over the band those that are ``known`` first.

    Raises InvalidRequest where ``per_band`` is not 1 to 12, or no pair lies in a band.
    """
    if not 1 <= per_band <= MOST_PER_BAND:
        raise InvalidRequest(f"pictures is {per_band}, expected 1 to {MOST_PER_BAND} of each band")
    found: list[NearPair] = []
    for band in BANDS:
        for hit in (True, False):
            inside = [
                pair
                for pair in pairs
                if band_of(pair.similarity) == band and pair.hit == hit and pair.served != pair.own
            ]
            inside.sort(key=lambda pair: pair.similarity)
            tried = _spread(inside, TRIED * per_band)
            fine = [pair for pair in tried if known(pair)]
            rest = [pair for pair in tried if pair not in fine]
            taken = _spread(fine, per_band) + _spread(rest, per_band)
            found += sorted(taken[:per_band], key=lambda pair: pair.similarity)
    if not found:
        raise InvalidRequest(
            f"no pair has a similarity of {BANDS[0][0]:.2f} or more and two captions: there is "
            "nothing to render"
        )
    return found


def _spread(pairs: Sequence[NearPair], most: int) -> list[NearPair]:
    step = max(1.0, len(pairs) / most)
    return [pairs[int(number * step)] for number in range(min(most, len(pairs)))]


def knower(options: Options) -> Callable[[NearPair], bool]:
    """Return what tells whether the model knows all that both captions of a pair name.

    Raises:
        PackshotError: as for `packshot.studio.plan.plan`, where the options are at fault.
    """
    folder = plan(replace(options, brief="red mug")).folder

    def known(pair: NearPair) -> bool:
        asked = [replace(options, brief=text, raw=pair.raw) for text in (pair.served, pair.own)]
        try:
            return not any(plan(each, folder).caption.warnings for each in asked)
        except InvalidRequest:
            return False

    return known


def plans_of(
    pairs: Sequence[NearPair], options: Options
) -> tuple[list[tuple[NearPair, Plan, Plan]], list[str]]:
    """Return the pairs with plans of both captions, all with the seed and choices of ``options``,
    and why others cannot be rendered.

    Raises:
        PackshotError: as for `packshot.studio.plan.plan`, where no pair can be rendered.
    """
    made: list[tuple[NearPair, Plan, Plan]] = []
    refused: list[InvalidRequest] = []
    for pair in pairs:
        folder = made[0][1].folder if made else None
        asked = [replace(options, brief=text, raw=pair.raw) for text in (pair.served, pair.own)]
        try:
            made.append((pair, plan(asked[0], folder), plan(asked[1], folder)))
        except InvalidRequest as error:
            refused.append(error)
    if not made:
        raise refused[0]
    return made, [str(error) for error in refused]


def rows(compared: Sequence[Compared]) -> list[BandRow]:
    """Return a row for each band that has pairs, those served before those stopped."""
    found: list[BandRow] = []
    for low, high in BANDS:
        for hit in (True, False):
            inside = [
                each
                for each in compared
                if band_of(each.pair.similarity) == (low, high) and each.pair.hit == hit
            ]
            if inside:
                change, fit = (
                    mean(getattr(each, name) for each in inside) for name in ("change", "fit")
                )
                equal = sum(each.change == 0 for each in inside)
                known = sum(each.known for each in inside)
                top, count = min(high, 1.0), len(inside)
                found.append(BandRow(low, top, hit, count, change, fit, equal, known))
    return found


def compare(
    planned: Sequence[tuple[NearPair, Plan, Plan]],
    engine: Pictures,
    tell: Callable[[], None] = lambda: None,
) -> list[Compared]:
    """Render both captions of each pair and compare them; ``tell`` is called after each picture.

    Raises:
        RenderFailed: the network produced no picture.
        ModelNotFound: the model has no image encoder.
    """
    found: list[Compared] = []
    for pair, *both in planned:
        pictures: list[Picture] = []
        for each in both:
            pictures.append(engine.render(each.request).images[0])
            tell()
        served, own = pictures
        change = float(np.abs(served.astype(np.int16) - own.astype(np.int16)).mean())
        fits = engine.similarity(pictures, [both[1].request.prompt])
        fit = float(fits[1, 0] - fits[0, 0])
        known = not any(each.caption.warnings for each in both)
        found.append(Compared(pair, (served, own), change, fit, known))
    return found


# ---------------------------------------------------------------- the sheet
def sheet(compared: Sequence[Compared], about: str, target: Target) -> Path:
    """Write one page: pairs side by side by band, a line of figures over each band.

    Raises:
        OutputError: the file could not be written.
    """
    page = _page(compared, about)
    return write_picture(page, target, metadata(format_of(target.path), None, about))


def _page(compared: Sequence[Compared], about: str) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    gap, head, foot = 14, 30, 92
    pair_wide, tall = 2 * TILE + 4, TILE + foot
    bands = [(row, [c for c in compared if _is_in(c, row)]) for row in rows(compared)]
    across = max(2, min(MOST_ACROSS, max(len(inside) for _, inside in bands)))
    deep = sum(head + -(-len(inside) // across) * (tall + gap) for _, inside in bands)
    page = Image.new("RGB", (gap + across * (pair_wide + gap), deep + 2 * gap + head), PAPER)
    draw = ImageDraw.Draw(page)
    font, bold = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((gap, gap), about, INK, font)
    top = gap + head
    for row, inside in bands:
        draw.text((gap, top + 4), told(row), INK, bold)
        top += head
        for number, each in enumerate(inside):
            left = gap + (number % across) * (pair_wide + gap)
            high = top + (number // across) * (tall + gap)
            for side, picture in enumerate(each.pictures):
                tile = Image.fromarray(picture).resize((TILE, TILE))
                page.paste(tile, (left + side * (TILE + 4), high))
            figures = f"{each.pair.similarity:.3f}: changed {each.change:.1f}, fit {-each.fit:+.3f}"
            lines = [figures]
            for name, text in (("served", each.pair.served), ("own", each.pair.own)):
                written = f"{name}: {text.translate(SIGNS)}"
                lines += wrap(written, pair_wide, font)[:2]
            for k, line in enumerate(lines):
                draw.text((left, high + TILE + 4 + 17 * k), line, INK, font)
        top += -(-len(inside) // across) * (tall + gap)
    return page


def _is_in(compared: Compared, row: BandRow) -> bool:
    band = band_of(compared.pair.similarity)
    return band is not None and band[0] == row.low and compared.pair.hit == row.hit


def told(row: BandRow) -> str:
    """Return a band's figures in a line of text."""
    what = "served" if row.hit else "stopped by the guards"
    return (
        f"{row.low:.2f} to {row.high:.2f}, {what}: {row.count} pairs, changed {row.change:.1f} "
        f"of 255, fit {-row.fit:+.3f}, {row.unchanged} unchanged, {row.known} known to the model"
    )
