"""``packshot gateway``: serve every model of a company from one endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packshot.cli import terminal

__all__ = ["app"]

app = typer.Typer(help="Serve every model from one endpoint.", rich_markup_mode=None)

Config = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file.")
]
Host = Annotated[
    str,
    typer.Option(help="Where to listen.", show_default="that of the file, else 127.0.0.1"),
]
Port = Annotated[
    int | None, typer.Option(help="0 takes a free one.", show_default="that of the file, else 8080")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes.", show_default="that of the file, else 1")
]


@app.callback(invoke_without_command=True)
def gateway(
    ctx: typer.Context,
    config: Config = Path("packshot.yaml"),
    host: Host = "",
    port: Port = None,
    workers: Workers = None,
) -> None:
    """Serve. Ctrl-C or SIGTERM drains; SIGHUP reads the configuration again."""
    if ctx.invoked_subcommand is not None:
        return
    from packshot.gateway.launch import launch

    code = launch(
        config, host=host, port=port, workers=workers, say=terminal.note, warn=terminal.warn
    )
    raise typer.Exit(code)
