"""How the terminal speaks: results on stdout, everything else on stderr, one line for an error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["error", "help_if_alone", "note", "out", "pace", "stderr", "warn"]


def out() -> Console:
    """Return the console for results."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def error(message: str) -> None:
    """Say on one line, whatever the width, why the command failed."""
    _label("error", "bold red", message)


def warn(message: str) -> None:
    """Say what the user should know, though the command goes on."""
    _label("warning", "yellow", message)


def note(message: str) -> None:
    """Say what the user may want to know."""
    _label("note", "dim", message)


def help_if_alone(ctx: typer.Context) -> None:
    """Show the help of a command group that was called without a command."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def pace(steps: float, seconds: float) -> str:
    """Return how fast steps go: "8.3 it/s", or "2.4 s/it" where they are slow."""
    if not steps or not seconds:
        return ""
    rate = steps / seconds
    return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"


def _label(label: str, style: str, message: str) -> None:
    one_line = " ".join(message.split())
    if not sys.stderr.isatty():
        print(f"{label}: {one_line}", file=sys.stderr)  # noqa: T201 - the terminal is its place
        return
    from rich.text import Text

    stderr().print(Text.assemble((f"{label}: ", style), one_line), soft_wrap=True)
