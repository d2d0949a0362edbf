"""``packshot cost avoided``: what answers from the cache would have cost."""

from __future__ import annotations

from dataclasses import asdict

import typer

from packshot.cli import cost
from packshot.cli import options as o
from packshot.core.money import show_eur

__all__ = ["avoided"]

NOTHING = "nothing was avoided: no answer of the period came from the cache"


def avoided(
    by: cost.By = "route",
    since: cost.Since = "",
    until: cost.Until = "",
    last: cost.Last = "",
    team: cost.Team = "",
    recipe: cost.Recipe = "",
    virtual_key: cost.Key = "",
    model: cost.Model = "",
    provider: cost.Provider = "",
    store: cost.Url = "",
    config: cost.Config = None,
    csv: cost.Csv = None,
    parquet: cost.Parquet = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """List what answers from the cache would have cost, by a dimension and kind of hit."""
    from packshot.ledger.reports.avoided import avoided as savings_of

    only = cost.only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    with cost.opened_ledger(store, config) as opened:
        if opened is None:
            cost.empty(as_json)
            return
        savings = savings_of(opened, cost.period_from(since, until, last, config), only, by)

    def show() -> None:
        if not savings:
            typer.echo(NOTHING)
            return
        rows: list[tuple[object, ...]] = [
            (x.name or "-", x.kind, f"{x.hits:,}", show_eur(x.amount)) for x in savings
        ]
        sums = sum(x.hits for x in savings), sum(x.amount for x in savings)
        rows.append(("total", "", f"{sums[0]:,}", show_eur(sums[1])))
        cost.print_rows((by, "kind", "answers", "EUR"), rows, left={0, 1})

    cost.give([{**asdict(x), by: x.name} for x in savings], as_json, csv, parquet, show)
