"""A contact sheet: many briefs, one picture of each, its brief under it, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.types import NOTHING_READ, EmbeddingUse, Precision, Usage
from packshot.studio.plan import Options, Plan, draw_seed, plan
from packshot.studio.record import metadata
from packshot.studio.render import Booking, Renderer, finished, metered, total
from packshot.studio.store import format_of, write_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from packshot.engine.results import OnStep, RenderResult

__all__ = ["MAX_BRIEFS", "Brief", "Sheet", "compose", "plan_sheet", "read_briefs", "render_sheet"]

MAX_BRIEFS = 100
MAX_COLUMNS = 12
MAX_LINES = 3  # of a brief under its tile
MAX_TILE = 1024  # pixels, so that a full sheet stays an ordinary picture
PAPER, INK, RULE = "#ffffff", "#26282b", "#e3e5e8"


@dataclass(frozen=True, slots=True)
class Brief:
    """One line of a briefs file, counted from 1."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """A contact sheet on disk, what it took, and what to tell the user."""

    path: Path
    size: tuple[int, int]
    usage: tuple[Usage, ...]
    warnings: tuple[str, ...]
    device: str
    precision: Precision
    embeddings: EmbeddingUse = NOTHING_READ


def read_briefs(path: Path) -> tuple[Brief, ...]:
    """Return the briefs of a text file, one a line; blank lines and ``#`` comments are skipped.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: it is not UTF-8 text, holds no brief, or more than `MAX_BRIEFS`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text; expected one brief a line") from error
    stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    briefs = tuple(Brief(n, text) for n, text in stripped if text and not text.startswith("#"))
    if not 1 <= len(briefs) <= MAX_BRIEFS:
        raise InvalidRequest(f"{path} has {len(briefs)} briefs, expected 1 to {MAX_BRIEFS}")
    return briefs


def plan_sheet(
    path: Path, briefs: Sequence[Brief], options: Options, columns: int
) -> tuple[Plan, ...]:
    """Return the plan of each brief of ``path``, all with the choices and one seed of ``options``.

    Raises:
        PackshotError: as for `packshot.studio.plan.plan`; a bad brief's error names its line.
        InvalidRequest: ``columns`` is not between 1 and 12, or the tiles are too large.
    """
    if not 1 <= columns <= MAX_COLUMNS:
        raise InvalidRequest(f"columns is {columns}, expected 1 to {MAX_COLUMNS}")
    if options.seed is None:
        options = replace(options, seed=draw_seed())
    plans: list[Plan] = []
    for brief in briefs:
        try:
            folder = plans[0].folder if plans else None
            plans.append(plan(replace(options, brief=brief.text), folder))
        except InvalidRequest as error:
            raise type(error)(f"{path}, line {brief.line}: {error}") from error
    if max(plans[0].size) > MAX_TILE:
        raise InvalidRequest(f"a tile of {max(plans[0].size)} pixels; expected at most {MAX_TILE}")
    return tuple(plans)


def render_sheet(
    plans: Sequence[Plan],
    engine: Renderer,
    columns: int,
    on_step: OnStep | None = None,
    booking: Booking | None = None,
) -> Sheet:
    """Render every plan, one after the other, and write the sheet to the first one's target.

    Raises:
        RenderFailed: the network produced no picture.
        OutputError: the file could not be written.
        LedgerError: ``booking`` refused the sheet before it began.
    """
    from PIL.Image import fromarray

    meter: list[Usage] = []
    results: list[RenderResult] = []
    warnings: dict[str, None] = {}
    tiles: list[tuple[Image, str]] = []
    models = [planned.folder.name for planned in plans]
    renders = [planned.renders[0] for planned in plans]
    with booking.booked(models, meter, (), renders) if booking else nullcontext():
        for planned in plans:
            meter.append(planned.usage)
            result = engine.render(planned.request, on_step=on_step)
            results.append(result)
            meter += result.usage
            picture = fromarray(result.images[0])
            picture = finished(picture, planned.size, planned.sharpen, meter)
            tiles.append((picture, planned.brief))
            said = (*planned.warnings, *result.warnings)
            warnings.update(dict.fromkeys(f"{planned.brief!r}: {text}" for text in said))
        target = plans[0].targets[0]
        with metered(meter, "finish"):
            page = compose(tiles, columns)
        with metered(meter, "store"):
            extra = metadata(format_of(target.path), None, _description(plans))
            path = write_picture(page, target, extra)
    made = results[0]
    return Sheet(
        path=path,
        size=page.size,
        usage=total(meter),
        warnings=tuple(warnings),
        device=made.device,
        precision=made.precision,
        embeddings=sum((result.embeddings for result in results), NOTHING_READ),
    )


def compose(tiles: Sequence[tuple[Image, str]], columns: int) -> Image:
    """Return one page with ``tiles``, row by row: equal in size, each with its text under it."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(columns, len(tiles))
    width, height = tiles[0][0].size
    font = ImageFont.load_default(max(11, round(width / 17)))
    gap, line = max(8, width // 14), round(max(11, width / 17) * 1.35)
    texts = [wrap(text, width, font) for _, text in tiles]
    rows = [range(i, min(i + columns, len(tiles))) for i in range(0, len(tiles), columns)]
    heights = [height + gap // 2 + line * max(len(texts[i]) for i in row) + gap for row in rows]
    page = Image.new("RGB", (gap + columns * (width + gap), gap + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        top = gap + sum(heights[:number])
        for column, i in enumerate(row):
            left = gap + column * (width + gap)
            page.paste(tiles[i][0], (left, top))
            draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)
            for k, text in enumerate(texts[i]):
                draw.text((left, top + height + gap // 2 + k * line), text, INK, font)
    return page


def wrap(text: str, width: int, font: FreeTypeFont | ImageFont) -> list[str]:
    """Return ``text`` as at most three lines of ``width`` pixels, the last cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} …"]
    return [_shortened(line, width, font) for line in lines]


def _shortened(line: str, width: int, font: FreeTypeFont | ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    while len(line) > 1 and font.getlength(line + "…") > width:
        line = line[:-1].rstrip(" …")
    return line + "…"


def _description(plans: Sequence[Plan]) -> str:
    one = plans[0]
    request, folder = one.request, one.folder
    return (
        f"contact sheet of {len(plans)} briefs: seed {request.seeds[0]}, {request.steps} steps, "
        f"guidance {request.guidance:g}, {request.sampler}, {request.schedule}; "
        f"{folder.name} {folder.version} ({folder.fingerprint[:12]})"
    )
