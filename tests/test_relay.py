"""The bad network of other tests does what they count on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay import Relay


class Echo(threading.Thread):
    """A server that sends back what it gets, and notes it."""

    def __init__(self, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.got = b""
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    self.got += data
                    client.sendall(data)
                    if data.endswith(b"bye"):
                        return
            except OSError as error:
                self.got += repr(error).encode()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = socket.create_server(("127.0.0.1", 0))
    yield Echo(server)
    # Only a shutdown wakes a thread that waits in accept().
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay(echo.server.getsockname()) as relay:
        yield relay


def dial(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


def all_of(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += (data := client.recv(size - len(got)))
        if not data:
            break
    return got


def test_it_passes_everything_on_and_counts(relay: Relay) -> None:
    with dial(relay) as client:
        blob = bytes(range(256)) * 2000
        threading.Thread(target=client.sendall, args=(blob,), daemon=True).start()
        assert all_of(client, len(blob)) == blob
        assert relay.request_bytes == len(blob)
        assert relay.accepted == 1


def test_a_close_is_passed_on_after_the_last_byte(relay: Relay) -> None:
    with dial(relay) as client:
        client.sendall(b"and bye")
        assert all_of(client, 100) == b"and bye"


def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        Echo(server)
        with Relay(str(tmp_path / "s")) as relay, dial(relay) as client:
            client.sendall(b"x")
            assert client.recv(9) == b"x"
        server.shutdown(socket.SHUT_RDWR)


def test_latency_in_both_directions(relay: Relay) -> None:
    relay.latency_s = 0.05
    with dial(relay) as client:
        # A bound from below only: no load of the machine makes it shorter.
        start = time.monotonic()
        client.sendall(b"x")
        assert client.recv(9) == b"x"
        assert time.monotonic() - start >= 0.1


def test_a_stall_holds_back_and_lets_go(relay: Relay, echo: Echo) -> None:
    with dial(relay) as client:
        relay.stall()
        client.sendall(b"x")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(9)
        assert echo.got == b""
        relay.resume()
        client.settimeout(5)
        assert client.recv(9) == b"x"


def test_half_open_requests_arrive_and_answers_do_not(relay: Relay, echo: Echo) -> None:
    with dial(relay) as client:
        relay.mute()
        client.sendall(b"x")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(9)
        assert echo.got == b"x"
        client.settimeout(5)
        relay.resume()
        with pytest.raises(ConnectionResetError):
            client.recv(9)
    with dial(relay) as client:
        client.sendall(b"y")
        assert client.recv(9) == b"y"


def test_cut_after_so_many_bytes(relay: Relay) -> None:
    relay.cut_after(3)
    with dial(relay) as client:
        client.sendall(b"abcdef")
        assert all_of(client, 3) == b"abc"
        with pytest.raises(ConnectionResetError):
            client.recv(9)
    with dial(relay) as client:
        client.sendall(b"abcdef")
        assert all_of(client, 6) == b"abcdef"


def test_down_and_up_at_the_same_port(relay: Relay) -> None:
    with dial(relay) as client:
        client.sendall(b"x")
        assert client.recv(9) == b"x"
        relay.down()
        with pytest.raises(ConnectionResetError):
            client.recv(9)
    with pytest.raises(ConnectionRefusedError):
        dial(relay)
    relay.up()
    with dial(relay) as client:
        client.sendall(b"x")
        assert client.recv(9) == b"x"


def test_the_target_may_be_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        Relay(("127.0.0.1", port)) as relay,
        pytest.raises(ConnectionResetError),
        dial(relay) as client,  # the reset may be there before the connection is made
    ):
        client.recv(9)
