"""Deadlines that end all work, readers that stand still, and answers without an end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from packshot.gateway.wire.server import DoorLimits
from packshot.providers.fake_script import NEVER, Fault, Settings
from tests.gateway.caller import Caller
from tests.gateway.faults import LONG
from tests.gateway.process import Process
from tests.gateway.world import World, world

MODEL = "gpt-4o-mini"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "k1")


def port_of(there: World) -> int:
    return int(there.url.rpartition(":")[2])


def patient(at: str, first_byte_s: float) -> str:
    return (
        f"  {at}:\n    base_url: {{{at}}}/v1\n    kind: openai\n"
        "    keys: [{value: env.KEY_A}]\n"
        f"    network: {{retry: {{max_retries: 0}}, timeouts: {{first_byte_s: {first_byte_s}}}}}\n"
    )


def chain(first_byte_s: float) -> str:
    """Return a route over three providers."""
    providers = "".join(patient(name, first_byte_s) for name in ("one", "two", "three"))
    return (
        f"providers:\n{providers}routes:\n"
        f"  - {{id: chat, primary: one/{MODEL}, fallbacks: [two/{MODEL}, three/{MODEL}]}}\n"
    )


SILENT = Settings(usual=Fault(head_after_s=NEVER))


def test_a_deadline_over_three_hops(tmp_path: Path) -> None:
    """Each hop is cancelled when its time is up, the last by the deadline, and then all is done."""
    with world(tmp_path, chain(0.4), one=SILENT, two=SILENT, three=SILENT) as there:
        caller = Caller(
            port_of(there), {"openai": "chat"}, headers="x-packshot-timeout-ms: 1100\r\n"
        )
        began = time.monotonic()
        saw = asyncio.run(caller(api="openai", stream=True))
        answered = time.monotonic()
        assert saw.status == 504, saw
        assert answered - began >= 1.05
        there.ended()
        truths = [fake.truth for fake in there.fakes.values()]
        assert [len(each) for each in truths] == [1, 1, 1]
        assert [each[0].end for each in truths] == ["hung_up"] * 3
        # In order: a hop is over before the next one is asked, up to what a busy machine delays.
        for before, after in pairwise(truths):
            assert before[0].until <= after[0].at + 0.1
        assert truths[2][0].until <= answered + 0.1
        assert [entry.outcome for entry in there.booked()] == ["unknown"] * 3


def test_no_hop_is_begun_without_the_time_for_it(tmp_path: Path) -> None:
    with world(tmp_path, chain(1.0), one=SILENT, two=SILENT, three=SILENT) as there:
        caller = Caller(
            port_of(there), {"openai": "chat"}, headers="x-packshot-timeout-ms: 1020\r\n"
        )
        saw = asyncio.run(caller(api="openai", stream=False))
        assert saw.status == 504, saw
        there.ended()
        assert [len(fake.truth) for fake in there.fakes.values()] == [1, 0, 0]


def test_a_caller_who_leaves_ends_the_call(tmp_path: Path) -> None:
    """Before the first byte, too: the provider sees it, and no other hop is asked."""
    with world(tmp_path, chain(30.0), one=SILENT, two=SILENT, three=SILENT) as there:

        async def leave() -> None:
            call = asyncio.create_task(
                Caller(port_of(there), {"openai": "chat"})(api="openai", stream=True)
            )
            while not there.fakes["one"].truth:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.01)
            call.cancel()

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancelled(leave()))
        there.ended()
        assert [len(fake.truth) for fake in there.fakes.values()] == [1, 0, 0]
        (entry,) = eventually(there)
        assert (entry.outcome, entry.reason) == ("unknown", "the caller hung up")


async def cancelled(work: Awaitable[None]) -> None:
    await work
    raise asyncio.CancelledError


def eventually(there: World) -> list:
    """Return the entries once there are some."""
    give_up = time.monotonic() + 10
    while not (entries := there.booked()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return entries


# ------------------------------------------------------------------ answers without an end

Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Origin:
    """A provider that says what it likes, for as long as somebody listens, in a thread."""

    def __init__(self, head: bytes, part: bytes, times: int = 1 << 30) -> None:
        self.head, self.part, self.times = head, part, times
        self.written: list[int] = []
        self.ended = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = len(self.written)
        self.written.append(0)
        # The gateway breaks off whenever it likes: that is what is tested.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(self.head)
            for _ in range(self.times):
                writer.write(self.part)
                await writer.drain()
                self.written[at] += len(self.part)
            await reader.read()
        self.ended += 1
        writer.close()

    def __enter__(self) -> str:
        self._thread.start()

        async def listen() -> int:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            return self._server.sockets[0].getsockname()[1]

        self.port = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def one(url: str) -> str:
    return (
        f"providers:\n  openai:\n    base_url: {url}/v1\n    keys: [{{value: env.KEY_A}}]\n"
        "    network: {retry: {max_retries: 0}}\n"
        "server: {max_reply_bytes: 1048576, port: 0, admin_port: 0, state: state}\n"
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ENDLESS = [
    ("an event without an end", True, HEAD, chunk(b"x" * 65536)),
    ("a line of data without an end", True, HEAD + chunk(b"data: "), chunk(b"x" * 65536)),
    ("a body without an end", False, HEAD.replace(b"event-stream", b"x"), chunk(b" " * 65536)),
    (
        "a GiB announced",
        False,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n",
        b" " * 65536,
    ),
    ("a header line without an end", True, b"HTTP/1.1 200 OK\r\nx-long: ", b"x" * 65536),
    ("headers without an end", False, b"HTTP/1.1 200 OK\r\n", b"x-y: z\r\n" * 8192),
]


@pytest.mark.parametrize(
    ("stream", "head", "part"), [e[1:] for e in ENDLESS], ids=[e[0] for e in ENDLESS]
)
def test_answers_without_an_end(tmp_path: Path, stream: bool, head: bytes, part: bytes) -> None:
    """They are given up on after a bounded number of bytes, and may have been billed."""
    origin = Origin(head, part)
    with origin as url, world(tmp_path, one(url)) as there:
        caller = Caller(port_of(there), {"openai": f"openai/{MODEL}"})
        saw = asyncio.run(caller(api="openai", stream=stream))
        assert saw.status == 502, saw
        until(lambda: origin.ended == 1)
        assert origin.written[0] <= 16 * MIB, "what the kernel buffers is in it, too"
        assert [entry.outcome for entry in there.booked()] == ["unknown"]


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


EVENT = (
    b"data: "
    + json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "delta": {"content": "word " * 200}, "finish_reason": None}],
        }
    ).encode()
    + b"\n\n"
)


def ask(port: int) -> socket.socket:
    """Ask for a stream, and read nothing."""
    body = json.dumps(
        {"model": f"openai/{MODEL}", "stream": True, "max_tokens": 10, "messages": []}
    ).encode()
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port))
    made.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    return made


def test_a_reader_that_stands_still_is_cut(tmp_path: Path) -> None:
    """Nothing piles up for it meanwhile, and its attempt is in the books."""
    origin = Origin(HEAD, chunk(EVENT * 16))
    with origin as url, world(tmp_path, one(url)) as there:
        assert there._door is not None
        there._door.limits = DoorLimits(write_s=1.0)
        with ask(port_of(there)):
            until(lambda: origin.ended == 1)
            assert origin.written[0] <= 16 * MIB
            (entry,) = eventually(there)
            assert (entry.outcome, entry.reason) == ("unknown", "the caller hung up")
        assert there.worker.gateway.in_flight == 0


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@contextmanager
def readers(port: int, count: int) -> Iterator[list[socket.socket]]:
    made = [ask(port) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def test_many_readers_that_stand_still_take_little_memory(tmp_path: Path) -> None:
    """A provider that sends as fast as it can fills what lies between it and each of them."""
    count = 200 if LONG else 60
    origin = Origin(HEAD, chunk(EVENT * 16))
    path = tmp_path / "packshot.yaml"
    with origin as url:
        path.write_text(one(url) + "ledger: {store: ledger.db, journal: journal}\n")
        with Process(path, {"KEY_A": "k1"}) as gateway:
            supervisor = gateway.process.pid
            children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
            worker = int(children[0])
            with readers(gateway.port, 5):
                until(lambda: len(origin.written) == 5 and still(origin))
            before = resident(worker)
            with readers(gateway.port, count):
                until(lambda: len(origin.written) == 5 + count and still(origin))
                grown = resident(worker) - before
            # R19: what is read and waits, a segment on top, a chunk on its way, what is written.
            assert grown <= count * 256 * 1024, f"{grown / count / 1024:.0f} KiB per stream"
            until(lambda: origin.ended == 5 + count)
            assert gateway.end() == 0, gateway.log()


def still(origin: Origin) -> bool:
    """Tell whether nothing was written for a moment."""
    before = sum(origin.written)
    time.sleep(0.3)
    return sum(origin.written) == before


@pytest.mark.parametrize(
    "opening", [b"POST /", b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nx: "]
)
def test_a_request_line_without_an_end_is_refused(tmp_path: Path, opening: bytes) -> None:
    """It hears so at once, may go on for a moment, and is then cut off."""
    with world(tmp_path, one("http://127.0.0.1:9")) as there:
        with socket.create_connection(("127.0.0.1", port_of(there)), timeout=20) as made:
            made.sendall(opening + b"x" * MIB)
            assert made.recv(4096).split()[1] in {b"400", b"414", b"431"}
            assert cut_off(made)
        assert there.booked() == []


def cut_off(made: socket.socket) -> bool:
    """Go on sending; tell whether that comes to an end."""
    for _ in range(2000):
        try:
            made.sendall(b"x" * 1024)
        except OSError:
            return True
        time.sleep(0.01)
    return False
