"""``packshot gateway``: serve every model of a company from one endpoint."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packshot.cli import terminal
from packshot.cli.machine import optimized

if TYPE_CHECKING:
    from packshot.gateway.bench import Figures

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


@app.command()
def content(
    config: Config = Path("packshot.yaml"),
    *,
    day: Annotated[str, typer.Option(help="Of one day only: 2026-11-25 (UTC).")] = "",
) -> None:
    """Print what the content log holds, one JSON object a line; it takes the configured key.

    A request or answer that is no UTF-8 is printed with its bytes escaped.
    """
    import msgspec

    from packshot.core.errors import InvalidRequest
    from packshot.gateway.content import read_contents
    from packshot.gateway.settings import load_gateway

    settings = load_gateway(config)
    key = settings.telemetry.content_key
    if not key:
        raise InvalidRequest(f"{config}: telemetry.content_key is not set: nothing can be read")
    for each in read_contents(settings.content_folder, key, day):
        row = msgspec.structs.asdict(each)
        for name in ("request", "response"):
            row[name] = row[name].decode(errors="backslashreplace")
        typer.echo(msgspec.json.encode(row).decode())


@app.command()
def bench(
    config: Config = Path("packshot.yaml"),
    *,
    model: Annotated[
        str,
        typer.Option(help="What calls ask for.", show_default="the first route, else model"),
    ] = "",
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Calls at once.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Medians are of these.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, max=600, help="Of each round.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what this configuration costs on this machine, against going direct.

    Providers are replaced by a fake one and secrets by dummies: nothing is sent or booked.
    """
    import msgspec

    from packshot.gateway.bench import Options
    from packshot.gateway.bench import bench as measure

    figures = measure(config, Options(rounds, seconds, connections, model))
    if as_json:
        typer.echo(msgspec.json.encode(asdict(figures)).decode())
        return
    for name, value, note in _lines(figures):
        typer.echo(f"{name:<26}{value:>14}  {note}".rstrip())


def _lines(found: Figures) -> list[tuple[str, str, str]]:
    """Return what is printed: name, value and a remark, at most 80 characters together."""

    def us(value: float | None) -> str:
        return "unknown" if value is None else f"{value:,.1f} us"

    return [
        ("calls", f"{found.calls:,}", f"of {found.model[:35]}"),
        ("latency, direct", us(found.direct_p50_us), "median, one connection"),
        ("added latency, median", us(found.added_p50_us), "one connection"),
        ("added latency, p99", us(found.added_p99_us), "one connection"),
        ("calls a second", f"{found.per_s:,.0f}", f"direct: {found.direct_per_s:,.0f}"),
        ("CPU per call", us(found.cpu_us), "of the gateway's processes"),
        ("CPU of the drain", us(found.drain_us), "per call, beside it"),
        ("CPU per streamed chunk", us(found.chunk_us), "the call's own included"),
        ("load of this machine", f"{found.load:.1f}", "1 or more per core: busy, so worse"),
        (
            "Python",
            platform.python_version(),
            "" if optimized() else "built without PGO: 13 to 30 % slower",
        ),
    ]
