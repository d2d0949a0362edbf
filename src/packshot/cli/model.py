"""``packshot model``: what a model knows, whether its files are whole, and a copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.studio import defaults

if TYPE_CHECKING:
    from rich.table import Table

    from packshot.engine.folder import ModelFolder
    from packshot.studio.lexicon import Lexicon, Term

__all__ = ["app"]

app = typer.Typer(help="Show, verify or export a model.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)


@app.command()
def show(model: o.Model = defaults.MODEL, *, as_json: o.AsJson = False) -> None:
    """List the products, grounds, lights and colours that a model knows."""
    from packshot.studio.lexicon import load_lexicon
    from packshot.studio.models import open_model

    folder = open_model(model)
    lexicon = load_lexicon(folder.lexicon_path)
    if as_json:
        from packshot.cli.report import print_json

        print_json(_facts(folder, lexicon))
        return
    console = terminal.out()
    console.print(
        f"[bold]{folder.name}[/bold] {folder.version}  [dim]{folder.fingerprint[:12]}[/dim]"
    )
    if lexicon is None:
        console.print("It has no lexicon: a general model, whose captions are the briefs as typed.")
        return
    for table in _tables(lexicon):
        console.print(table)


@app.command()
def verify(model: o.Model = defaults.MODEL) -> None:
    """Compare every file of a model with its manifest, by SHA-256."""
    from packshot.studio.models import open_model

    folder = open_model(model, verify=True)
    terminal.out().print(
        f"ok: every file of {folder.name} {folder.version} is as its manifest says"
    )


@app.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write it: a new folder.")],
    model: o.Model = defaults.MODEL,
) -> None:
    """Write a verified copy of a model: a folder that packshot and diffusers both read."""
    from packshot.studio.models import export_model

    written = export_model(model, to)
    terminal.out().print(f"{to}: {written} files", soft_wrap=True)


def _facts(folder: ModelFolder, lexicon: Lexicon | None) -> dict[str, Any]:
    import msgspec

    return {
        "name": folder.name,
        "version": folder.version,
        "fingerprint": folder.fingerprint,
        "lexicon": msgspec.to_builtins(lexicon),
    }


def _tables(lexicon: Lexicon) -> list[Table]:
    products = _table(f"{len(lexicon.products)} products", "category", "product", "also called")
    for category in lexicon.categories:
        for row, product in enumerate(p for p in lexicon.products if p.category == category):
            named = "" if row else category
            products.add_row(named, product.name, ", ".join(product.synonyms))
    for product in lexicon.products:
        if not product.category:
            products.add_row("", product.name, ", ".join(product.synonyms))
    colours = _table(f"{len(lexicon.colours)} colours", "", "colour", "also called")
    for colour in lexicon.colours:
        swatch = "[on #{:02x}{:02x}{:02x}]    [/]".format(*colour.rgb)
        colours.add_row(swatch, colour.name, ", ".join(colour.synonyms))
    return [
        products,
        colours,
        _terms("ground", lexicon.grounds, lexicon.default.ground),
        _terms("light", lexicon.lights, lexicon.default.light),
        _terms("side", lexicon.sides, lexicon.default.side),
        _terms("view", lexicon.views, lexicon.default.view),
    ]


def _terms(what: str, terms: Sequence[Term], default: str) -> Table:
    table = _table(f"{len(terms)} {what}s", what, "also called")
    for term in terms:
        name = f"{term.name} *" if term.name == default else term.name
        table.add_row(name, ", ".join(term.synonyms))
    table.caption = "* where the brief says nothing" if default else None
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.caption_justify = "left"
    for column in columns:
        table.add_column(column, style="dim" if column == "also called" else None)
    return table
