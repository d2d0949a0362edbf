"""Heads that come again are read without llhttp: the application must see no difference."""

from __future__ import annotations

import asyncio
import re
from itertools import chain, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packshot.gateway.wire import connection
from packshot.gateway.wire.head import LONGEST, head_of
from packshot.gateway.wire.server import Door, DoorLimits

SDK = (b"Host: gate.example\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
       b"authorization: Bearer pk-1\r\nx-stainless-retry-count: 0\r\n")  # fmt: skip
POST = b"POST /v1/x HTTP/1.1\r\n" + SDK


def ask(body: bytes, more: bytes = b"", start: bytes = POST, end: bytes = b"") -> bytes:
    return b"%b%bContent-Length: %d\r\n%b\r\n%b" % (start, more, len(body), end, body)


class App:
    """Answers with what it was asked; ``early`` ones before their body is there."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.known = 0

    async def __call__(self, scope, receive, send):
        gone = scope.pop("packshot.gone")
        self.known += gone.head is not None
        scope.pop("packshot.began")
        body = b""
        if scope["path"] != "/early":
            message = {"more_body": True}
            while message["more_body"]:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.seen.append(("gone", scope))
                    return
                body += message["body"]
        self.seen.append((scope, body))
        gone.reply(200, b"", b"%d" % len(body))


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)})
        self.out = b""
        self.closing = self.paused = self.ended = False

    def write(self, data) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def turns() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def served(segments: list[tuple[bytes, bool]], *, tries: int) -> tuple[list[object], int]:
    """Return all that is seen and said, and how many requests went the short way; before a segment
    the application gets its turn where it says so, or where no more is read. At an empty one the
    client stops to read, or reads on.
    """

    async def run() -> tuple[list[object], int]:
        app = App()
        door = Door(app, DoorLimits(head=2000, pipelined=3))
        link, wire = door.protocol(), Wire()
        link._tries = tries  # 0 is how it is turned off
        link.connection_made(wire)
        door.date = b""
        states = []
        for segment, turn in segments:
            if wire.paused or turn:
                await turns()
            if wire.closing or (wire.paused and segment):
                break
            if segment:
                link.data_received(segment)
            elif link.write_paused:
                link.resume_writing()
            else:
                link.pause_writing()
            states.append((link._phase, link._body, link._running is None, wire.paused))
        await turns()
        link.connection_lost(None)
        await turns()
        await door.close()
        out = re.sub(rb"request-id: [^\r]*", b"", wire.out)
        return [app.seen, states, out, wire.closing, wire.ended, wire.paused], app.known

    return asyncio.run(run())


def same(segments: list[tuple[bytes, bool]]) -> int:
    """Check that it makes no difference; return how many requests went the short way."""
    on, known = served(segments, tries=connection.TRIES)
    off, none = served(segments, tries=0)
    assert none == 0
    assert on == off
    return known


BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"0", ask(b""), ask(b"{}"), ask(b"{}")[:-3], b"\r\n\r\n", bytes(70_000)]),
)
STOP = (b"", True)
UNUSUAL = [
    ask(b"{}", b"Expect: 100-continue\r\n"),
    ask(b"{}", b"Upgrade: h2c\r\n"),
    ask(b"{}", b"X-Twice: 1\r\nx-twice: 2\r\n"),
    ask(b"{}", b"x_under: 1\r\n"),
    ask(b"{}", b"Connection: close\r\n"),
    ask(b"{}", b"Connection: close\r\n", start=b"POST / HTTP/1.1\r\nhost: a\r\n"),
    ask(b"{}", b"Content-Length: 2\r\n"),
    ask(b"{}", start=b"POST /v1/x HTTP/1.0\r\n" + SDK),
    POST + b"Content-Length: 02\r\n\r\n{}",
    POST + b"Content-Length: 00000000002\r\n\r\n{}",
    POST + b"Content-Length: 2 \r\n\r\n{}",
    POST + b"Content-Length:2\r\n\r\n{}",
    POST + b"Content-Length: +2\r\n\r\n{}",
    POST + b"Content-Length: \r\n\r\n{}",
    POST + b"Content-Length: 2\n\r\n{}",
    POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    POST + b"Content-Length: 5000000000\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-trailer: 1\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    b"\r\n" + ask(b"{}"),
]
ODD = [
    *UNUSUAL,
    ask(b"{}", start=b"POST /early HTTP/1.1\r\n" + SDK),
    ask(b"{}", b"x-pad: %b\r\n" % bytes(b"x" * 1700)),
    b"GET /v1/x HTTP/1.1\r\n" + SDK + b"\r\n",
    ask(b"{}") + b"\r\n",
    ask(b"{}", end=b"x-after: 1\r\n"),
    ask(b"{}", start=b"HEAD /v1/x HTTP/1.1\r\n" + SDK),
]
REQUESTS = st.one_of(
    *[BODIES.map(ask)] * 3,
    BODIES.map(lambda body: ask(body, end=b"x-after: 1\r\n")),
    BODIES.map(lambda body: ask(body, b"x-other: 1\r\n")),
    st.sampled_from(ODD),
)


@st.composite
def segments(draw: st.DrawFn) -> list[tuple[bytes, bool]]:
    """Return some requests, cut between them, at their bodies and anywhere, or not at all."""
    data, cuts = b"", set()
    for request in draw(st.lists(REQUESTS, min_size=1, max_size=8)):
        if draw(st.integers(0, 3)):
            cuts.add(len(data))
        if draw(st.booleans()):
            cuts.add(len(data) + request.find(b"\r\n\r\n") + 4)
        if draw(st.booleans()):
            cuts.add(len(data) + draw(st.integers(1, len(request))))
        data += request
    edges = sorted({0, *cuts, len(data)})
    pauses = st.sampled_from([[]] * 7 + [[STOP]])
    parts = [
        [(data[a:b], bool(draw(st.integers(0, 3)))), *draw(pauses)] for a, b in pairwise(edges)
    ]
    return [*chain(*parts), STOP, STOP]


@settings(max_examples=400, deadline=None)
@given(segments())
@example([(ask(b"{}"), True), (ask(b"{}")[:-2], True), (b"{}" + ask(b"[]"), True)])
@example([(ask(b"{}"), True), (ask(ask(b"{}"))[:-9], True), (ask(b"{}")[-9:], True)])
def test_no_difference_is_seen(parts: list[tuple[bytes, bool]]) -> None:
    same(parts)


@pytest.mark.parametrize("odd", ODD)
def test_odd_ones_between_and_after(odd: bytes) -> None:
    good = (ask(b"{}"), True)
    same([good, (odd, True), good, good])
    same([(odd, True), (odd, True), (odd.replace(b"2\r\n", b"12\r\n"), True), good])


def test_nothing_is_begun_while_the_client_does_not_read() -> None:
    good = (ask(b"{}"), True)
    assert same([good, good, STOP, good, STOP, good]) == 2


@pytest.mark.parametrize("head", [*UNUSUAL, ask(b"{}")])
def test_unusual_heads_are_not_kept(head: bytes) -> None:
    async def run() -> bool:
        door = Door(App(), DoorLimits())
        link = door.protocol()
        link.connection_made(Wire())
        link.data_received(head)
        kept = link._kept is not None
        link.connection_lost(None)
        await turns()
        await door.close()
        return kept

    assert asyncio.run(run()) == (head not in UNUSUAL)


def test_split_at_every_byte() -> None:
    second = ask(ask(b"{}"))
    known = 0
    for cut in range(1, len(second)):
        begin = [(ask(b"first"), True), (second[:cut], cut % 2 == 0)]
        known += same([*begin, (second[cut:] + ask(b"x"), cut % 3 == 0), (ask(b"{}"), True)])
    assert known > len(ask(b"{}"))  # at least those that were cut in the body


def test_what_the_official_clients_send_goes_the_short_way() -> None:
    calls = []
    for size in (5, 99, 100, 70_000, 0, 7):
        whole = ask(b"x" * size)
        cut = len(whole) - size
        calls += [(whole[:cut], True), (whole[cut:], False)] if size else [(whole, True)]
    assert same(calls) == 5
    assert same([(ask(b"x"), True), *[(ask(b"x" * n), True) for n in range(200)]]) == 200


def test_heads_that_never_come_again_are_not_kept_for_long() -> None:
    calls = [(ask(b"", b"x-id: %d\r\n" % number), True) for number in range(30)]
    assert same(calls) == 0
    again = (ask(b"", b"x-id: 29\r\n"), True)
    assert same([*calls, again]) == 0
    assert same([*calls[-connection.TRIES + 1 :], again]) == 1
    assert same([call for call in calls for _ in range(2)]) == len(calls)


def test_only_a_head_written_as_it_is_read_is_kept() -> None:
    headers = {b"host": b"a", b"content-length": b"2"}
    good = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 2\r\n\r\n{}"
    kept = head_of(good, b"POST", b"/", headers, 1 << 15)
    assert kept is not None
    assert kept.before + b"2" + kept.after + b"{}" == good
    for other in (good.replace(b"t: a", b"t:  a"), b"\r\n" + good, good.replace(b"\r\nc", b"\nc")):
        assert head_of(other, b"POST", b"/", headers, 1 << 15) is None
    assert head_of(good, b"POST", b"/", headers, 50) is None
    long = {b"x": b"y" * LONGEST, **headers}
    data = b"POST / HTTP/1.1\r\nx: %b\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}" % long[b"x"]
    assert head_of(data, b"POST", b"/", long, 1 << 15) is None


@pytest.mark.parametrize("digits", [b"", b"02", b"-2", b"+2", b"2 ", b" 2", b"2_0", "٢".encode()])
def test_a_length_is_plain_digits(digits: bytes) -> None:
    headers = {b"host": b"a", b"content-length": b"1"}
    text = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %b\r\n\r\n"
    kept = head_of(text % b"1", b"POST", b"/", headers, 1 << 15)
    assert kept is not None
    assert kept.length(text % digits) == -1
    assert kept.length(text % b"1234567890") == -1
    assert kept.headers == headers
    assert kept.length(text % b"123456789") == 123_456_789
    assert headers[b"content-length"] == b"1"  # those of the request before stay as they were
    assert kept.headers == {b"host": b"a", b"content-length": b"123456789"}
    assert kept.length(text % b"0") == 0
