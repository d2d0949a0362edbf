"""A TCP relay before PostgreSQL that can lose an answer: COMMIT arrives, its OK does not."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listen on a loopback port and pass everything on to a local socket.

    Once ``cut`` is set, the first message that commits is passed on, and its answer is awaited but
    not handed back: both sides are closed. While ``gone`` is true, nobody gets through.
    """

    def __init__(self, upstream: str) -> None:
        self.cut = False
        self.cuts = 0
        self.gone = False
        self._open: list[socket.socket] = []
        self._upstream = upstream
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def leave(self) -> None:
        """Cut every connection, and take no new one until `come_back`."""
        self.gone = True
        for end in self._open:
            _shut(end)
        self._open.clear()

    def come_back(self) -> None:
        self.gone = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end of the test
            while True:
                client, _ = self._server.accept()
                if self.gone:
                    _shut(client)
                    continue
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self._upstream)
                self._open += [client, upstream]
                silent = threading.Event()
                for run in (
                    threading.Thread(target=self._send, args=(client, upstream, silent)),
                    threading.Thread(target=self._answer, args=(upstream, client, silent)),
                ):
                    run.daemon = True
                    run.start()

    def _send(
        self, client: socket.socket, upstream: socket.socket, silent: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.cut and b"COMMIT" in data:
                    silent.set()
                upstream.sendall(data)
        _shut(upstream)

    def _answer(
        self, upstream: socket.socket, client: socket.socket, silent: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                if silent.is_set():
                    self.cut = False
                    self.cuts += 1
                    break
                client.sendall(data)
        _shut(client)
        _shut(upstream)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
