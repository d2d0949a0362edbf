"""``packshot config``: read a configuration as the gateway does, and say what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal

if TYPE_CHECKING:
    from packshot.gateway.plan import Plan
    from packshot.gateway.settings import GatewaySettings

__all__ = ["app"]

app = typer.Typer(help="Check a configuration file without starting.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")]


@app.command()
def check(file: File = Path("packshot.yaml"), *, as_json: o.AsJson = False) -> None:
    """Read FILE as the gateway would; exit 2 on a mistake, with its line.

    Environment variables and files that it names must be there. What is configured and not built
    yet is a warning.
    """
    from packshot.cli.overflow import check_overflow
    from packshot.gateway.cache.embedding_models import check_price
    from packshot.gateway.client import check_route
    from packshot.gateway.plan import build_plan
    from packshot.gateway.run import check_host
    from packshot.gateway.settings import load_gateway
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings
    from packshot.studio.settings import load_engine_settings, load_studio

    settings = load_gateway(file)
    plan = build_plan(settings)
    server = settings.server
    check_host(server.host, server.port, guarded=server.behind_proxy)
    book = book_of(load_settings(file))
    if settings.semantic_cache.embeddings.asked:
        check_price(settings.semantic_cache.embeddings, plan, book)
    load_engine_settings(file)
    studio = load_studio(file)
    if studio.caption_route and not studio.gateway_url:
        check_route(plan, studio.caption_route)
    notes = [*plan.notes, *check_overflow(plan, studio)]
    if as_json:
        from packshot.cli.report import print_json

        print_json({"file": str(file), **_facts(settings, plan), "warnings": notes})
    else:
        _show(file, settings, plan)
    for each in notes:
        terminal.warn(each)


def _facts(settings: GatewaySettings, plan: Plan) -> dict[str, Any]:
    """Return what the file comes to; a key's value is in none of it."""
    return {
        "providers": {
            name: {
                "base_url": provider.row.base_url,
                "keys": [{"name": key.name, "weight": key.weight} for key in provider.keys],
                "max_retries": provider.entry.network.retry.max_retries,
            }
            for name, provider in plan.providers.items()
        },
        "routes": {
            name: [target.name for target in route.targets] for name, route in plan.routes.items()
        },
        "fallbacks": {name: list(others) for name, others in plan.fallbacks.items()},
        "virtual_keys": [each.id for each in settings.access.virtual_keys],
    }


def _show(file: Path, settings: GatewaySettings, plan: Plan) -> None:
    from rich.table import Table

    console = terminal.out()
    table = Table(box=None, pad_edge=False, title_justify="left", title="Providers")
    for column in ("name", "address", "keys and weights", "retries"):
        table.add_column(column, overflow="fold")
    for name, provider in plan.providers.items():
        keys = ", ".join(f"{key.name} {key.weight:g}" for key in provider.keys) or "none"
        retries = str(provider.entry.network.retry.max_retries)
        table.add_row(name, provider.row.base_url, keys, retries)
    console.print(table)
    if plan.routes or plan.fallbacks:
        table = Table(box=None, pad_edge=False, title_justify="left", title="\nRoutes")
        table.add_column("asked for", overflow="fold")
        table.add_column("tried in this order", overflow="fold")
        for name, route in plan.routes.items():
            table.add_row(name, " → ".join(target.name for target in route.targets))
        for name, others in plan.fallbacks.items():
            table.add_row(name, " → ".join((name, *others)))
        console.print(table)
    if settings.access.virtual_keys:
        names = ", ".join(each.id for each in settings.access.virtual_keys)
        console.print(f"\nVirtual keys: {names}", soft_wrap=True)
    console.print(f"\n{file}: ok", soft_wrap=True)
