"""The command ``packshot``: its sub-commands, and the one place where an error becomes a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import packshot
from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.avoided import avoided
from packshot.cli.batch import batch
from packshot.cli.cache import app as cache_app
from packshot.cli.config import app as config_app
from packshot.cli.cost import app as cost_app
from packshot.cli.gateway import app as gateway_app
from packshot.cli.keys import app as keys_app
from packshot.cli.ledger import app as ledger_app
from packshot.cli.model import app as model_app
from packshot.cli.plan import plan
from packshot.cli.prices import app as prices_app
from packshot.cli.profile import profile
from packshot.cli.recipe import app as recipe_app
from packshot.cli.render import render
from packshot.cli.sheet import sheet
from packshot.cli.shoot import shoot
from packshot.core.errors import PackshotError
from packshot.studio import defaults

__all__ = ["app", "main"]

DEBUG = "--debug"
CANCELLED = 130

app = typer.Typer(
    name="packshot",
    help="A brief goes in, a product photograph comes out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(render)
app.command()(shoot)
app.command()(sheet)
app.command()(batch)
app.command()(profile)
app.command()(plan)
app.add_typer(recipe_app, name="recipe")
app.add_typer(model_app, name="model")
cost_app.command()(avoided)
app.add_typer(cost_app, name="cost")
app.add_typer(prices_app, name="prices")
app.add_typer(ledger_app, name="ledger")
app.add_typer(keys_app, name="keys")
app.add_typer(gateway_app, name="gateway")
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")


@app.command()
def doctor(model: o.Model = defaults.MODEL, *, as_json: o.AsJson = False) -> None:
    """Tell what this machine has, and what is missing."""
    from packshot.cli.doctor import doctor as examine  # its imports are a third of `--help`

    examine(model=model, as_json=as_json)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"packshot {packshot.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options of no sub-command: a callback prints the version, `main` reads --debug."""
    del version, debug
    terminal.help_if_alone(ctx)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 ours, 2 call, 3 model, 4 file, 5 ledger, 130."""
    # Read by OpenMP when torch is imported. Threads that wait for the slowest one sleep instead of
    # spinning: as fast on a free machine, 2 to 10 times faster where another process has a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given
    try:
        code = app([a for a in given if a != DEBUG], prog_name="packshot", standalone_mode=False)
    except (PackshotError, typer.TyperException) as error:
        if debug:
            raise
        terminal.error(
            error.format_message() if isinstance(error, typer.TyperException) else str(error)
        )
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = CANCELLED
    if code == CANCELLED:
        terminal.error("cancelled; no half-written file was left")
    sys.exit(code if isinstance(code, int) else 0)
