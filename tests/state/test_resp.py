"""The client: addresses, log-in, answers in order, and hostile or dying servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from packshot.core.errors import InvalidRequest
from packshot.state.resp import Address, Client, ReplyError, address_of, encoded
from packshot.state.valkey import ValkeyLimits
from tests.state.conftest import new_valkey


@pytest.fixture
def server() -> Iterator[Any]:
    """Start a Valkey that wants a password."""
    with new_valkey() as server:
        client = server.client()
        client.config_set("requirepass", "hunter2é")
        client.close()
        yield server


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://localhost", Address("localhost")),
        ("redis://10.0.0.1:7000/3", Address("10.0.0.1", 7000, database=3)),
        ("valkeys://h", Address("h", secure=True)),
        ("rediss://u:p%40x@h:1/0", Address("h", 1, secure=True, user="u", password="p@x")),  # noqa: S106
        ("redis://:p@[::1]:2", Address("::1", 2, password="p")),  # noqa: S106
        ("unix:///run/valkey.sock", Address(path="/run/valkey.sock", port=0)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    found = address_of(url)
    assert (found.host, found.path, found.secure) == (address.host, address.path, address.secure)
    assert (found.user, found.password) == (address.user, address.password)
    assert found.database == address.database
    assert address.path or found.port == address.port


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://u:hunter2@h", "valkey:/x", "redis://u:hunter2@h:port", "redis://h/x"],
)
def test_an_address_that_is_none_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidRequest, match="valkey://") as caught:
        ValkeyLimits(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_password_is_in_no_repr() -> None:
    assert "hunter2" not in repr(address_of("valkey://u:hunter2@h"))


def test_log_in_and_database(server: Any) -> None:
    async def run() -> None:
        url = f"valkey://:hunter2%C3%A9@127.0.0.1:{server.port}/3"
        client = Client(address_of(url))
        assert await client.call(encoded(["SET", "k", "v"])) == b"OK"
        assert await client.call(encoded(["GET", "k"])) == b"v"
        other = Client(address_of(url.replace("/3", "/4")))
        assert await other.call(encoded(["GET", "k"])) is None
        wrong = Client(address_of(f"valkey://:wrong@127.0.0.1:{server.port}"))
        with pytest.raises(OSError, match="no connection"):
            await wrong.call(encoded(["GET", "k"]))
        for each in (client, other, wrong):
            await each.aclose()

    asyncio.run(run())


def test_a_thousand_at_once_get_their_own_answers(server: Any) -> None:
    async def run() -> None:
        client = Client(address_of(f"valkey://:hunter2%C3%A9@127.0.0.1:{server.port}"))
        calls = [asyncio.ensure_future(client.call(encoded(["ECHO", k]))) for k in range(1000)]
        await asyncio.sleep(0)
        for k in range(0, 1000, 3):
            calls[k].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for k, answer in enumerate(answers):
            if k % 3:
                assert answer == str(k).encode()
            else:
                assert isinstance(answer, asyncio.CancelledError)
        with pytest.raises(ReplyError):
            await client.call(encoded(["NONSENSE"]))
        assert await client.call(encoded(["ECHO", "x"])) == b"x"
        await client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("says", [b"", b"$-1\r\n$3\r\n", b"hello\r\n", b"+OK\r\n+OK\r\n" * 3])
def test_a_server_that_talks_nonsense_is_left(says: bytes) -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(says)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
        for _ in range(3):
            await asyncio.gather(client.call(encoded(["PING"])), return_exceptions=True)
            with pytest.raises(OSError, match="connection"):
                await asyncio.gather(*(client.call(encoded(["PING"])) for _ in range(9)))
        await client.aclose()
        server.close()
        await server.wait_closed()

    asyncio.run(run())
