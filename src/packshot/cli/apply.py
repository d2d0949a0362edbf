"""``packshot prices apply``: book what had no price when it was made, and has one by now."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from packshot.cli import cost
from packshot.cli import options as o
from packshot.core.money import show_eur

if TYPE_CHECKING:
    from packshot.ledger.clerk import Repriced

__all__ = ["apply"]

NOTHING = "nothing is without a price"


def apply(
    since: cost.Since = "",
    until: cost.Until = "",
    last: cost.Last = "",
    team: cost.Team = "",
    recipe: cost.Recipe = "",
    virtual_key: cost.Key = "",
    model: cost.Model = "",
    provider: cost.Provider = "",
    config: cost.Config = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be booked.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Append a correcting entry for each unpriced one whose price is known by now; caps hear of it.

    Prices are those of the day of the call. A second run finds nothing to do; one that was stopped
    goes on where it was.
    """
    from packshot.ledger.clerk import book_late, corrector, late
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings

    settings = load_settings(config)
    prices = book_of(settings)
    only = cost.only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    groups: list[Repriced] = []
    with cost.opened_ledger("", config, writing=not dry_run) as store:
        if store is not None:
            period = cost.period_from(since, until, last, config)
            if dry_run:
                groups = book_late(late(store, prices, period, only), None)
            else:
                with corrector(settings, store, prices) as ledger:
                    groups = book_late(late(store, prices, period, only), ledger)
    if as_json:
        from packshot.cli.report import print_json

        print_json({"dry_run": dry_run, "groups": [asdict(group) for group in groups]})
    else:
        _show(groups, dry_run=dry_run)


def _show(groups: list[Repriced], *, dry_run: bool) -> None:
    from packshot.ledger.reports.period import day_of

    if not groups:
        typer.echo(NOTHING)
        return
    rows: list[tuple[object, ...]] = [
        (
            group.provider or "own",
            group.model or group.device,
            group.attempts,
            day_of(group.first_at),
            show_eur(group.amount) if not group.why else group.why,
        )
        for group in groups
    ]
    cost.print_rows(("provider", "model", "attempts", "since", "EUR"), rows, left={0, 1})
    priced = [group for group in groups if not group.why]
    count, amount = sum(g.attempts for g in priced), sum(g.amount for g in priced)
    would = "would be booked" if dry_run else "booked"
    typer.echo(f"{would}: {show_eur(amount)} EUR for {count} attempts")
    if any(group.why == "no price" for group in groups):
        typer.echo("no price: add one that holds from that day on (packshot prices add --since)")
    if any(group.why == "usage unknown" for group in groups):
        typer.echo("usage unknown: the invoice settles it (packshot cost import --correct)")
