"""``packshot cache tune --pictures``: what a threshold does to pictures, rendered and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from packshot.cli import terminal

if TYPE_CHECKING:
    from packshot.gateway.cache.tune import Scored
    from packshot.studio.near_pairs import Compared, NearPair, Pictures

__all__ = ["near_pictures"]

SIZE = "256x256"
"""The pictures are compared, not shown to anybody: a small size is enough."""


def near_pictures(
    scored: Sequence[Scored], count: int, sheet: Path, seed: int, steps: int, *, as_json: bool
) -> dict[str, Any]:
    """Render ``count`` pairs of each band with one seed, write the sheet, and return the rows."""
    from packshot.cli.progress import counting, spinner
    from packshot.studio import near_pairs
    from packshot.studio.plan import Options
    from packshot.studio.render import load_engine
    from packshot.studio.store import Target

    options = Options(brief="", seed=seed, size=SIZE, steps=steps, sharpen=None, out=str(sheet))
    known = near_pairs.knower(options)
    chosen = near_pairs.chosen([_near(row) for row in scored], count, known)
    planned, refused = near_pairs.plans_of(chosen, options)
    folder = planned[0][1].folder
    with spinner(f"loading {folder.name}"):
        engine = cast("Pictures", load_engine(planned[0][1]))
    with counting("pictures", 2 * len(planned)) as tell:
        compared: list[Compared] = near_pairs.compare(planned, engine, tell)
    rows = near_pairs.rows(compared)
    about = f"near pairs by {folder.name} {folder.version}, seed {seed}; fit: its own CLIP's"
    path = near_pairs.sheet(compared, about, Target(sheet, overwrite=True))
    if refused:
        terminal.warn(f"{len(refused)} pairs cannot be rendered, the first: {refused[0]}")
    if not as_json:
        _table(about, rows)
        terminal.note(f"wrote {path}")
    return {"sheet": str(path), "bands": [asdict(row) for row in rows], "refused": len(refused)}


def _near(row: Scored) -> NearPair:
    """Return the captions of a pair: its answers where they are known, else its requests."""
    from packshot.studio.near_pairs import NearPair

    pair = row.pair
    known = bool(pair.answer_a and pair.answer_b)
    served, own = (pair.answer_a, pair.answer_b) if known else (pair.a, pair.b)
    return NearPair(served, own, row.similarity, row.agrees, raw=known)


def _table(about: str, rows: Sequence[Any]) -> None:
    typer.echo(f"\n{about}\n")
    typer.echo(
        f"{'similarity':<14}{'':<10}{'pairs':>6}{'known':>7}{'changed':>10}{'unchanged':>11}{'fit':>9}"
    )
    for row in rows:
        between, what = f"{row.low:.2f} to {row.high:.2f}", "served" if row.hit else "stopped"
        typer.echo(
            f"{between:<14}{what:<10}{row.count:>6}{row.known:>7}{row.change:>10.1f}{row.unchanged:>11}"
            f"{-row.fit:>+9.3f}"
        )
    typer.echo(
        "\nknown: the model knows what both captions name; else pictures differ by chance.\n"
        "changed: mean difference of 0 to 255. fit: of what is served to the caller's own\n"
        "caption, beside the picture of that caption; below 0 the served one fits worse"
    )
