"""The front door against clients that are slow, greedy, confused or hostile, on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
import uvloop

from packshot.gateway.wire import connection, server
from packshot.gateway.wire.server import Door, DoorLimits

HELLO = b"POST /v1/x HTTP/1.1\r\nhost: gate.example\r\ncontent-length: 2\r\n\r\n{}"


class App:
    """Answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict, bytes]] = []
        self.gone: list[tuple[str, int]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, scope, receive, send):
        scope["packshot.gone"].callback = lambda: self.gone.append((scope["path"], WRITTEN[0]))
        if scope["path"] == "/early":
            await answer(send, 401, b"no")
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope, body))
        await self.hold.wait()
        if scope["path"] == "/endless":
            await endless(send)
        elif scope["path"] == "/short":
            scope["packshot.gone"].reply(200, b"x-short: 1\r\n", scope["raw_path"] + b" " + body)
        else:
            await answer(send, 200, scope["raw_path"] + b" " + body)


async def answer(send, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


WRITTEN = [0]


async def endless(send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(4000):
        await send({"type": "http.response.body", "body": bytes(1 << 14), "more_body": True})
        WRITTEN[0] += 1 << 14


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        return int(lines[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """Read until the server has closed."""
        got = b""
        with contextlib.suppress(ConnectionError):
            while part := await self.reader.read(1 << 16):
                got += part
        return got


class World:
    def __init__(self, app: App, door: Door, port: int) -> None:
        self.app = app
        self.door = door
        self.port = port

    @contextlib.asynccontextmanager
    async def client(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def play(scene, **limits: object):
    async def inside():
        app = App()
        door = Door(app, DoorLimits(**limits))  # type: ignore[arg-type]
        listener = await asyncio.get_running_loop().create_server(door.protocol, "127.0.0.1", 0)
        try:
            async with asyncio.timeout(30):
                await scene(World(app, door, listener.sockets[0].getsockname()[1]))
        finally:
            listener.close()
            await door.close()
            await asyncio.sleep(0)
        assert not door.connections
        assert door.lingering == 0

    uvloop.run(inside())


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - it is another's state, which tells nobody
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at deadlines often: the tests make them short."""
    for module in (server, connection):
        monkeypatch.setattr(module, "SWEEP_S", 0.02)
    monkeypatch.setattr(connection, "LINGER_S", 0.2)


def test_requests_over_one_connection():
    async def scene(world: World) -> None:
        async with world.client() as client:
            for _ in range(3):
                before = time.perf_counter()
                await client.say(HELLO)
                status, headers, body = await client.answer()
                assert (status, body) == (200, b"/v1/x {}")
                assert headers[b"date"].endswith(b"gmt")
                assert b"server" not in headers
                assert before <= world.app.seen[-1][0]["packshot.began"] <= time.perf_counter()

    play(scene)


def test_a_connection_of_an_older_client_is_not_kept():
    async def scene(world: World) -> None:
        for wish in (b"keep-alive", b"close"):
            head = b"GET /x HTTP/1.0\r\nhost: a.example\r\nconnection: %b\r\n\r\n"
            async with world.client() as client:
                await client.say(head % wish)
                status, headers, _ = await client.answer()
                assert (status, headers[b"connection"]) == (200, b"close")
                assert await client.rest() == b""
            assert world.app.seen[-1][0]["http_version"] == "1.0"

    play(scene)


@pytest.mark.parametrize("path", [b"/v1/x", b"/short"])
def test_a_client_that_reads_nothing_is_served_no_further_until_it_does(path):
    async def scene(world: World) -> None:
        many, size = 14, 1 << 20
        one = R.replace(b"/v1/x", path) + b"content-length: %d\r\n\r\n" % size + bytes(size)
        async with world.client() as client:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            saying = asyncio.create_task(client.say(one * many))
            seen = -1
            while seen < len(world.app.seen):
                seen = len(world.app.seen)
                await asyncio.sleep(0.3)
            (connection,) = world.door.connections
            assert connection.transport.get_write_buffer_size() < size + (1 << 17)
            assert 0 < seen < many
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(many):
                assert len((await client.answer())[2]) > size
            await saying

    play(scene)


def test_a_request_cut_at_every_byte():
    request = (
        b"POST /v1/x HTTP/1.1\r\nhost: gate.example:80\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\n\r\n"
    )

    async def scene(world: World) -> None:
        async with world.client() as client:
            for at in range(1, len(request)):
                await client.say(request[:at])
                await asyncio.sleep(0)
                await client.say(request[at:])
                assert (await client.answer())[2] == b"/v1/x {}"

    play(scene)


def test_pipelined_requests_are_answered_in_order():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(b"".join(HELLO.replace(b"/v1/x", b"/%d" % n) for n in range(5)))
            for number in range(5):
                assert (await client.answer())[2] == b"/%d {}" % number
            began = [scope["packshot.began"] for scope, _ in world.app.seen]
            assert began == sorted(began)

    play(scene)


R = b"POST /v1/x HTTP/1.1\r\nhost: a.example\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n"

CONFUSED = {
    "CL.TE": R + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.CL": R + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "two CL": R + b"content-length: 0\r\ncontent-length: 45\r\n\r\n",
    "same CL twice": R + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "CL list": R + b"content-length: 2, 2\r\n\r\n{}",
    "CL +": R + b"content-length: +2\r\n\r\n{}",
    "CL hex": R + b"content-length: 0x2\r\n\r\n{}",
    "CL space": R + b"content-length : 2\r\n\r\n{}",
    "CL vtab": R + b"content-length:\x0b2\r\n\r\n{}",
    "TE.TE": R + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "TE gzip": R + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE xchunked": R + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE param": R + b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "TE vtab": R + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE underscore": R + b"transfer_encoding: chunked\r\n\r\n",
    "obs-fold": R + b"x: a\r\n b\r\n\r\n",
    "obs-fold first": b"POST / HTTP/1.1\r\n host: a\r\n\r\n",
    "bare LF": b"POST / HTTP/1.1\nhost: a.example\n\n",
    "bare LF in a header": R + b"x: a\ny: b\r\n\r\n",
    "bare CR in a header": R + b"x: a\ry: b\r\n\r\n",
    "NUL": R + b"x: a\0b\r\n\r\n",
    "space in a name": R + b"x y: b\r\n\r\n",
    "no name": R + b": b\r\n\r\n",
    "underscore": R + b"x_forwarded_for: 1\r\n\r\n",
    "chunk LF": R + b"transfer-encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "chunk ext LF": R + b"transfer-encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n",
    "chunk 0x": R + b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "chunk -": R + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk no CRLF": R + b"transfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "chunk huge": R + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "trailer CL": R + b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": R + b"host: b.example\r\n\r\n",
    "host slash": b"GET / HTTP/1.1\r\nhost: a.example/x\r\n\r\n",
    "host ?": b"GET / HTTP/1.1\r\nhost: a.example?x\r\n\r\n",
    "host #": b"GET / HTTP/1.1\r\nhost: a#b\r\n\r\n",
    "host user": b"GET / HTTP/1.1\r\nhost: u@a.example\r\n\r\n",
    "host comma": b"GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
    "host empty": b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
    "host port": b"GET / HTTP/1.1\r\nhost: a:8x\r\n\r\n",
    "host bracket": b"GET / HTTP/1.1\r\nhost: [::1]x\r\n\r\n",
    "host colons": b"GET / HTTP/1.1\r\nhost: a:b:1\r\n\r\n",
    "host bytes": b"GET / HTTP/1.1\r\nhost: \xff\r\n\r\n",
    "absolute form": b"GET http://b.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nhost: a.example\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nhost: a.example\r\n\r\n",
    "connect": b"CONNECT b.example:443 HTTP/1.1\r\nhost: b.example:443\r\n\r\n",
    "upgrade": R + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nhost: a.example\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nhost: a.example\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\nhost: a.example\r\n\r\n",
}


@pytest.mark.parametrize("name", CONFUSED)
def test_what_proxies_read_differently_is_refused(name):
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(CONFUSED[name] + SMUGGLED)
            status, headers, body = await client.answer()
            assert status == 400
            assert headers[b"connection"] == b"close"
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
            assert await client.rest() == b""
        assert not world.app.seen, "nothing of it reached the application"

    play(scene)


@pytest.mark.parametrize(
    "host", [b"a.example", b"A.example:8080", b"127.0.0.1:1", b"[::1]", b"[::1]:80", b"localhost"]
)
def test_hosts_that_are_hosts_pass(host):
    async def scene(world: World) -> None:
        async with world.client() as client:
            for _ in range(2):
                await client.say(b"GET /x HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
                assert (await client.answer())[0] == 200

    play(scene)


def test_only_the_hosts_that_are_named_are_served():
    async def scene(world: World) -> None:
        for host, status in ((b"Gate.example:80", 200), (b"[::1]:9", 200), (b"evil.example", 400)):
            async with world.client() as client:
                await client.say(b"GET /x HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
                assert (await client.answer())[0] == status

    play(scene, hosts=frozenset({"gate.example", "[::1]"}))


def test_trailers_go_nowhere():
    async def scene(world: World) -> None:
        async with world.client() as client:
            body = b"2\r\n{}\r\n0\r\nauthorization: forged\r\n\r\n"
            await client.say(R + b"transfer-encoding: chunked\r\n\r\n" + body)
            assert (await client.answer())[0] == 200
            names = [name for name, _ in world.app.seen[0][0]["headers"]]
            assert names == [b"host", b"transfer-encoding"]

    play(scene)


@pytest.mark.parametrize("piece", [1 << 20, 3000, 100])
def test_a_head_has_a_longest_length(piece):
    async def scene(world: World) -> None:
        for size, status in ((4000, 200), (5100, 431)):
            async with world.client() as client:
                # A body before it in the same segment must not count as head.
                first = HELLO.replace(b"length: 2", b"length: 9000") + b" " * 8998
                await client.say(first + R[:5])
                assert (await client.answer())[0] == 200
                request = R[5:] + b"x: %b\r\n\r\n" % (b"a" * size)
                for at in range(0, len(request), piece):
                    await client.say(request[at : at + piece])
                    await asyncio.sleep(0)
                assert (await client.answer())[0] == status

    play(scene, head=5000)


def test_headers_are_counted():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R + b"x: 1\r\n" * 100 + b"\r\n")
            assert (await client.answer())[0] == 431

    play(scene)


def test_a_trailer_without_end_is_cut_off():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ")
            for _ in range(200):
                await client.say(b"a" * 1000)
            assert b" 431 " in (await client.rest())[:20]

    play(scene)


def test_a_head_that_drips_is_cut_off():
    async def scene(world: World) -> None:
        async with world.client() as client:
            task = asyncio.create_task(client.answer())
            for byte in R * 100:
                if task.done():
                    break
                await client.say(bytes([byte]))
                await asyncio.sleep(0.01)
            assert (await task)[0] == 408

    play(scene, head_s=0.3)


def test_a_connection_without_a_word_is_closed_and_a_kept_one_later():
    async def scene(world: World) -> None:
        async with world.client() as silent, world.client() as kept:
            await kept.say(HELLO)
            assert (await kept.answer())[0] == 200
            assert await silent.rest() == b""
            await kept.say(HELLO)  # is still served: idle_s is longer
            assert (await kept.answer())[0] == 200
            assert await kept.rest() == b""

    play(scene, head_s=0.2, idle_s=1.0)


def test_a_body_that_drips_is_cut_off_and_the_application_hears_of_it():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R + b"content-length: 9999\r\n\r\n")
            task = asyncio.create_task(client.answer())
            while not task.done():
                await client.say(b"x")
                await asyncio.sleep(0.01)
            assert (await task)[0] == 408
        assert [path for path, _ in world.app.gone] == ["/v1/x"]
        assert not world.app.seen

    play(scene, body_s=0.2)


def test_a_body_that_is_fast_enough_may_take_longer():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R + b"content-length: 8000\r\n\r\n")
            for _ in range(80):
                await client.say(b"x" * 100)
                await asyncio.sleep(0.005)
            assert (await client.answer())[0] == 200

    play(scene, body_s=0.1)


def test_an_answer_that_we_take_long_for_has_no_deadline_here():
    async def scene(world: World) -> None:
        world.app.hold.clear()
        async with world.client() as client:
            await client.say(HELLO)
            await asyncio.sleep(0.5)
            world.app.hold.set()
            assert (await client.answer())[0] == 200

    play(scene, head_s=0.1, body_s=0.1, idle_s=0.1, write_s=0.1)


def test_one_connection_too_many_is_told_so_and_closed():
    async def scene(world: World) -> None:
        async with world.client() as one, world.client() as two:
            for client in (one, two):
                await client.say(HELLO)
                assert (await client.answer())[0] == 200
            async with world.client() as three:
                await three.say(HELLO)
                status, headers, _ = await three.answer()
                assert (status, headers[b"retry-after"]) == (503, b"1")
                assert await three.rest() == b""
            await one.say(HELLO)  # those that were there are served
            assert (await one.answer())[0] == 200
        await until(lambda: not world.door.connections)
        async with world.client() as four:
            await four.say(HELLO)
            assert (await four.answer())[0] == 200

    play(scene, connections=2)


def test_a_refusal_reaches_a_client_that_is_still_sending():
    """To close with unread bytes resets the connection, and the answer is lost on its way."""

    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(b"GET / HTTP/1.1\r\n\r\n")
            for _ in range(20):
                await client.say(bytes(1 << 14))
                await asyncio.sleep(0.002)
            assert (await client.answer())[0] == 400

    play(scene)


@pytest.mark.parametrize("when", ["waiting", "in line"])
def test_a_client_that_hangs_up_is_noticed_at_once(when):
    async def scene(world: World) -> None:
        world.app.hold.clear()
        async with world.client() as client:
            await client.say(HELLO if when == "waiting" else HELLO + SMUGGLED)
            await until(lambda: world.app.seen)
        await until(lambda: world.app.gone)
        assert [path for path, _ in world.app.gone] == ["/v1/x"]
        world.app.hold.set()
        await until(lambda: not world.door.tasks)
        assert len(world.app.seen) == 1, "what stood in line is not begun for nobody"

    play(scene)


def test_a_callback_that_comes_too_late_is_called_at_once():
    told: list[int] = []
    gone = server.Gone()
    gone.callback = lambda: told.append(1)
    gone.fire()
    gone.fire()
    assert told == [1]
    gone.callback = lambda: told.append(2)
    assert told == [1, 2]


def test_nobody_is_told_after_the_answer():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(HELLO)
            await client.answer()
        await until(lambda: not world.door.connections)
        assert not world.app.gone

    play(scene)


def test_a_reader_that_stands_still_holds_the_application_and_is_cut_off():
    async def scene(world: World) -> None:
        WRITTEN[0] = 0
        async with world.client() as client:
            await client.say(HELLO.replace(b"/v1/x", b"/endless"))
            await until(lambda: world.app.gone)
            # What the kernel takes on loopback, the loop's 64 KiB, and one piece.
            assert world.app.gone[0][1] < 16 << 20

    play(scene, write_s=0.3)


def test_a_short_body_after_the_answer_keeps_the_connection():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R.replace(b"/v1/x", b"/early") + b"content-length: 100\r\n\r\n")
            assert (await client.answer())[0] == 401
            await client.say(b"x" * 100 + HELLO)
            assert (await client.answer())[0] == 200

    play(scene)


def test_a_long_body_after_the_answer_does_not_come_in():
    async def scene(world: World) -> None:
        async with world.client() as client:
            await client.say(R.replace(b"/v1/x", b"/early") + b"content-length: 999999999\r\n\r\n")
            assert (await client.answer())[0] == 401
            sent = 0
            while not client.writer.is_closing() and sent < 1 << 30:
                await client.say(bytes(1 << 16))
                sent += 1 << 16
                if client.reader.at_eof():
                    break
                await asyncio.sleep(0)
            assert sent < 64 << 20
            assert await client.rest() == b""

    play(scene)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        R + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
        R + b"content-length: 0\r\n\r\n" + SMUGGLED * 16,
    ],
    ids=["no head", "no host", "bad chunk", "too many"],
)
def test_what_is_wrong_behind_a_request_in_flight_does_not_get_into_its_answer(garbage):
    async def scene(world: World) -> None:
        world.app.hold.clear()
        async with world.client() as client:
            await client.say(HELLO + garbage)
            assert await client.rest() == b""
        await until(lambda: world.app.gone)

    play(scene)


def test_draining_ends_what_runs_and_closes_the_rest():
    async def scene(world: World) -> None:
        world.app.hold.clear()
        async with world.client() as idle, world.client() as busy:
            await idle.say(HELLO.replace(b"/v1/x", b"/early"))
            assert (await idle.answer())[0] == 401
            await busy.say(HELLO)
            await until(lambda: world.app.seen)
            drained = asyncio.create_task(world.door.drain(10))
            assert await idle.rest() == b""
            assert not drained.done()
            world.app.hold.set()
            assert (await busy.answer())[0] == 200
            assert await busy.rest() == b""
            assert await drained

    play(scene)


def test_draining_gives_up_after_its_grace():
    async def scene(world: World) -> None:
        world.app.hold.clear()
        async with world.client() as busy:
            await busy.say(HELLO)
            await until(lambda: world.app.seen)
            assert not await world.door.drain(0.1)

    play(scene)
