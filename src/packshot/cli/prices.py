"""``packshot prices``: what things cost, since when and by which source; and rows of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.apply import apply
from packshot.core.clock import wall_us
from packshot.core.errors import InvalidRequest, PackshotError
from packshot.core.money import decimal_of

if TYPE_CHECKING:
    from packshot.ledger.prices.rows import PriceRow

__all__ = ["app"]

app = typer.Typer(help="What things cost, since when, by which source.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)
app.command()(apply)

DEVICE = "device"
"""Stands for the provider of our own devices, which has no name in the ledger."""

WIDTH = 80

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings.", show_default="packshot.yaml")
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="PROVIDER/MODEL",
        help=f"{DEVICE}/KIND is a device of ours; PROVIDER/ all that a provider has.",
    ),
]


@app.command("list")
def list_prices(
    provider: Annotated[
        str, typer.Option(help=f"Only this provider; with its models of tokens. Or: {DEVICE}.")
    ] = "",
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """List the rows of the operator and those that are shipped, by provider, model and date."""
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings

    book = book_of(load_settings(config))
    rows = [_facts(row) for row in (*book.own, *book.shipped)]
    if provider:
        rows = [row for row in rows if row["provider"] == provider] + _tokens(provider)
        if not rows:
            raise InvalidRequest(
                f"no price of provider {provider!r}; `packshot prices list` has all"
            )
    rows.sort(key=lambda row: (row["provider"], row["model"], row["unit"], row["since"]))
    _show(rows, as_json)


@app.command()
def show(name: Name, config: Config = None, *, as_json: o.AsJson = False) -> None:
    """Show every price of a model, the ones used first, with date and source."""
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings

    provider, model = _split(name)
    book = book_of(load_settings(config))
    wanted = "" if provider == DEVICE else provider
    groups = [
        [
            _facts(row)
            for row in sorted(rows, key=lambda row: row.start, reverse=True)
            if row.provider == wanted and row.model in {model, ""}
        ]
        for rows in (book.own, book.shipped)
    ]
    found = [*groups[0], *_tokens(wanted, model), *groups[1]]
    if not found:
        raise InvalidRequest(
            f"no price of {name} is known: what it costs would be booked as unpriced; add one with "
            f"`packshot prices add {name}`"
        )
    _show(found, as_json, sources=True)


@app.command()
def add(
    name: Name,
    unit: Annotated[str, typer.Option(help="image, input_token, output_token, device_hour …")],
    price: Annotated[str, typer.Option(metavar="AMOUNT", help="Per so many units.")],
    source: Annotated[str, typer.Option(help="Where the price is from: a contract, a page.")],
    per: Annotated[int, typer.Option(min=1, help="How many units the price is for.")] = 1,
    currency: Annotated[str, typer.Option(help="Its code.")] = "EUR",
    since: Annotated[
        str, typer.Option(metavar="DATE", help="From this day (UTC) on.", show_default="today")
    ] = "",
    size: Annotated[str, typer.Option(metavar="WxH", help="Of pictures of this size.")] = "",
    quality: Annotated[str, typer.Option(help="Of pictures of this quality.")] = "",
    tier: Annotated[str, typer.Option(help="Of calls in it: batch, flex, priority.")] = "standard",
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Append a price to the operator's file beside the ledger; nothing in it is changed."""
    from packshot.ledger.prices.book import day_of
    from packshot.ledger.prices.own import add as append
    from packshot.ledger.prices.rows import price_row
    from packshot.ledger.settings import PriceEntry, load_settings

    provider, model = _split(name)
    row = price_row(
        PriceEntry(
            provider="" if provider == DEVICE else provider,
            model=model,
            unit=unit,
            price=decimal_of(price, "price"),
            since=since or day_of(wall_us()).isoformat(),
            source=source,
            per=decimal_of(per),
            currency=currency,
            size=size,
            quality=quality,
            tier=tier,
        )
    )
    path = append(load_settings(config), row)
    if as_json:
        _json({"file": str(path), **_facts(row)})
    else:
        typer.echo(f"{row.name}: {row.price:f} {row.currency} from {row.start}, in {path}")


@app.command()
def check(config: Config = None, *, as_json: o.AsJson = False) -> None:
    """Check every row, shipped and of the operator; exit 2 where one is wrong."""
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings

    try:
        book = book_of(load_settings(config))
    except PackshotError as error:
        if not as_json:
            raise
        _json({"ok": False, "error": str(error)})
        raise typer.Exit(error.exit_code) from error
    rates = len(book.own_rates) + len(book.shipped_rates)
    if as_json:
        _json({"ok": True, "own": len(book.own), "shipped": len(book.shipped), "rates": rates})
    else:
        typer.echo(
            f"ok: {len(book.own)} prices of yours, {len(book.shipped)} shipped, {rates} rates"
        )


def _split(name: str) -> tuple[str, str]:
    provider, slash, model = name.partition("/")
    if not provider or not slash:
        raise InvalidRequest(f"expected PROVIDER/MODEL, as in openai/gpt-4o-mini, got {name!r}")
    return provider, model


def _facts(row: PriceRow) -> dict[str, Any]:
    return {
        "provider": row.provider or DEVICE,
        "model": row.model or "*",
        "unit": row.unit,
        "price": f"{row.price:f}",
        "per": row.per,
        "currency": row.currency,
        "since": row.start.isoformat(),
        "size": row.size,
        "quality": row.quality,
        "tier": row.tier,
        "above": 0,
        "source": row.source,
    }


def _tokens(provider: str, model: str = "") -> list[dict[str, Any]]:
    """Return the prices of tokens as of now, of one model or all of a provider."""
    from packshot.ledger.prices import genai
    from packshot.ledger.prices.book import TIERS

    now = wall_us()
    models = [(provider, model)] if model else [m for m in genai.models() if m[0] == provider]
    return [
        {
            "provider": provider,
            "model": each,
            "unit": part.unit,
            "price": f"{part.price:f}",
            "per": part.per,
            "currency": part.currency,
            "since": str(genai.since(provider, each, now) or ""),
            "size": "",
            "quality": "",
            "tier": tier,
            "above": part.above,
            "source": genai.source(),
        }
        for _, each in models
        for tier in TIERS
        for part in genai.parts(provider, each, now, tier)
    ]


def _json(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)


def _show(rows: Sequence[dict[str, Any]], as_json: bool, *, sources: bool = False) -> None:
    if as_json:
        _json({"prices": list(rows)})
        return
    name = ""
    for row in rows:
        if name != f"{row['provider']}/{row['model']}":
            name = f"{row['provider']}/{row['model']}"
            typer.echo(_cut(name))
        tier = "" if row["tier"] == "standard" else row["tier"]
        picture = " ".join(word for word in (row["size"], row["quality"], tier) if word)
        detail = f"{tier} over {row['above']} in".lstrip() if row["above"] else picture
        what = f"{row['unit']} {detail}".rstrip()
        per = f"/{row['per']:,}" if row["per"] != 1 else ""
        amount = f"{row['price']} {row['currency']}{per}"
        typer.echo(_cut(f"  {what:<32}{amount:>24}  {row['since']}".rstrip()))
        if sources:
            typer.echo(_cut(f"    {row['source']}"))


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
