"""``packshot ledger metrics``: the ledger for Prometheus, and how often embeddings were there."""

from __future__ import annotations

from typing import Annotated

import typer

from packshot.cli import terminal

__all__ = ["metrics"]


def metrics(
    *,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")
    ] = 9477,
    host: Annotated[str, typer.Option("--host", help="Loopback address to listen on.")] = (
        "127.0.0.1"
    ),
    once: Annotated[bool, typer.Option("--once", help="Print the page and end.")] = False,
) -> None:
    """Serve the ledger's metrics for Prometheus, on loopback, until Ctrl-C."""
    from packshot.ledger.exporter import page_of, serve
    from packshot.ledger.metrics import Memory
    from packshot.ledger.settings import load_settings
    from packshot.studio.embeddings import embeddings_page
    from packshot.studio.settings import load_studio

    settings, embeddings = load_settings(), load_studio().embeddings
    if once:
        typer.echo(page_of(settings, Memory()) + embeddings_page(embeddings), nl=False)
        return
    shown = f"[{host}]" if ":" in host else host
    terminal.note(f"metrics at http://{shown}:{port}/metrics; Ctrl-C ends it")
    serve(settings, host, port, lambda: embeddings_page(embeddings))
