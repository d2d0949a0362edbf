"""An HTTP relay before an S3 server that fails when it is told to: SlowDown, or a reset connection.

It passes requests on as they come, the ``Host`` with them, so that signatures hold.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self

Fault = Literal["", "slow down", "reset", "reset after", "500", "404 bucket", "400 timeout", "hold"]
Choose = Callable[[str, str], Fault]
"""Called with a request's method and path with query; returns what is to go wrong with it."""

BODIES = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error."),
    "400 timeout": (400, "RequestTimeout", "Your socket connection was not read from in time."),
    "404 bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
}


class S3Relay:
    """Listens on ``port``; ``seen`` are all requests, ``failed`` those that it spoilt."""

    def __init__(self, target: int, choose: Choose) -> None:
        self.target = target
        self.choose = choose
        self.seen: list[str] = []
        self.failed: list[str] = []
        self.lock = threading.Lock()
        self.held = threading.Event()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def answer(self) -> None:
                with contextlib.suppress(OSError):  # the client has gone, or was made to
                    relay.pass_on(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 - so called there

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def let_go(self) -> None:
        """End the requests that were held, with a reset."""
        self.held.set()

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request: spoilt, or as the server answers it."""
        said = f"{request.command} {request.path}"
        with self.lock:
            self.seen.append(said)
            fault = self.choose(request.command, request.path)
            if fault:
                self.failed.append(f"{fault}: {said}")
        length = int(request.headers.get("Content-Length") or 0)
        if fault == "hold":
            self.held.wait(60)
            return _reset(request)
        if fault == "reset":
            request.rfile.read(length // 2)
            return _reset(request)
        body = request.rfile.read(length)
        if fault in BODIES:
            return _answer(request, *BODIES[fault])
        status, headers, content = self._forward(request, body)
        if fault == "reset after":
            return _reset(request)
        return _send(request, status, headers, content)

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            as_it_came = {"skip_host": True, "skip_accept_encoding": True}
            link.putrequest(request.command, request.path, **as_it_came)
            for name, value in request.headers.items():
                link.putheader(name, value)
            link.endheaders(body)
            answer = link.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            link.close()


def _send(
    request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes
) -> None:
    request.send_response_only(status)
    for name, value in headers:
        if name.lower() not in {"transfer-encoding", "connection"}:
            request.send_header(name, value)
    if "content-length" not in {name.lower() for name, _ in headers}:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _answer(request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    _send(request, status, [], content)


def _reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()
