"""``packshot cache tune``: thresholds tried on labelled pairs, or on pairs of one's own traffic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import cached, terminal
from packshot.cli import options as o
from packshot.cli.progress import counting
from packshot.core.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from packshot.gateway.cache.embed import MiniLM
    from packshot.gateway.cache.settings import SemanticCacheEntry
    from packshot.gateway.cache.traffic import Traffic
    from packshot.gateway.cache.tune import LabelledPair, Outcome, Scored

__all__ = ["Folder", "MustMatch", "tune", "types_of"]

Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Of the model.", show_default="in the cache folder"),
]
MustMatch = Annotated[
    str, typer.Option(metavar="TYPES", help="Slots that must agree.", show_default="all")
]


def tune(
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Lines of {"a", "b", "same"}.')
    ] = None,
    *,
    from_traffic: Annotated[
        bool, typer.Option("--from-traffic", help="Pairs of the audit and the content log.")
    ] = False,
    limit: Annotated[
        float, typer.Option(min=0, max=1, help="False hits allowed, as a share.")
    ] = 0.001,
    eur_per_call: Annotated[
        float, typer.Option(min=0, help="What a call costs, where a pair does not say.")
    ] = 0.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the two curves.")
    ] = None,
    pictures: Annotated[
        int, typer.Option(metavar="N", min=0, max=12, help="Render N pairs of each band.")
    ] = 0,
    sheet: Annotated[Path, typer.Option(metavar="FILE.png", help="Where these go.")] = Path(
        "near-pairs.png"
    ),
    seed: Annotated[int, typer.Option(help="Of these.")] = 0,
    steps: Annotated[int, typer.Option(help="Of these.")] = 12,
    must_match: MustMatch = "",
    folder: Folder = None,
    config: cached.Config = None,
    as_json: o.AsJson = False,
) -> None:
    """Try thresholds 0.80 to 0.99 on labelled pairs; recommend one for each route."""
    from packshot.gateway.cache import minilm
    from packshot.gateway.cache import tune as tuning
    from packshot.gateway.cache.embed import MiniLM

    if plot and plot.suffix != ".svg":
        raise InvalidRequest(f"the plot is an SVG; expected a name that ends in .svg, got {plot}")
    if (pairs is None) != from_traffic:
        raise InvalidRequest("name one of --pairs FILE and --from-traffic")
    types = types_of(must_match) if must_match else ()
    if pairs is not None:
        labelled, found, entry = tuning.load_pairs(pairs), None, None
        loaded = MiniLM(folder or minilm.default_folder())
    else:
        loaded = MiniLM(folder or minilm.default_folder())
        found, entry = _traffic(config, loaded)
        labelled = found.pairs
    facts: list[dict[str, Any]] = []
    scored: list[Scored] = []
    for route, rows in _scored(labelled, loaded, types, entry):
        scored += rows[0]
        tables = [tuning.outcomes(each) for each in rows]
        best = tuning.best(tables[0], limit)
        facts.append(_facts(route, tables, best, round(eur_per_call * 1e9), limit))
        if found is not None and entry is not None:
            facts[-1] |= _sources(route, found, entry)
        if not as_json:
            _table(facts[-1], limit)
        if plot:
            name = route or (pairs.name if pairs else "traffic")
            _draw(_of_route(plot, route), tables, limit, f"{name}: thresholds")
    shown = _pictures(scored, pictures, sheet, seed, steps, as_json=as_json) if pictures else None
    if as_json:
        _json({"routes": facts, "limit": limit, "pictures": shown})


def types_of(names: str) -> Sequence[str]:
    """Return the slot types that were named, all where none was."""
    from packshot.gateway.cache.slots import SLOT_TYPES

    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in SLOT_TYPES]
    if unknown:
        raise InvalidRequest(
            f"no slot type {', '.join(unknown)}; there are {', '.join(SLOT_TYPES)}"
        )
    return asked or SLOT_TYPES


def _scored(
    labelled: Sequence[LabelledPair],
    loaded: MiniLM,
    types: Sequence[str],
    entry: SemanticCacheEntry | None,
) -> Generator[tuple[str, tuple[list[Scored], list[Scored]]]]:
    """Yield each route with its pairs, as our cache sees them and as a threshold alone does."""
    from packshot.gateway.cache import tune as tuning

    with counting("pairs", len(labelled)) as tell:
        for route in dict.fromkeys(pair.route for pair in labelled):
            rows = [pair for pair in labelled if pair.route == route]
            must_match = types or _must_match(entry, route)
            yield route, tuning.score(rows, loaded.encode, must_match, tell)


def _must_match(entry: SemanticCacheEntry | None, route: str) -> Sequence[str]:
    if entry is None:
        return types_of("")
    own = entry.routes.get(route)
    named = entry.must_match if own is None or own.must_match is None else own.must_match
    return named or types_of("")


# ---------------------------------------------------------------- traffic
def _traffic(config: Path | None, loaded: MiniLM) -> tuple[Traffic, SemanticCacheEntry]:
    """Return the pairs of the audit log, and of the content log where there is one."""
    from packshot.gateway.cache import traffic
    from packshot.gateway.cache.audit_log import AuditLog
    from packshot.gateway.cache.opening import AUDIT

    found = traffic.Traffic()
    state, entry = cached.settings_of(config)
    if (state / AUDIT).exists():
        log = AuditLog(state / AUDIT, entry.audit.keep)
        traffic.from_checks(log.checks(None, entry.audit.keep, false=False, open_=False), found)
        log.close()
    asked = list(traffic.asked_of(cached.contents_of(config)))
    with counting("requests", len(asked)) as tell:
        traffic.near_pairs(asked, loaded.encode, entry.audit.same_above, found, tell)
    if not found.pairs:
        raise InvalidRequest(
            f"no pair of the traffic has a label: no verdicts in {state / AUDIT}, and "
            f"{len(asked)} requests in the content log. Checks are made of semantic hits "
            "(semantic_cache.audit), and virtual keys with content_log: true keep requests"
        )
    return found, entry


def _sources(route: str, found: Traffic, entry: SemanticCacheEntry) -> dict[str, Any]:
    """Return who labelled a route's pairs, how many nobody could, and what is in force there."""
    from packshot.gateway.cache.settings import threshold_of

    return {
        "labelled_by": dict(Counter(pair.kind for pair in found.pairs if pair.route == route)),
        "unsure": found.unsure[route],
        "in_force": threshold_of(entry, route),
    }


# ---------------------------------------------------------------- what is shown
def _facts(
    route: str,
    tables: Sequence[Sequence[Outcome]],
    best: Outcome | None,
    nano_eur: int,
    limit: float,
) -> dict[str, Any]:
    ours, alone = tables

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
        "proven": best is not None and best.false.high <= limit,
        "others_needed": _needed(limit),
        "thresholds": [
            {"threshold": mine.threshold, "guarded": row(mine), "alone": row(theirs)}
            for mine, theirs in zip(ours, alone, strict=True)
        ],
    }


def _table(facts: dict[str, Any], limit: float) -> None:
    from packshot.core.money import Nanos, show_eur

    counts = f"{facts['same']:,} pairs that share an answer, {facts['other']:,} that do not"
    typer.echo(f"{facts['route'] or 'all'}: {counts}")
    if by := facts.get("labelled_by"):
        said = ", ".join(f"{count:,} by {name}" for name, count in by.items())
        typer.echo(f"labelled: {said}; {facts['unsure']:,} more that nobody could label")
    typer.echo()
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
        if not facts["proven"]:
            chosen = next(r for r in facts["thresholds"] if r["threshold"] == facts["recommended"])
            high = chosen["guarded"]["false_rate_high"]
            typer.echo(
                f"So few pairs do not prove it: the rate may be up to {high:.2%} (95 %). It takes\n"
                f"{_needed(limit):,} pairs that do not share an answer, none of them a false hit; "
                f"there are {facts['other']:,}."
            )
        if in_force := facts.get("in_force"):
            wait = "" if facts["proven"] else "; keep it, or a higher one, until it is proven"
            typer.echo(f"in force: {in_force:.2f}{wait}")
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


def _pictures(
    scored: Sequence[Scored], count: int, sheet: Path, seed: int, steps: int, *, as_json: bool
) -> dict[str, Any]:
    from packshot.cli.near_pictures import near_pictures

    return near_pictures(scored, count, sheet, seed, steps, as_json=as_json)
