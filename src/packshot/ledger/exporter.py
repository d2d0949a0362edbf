"""The server that Prometheus scrapes: one page, on loopback only, made anew for each scrape."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET6

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import InvalidRequest
from packshot.ledger.lag import lag_of
from packshot.ledger.metrics import CONTENT_TYPE, Memory, render_metrics, text_of
from packshot.ledger.settings import Settings

__all__ = ["DEFAULT_PORT", "page_of", "serve", "server"]

DEFAULT_PORT = 9477
PATIENCE_S = 5.0
"""A client that sends nothing for so long is cut off: clients are served one at a time."""

LOG = logging.getLogger(__name__)


def page_of(settings: Settings, memory: Memory, clock: Clock = wall_us) -> str:
    """Return the page; where the ledger cannot be read, one that says so.

    The store is opened for each page: one that was restored or came back is then seen at once.
    """
    from packshot.ledger.stores import open_store

    def make() -> str:
        store = open_store(settings.store, read_only=True)
        try:
            now = clock()
            lag = lag_of(settings.journal, store.marks(), now)
            caps, zone = settings.caps, settings.timezone
            return render_metrics(store, now, lag=lag, caps=caps, timezone=zone, memory=memory)
        finally:
            store.close()

    return text_of(make, LOG.warning)


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    more: Callable[[], str] = str,
) -> None:
    """Serve the metrics of the ledger at ``http://HOST:PORT/metrics`` until interrupted.

    ``more`` returns what follows on each page.

    Raises:
        InvalidRequest: ``host`` is not this machine's loopback, or the port cannot be had.
    """
    memory = Memory()
    with server(lambda: page_of(settings, memory) + more(), host, port) as running:
        running.serve_forever()


def server(page: Callable[[], str], host: str, port: int) -> HTTPServer:
    """Return a server, already bound, of what ``page`` returns; port 0 takes a free one.

    Raises:
        InvalidRequest: as `serve`.
    """
    if not _is_loopback(host):
        raise InvalidRequest(
            f"the metrics are served without authentication, so on loopback only; got {host!r}, "
            "expected 127.0.0.1 or ::1 (put a proxy that asks for a password in front of it)"
        )

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_S

        def do_GET(self) -> None:
            # A page of the web whose name was made to point here sends that name.
            if not _is_loopback(_host_of(self.headers.get("Host", ""))):
                self.send_error(403, "Host must be a loopback address")
            elif self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "the page is /metrics")
            else:
                body = page().encode(errors="replace")
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            LOG.debug(format, *args)

    class Server(HTTPServer):
        address_family = AF_INET6 if ":" in host else HTTPServer.address_family

    try:
        return Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot listen on {host} port {port}: {error}; name another with --port"
        ) from error


def _host_of(header: str) -> str:
    """Return the host of a Host header without its port: "[::1]:9477" is "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
