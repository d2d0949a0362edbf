"""``packshot cost``: what renders cost and where the money went."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.core.clock import HOUR_US, SECOND_US, wall_us
from packshot.core.errors import InvalidRequest, LedgerUnavailable
from packshot.core.money import decimal_of, show_eur

if TYPE_CHECKING:
    from packshot.ledger.reports.forecast import Forecast
    from packshot.ledger.reports.period import Period
    from packshot.ledger.reports.stages import Line, Table
    from packshot.ledger.settings import Settings
    from packshot.ledger.stores.table_store import TableStore

__all__ = ["app", "empty", "give", "only_of", "opened_ledger", "period_from", "print_rows"]

app = typer.Typer(help="What renders cost, and where the money went.", rich_markup_mode=None)

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings.", show_default="packshot.yaml")
]
Url = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="FILE | URL",
        help="A SQLite file or a postgresql:// address.",
        show_default="that of packshot.yaml",
    ),
]
Since = Annotated[str, typer.Option(metavar="DATE", help="From this day or time on.")]
Until = Annotated[str, typer.Option(metavar="DATE", help="Up to, not including, it.")]
Last = Annotated[
    str, typer.Option(metavar="12h | 7d | month", help="The time until now.", show_default="30d")
]
By = Annotated[str, typer.Option(metavar="DIM", help="stage, team, model, provider, recipe …")]
Team = Annotated[str, typer.Option(help="Only this team.")]
Recipe = Annotated[str, typer.Option(help="Only this recipe.")]
Key = Annotated[str, typer.Option("--virtual-key", help="Only this virtual key.")]
Model = Annotated[str, typer.Option(help="Only this model.")]
Provider = Annotated[str, typer.Option(help="Only this provider.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write CSV.")]
Parquet = Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write Parquet.")]

READS = (
    "--store names a store to read; what is appended goes through the journals of the settings: "
    "name the store there (ledger: store:), and the file with --config"
)
EMPTY = "the ledger is empty: nothing has been booked"
KEPT = ("entries", "avoided")
"""Tables that have something once anything was booked."""

LEAST = 1_000
"""Nano-EUR that six digits can show."""

BAR = 8
"""Characters of the longest bar."""


@app.callback(invoke_without_command=True)
def cost(
    ctx: typer.Context,
    by: By = "stage",
    since: Since = "",
    until: Until = "",
    last: Last = "",
    team: Team = "",
    recipe: Recipe = "",
    virtual_key: Key = "",
    model: Model = "",
    provider: Provider = "",
    store: Url = "",
    config: Config = None,
    csv: Csv = None,
    parquet: Parquet = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Show time and cost by stage or another dimension, and the trend against the time before."""
    if ctx.invoked_subcommand is not None:
        return
    from packshot.ledger.reports.stages import stage_table

    only = only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        period = period_from(since, until, last, config)
        table = stage_table(opened, period, by, only)
    give(
        [asdict(line) for line in (*table.lines, table.total)],
        as_json,
        csv,
        parquet,
        lambda: _print_table(table),
    )


@app.command()
def render(
    render_id: Annotated[str, typer.Argument(metavar="ID", help="A render's id, or its start.")],
    store: Url = "",
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Tell the story of one render: each attempt and entry."""
    from packshot.ledger.reports.story import story_of

    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        story = story_of(opened, render_id)

    def show() -> None:
        state = "delivered" if story.delivered else "not delivered"
        typer.echo(f"render {story.render}: {state}")
        amount, waste = show_eur(story.amount, 9), show_eur(story.waste, 9)
        typer.echo(f"{amount} EUR, of it waste {waste} EUR\n")
        first = min(e["held_at"] or e["settled_at"] for e in story.entries)
        rows: list[tuple[object, ...]] = [
            (
                f"+{((e['held_at'] or e['settled_at']) - first) / SECOND_US:.2f}",
                e["stage"],
                e["provider"] or e["device"],
                e["outcome"],
                _seconds(e["seconds_us"]),
                show_eur(e["amount"], 9) if e["priced"] else "unpriced",
            )
            for e in story.entries
        ]
        print_rows(("after s", "stage", "by", "outcome", "s", "EUR"), rows, left={1, 2, 3})
        for e in story.entries:
            if e["reason"] or e["corrects"]:
                corrects = f" (corrects {e['corrects']})" if e["corrects"] else ""
                typer.echo(f"{e['stage']}, {e['outcome']}: {e['reason']}{corrects}")

    give([asdict(story)], as_json, None, None, show)


@app.command()
def waste(
    by: By = "provider",
    since: Since = "",
    until: Until = "",
    last: Last = "",
    team: Team = "",
    recipe: Recipe = "",
    virtual_key: Key = "",
    model: Model = "",
    provider: Provider = "",
    store: Url = "",
    config: Config = None,
    csv: Csv = None,
    parquet: Parquet = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """List what was billed but not delivered, by reason and a dimension."""
    from packshot.ledger.reports.waste import waste as losses_of

    only = only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        losses = losses_of(opened, period_from(since, until, last, config), only, by)

    def show() -> None:
        own = "own" if by == "provider" else "-"
        rows: list[tuple[object, ...]] = [
            (x.reason or "?", x.name or own, x.attempts, x.renders, show_eur(x.amount))
            for x in losses
        ]
        sums = sum(x.attempts for x in losses), show_eur(sum(x.amount for x in losses))
        rows.append(("total", "", sums[0], "", sums[1]))
        print_rows(("reason", by, "attempts", "renders", "EUR"), rows, left={0, 1})

    give([{**asdict(x), by: x.name} for x in losses], as_json, csv, parquet, show)


@app.command()
def unpriced(
    by: By = "",
    since: Since = "",
    until: Until = "",
    last: Last = "",
    team: Team = "",
    recipe: Recipe = "",
    virtual_key: Key = "",
    model: Model = "",
    provider: Provider = "",
    store: Url = "",
    config: Config = None,
    csv: Csv = None,
    parquet: Parquet = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """List what no price is known for; `packshot prices apply` books it once there is one."""
    from packshot.ledger.reports.period import day_of
    from packshot.ledger.reports.waste import unpriced as gaps_of

    only = only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        gaps = gaps_of(opened, period_from(since, until, last, config), only, by)

    def show() -> None:
        if not gaps:
            typer.echo("every attempt of the period has a price")
            return
        rows: list[tuple[object, ...]] = [
            (
                *((x.name or "-",) if by else ()),
                x.provider or "own",
                x.model or x.device,
                x.attempts,
                x.input_tokens + x.output_tokens,
                x.images,
                _seconds(x.seconds_us),
                day_of(x.first_at),
            )
            for x in gaps
        ]
        heads = ("provider", "model", "attempts", "tokens", "images", "s", "since")
        print_rows((by, *heads) if by else heads, rows, left={0, 1, 2} if by else {0, 1})
        typer.echo("once they have a price (packshot prices add), packshot prices apply books them")

    give([asdict(x) for x in gaps], as_json, csv, parquet, show)


@app.command()
def forecast(
    renders: Annotated[str, typer.Option(help="How many, like 1_000_000.")],
    since: Since = "",
    until: Until = "",
    last: Last = "",
    team: Team = "",
    recipe: Recipe = "",
    store: Url = "",
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Say what many renders will take and cost, with a 95 % interval."""
    from packshot.ledger.reports.forecast import forecast as forecast_of

    try:
        count = int(renders)
    except ValueError as error:
        raise InvalidRequest(f"--renders must be a whole number, got {renders!r}") from error
    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        only = only_of(team=team, recipe=recipe)
        found = forecast_of(opened, period_from(since, until, last, config), count, only)

    def show() -> None:
        hours = f"{found.seconds_us / HOUR_US:,.1f} h of stages"
        ends = _ends(found)
        typer.echo(f"{count:,} renders: {show_eur(found.amount, 2)} EUR{ends[0]}")
        typer.echo(f"{hours}{ends[1]}, one after the other")
        if not ends[0]:
            typer.echo("from the one render that there is: how they differ, nobody can say yet")
            return
        typer.echo(f"95 % intervals, from {found.observed:,} delivered renders")
        if found.weak:
            typer.echo("so few that the intervals are a guess")

    give([asdict(found)], as_json, None, None, show)


@app.command(name="import")
def import_(
    invoice: Annotated[Path, typer.Argument(metavar="INVOICE.csv", help="Day, model, amount.")],
    provider: Annotated[str, typer.Option(help="Whose invoice it is.")],
    currency: Annotated[str, typer.Option(help="Where the file names none.")] = "USD",
    rate: Annotated[str, typer.Option(metavar="EUR", help="EUR per unit of it.")] = "",
    store: Url = "",
    config: Config = None,
    *,
    write: Annotated[bool, typer.Option("--correct", help="Append correcting entries.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Reconcile with a provider's invoice: the difference per model and day."""
    from packshot.ledger.clerk import corrector, total_of
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.reports.invoice import correct, read_invoice, reconcile
    from packshot.ledger.reports.period import day_of
    from packshot.ledger.settings import load_settings

    if write and store:
        raise InvalidRequest(READS)
    lines = read_invoice(invoice, currency)
    factor = decimal_of(rate, "--rate") if rate else None
    if factor is not None and factor <= 0:
        raise InvalidRequest(f"--rate must be above 0, got {rate}")
    with opened_ledger(store, config, writing=write) as opened:
        if opened is None:
            empty(as_json)
            return
        corrected = 0
        if write:
            settings = load_settings(config)
            with corrector(settings, opened, book_of(settings)) as book:
                found = reconcile(opened, provider, lines, factor)
                corrected = correct(opened, book, provider, found, invoice.name, total_of(settings))
        else:
            found = reconcile(opened, provider, lines, factor)

    def show() -> None:
        rows: list[tuple[object, ...]] = [
            (day_of(x.day), x.model, show_eur(x.booked), show_eur(x.billed), show_eur(x.amount))
            for x in found
        ]
        sums = (sum(x.booked for x in found), sum(x.billed for x in found))
        rows.append(("total", "", *map(show_eur, (*sums, sums[1] - sums[0]))))
        print_rows(("day", "model", "ledger EUR", "invoice EUR", "difference"), rows, left={0, 1})
        if write:
            typer.echo(f"{corrected} correcting entries appended")

    give([{**asdict(x), "amount": x.amount} for x in found], as_json, None, None, show)


@app.command()
def export(
    since: Since = "",
    until: Until = "",
    last: Last = "",
    team: Team = "",
    recipe: Recipe = "",
    virtual_key: Key = "",
    model: Model = "",
    provider: Provider = "",
    store: Url = "",
    config: Config = None,
    csv: Csv = None,
    parquet: Parquet = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Write every entry with FOCUS columns: --csv, --parquet, or --json, a line for each."""
    from packshot.ledger.reports.export import exported, write_csv, write_parquet

    if sum((csv is not None, parquet is not None, as_json)) != 1:
        raise InvalidRequest("expected one of --csv FILE, --parquet FILE and --json")
    only = only_of(
        team=team, recipe=recipe, virtual_key=virtual_key, model=model, provider=provider
    )
    with opened_ledger(store, config) as opened:
        if opened is None:
            empty(as_json)
            return
        rows = exported(opened, period_from(since, until, last, config), only)
        if as_json:
            for row in rows:
                typer.echo(_json(row))
            return
        if csv:
            typer.echo(f"{csv}: {write_csv(rows, csv)} entries")
        if parquet:
            typer.echo(f"{parquet}: {write_parquet(rows, parquet)} entries")


@contextmanager
def opened_ledger(
    ledger: str, config: Path | None, *, writing: bool = False
) -> Generator[TableStore | None]:
    """Open the ledger, drained; None where nothing has been booked."""
    from packshot.ledger.settings import load_settings
    from packshot.ledger.stores import open_store

    settings = load_settings(config)
    url = ledger or settings.store
    journals = settings.journal.is_dir() and any(settings.journal.iterdir())
    pending = not ledger and (journals or settings.durability == "store")
    if "://" not in url and not Path(url).exists() and not pending:
        if ledger:
            raise InvalidRequest(f"there is no ledger {url}")
        yield None
        return
    if pending:
        _drain(url, settings)
    store = open_store(url, read_only=not writing)
    try:
        yield store if any(store.query(f"SELECT 1 FROM {x} LIMIT 1") for x in KEPT) else None  # noqa: S608 - names of ours
    finally:
        store.close()


def _drain(url: str, settings: Settings) -> None:
    """Bring in what the journals hold; where that cannot be, say so and report what is stored."""
    from packshot.ledger.stores import open_store
    from packshot.ledger.wiring import bring_in

    try:
        store = open_store(url)
        try:
            bring_in(settings, store)
        finally:
            store.close()
    except LedgerUnavailable as error:
        terminal.warn(f"what is in the journals only is not in this report: {error}")


def period_from(since: str, until: str, last: str, config: Path | None) -> Period:
    from zoneinfo import ZoneInfo

    from packshot.ledger.reports.period import period_of
    from packshot.ledger.settings import load_settings

    zone = ZoneInfo(load_settings(config).timezone)
    return period_of(since, until, last, wall_us(), zone)


def only_of(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def empty(as_json: bool) -> None:
    typer.echo("[]" if as_json else EMPTY)


def give(
    rows: list[dict[str, Any]],
    as_json: bool,
    csv: Path | None,
    parquet: Path | None,
    show: Callable[[], None],
) -> None:
    """Hand the answer over in the form that was asked for."""
    from packshot.ledger.reports.export import write_csv, write_parquet

    if csv:
        write_csv(iter(rows), csv)
    if parquet:
        write_parquet(iter(rows), parquet)
    if as_json:
        typer.echo(_json(rows))
    elif not csv and not parquet:
        show()


def _json(value: object) -> str:
    import json

    def plain(each: object) -> str:
        # Decimals as text: a float would lose digits of money.
        return f"{each:f}" if isinstance(each, Decimal) else str(each)

    return json.dumps(value, ensure_ascii=False, default=plain)


def _print_table(table: Table) -> None:
    renders = "1 render" if table.renders == 1 else f"{table.renders:,} renders"
    typer.echo(f"{_when(table.period)}: {renders} delivered; amounts are EUR")
    most = max((line.cost_share for line in table.lines), default=0.0)
    spent = [line for line in table.lines if line.attempts or line.amount or not line.avoided_hits]
    rows = [_row(line, most) for line in (*spent, table.total)]
    heads = (table.by, "", "wall", "EUR", "cost", "/render", "p50", "p95", "trend")
    print_rows(heads, rows, left={0, 1})
    total = table.total
    if total.per_render_full is not None and total.per_render_full != total.per_render:
        full = _money(total.per_render_full)
        typer.echo(f"with loading, waiting and storage: {full} EUR per render")
    if total.avoided_hits:
        answers = "1 answer" if total.avoided_hits == 1 else f"{total.avoided_hits:,} answers"
        saved = f"{_money(total.avoided)} EUR, {answers} from the cache"
        typer.echo(f"avoided: {saved} (packshot cost avoided)")
    if table.total.unpriced:
        typer.echo(f"booked without a price: {table.total.unpriced}; see packshot cost unpriced")


def _row(line: Line, most: float) -> tuple[object, ...]:
    bar = "█" * round(BAR * line.cost_share / most) if most > 0 and line.name != "total" else ""
    return (
        line.name or "-",
        bar,
        f"{line.wall_share:.0%}" if line.seconds_us else "-",
        _money(line.amount),
        f"{line.cost_share:.0%}",
        "-" if line.per_render is None else _money(line.per_render),
        _money(line.p50),
        _money(line.p95),
        "-" if line.trend is None else f"{line.trend:+.0%}",
    )


def _money(amount: int) -> str:
    """Return EUR with the digits that say something: 2 from one EUR on, else 6. What is less than
    they can show is not shown as nothing.
    """
    if 0 < amount < LEAST:
        return "<0.000001"
    return show_eur(amount, 2 if abs(amount) >= SECOND_US * 1000 else 6)


def _when(period: Period) -> str:
    from packshot.ledger.reports.period import day_of

    return f"{day_of(period.since)} to {day_of(period.until - 1)} (UTC)"


def _ends(found: Forecast) -> tuple[str, str]:
    """Return the intervals of cost and time for people; nothing where there is none."""
    ends = found.amount_low, found.amount_high, found.seconds_low_us, found.seconds_high_us
    low, high, soon, late = ends
    if low is None or high is None or soon is None or late is None:
        return "", ""
    hours = f" ({soon / HOUR_US:,.1f} to {late / HOUR_US:,.1f})"
    return f" ({show_eur(low, 2)} to {show_eur(high, 2)})", hours


def _seconds(microseconds: int) -> str:
    return f"{microseconds / SECOND_US:.2f}"


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[object]], left: set[int]) -> None:
    """Print a table within 80 columns: the widest text column gives way."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(heads))]
    over = sum(widths) + len(widths) - 1 - 80
    if over > 0:
        widest = max(left, key=lambda k: widths[k])
        widths[widest] = max(6, widths[widest] - over)
    for row in cells:
        shown = [
            cell if len(cell) <= width else cell[: width - 1] + "…"
            for cell, width in zip(row, widths, strict=True)
        ]
        parts = (
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(shown, widths, strict=True))
        )
        typer.echo(" ".join(parts).rstrip())
