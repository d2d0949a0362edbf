"""What every connection to a provider does, our own and aiohttp's, against servers on loopback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from packshot.core.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from packshot.gateway.wire.pool import PoolLimits
from packshot.gateway.wire.upstream import Origin
from tests.gateway.wire.origins import KINDS, OK, Peer, call, closing, run, serving, upstream

CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\n5\r\nworld\r\n0\r\nx-trailer: 1\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nx-b: c\r\n\r\nhello world"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def once(data: bytes):
    """Answer one request with ``data`` and close."""

    async def talk(peer: Peer) -> None:
        await peer.answer(data)

    return talk


def forever(data: bytes = OK):
    async def talk(peer: Peer) -> None:
        while await peer.answer(data):
            continue

    return talk


def test_a_request_arrives_as_it_was_written(kind):
    seen: list[bytes] = []

    async def talk(peer: Peer) -> None:
        seen.append(await peer.answer(OK))

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            headers = b"authorization: Bearer k\r\nx-a: b\r\n"
            reply = await up.send(call(b"/v1/a%20b?c=d", b'{"x":1}', headers=headers))
            assert (reply.status, await reply.read(100)) == (200, b"ok")
            head, _, body = seen[0].partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            assert lines[0] == b"POST /v1/a%20b?c=d HTTP/1.1"
            assert body == b'{"x":1}'
            assert sorted(line.lower() for line in lines[1:]) == [
                b"authorization: bearer k",
                b"content-length: 7",
                b"host: 127.0.0.1:%d" % origin.port,
                b"x-a: b",
            ]

    run(kind, scene())


@pytest.mark.parametrize("data", [CHUNKED, UNTIL_CLOSE], ids=["chunked", "until close"])
@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunk"])
def test_bodies_end_as_their_framing_says(kind, data, whole):
    async def scene() -> None:
        async with serving(once(data)) as origin, upstream(kind, origin) as up:
            reply = await up.send(call())
            body = b""
            if whole:
                body = await reply.read(11)
            else:
                while part := await reply.chunk():
                    body += part
                assert await reply.chunk() == b""
            assert body == b"hello world"
            assert b"x-trailer" not in reply.headers

    run(kind, scene())


def test_header_names_are_lower_case_and_the_last_wins(kind):
    data = b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n"

    async def scene() -> None:
        async with serving(once(data)) as origin, upstream(kind, origin) as up:
            reply = await up.send(call())
            assert (reply.status, await reply.read(0)) == (429, b"")
            assert reply.headers[b"retry-after"] == b"1"
            assert reply.headers[b"x-a"] == b"2"

    run(kind, scene())


def test_a_connection_is_kept_and_used_again(kind):
    numbers: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.answer():
            numbers.append(peer.number)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            for _ in range(3):
                reply = await up.send(call())
                assert await reply.read(2) == b"ok"
                reply.abort()  # harmless after the end, and must not touch the next call

    run(kind, scene())
    assert numbers == [0, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
        OK + b"garbage",
    ],
    ids=["close", "HTTP/1.0", "two answers", "junk behind"],
)
def test_such_a_connection_is_not_used_again(kind, data):
    numbers: list[int] = []

    async def talk(peer: Peer) -> None:
        numbers.append(peer.number)
        while await peer.answer(data):
            continue

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            for _ in range(3):
                assert await (await up.send(call())).read(2) == b"ok"

    if kind == "aiohttp" and data.endswith(b"garbage"):
        pytest.skip("aiohttp refuses such an answer whole")
    run(kind, scene())
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "data", "status"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", 200),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304),
        (b"POST", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK[:-2] + b"ok", 200),
    ],
)
def test_answers_without_a_body_and_interim_ones(kind, method, data, status):
    async def scene() -> None:
        async with serving(forever(data)) as origin, upstream(kind, origin) as up:
            for _ in range(2):
                reply = await up.send(call(method=method, body=b""))
                assert reply.status == status
                assert await reply.read(10) == (b"ok" if method == b"POST" else b"")

    run(kind, scene())


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    ],
    ids=["ssh", "tls", "CL+TE", "two CL", "negative CL", "no colon", "101", "bad chunk"],
)
def test_what_is_not_http_is_broken(kind, data):
    async def talk(peer: Peer) -> None:
        await peer.answer(data)
        await peer.gone()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            with pytest.raises(UpstreamBroken) as caught:
                await (await up.send(call())).read(100)
            assert (caught.value.sent, caught.value.began) == (True, True)

    if kind == "aiohttp" and b"101" in data:
        pytest.skip("aiohttp hands a 101 to its caller")
    run(kind, scene())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ],
    ids=["content-length", "chunked", "last chunk without its end"],
)
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunk"])
def test_a_cut_body_is_broken_and_not_an_end(kind, data, how, whole):
    cut = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.answer(data)
        await cut.wait()
        if how == "reset":
            peer.reset()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call())
            got = b""
            if not whole:
                got = await reply.chunk()
            cut.set()
            with pytest.raises(UpstreamBroken) as caught:
                await (reply.read(100) if whole else reply.chunk())
            assert (caught.value.sent, caught.value.began) == (True, True)
            assert whole or got == b"hello"

    run(kind, scene())


def test_a_reset_is_not_the_end_of_a_body_that_ends_by_close(kind):
    cut = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.answer(UNTIL_CLOSE)
        await cut.wait()
        peer.reset()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call())
            assert await reply.chunk() == b"hello world"
            cut.set()
            with pytest.raises(UpstreamBroken):
                await reply.chunk()

    if kind == "aiohttp":
        pytest.skip("aiohttp takes a reset for an end there")
    run(kind, scene())


def test_no_answer_at_all_is_broken_but_may_have_been_billed(kind):
    async def talk(peer: Peer) -> None:
        await peer.request()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            with pytest.raises(UpstreamBroken, match="without an answer") as caught:
                await up.send(call())
            assert (caught.value.sent, caught.value.began) == (True, False)

    run(kind, scene())


def test_a_request_that_had_arrived_is_not_sent_again(kind):
    """The provider took it, and may have worked on it, before it died: it would be paid twice."""
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.request():
            seen.append(peer.number)
            if len(seen) == 2:
                return
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            assert await (await up.send(call())).read(2) == b"ok"
            with pytest.raises(UpstreamBroken) as caught:
                await up.send(call())
            assert (caught.value.sent, caught.value.began) == (True, False)
            assert await (await up.send(call())).read(2) == b"ok"

    run(kind, scene())
    assert seen == [0, 0, 1]


@pytest.mark.parametrize("size", [2, 1 << 16])
@pytest.mark.parametrize("half", [False, True])
def test_a_request_that_met_a_closed_connection_is_sent_again_where_that_is_certain(
    kind, size, half
):
    """The server has closed; its FIN is there, and our event loop has not looked yet."""
    with closing(half=half) as (origin, close, seen):

        async def scene() -> None:
            async with upstream(kind, origin) as up:
                assert await (await up.send(call())).read(2) == b"ok"
                close()
                again = call(body=b"x" * size)
                if kind == "aiohttp":  # what arrived is not known there
                    with pytest.raises(UpstreamBroken):
                        await up.send(again)
                    return
                assert await (await up.send(again)).read(2) == b"ok"

        run(kind, scene())
    assert seen == ([0] if kind == "aiohttp" else [0, 1])


def test_a_get_may_be_sent_again(kind):
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.request():
            seen.append(peer.number)
            if len(seen) == 2:
                return
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            for _ in range(2):
                assert await (await up.send(call(body=b"", method=b"GET"))).read(2) == b"ok"

    run(kind, scene())
    assert seen == [0, 0, 1]


def test_it_is_replaced_once_and_not_twice(kind):
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.request():
            seen.append(peer.number)
            if len(seen) > 1:
                return
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            get = {"body": b"", "method": b"GET"}
            assert await (await up.send(call(**get))).read(2) == b"ok"
            with pytest.raises(UpstreamBroken) as caught:
                await up.send(call(**get))
            assert caught.value.sent

    run(kind, scene())
    # aiohttp sends what is safe as often as it has dead connections.
    assert seen[:3] == [0, 0, 1]
    assert len(seen) == 3 or kind == "aiohttp"


def test_nobody_listens(kind):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        async def scene() -> None:
            async with upstream(kind, Origin("http", "127.0.0.1", port)) as up:
                with pytest.raises(UpstreamUnreachable, match="Connection refused") as caught:
                    await up.send(call())
                assert not caught.value.sent

        run(kind, scene())


def test_silence_before_the_connection_stands(kind):
    async def talk(peer: Peer) -> None:
        await peer.gone()  # says no word of TLS

    async def scene() -> None:
        async with serving(talk) as plain:
            origin = Origin("https", "127.0.0.1", plain.port)
            async with upstream(kind, origin) as up:
                with pytest.raises(UpstreamTimeout) as caught:
                    await up.send(call(connect=0.2))
                assert not caught.value.sent

    run(kind, scene())


def test_silence_before_the_first_byte(kind):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n")  # a head that drips does not count as one
        await peer.gone()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            with pytest.raises(UpstreamTimeout) as caught:
                await up.send(call(first=0.2))
            assert caught.value.sent

    run(kind, scene())


@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunk"])
def test_silence_in_the_body(kind, whole):
    async def talk(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        await peer.gone()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call(idle=0.2))
            if not whole:
                assert await reply.chunk() == b"hello"
            with pytest.raises(UpstreamTimeout, match="stood still") as caught:
                await (reply.read(100) if whole else reply.chunk())
            assert (caught.value.sent, caught.value.began) == (True, True)

    run(kind, scene())


def test_a_drip_that_never_stands_still_ends_at_the_deadline(kind):
    async def talk(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.say(b"x")
            await asyncio.sleep(0.01)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call(within=0.4))
            with pytest.raises(UpstreamTimeout, match="deadline"):
                await reply.read(1 << 20)

    run(kind, scene())


def test_a_body_over_the_limit_is_refused(kind):
    async def scene(data: bytes) -> None:
        async with serving(once(data)) as origin, upstream(kind, origin) as up:
            with pytest.raises(UpstreamBroken, match="longer than the 10 bytes"):
                await (await up.send(call())).read(10)

    run(kind, scene(UNTIL_CLOSE))
    run(kind, scene(CHUNKED))
    run(kind, scene(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"))


@pytest.mark.parametrize("step", ["send", "read", "abort"])
def test_cancelling_closes_the_connection(kind, step):
    reached, gone = asyncio.Event(), asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        if step != "send":
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        reached.set()
        await peer.gone()
        gone.set()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:

            async def go() -> None:
                reply = await up.send(call())
                if step == "abort":
                    reply.abort()
                    reply.abort()
                else:
                    await reply.read(100)

            task = asyncio.create_task(go())
            await reached.wait()
            await asyncio.sleep(0.05)
            if step == "abort":
                await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.wait_for(gone.wait(), 10)

    run(kind, scene())


def test_a_cancelled_chunk_leaves_the_answer_to_be_read_on(kind):
    """The caller is gone; what the rest of the answer says it cost is wanted all the same."""
    reached, go_on, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhello ")
        reached.set()
        await go_on.wait()
        await peer.say(b"world")
        await peer.gone()
        gone.set()

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call())
            assert await reply.chunk() == b"hello "
            task = asyncio.create_task(reply.chunk())
            await reached.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            assert await reply.chunk() == b"world"
            reply.abort()
            await asyncio.wait_for(gone.wait(), 10)

    run(kind, scene())


def test_a_slow_reader_stops_the_sender(kind):
    total = 64 << 20
    written = 0

    async def talk(peer: Peer) -> None:
        nonlocal written
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while written < total:
            await peer.say(bytes(1 << 16))
            written += 1 << 16

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            reply = await up.send(call(idle=0.2))
            got = len(await reply.chunk())
            before = -1
            while before != written:  # until the sender stands still; longer than idle_s
                before = written
                await asyncio.sleep(0.3)
            assert written < total / 2
            while part := await reply.chunk():
                got += len(part)
            assert got == total

    run(kind, scene())


def test_a_long_request_arrives_whole(kind):
    body = bytes(range(256)) * (5 << 12)
    seen: list[bytes] = []

    async def talk(peer: Peer) -> None:
        seen.append(await peer.answer())

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            assert await (await up.send(call(body=body))).read(2) == b"ok"

    run(kind, scene())
    assert seen[0].endswith(body)


def test_more_calls_than_may_wait_are_refused_at_once(kind):
    held = asyncio.Event()

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await held.wait()
            await peer.say(OK)

    async def scene() -> None:
        limits = PoolLimits(connections=1, waiting=1)
        async with serving(talk) as origin, upstream(kind, origin, limits) as up:
            tasks = [asyncio.create_task(up.send(call())) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(UpstreamUnreachable, match="saturated") as caught:
                await up.send(call())
            assert not caught.value.sent
            held.set()
            for task in tasks:
                assert await (await task).read(2) == b"ok"

    run(kind, scene())


def test_redirects_are_not_followed(kind):
    seen: list[int] = []
    data = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"

    async def talk(peer: Peer) -> None:
        while await peer.answer(data):
            seen.append(peer.number)

    async def scene() -> None:
        async with serving(talk) as origin, upstream(kind, origin) as up:
            assert (await up.send(call())).status == 302

    run(kind, scene())
    assert seen == [0]
