"""An answer read in whatever pieces it comes, and what is refused of it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.errors import UpstreamBroken
from packshot.gateway.wire.link import Answer, Link, LinkLimits
from packshot.gateway.wire.narrow import Narrow
from tests.gateway.wire.origins import OK, call

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A:  b\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\n5\r\nworld\r\n0\r\nx-trailer: 1\r\n\r\n"
)
LENGTH = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 11\r\n\r\nhello world"
)


class Wire(asyncio.Transport):
    """What a link writes to, and what it did with it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False
        self.reading = True

    def write(self, data):
        self.sent += data

    def writelines(self, list_of_data):
        self.sent += b"".join(list_of_data)

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def set_protocol(self, protocol):
        assert isinstance(protocol, Narrow)


class World:
    def __init__(self, limits: LinkLimits | None = None) -> None:
        self.wire = Wire()
        self.rested: list[Link] = []
        self.lost: list[Link] = []
        loop = asyncio.get_running_loop()
        self.link = Link(
            loop, "host:1", limits or LinkLimits(), self.rested.append, self.lost.append
        )
        self.link.connection_made(self.wire)

    def send(self, **how: object) -> Answer:
        answer, self.waiter = self.link.send(call(**how), b" HTTP/1.1\r\nhost: h\r\n", 0.0)  # type: ignore[arg-type]
        return answer

    def feed(self, *parts: bytes) -> None:
        for part in parts:
            if self.link.answer is not None:
                self.link.data_received(part)


async def read_cut(world: World, data: bytes, cuts: list[int]) -> None:
    for _ in range(2):  # over the same connection: nothing of the first may stay behind
        answer = world.send()
        edges = [0, *cuts, len(data)]
        world.feed(*(data[a:b] for a, b in pairwise(edges)))
        assert world.waiter.done()
        assert answer.complete
        assert answer.status == 200
        assert answer.headers[b"x-a"] == b"b"
        assert b"x-trailer" not in answer.headers
        assert await answer.read(11) == b"hello world"
        assert world.rested.pop() is world.link
    assert not world.wire.aborted


@pytest.mark.parametrize("data", [CHUNKED, LENGTH], ids=["chunked", "length"])
def test_an_answer_cut_anywhere_is_the_same_answer(data):
    for at in range(1, len(data)):
        asyncio.run(cut_once(data, [at]))


async def cut_once(data: bytes, cuts: list[int]) -> None:
    await read_cut(World(), data, cuts)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([CHUNKED, LENGTH]), st.sets(st.integers(1, len(LENGTH) - 1), max_size=90))
def test_an_answer_in_any_pieces_is_the_same_answer(data, cuts):
    asyncio.run(cut_once(data, sorted(cuts)))


def test_a_request_that_waited_when_its_connection_closed_never_arrived():
    async def inside() -> None:
        world = World()
        world.send(method=b"POST")
        world.feed(LENGTH)
        world.link.outbox.alone = False
        sent = world.wire.sent
        answer = world.send(method=b"POST")
        world.wire.aborted = True  # closing: the loop has read the peer's FIN
        await asyncio.sleep(0)
        world.link.connection_lost(None)
        assert world.wire.sent == sent
        assert answer.stale
        assert answer.error is None
        assert not world.link.outbox.waiting

    asyncio.run(inside())


def test_an_answer_before_its_request_was_sent_ends_the_connection():
    async def inside() -> None:
        world = World()
        world.link.outbox.alone = False
        world.send()
        world.feed(LENGTH)
        assert world.wire.aborted
        assert not world.rested

    asyncio.run(inside())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 60))
def test_noise_never_leaves_a_call_hanging(noise, framed, at):
    """Whatever comes, once the connection is closed the call has an answer or an error."""

    async def inside() -> None:
        world = World()
        answer = world.send()
        world.feed(CHUNKED[:at] + noise if framed else noise)
        if world.link.answer is not None:
            world.link.connection_lost(None)
        assert world.waiter.done()
        assert answer.complete or answer.error is not None

    asyncio.run(inside())


def refused(data: bytes, limits: LinkLimits, match: str, piece: int = 1 << 20) -> None:
    async def inside() -> None:
        world = World(limits)
        answer = world.send()
        world.feed(*(data[at : at + piece] for at in range(0, len(data), piece)))
        assert world.wire.aborted
        assert not world.rested
        with pytest.raises(UpstreamBroken, match=match) as caught:
            await answer.read(1 << 30)
        assert caught.value.sent
        assert caught.value.began

    asyncio.run(inside())


@pytest.mark.parametrize("piece", [1 << 20, 1000, 7])
def test_a_head_has_a_longest_length(piece):
    limits = LinkLimits(head=5000)
    head = b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: 0\r\n\r\n"
    refused(head % (b"a" * 5000), limits, "head is longer than 5000 bytes", piece)
    many = b"HTTP/1.1 100 Continue\r\n\r\n" * 300
    if piece < 1 << 20:
        refused(many, limits, "head is longer than 5000 bytes", piece)

    async def fits() -> None:
        world = World(limits)
        answer = world.send()
        data = head % (b"a" * 4900)
        world.feed(*(data[at : at + piece] for at in range(0, len(data), piece)))
        assert answer.complete

    asyncio.run(fits())


def test_headers_are_counted_trailers_too():
    lines = b"".join(b"x-%d: 1\r\n" % n for n in range(201))
    refused(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", LinkLimits(), "more than 200 headers")
    same = b"x: 1\r\n" * 20_000  # of one name only one is kept, and the bytes have their limit
    refused(b"HTTP/1.1 200 OK\r\n" + same + b"\r\n", LinkLimits(), "longer than 65536", 1000)
    trailers = CHUNKED[: CHUNKED.index(b"x-trailer")] + lines + b"\r\n"
    refused(trailers, LinkLimits(), "more than 200 headers")


def test_a_trailer_without_end_is_refused():
    data = CHUNKED[: CHUNKED.index(b"x-trailer")] + b"x: " + b"a" * 6000
    refused(data, LinkLimits(head=5000), "without any of the body", 100)


def test_small_chunks_may_come_one_by_one_for_ever():
    async def inside() -> None:
        world = World(LinkLimits(head=500))
        answer = world.send()
        world.feed(CHUNKED[: CHUNKED.index(b"5\r\n")])
        for _ in range(1000):
            world.feed(b"1\r\n", b"a", b"\r\n")
            await answer.chunk()
        assert not world.wire.aborted

    asyncio.run(inside())


@pytest.mark.parametrize(
    "coding", [b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked"]
)
def test_a_transfer_coding_other_than_chunked_is_refused(coding):
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: %b\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    refused(data % coding, LinkLimits(), "reads chunked only")


def test_bytes_without_a_call_close_the_connection():
    async def inside() -> None:
        world = World()
        world.send()
        world.feed(OK)
        assert world.rested
        world.link.data_received(OK)
        assert world.wire.aborted

    asyncio.run(inside())


def test_an_answer_before_the_request_is_out_ends_the_connection():
    async def inside() -> None:
        world = World()
        answer = world.send()
        world.wire.get_write_buffer_size = lambda: 1
        world.feed(OK)
        assert await answer.read(2) == b"ok"
        assert world.wire.aborted
        assert not world.rested

    asyncio.run(inside())


def test_a_reader_that_is_slow_stops_the_socket_and_starts_it_again():
    async def inside() -> None:
        world = World(LinkLimits(unread=10))
        answer = world.send()
        world.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n", b"a" * 11)
        assert not world.wire.reading
        assert await answer.chunk() == b"a" * 11
        assert world.wire.reading
        world.feed(b"b" * 11)
        assert not world.wire.reading
        world.feed(b"c" * 8)
        assert world.wire.reading, "a connection goes back to its pool awake"
        assert await answer.chunk() == b"b" * 11 + b"c" * 8

    asyncio.run(inside())


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/a b", b""),
        (b"/a\r\nx: y", b""),
        (b"/a\nx", b""),
        (b"/a\0", b""),
        (b"a", b""),
        (b"/", b"x: y"),
        (b"/", b"x: y\n"),
        (b"/", b"x: y\r\n\r\nGET / HTTP/1.1\r\n"),
        (b"/", b"\r\nGET / HTTP/1.1\r\n"),
    ],
)
def test_what_would_break_out_of_its_place_is_not_sent(target, headers):
    async def inside() -> None:
        world = World()
        with pytest.raises(ValueError, match=r"a target is|headers are"):
            world.send(target=target, headers=headers)
        assert not world.wire.sent
        assert world.link.answer is None

    asyncio.run(inside())


@pytest.mark.parametrize(("method", "length"), [(b"GET", False), (b"POST", True)])
def test_a_request_says_its_length_where_it_must(method, length):
    async def inside() -> None:
        world = World()
        world.send(body=b"", method=method, headers=b"")
        wanted = b"content-length: 0\r\n" if length else b""
        assert world.wire.sent == method + b" /v1/x HTTP/1.1\r\nhost: h\r\n" + wanted + b"\r\n"

    asyncio.run(inside())
