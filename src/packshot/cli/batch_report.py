"""What a batch prints: its plan before, its report after, as tables of 80 columns or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from packshot.cli import terminal
from packshot.cli.batch_progress import count_of, span
from packshot.cli.report import print_json
from packshot.core.clock import SECOND_US
from packshot.core.money import show_eur

if TYPE_CHECKING:
    from packshot.cli.batch_overflow import Out
    from packshot.ledger.reports.forecast import Forecast
    from packshot.studio.batch.planning import Source
    from packshot.studio.batch.report import Report
    from packshot.studio.batch.state import Counts

__all__ = ["print_facts", "print_plan", "show", "show_plan"]

PLACES = 6
REASON = 400
"""Characters of a reason in the report, which tells how to mend it; the manifest has it whole."""


def show_plan(
    name: str,
    source: Source,
    where: str,
    counts: Counts,
    forecast: Forecast | None,
    out: Out | None,
) -> None:
    """Print what is to be done, what is done already, and what it will take."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    repeated = f", {counts.repeated:,} of them the same as another" if counts.repeated else ""
    rows = [
        ("batch", name),
        ("items", f"{counts.items:,}{repeated}"),
        ("recipe", f"{source.recipe.name} {source.recipe.version}"),
        ("to", where),
        ("pictures", _pictures(counts)),
    ]
    if counts.left:
        rows += _foretold(forecast)
    if out is not None:
        rows += out.rows()
    for what, said in rows:
        grid.add_row(what, said)
    grid.columns[0].style = "dim"
    terminal.out().print(grid)


def _pictures(counts: Counts) -> str:
    parts = [f"{counts.works:,}"]
    if counts.delivered:
        parts.append(f"{counts.delivered:,} delivered")
    if counts.made:
        parts.append(f"{counts.made:,} made and not stored yet")
    if counts.quarantined:
        parts.append(f"{counts.quarantined:,} quarantined")
    return ", ".join([*parts, f"{counts.left:,} to do"])


def _foretold(found: Forecast | None) -> list[tuple[str, str]]:
    if found is None:
        return [("forecast", "none: the ledger has no picture of this recipe in 30 days")]
    low, high = found.amount_low, found.amount_high
    cost = f"{show_eur(found.amount, 4)} EUR"
    if low is not None and high is not None:
        cost += f" ({show_eur(low, 4)} to {show_eur(high, 4)})"
    seconds = [found.seconds_us, found.seconds_low_us, found.seconds_high_us]
    middle, *ends = (None if each is None else span(each / SECOND_US) for each in seconds)
    time = f"{middle} ({ends[0]} to {ends[1]})" if all(ends) else f"{middle}"
    weak = "; so few that it is a guess" if found.weak else ""
    said = f"95 % intervals, from {found.observed:,} delivered pictures{weak}"
    return [("cost", cost), ("time", time), ("", said)]


def print_plan(
    name: str,
    source: Source,
    where: str,
    counts: Counts,
    forecast: Forecast | None,
    out: Out | None,
) -> None:
    """Print the plan as one JSON object."""
    print_json(
        {
            "batch": name,
            "recipe": source.recipe.facts(),
            "out": where,
            "items": _counted(counts),
            "forecast": None if forecast is None else asdict(forecast),
            "elsewhere": None if out is None else out.facts(),
        }
    )


def _counted(counts: Counts) -> dict[str, Any]:
    return {**asdict(counts), "repeated": counts.repeated, "left": counts.left}


def show(report: Report, where: str, manifest: str, sheet: str) -> None:
    """Print what came of a batch: costs by stage, failures, and where everything is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = terminal.out()
    counts = report.counts
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("account", footer="total")
    table.add_column("attempts", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("EUR", justify="right", footer=show_eur(report.amount, PLACES))
    for cost in report.costs:
        if cost.priced and not cost.amount and not cost.seconds:
            continue  # a stage that every render books, and this recipe does not have
        amount = show_eur(cost.amount, PLACES) if cost.priced else "unpriced"
        table.add_row(cost.account, f"{cost.attempts:,}", f"{cost.seconds:,.1f}", amount)
    console.print(table)
    if counts.delivered:
        each = show_eur(report.amount // counts.delivered, 9)
        console.print(f"{count_of(counts.delivered)} delivered, {each} EUR each")
    for model, many in report.hosted:
        console.print(f"{count_of(many)} made by {model}, a hosted provider")
    use = report.embeddings
    if use.hits:
        texts = f"{use.rate:.1%} of {use.hits + use.misses:,} texts encoded before"
        console.print(f"{texts}, which saved {use.saved_s:,.1f} s".replace("%", " %"))
    for reason, works in report.reasons:
        said = reason if len(reason) <= REASON else f"{reason[:REASON]}…"
        console.print(f"{works:,} quarantined: {said}")
    for what, key in (("manifest", manifest), ("samples", sheet)):
        if key:
            console.print(f"{what} {where}/{key}", soft_wrap=True)


def print_facts(report: Report, where: str, manifest: str, sheet: str) -> None:
    """Print the report as one JSON object."""
    print_json(
        {
            **report.facts(),
            "items": _counted(report.counts),
            "out": where,
            "manifest": manifest or None,
            "samples": sheet or None,
        }
    )
