"""What is written in one turn of the event loop is sent together, in order, and not too late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packshot.gateway.wire.outbox import LARGE, MOST, Outbox
from tests.gateway.wire.test_server import HELLO, World, play


class Wire(asyncio.WriteTransport):
    """Writes down what is sent over it."""

    def __init__(self, log: list[tuple[Wire, bytes]]) -> None:
        super().__init__()
        self.log = log
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.log.append((self, data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def log() -> list[tuple[Wire, bytes]]:
    return []


def busy() -> Outbox:
    made = Outbox()
    made.alone = False
    return made


def test_a_turn_is_sent_by_the_next_one_joined_by_connection(log) -> None:
    async def scene() -> None:
        box, one, two = busy(), Wire(log), Wire(log)
        box.write(one, b"a")
        box.write(two, b"b")
        box.write(one, b"c")
        assert not log
        await asyncio.sleep(0)
        assert log == [(one, b"ac"), (two, b"b")]
        box.write(two, b"d")
        await asyncio.sleep(0)
        assert log[2:] == [(two, b"d")]

    asyncio.run(scene())


def test_a_call_that_is_alone_waits_for_nobody_but_what_was_written_before(log) -> None:
    async def scene() -> None:
        box, one = Outbox(), Wire(log)
        box.write(one, b"a")
        assert log == [(one, b"a")]
        box.alone = False
        box.write(one, b"b")
        box.alone = True
        box.write(one, b"c")
        await asyncio.sleep(0)
        assert log == [(one, b"a"), (one, b"bc")]

    asyncio.run(scene())


def test_too_many_connections_or_bytes_are_sent_at_once(log) -> None:
    async def scene() -> None:
        box = busy()
        for _ in range(MOST):
            box.write(Wire(log), b"a")
        assert not log
        box.write(Wire(log), b"a")
        assert len(log) == MOST + 1
        one = Wire(log)
        box.write(one, b"b" * LARGE)
        assert len(log) == MOST + 1
        box.write(one, b"c")
        assert log[-1] == (one, b"b" * LARGE + b"c")
        await asyncio.sleep(0)
        assert len(log) == MOST + 2

    asyncio.run(scene())


def test_a_connection_is_closed_behind_what_was_written(log) -> None:
    async def scene() -> None:
        box, one = busy(), Wire(log)
        box.write(one, b"a")
        box.close(one)
        assert (log, one.closed) == ([(one, b"a")], True)

    asyncio.run(scene())


def test_what_cannot_be_sent_is_told_apart(log) -> None:
    async def scene() -> None:
        box, one, two = busy(), Wire(log), Wire(log)
        box.write(one, b"a")
        box.write(two, b"b")
        one.close()
        await asyncio.sleep(0)
        assert log == [(two, b"b")]
        assert box.waiting == {one: b"a"}

    asyncio.run(scene())


def test_of_many_clients_at_once_each_has_its_answers_before_the_end():
    last = HELLO.replace(b"/v1/x", b"/last").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")

    async def one(world: World) -> None:
        async with world.client() as client:
            await client.say(HELLO + last)
            assert (await client.answer())[2] == b"/v1/x {}"
            assert (await client.answer())[2] == b"/last {}"
            assert await client.reader.read() == b""

    async def scene(world: World) -> None:
        await asyncio.gather(*(one(world) for _ in range(40)))

    play(scene)
