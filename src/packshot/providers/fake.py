"""A provider of our own: it speaks as OpenAI, Anthropic and Stability do, and goes wrong on order.

It tells the truth. Tests and ``packshot gateway bench`` put it behind the gateway. Its answers and
what they use are invented from the request; what happened to each request, and what it costs the
account, is in `Fake.truth`, which the gateway's ledger must agree with.

In a test::

    async with Fake(Settings(keys={"k1": None, "k2": limited("seconds", 2)})) as fake:
        fake.next(Fault(status=500), Fault(ending="close", at=3))
        ...  # requests to fake.url + "/v1/chat/completions"
        await fake.ended()
        assert fake.billed() == ...

In a process of its own it prints ``port N`` and runs until SIGTERM::

    python -m packshot.providers.fake --static --reply-bytes 1024

There, ``GET /fake/truth`` returns the records, and ``POST /fake/next`` (a list of faults),
``/fake/rules`` (a list of rules) and ``/fake/clear`` do what the methods do; not when ``--static``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

import msgspec

from packshot.core.types import Usage, UsageDetail
from packshot.providers import fake_pictures as pictures
from packshot.providers import fake_shapes as shapes
from packshot.providers.fake_answers import (
    Refused,
    embedding_of,
    read_embedding,
    read_text,
    say,
)
from packshot.providers.fake_script import (
    FINE,
    NEVER,
    Fault,
    Rule,
    Settings,
    Truth,
    billed_of,
    limited,
)
from packshot.providers.fake_tls import server_context
from packshot.providers.fake_wire import (
    LAST_CHUNK,
    PIECES,
    Connection,
    Play,
    Request,
    StaticConnection,
    chunked,
)

__all__ = ["FINE", "NEVER", "Fake", "Fault", "Rule", "Settings", "Truth", "limited", "summed"]

Script: TypeAlias = Callable[[Truth], Fault | None]
"""Decides by what is known of a request (its key, model, number, body) how to answer it."""

POLL_S = 0.005


class Fake:
    """The provider: a server on a loopback port.

    ``tls`` makes it speak HTTPS. ``clock`` returns seconds, for rules that come and go and for the
    records' times.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or Settings()
        self.clock = clock
        self.truth: list[Truth] = []
        self.script: Script | None = None
        self.rules: list[Rule] = []
        self.connections: set[asyncio.Transport] = set()
        self.port = 0
        self._tls = tls
        self._queue: deque[Fault] = deque()
        self._waiting: dict[str, pictures.Waiting] = {}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The origin, without a path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    # ---- what to do wrong

    def next(self, *faults: Fault) -> None:
        """Answer the next paid requests so, whoever sends them; good ones are `FINE`."""
        self._queue.extend(faults)

    def rule(self, rule: Rule) -> Rule:
        """Add a rule; the first that applies wins. What was queued by `next` goes before it."""
        rule.since = self.clock()
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget rules, queue, script and records."""
        self.rules.clear()
        self._queue.clear()
        self.truth.clear()
        self.script = None

    # ---- what was true

    def billed(self, key: str = "") -> Usage:
        """Return the sum of what was billed, of one key or ("") of all."""
        records = [each for each in self.truth if not key or each.key == key]
        return summed(each.billed for each in records if each.billed is not None)

    async def ended(self, within_s: float = 5.0) -> None:
        """Wait until every answer has ended: that a client hung up is heard a little later.

        Raises:
            TimeoutError: one is still open.
        """
        async with asyncio.timeout(within_s):
            while any(each.end == "open" for each in self.truth):  # noqa: ASYNC110 - in tests only
                await asyncio.sleep(POLL_S)

    # ---- the server

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen; port 0 is a free one."""
        loop = asyncio.get_running_loop()
        factory: Callable[[], asyncio.Protocol] = partial(Connection, self)
        if self.settings.static:
            factory = partial(StaticConnection, self, *self._static_replies())
        self._server = await loop.create_server(factory, host, port, ssl=self._tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and cut those that are open; `start` may follow, at the port."""
        if self._server is None:
            return
        self._server.close()
        for transport in tuple(self.connections):
            transport.abort()
        await self._server.wait_closed()
        self._server = None
        while self.connections:  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ---- answers

    def answer(self, request: Request) -> Play:
        """Decide what a request is answered with (called by its connection)."""
        path = request.path.partition("?")[0]
        if path.startswith("/fake/"):
            return self._control(path, bytes(request.body))
        truth = self._record(request, path)
        if pictures.is_picture(path):
            return self._picture(request, path, truth)
        # The list of models is at the same path of both.
        listed = path.endswith("/models") and "anthropic-version" in request.headers
        anthropic = "/messages" in path or listed
        try:
            return self._decide(request, path, truth, anthropic=anthropic)
        except Refused as error:
            code = "context" if not error.message else "not_found" if error.status == 404 else ""
            fault = Fault(status=error.status, code=code)
            return _refusal(fault, truth, error.message, error.param, anthropic=anthropic)

    def _record(self, request: Request, path: str) -> Truth:
        headers = request.headers
        truth = Truth(
            number=len(self.truth),
            at=self.clock(),
            path=path,
            key=_key_of(headers, path),
            attempt=headers.get("x-attempt-id", ""),
            idempotency=headers.get("idempotency-key", ""),
        )
        if self.settings.bodies:
            truth.headers, truth.body = headers, bytes(request.body)
        self.truth.append(truth)
        return truth

    def _decide(self, request: Request, path: str, truth: Truth, *, anthropic: bool) -> Play:
        keys = self.settings.keys
        if keys and truth.key not in keys:
            return _refusal(Fault(status=401, code="auth"), truth, anthropic=anthropic)
        if path.endswith("/models") and request.method == "GET":
            return _whole(shapes.models_body(self.settings.models, anthropic=anthropic), truth)
        if request.method != "POST":
            raise Refused(405, f"{request.method} is not what {path} takes")
        if "/messages" in path and "anthropic-version" not in request.headers:
            raise Refused(400, "anthropic-version: header is required")
        if path.endswith("/messages/count_tokens"):
            asked, said = read_text(request.body, self.settings, anthropic=True, limited=False)
            truth.model = asked.model
            body = msgspec.json.encode({"input_tokens": said.usage.input_tokens})
            return _whole(body, truth)
        if path.endswith("/embeddings"):
            return self._embeddings(request, truth)
        if path.endswith(("/chat/completions", "/messages")):
            return self._text(request, truth, anthropic=anthropic)
        raise Refused(404, f"there is no {path}")

    def _embeddings(self, request: Request, truth: Truth) -> Play:
        asked, usage = read_embedding(request.body, self.settings)
        truth.model = asked.model
        fault = truth.fault = self._fault(truth)
        truth.said = usage
        if fault.status >= 400:
            return _refusal(fault, truth, anthropic=False)
        told = shapes.openai_embedding_usage(usage, fault.usage)
        return _body_play(embedding_of(asked, told, self.settings), fault, truth, anthropic=False)

    def _text(self, request: Request, truth: Truth, *, anthropic: bool) -> Play:
        asked, answer = read_text(request.body, self.settings, anthropic=anthropic)
        truth.model, truth.stream = asked.model, asked.stream
        fault = truth.fault = self._fault(truth)
        if fault.says:
            say(answer, fault.says)
        if self.settings.bodies:
            truth.text = "".join(answer.pieces)
        truth.said = answer.usage
        if fault.status >= 400:
            return _refusal(fault, truth, anthropic=anthropic)
        if not asked.stream:
            write = shapes.anthropic_body if anthropic else shapes.openai_body
            return _body_play(write(answer, fault), fault, truth, anthropic=anthropic)
        if anthropic:
            events, tokens = shapes.anthropic_events(answer, fault)
        else:
            events, tokens = shapes.openai_events(asked, answer, fault)
        return _stream_play(events, tokens, fault, truth, anthropic=anthropic)

    def _picture(self, request: Request, path: str, truth: Truth) -> Play:
        """Answer as Stability does: with a picture, or the id of one that is made meanwhile."""
        if self.settings.keys and truth.key not in self.settings.keys:
            return _no_picture(Fault(status=401), truth)
        try:
            if request.method == "GET":
                return self._result(path.rpartition("/")[2], truth)
            kind = request.headers.get("content-type", "")
            asked = pictures.read_form(path, kind, bytes(request.body))
        except Refused as error:
            return _no_picture(Fault(status=error.status), truth, error.message)
        truth.model, truth.text = asked.model, asked.prompt
        fault = truth.fault = self._fault(truth)
        truth.said = Usage("denoise", images=1)
        if fault.status >= 400:
            return _no_picture(fault, truth)
        body = pictures.body_of(asked, fault)
        if not asked.later:
            return _body_play(body, fault, truth, anthropic=False)
        name = f"{truth.number:064x}"
        self._waiting[name] = pictures.Waiting(body, fault, self.settings.pending, truth.key)
        # It is made and billed from here on, whatever becomes of who asked.
        truth.billed = billed_of(fault.billed or "all", truth.said, 0)
        truth.status, truth.end, truth.until = 200, "done", self.clock()
        return _whole(msgspec.json.encode({"id": name}), None)

    def _result(self, name: str, truth: Truth) -> Play:
        waiting = self._waiting.get(name)
        if waiting is None or waiting.key != truth.key:
            raise Refused(404, f"id: there is no {name}")
        if waiting.looks > 0:
            waiting.looks -= 1
            return _whole(msgspec.json.encode({"id": name, "status": "in-progress"}), truth, 202)
        fault, waiting.fault = waiting.fault, FINE  # who looks again finds it whole
        return _body_play(waiting.body, fault, truth, anthropic=False)

    def _fault(self, truth: Truth) -> Fault:
        """Return what happens to a request: by its key, the script, the queue, or a rule."""
        if (own := self.settings.keys.get(truth.key)) is not None:
            return own
        if self.script is not None and (told := self.script(truth)) is not None:
            return told
        if self._queue:
            return self._queue.popleft()
        now = self.clock()
        for rule in self.rules:
            if rule.applies(truth.key, truth.model, now):
                return rule.fault
        return self.settings.usual

    def _control(self, path: str, body: bytes) -> Play:
        """Do what the methods do, for who is in another process."""
        reply: Any = {}
        try:
            if path == "/fake/truth":
                reply = self.truth
            elif path == "/fake/next":
                self.next(*msgspec.json.decode(body, type=list[Fault]))
            elif path == "/fake/rules":
                for rule in msgspec.json.decode(body, type=list[Rule]):
                    self.rule(rule)
            elif path == "/fake/clear":
                self.clear()
            else:
                reply = {"error": f"there is no {path}"}
        except msgspec.MsgspecError as error:
            reply = {"error": f"{path} takes a list of objects, see fake_script.py: {error}"}
        wrong = isinstance(reply, dict) and "error" in reply
        return _whole(msgspec.json.encode(reply), None, 400 if wrong else 200)

    def _static_replies(self) -> tuple[bytes, list[bytes]]:
        """Build one answer and one stream, as an OpenAI client would get them."""
        size = max(self.settings.reply_bytes, 256)
        plain = replace(self.settings, cache=False, reply_bytes=0)
        ask = {"model": "fake-model", "messages": [{"role": "user", "content": "static"}]}
        body = msgspec.json.encode(ask)
        asked, answer = read_text(body, plain, anthropic=False)
        bare = len(shapes.openai_body(answer, FINE)) - len("".join(answer.pieces).encode())
        answer.pieces = ["x" * (size - bare)]
        whole = shapes.openai_body(answer, FINE)
        answer.pieces = [" word"] * self.settings.static_events
        answer.usage = msgspec.structs.replace(answer.usage, output_tokens=len(answer.pieces))
        events, _ = shapes.openai_events(asked, answer, FINE)
        parts = [chunked(each) for each in events]
        parts[0] = STREAM_HEAD + parts[0]
        parts[-1] += LAST_CHUNK
        return _head(200, len(whole)) + whole, parts


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\nx-request-id: req_fake\r\ntransfer-encoding: chunked\r\n\r\n"
)
CHUNKED_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_fake\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _head(status: int, size: int, lines: str = "") -> bytes:
    """Return the head of an answer in one piece. Reason phrases mean nothing: it says "Fake"."""
    return (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Fake'}\r\n"
        "content-type: application/json\r\nx-request-id: req_fake\r\nrequest-id: req_fake\r\n"
        f"{lines}content-length: {size}\r\n\r\n"
    ).encode("latin-1")


def _key_of(headers: dict[str, str], path: str) -> str:
    """Return the key that came in a header where the API looks for it; "" without one.

    Anthropic takes ``x-api-key`` and a bearer token (its SDK 2.14 sends the latter), OpenAI a
    bearer token, Azure ``api-key``.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key
    if "/messages" in path:
        return headers.get("x-api-key", "")
    return headers.get("api-key", "") or headers.get("x-api-key", "")


def _whole(body: bytes, truth: Truth | None, status: int = 200) -> Play:
    """Return an answer that costs nothing and never fails."""
    if truth is not None:
        truth.events_of = 1
    return Play(_head(status, len(body)), [body], truth=truth)


def _refusal(
    fault: Fault, truth: Truth, message: str = "", param: str | None = None, *, anthropic: bool
) -> Play:
    """Return an error. What it bills, if anything, is the answer that was made before it."""
    truth.fault = fault
    body = shapes.error_body(fault, message, param, anthropic=anthropic)
    head = _head(fault.status, len(body), shapes.error_headers(fault))
    truth.events_of = 1
    made = truth.said.output_tokens if truth.said else 0
    return Play(head, [body], fault=fault, tokens=[made], truth=truth)


def _no_picture(fault: Fault, truth: Truth, message: str = "") -> Play:
    """Return an error in Stability's shape."""
    truth.fault = fault
    body = pictures.error_of(fault, message)
    head = _head(fault.status, len(body), shapes.error_headers(fault))
    truth.events_of = 1
    return Play(head, [body], fault=fault, tokens=[0], truth=truth)


def _body_play(body: bytes, fault: Fault, truth: Truth, *, anthropic: bool) -> Play:
    """Return an answer in one piece, with what its fault does to it."""
    head, tail, acted, incomplete = _head(200, len(body)), b"", fault, False
    parts = [body]
    made = truth.said.output_tokens if truth.said else 0
    if fault.ending in {"error_event", "bad_json"}:
        incomplete = fault.ending == "error_event"
        broken = Fault(status=529 if anthropic else 503)
        wrong = shapes.error_body(broken, "Overloaded", None, anthropic=anthropic)
        parts = [wrong if incomplete else body[: len(body) // 2]]
        head = _head(200, len(parts[0]))
        acted = msgspec.structs.replace(fault, ending="whole")
    elif fault.ending != "whole" or fault.every_s:
        size = -(-len(body) // PIECES)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        if fault.ending in {"no_end", "bad_chunk"}:
            head, tail, parts = CHUNKED_HEAD, LAST_CHUNK, [chunked(part) for part in parts]
        if fault.ending == "no_end":
            acted = msgspec.structs.replace(fault, ending="close", at=PIECES)
    truth.events_of = len(parts)
    return Play(head, parts, tail, acted, [made] * len(parts), truth, incomplete)


def _stream_play(
    events: list[bytes], tokens: list[int], fault: Fault, truth: Truth, *, anthropic: bool
) -> Play:
    """Return a stream, with what its fault does to it."""
    at, acted, incomplete = max(0, min(fault.at, len(events) - 1)), fault, False
    truth.events_of = len(events)
    if fault.ending in {"no_end", "error_event", "bad_json"}:
        acted = msgspec.structs.replace(fault, ending="whole")
        incomplete = fault.ending != "bad_json"
    if fault.ending == "no_end":
        events, tokens = events[:-1], tokens[:-1]
    elif fault.ending == "error_event":
        events = [*events[:at], shapes.error_in_stream("", anthropic=anthropic)]
        tokens = [*tokens[:at], tokens[at - 1] if at else 0]
    elif fault.ending == "bad_json":
        half = events[at].removesuffix(b"\n\n")
        events = [*events[:at], half[: len(half) * 2 // 3] + b"\n\n", *events[at + 1 :]]
    parts = [chunked(each) for each in events]
    return Play(STREAM_HEAD, parts, LAST_CHUNK, acted, tokens, truth, incomplete)


def summed(usages: Iterable[Usage]) -> Usage:
    """Return the sum of usages of tokens and pictures."""
    total, long = Usage("caption"), 0
    for each in usages:
        total = msgspec.structs.replace(
            total,
            input_tokens=total.input_tokens + each.input_tokens,
            cached_tokens=total.cached_tokens + each.cached_tokens,
            written_tokens=total.written_tokens + each.written_tokens,
            output_tokens=total.output_tokens + each.output_tokens,
            images=total.images + each.images,
        )
        long += each.detail.written_long_tokens if each.detail else 0
    return (
        msgspec.structs.replace(total, detail=UsageDetail(written_long_tokens=long))
        if long
        else total
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="packshot.providers.fake",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0, or none: a free one")
    parser.add_argument("--keys", default="", help="valid keys, with commas; none: any")
    parser.add_argument("--reply-bytes", type=int, default=0)
    parser.add_argument(
        "--every-ms", type=float, default=0.0, help="between the events of a stream"
    )
    parser.add_argument("--says", default="", help="the text of each answer")
    parser.add_argument("--static", action="store_true", help="one answer for all: benchmarks")
    parser.add_argument("--static-events", type=int, default=64)
    parser.add_argument("--no-bodies", action="store_true", help="do not keep what is received")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files")
    parser.add_argument("--truth", type=Path, help="write the records there at the end, as JSON")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    settings = Settings(
        keys=dict.fromkeys(filter(None, arguments.keys.split(","))),
        usual=Fault(every_s=arguments.every_ms / 1000, says=arguments.says),
        reply_bytes=arguments.reply_bytes,
        bodies=not arguments.no_bodies,
        static=arguments.static,
        static_events=arguments.static_events,
    )
    tls = None
    if arguments.tls:
        tls = server_context(*map(Path, arguments.tls))
    fake = Fake(settings, tls=tls)
    try:
        await fake.start(arguments.port)
    except OSError as error:
        sys.exit(f"error: cannot listen on port {arguments.port}: {os.strerror(error.errno or 0)}")
    sys.stdout.write(f"port {fake.port}\n")
    sys.stdout.flush()
    over = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, over.set)
    await over.wait()
    await fake.stop()
    if arguments.truth:
        arguments.truth.write_bytes(msgspec.json.encode(fake.truth))


def main() -> None:
    """Run a fake in this process, on uvloop where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(_arguments()))


if __name__ == "__main__":
    main()
