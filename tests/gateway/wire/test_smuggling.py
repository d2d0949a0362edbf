"""S10: some 900 requests that two servers could read differently, straight and through a proxy.

What counts is which requests our application saw, whole. Straight, it must be none where the
framing is not sound, and never the one that hides in a body. Behind a proxy it must be no request
that the proxy did not send, by its own log. In the manner of HTTP Garden (arXiv 2405.17737).
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from packshot.gateway.wire.server import Door, DoorLimits
from tests.gateway.launched import until

SOUND, WRONG = True, False
HOST = b"host: a.example\r\n"

LENGTHS: dict[bytes, bool] = {
    b"content-length: %d\r\n": SOUND,
    b"Content-Length:%d\r\n": SOUND,
    b"content-length:  %d  \r\n": SOUND,
    b"content-length:\t%d\r\n": SOUND,
    b"content-length: 00%d\r\n": SOUND,
    b"content-length: +%d\r\n": WRONG,
    b"content-length: -%d\r\n": WRONG,
    b"content-length: 0x%d\r\n": WRONG,
    b"content-length: %d.0\r\n": WRONG,
    b"content-length: %d e0\r\n": WRONG,
    b"content-length: %d, 0\r\n": WRONG,
    b"content-length: %d,\r\n": WRONG,
    b"content-length: 0, %d\r\n": WRONG,
    b"content-length : %d\r\n": WRONG,
    b"content-length\t: %d\r\n": WRONG,
    b" content-length: %d\r\n": WRONG,
    b"content-length:\r\n %d\r\n": WRONG,
    b"content-length: %d\r\n 0\r\n": WRONG,
    b"content-length: %d\r\ncontent-length: 0\r\n": WRONG,
    b"content-length: 0\r\ncontent-length: %d\r\n": WRONG,
    b"content-length: %d\r\ncontent-length: %d\r\n": WRONG,
    b"content-length: 99999999999999999999%d\r\n": WRONG,
    b"content-length: \x0b%d\r\n": WRONG,
    b"content-length: %d\0\r\n": WRONG,
    b"content-length: \xb2%d\r\n": WRONG,
    b"content_length: %d\r\n": WRONG,
    b"x: y\ncontent-length: %d\r\n": WRONG,
    b"x: y\rcontent-length: %d\r\n": WRONG,
    b"x\0: y\r\ncontent-length: %d\r\n": WRONG,
    b"x y: z\r\ncontent-length: %d\r\n": WRONG,
}
CODINGS: dict[bytes, bool] = {
    b"transfer-encoding: chunked\r\n": SOUND,
    b"Transfer-Encoding:chunked\r\n": SOUND,
    b"transfer-encoding: Chunked\r\n": SOUND,
    b"transfer-encoding: chunked \r\n": WRONG,  # sound by RFC 9110 §5.5; we are stricter
    b"transfer-encoding: xchunked\r\n": WRONG,
    b"transfer-encoding: chunkedx\r\n": WRONG,
    b"transfer-encoding: chunked, identity\r\n": WRONG,
    b"transfer-encoding: identity, chunked\r\n": WRONG,
    b"transfer-encoding: gzip, chunked\r\n": WRONG,
    b"transfer-encoding: chunked, chunked\r\n": WRONG,
    b"transfer-encoding: chunked,\r\n": WRONG,
    b"transfer-encoding: ,chunked\r\n": WRONG,
    b"transfer-encoding: chunked;q=1\r\n": WRONG,
    b'transfer-encoding: "chunked"\r\n': WRONG,
    b"transfer-encoding: \x0bchunked\r\n": WRONG,
    b"transfer-encoding: chunked\x0c\r\n": WRONG,
    b"transfer-encoding: \0chunked\r\n": WRONG,
    b"transfer-encoding:\r\n chunked\r\n": WRONG,
    b"transfer-encoding : chunked\r\n": WRONG,
    b"transfer_encoding: chunked\r\n": WRONG,
    b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n": WRONG,
    b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n": WRONG,
    b"transfer-encoding: chunked\r\ncontent-length: 5\r\n": WRONG,
    b"content-length: 5\r\ntransfer-encoding: chunked\r\n": WRONG,
    b"content-length: 0\r\ntransfer-encoding: chunked\r\n": WRONG,
    b"content-length: 5\r\ntransfer-encoding: xchunked\r\n": WRONG,
    b"x: y\ntransfer-encoding: chunked\r\n": WRONG,
}
CHUNKS: dict[bytes, bool] = {
    b"%x\r\n%b\r\n0\r\n\r\n": SOUND,
    b"00%x\r\n%b\r\n0\r\n\r\n": SOUND,
    b"%x;a=b\r\n%b\r\n0\r\n\r\n": SOUND,
    b"%x\r\n%b\r\n0\r\nx: y\r\n\r\n": SOUND,
    b"0x%x\r\n%b\r\n0\r\n\r\n": WRONG,
    b"+%x\r\n%b\r\n0\r\n\r\n": WRONG,
    b"-%x\r\n%b\r\n0\r\n\r\n": WRONG,
    b"%x\n%b\r\n0\r\n\r\n": WRONG,
    b"%x\r%b\r\n0\r\n\r\n": WRONG,
    b"%x;a\n%b\r\n0\r\n\r\n": WRONG,
    b"%x\r\n%bXX0\r\n\r\n": WRONG,
    b"%x\r\n%b0\r\n\r\n": WRONG,
    b"1000000000000000%x\r\n%b\r\n0\r\n\r\n": WRONG,
    b"%x\0\r\n%b\r\n0\r\n\r\n": WRONG,
    b"_%x\r\n%b\r\n0\r\n\r\n": WRONG,
    b";%x\r\n%b\r\n0\r\n\r\n": WRONG,
}
STARTS: dict[bytes, bool] = {
    b"POST /p%d HTTP/1.1\r\n": SOUND,
    b"PUT /p%d HTTP/1.1\r\n": SOUND,
    b"GET /p%d HTTP/1.1\r\n": SOUND,
    b"DELETE /p%d HTTP/1.1\r\n": SOUND,
    b"POST /p%d HTTP/1.1\n": WRONG,
    b"POST  /p%d HTTP/1.1\r\n": SOUND,  # RFC 9112 §3 allows it, and it frames nothing
    b"POST\t/p%d HTTP/1.1\r\n": WRONG,
    b"POST /p%d HTTP/1.2\r\n": WRONG,
    b"POST /p%d HTTP/01.1\r\n": WRONG,
    b"POST /p%d HTTP/1.1 x\r\n": WRONG,
    b"POST /p%d\r\n": WRONG,
    b"P\0ST /p%d HTTP/1.1\r\n": WRONG,
}
AFTER = b"GET /s%d HTTP/1.1\r\n" + HOST + b"\r\n"
"""What hides in a body, or behind one; "s" for smuggled."""


@dataclass(frozen=True)
class Payload:
    """One request with another in its body. ``sound``: a server may take it, as one request."""

    data: bytes
    sound: bool


def payloads() -> list[Payload]:
    """Return every framing with every start of a head, and every chunk with every coding."""
    made: list[Payload] = []

    def add(start: bytes, lines: bytes, body: bytes, *, sound: bool) -> None:
        made.append(Payload(start % len(made) + HOST + lines + b"\r\n" + body, sound))

    for start, good_start in STARTS.items():
        for length, good in LENGTHS.items():
            inner = AFTER % sum(1 for _ in made)
            filled = length.replace(b"%d", b"%d" % len(inner))
            add(start, filled, inner, sound=good and good_start)
    for start in [each for each, good in STARTS.items() if good][:2]:
        for coding, good in CODINGS.items():
            for chunk, good_chunk in CHUNKS.items():
                inner = AFTER % len(made)
                body = chunk.replace(b"%x", b"%x" % len(inner)).replace(b"%b", inner)
                add(start, coding, body, sound=good and good_chunk)
    return made


PAYLOADS = payloads()


class App:
    """Remembers the paths that it was asked for; answers with the path."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        if message["type"] == "http.disconnect":
            return
        self.seen[scope["path"]] += 1
        body = scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def door() -> Iterator[tuple[App, int]]:
    """Serve the application behind our own front door, in a thread."""
    app, loop = App(), uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, loop).result(30)

    async def begin() -> tuple[Door, asyncio.Server]:
        made = Door(app, DoorLimits())
        return made, await asyncio.get_running_loop().create_server(made.protocol, "127.0.0.1", 0)

    async def end() -> None:
        listener.close()
        await served.close()

    served, listener = run(begin())
    try:
        yield app, listener.sockets[0].getsockname()[1]
    finally:
        run(end())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def say(port: int, data: bytes) -> bytes:
    """Send bytes, and read what comes until the server closes, or nothing has come for a while."""
    got = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as made:
        made.settimeout(0.3)
        made.sendall(data)
        while part := made.recv(1 << 16):
            got += part
    return got


def say_all(port: int) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda each: say(port, each.data), PAYLOADS))


def test_there_are_enough_of_them() -> None:
    assert len(PAYLOADS) > 800
    assert len({each.data for each in PAYLOADS}) == len(PAYLOADS)
    assert 30 < sum(each.sound for each in PAYLOADS) < len(PAYLOADS) / 4


def test_straight_to_us() -> None:
    with door() as (app, port):
        say_all(port)
        for number, each in enumerate(PAYLOADS):
            assert app.seen[f"/s{number}"] == 0, each.data
            assert app.seen[f"/p{number}"] == each.sound, each.data


NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 256; }}
http {{
    log_format sent '$upstream_addr $request_uri';
    access_log {folder}/sent.log sent;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    underscores_in_headers on; ignore_invalid_headers off;
    upstream ours {{ server 127.0.0.1:{port}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{front};
        location / {{
            proxy_pass http://ours; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering {buffering}; proxy_next_upstream off;
        }}
    }}
}}
"""
"""As lax as nginx can be: what it would drop or refuse by default reaches us."""


HAPROXY = """
global
    maxconn 256
    log stdout format raw local0
defaults
    mode http
    log global
    option accept-invalid-http-request
    http-reuse always
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend front
    bind 127.0.0.1:{front}
    log-format "%s %HU"
    default_backend ours
backend ours
    server ours 127.0.0.1:{port}
"""


@pytest.mark.parametrize("proxy", ["nginx", "nginx that buffers nothing", "haproxy"])
def test_through_a_proxy(tmp_path: Path, proxy: str) -> None:
    program = shutil.which(proxy.partition(" ")[0])
    if program is None:
        pytest.skip(f"{proxy} is not installed")
    with door() as (app, port), running(tmp_path, program, proxy, port) as front:
        say_all(front)
        # Whoever came before, a caller gets the answer to what he asked for himself.
        for number in range(8):
            wanted = b"GET /victim%d HTTP/1.1\r\n" % number + HOST + b"connection: close\r\n\r\n"
            assert say(front, wanted).endswith(b"\r\n\r\n/victim%d" % number)
    sent = Counter(
        path
        for server, _, path in (
            line.partition(" ") for line in (tmp_path / "sent.log").read_text().splitlines()
        )
        if server not in {"-", "<NOSRV>"}
    )
    assert sum(each in sent for each in (f"/p{n}" for n in range(len(PAYLOADS)))) > 30
    more = app.seen - sent
    assert not more, "requests that the proxy did not send"


@contextmanager
def running(folder: Path, program: str, proxy: str, port: int) -> Iterator[int]:
    """Run a proxy before a port; when it has ended, its log of what it sent on is whole."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        front = free.getsockname()[1]
    config = folder / "proxy.conf"
    if proxy == "haproxy":
        text, ending = HAPROXY.format(front=front, port=port), signal.SIGUSR1
        words, log = [program, "-f", str(config)], folder / "sent.log"
    else:
        user = f"user {folder.owner()};" if folder.owner() == "root" else ""
        buffering = "off" if "nothing" in proxy else "on"
        text = NGINX.format(folder=folder, port=port, front=front, buffering=buffering, user=user)
        words, ending = [program, "-p", str(folder), "-c", str(config)], signal.SIGQUIT
        log = folder / "log"
    config.write_text(text)
    with (
        log.open("w") as out,
        subprocess.Popen(words, stdout=out, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            until(lambda: listens(front) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield front
        finally:
            process.send_signal(ending)
            process.wait(30)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
