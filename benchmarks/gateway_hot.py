"""What one call makes the gateway's own process do, counted: a figure that no other load touches.

    ./packshot python benchmarks/gateway_hot.py
    ./packshot python benchmarks/gateway_hot.py --stream
    ./packshot python benchmarks/gateway_hot.py --sdk
    ./packshot python benchmarks/gateway_hot.py --instructions    # wants valgrind; a minute

The gateway with everything on (virtual key, limits, budget, hold and post, journal, metrics)
between two ends in memory: 16 clients that ask again as soon as they have their answer, and a
provider that answers in the next turn of the loop. All that is ours takes part, front door and pool
included; only the kernel's sockets do not. Per call:

python, c     calls of functions written in Python, and of others that Python makes
opcodes       steps of the interpreter
us            CPU of this process: the least of the rounds, and their median
instructions  of the machine, with the misses of a first cache of 32 and 48 kB and of a second of
              1 MB, as callgrind simulates them

With ``--stream`` a call is a stream of 66 events, and all counts are for one event. With ``--sdk``
the calls are those of OpenAI's client for Python: 17 headers, sent before the body; head and body
are read one right after the other, and every prompt has another length. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from types import FrameType
from typing import Any

import uvloop

from packshot.gateway import telemetry
from packshot.gateway import worker as worker_module
from packshot.gateway.bench import SECRET, VARIABLE, request_of
from packshot.gateway.wire import pool as pool_module
from packshot.gateway.wire import server
from packshot.gateway.wire.pool import Pool
from packshot.gateway.wire.server import Door
from packshot.gateway.worker import Worker
from packshot.ledger import journal

CONNECTIONS = 16
CONFIG = """
server: {{state: state}}
telemetry: {{log: "off"}}
providers:
  openai:
    base_url: http://127.0.0.1:9/v1
    network: {{allow_http: true}}
    keys:
      - {{name: a, value: env.{v}, weight: 0.5}}
      - {{name: b, value: env.{v}, weight: 0.3}}
      - {{name: c, value: env.{v}, weight: 0.2}}
access:
  virtual_keys:
    - id: bench
      team: red
      value: env.{v}
      limits: {{requests_per_minute: 1000000000, tokens_per_minute: 1000000000000}}
      budget: {{eur: 1000000, per: month}}
ledger: {{store: ledger.db, journal: journal}}
"""
USAGE = {"prompt_tokens": 120, "completion_tokens": 80, "total_tokens": 200}
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1763971200,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 700},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE | {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}},
    }
).encode()
MORE = (b"x-request-id: req_1\r\nopenai-processing-ms: 42\r\nopenai-version: 2020-10-01\r\n"
        b"server: fake\r\ndate: Wed, 25 Nov 2026 20:00:00 GMT\r\n")  # fmt: skip
WHOLE = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
         % (MORE, len(REPLY), REPLY))  # fmt: skip
EVENTS = 66
"""Of a stream, [DONE] included."""


def chunk(delta: object, usage: object = None, reason: str | None = None) -> bytes:
    """Return one event of a stream, as a chunk of HTTP."""
    said = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1763971200,
            "model": "gpt-4o-mini", "usage": usage,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}  # fmt: skip
    event = b"data: %b\n\n" % json.dumps(said).encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


STREAM = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%btransfer-encoding: chunked\r\n\r\n"
    % MORE,
    *(chunk({"content": f"word{number} "}) for number in range(EVENTS - 2)),
    chunk({}, USAGE, "stop"),
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
]


class Wire(asyncio.Transport):
    """A transport whose other end is ``taken``."""

    def __init__(self, taken: Callable[[bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)})
        self.write = taken  # type: ignore[method-assign]

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...

    close = pause_reading = resume_reading = abort


def sdk(whole: bytes, more: int) -> list[bytes]:
    """Return what the openai package sends for the same, with ``more`` bytes: a head and a body."""
    body = whole.partition(b"\r\n\r\n")[2].rstrip() + b" " * more
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        f"authorization: Bearer {SECRET}\r\naccept: application/json\r\n"
        "content-type: application/json\r\nuser-agent: OpenAI/Python 3.57.0\r\n"
        "x-stainless-lang: python\r\nx-stainless-package-version: 3.57.0\r\n"
        "x-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\n"
        "x-stainless-runtime-version: 3.11.2\r\nx-stainless-async: false\r\n"
        "x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return [head.encode(), body]


class Counted:
    """The gateway between its two ends; ``run`` makes calls."""

    def __init__(self, worker: Worker, *, stream: bool, as_sdk: bool) -> None:
        self.worker = worker
        self.loop = asyncio.get_running_loop()
        whole = request_of(80, "openai/gpt-4o-mini", SECRET, stream=stream)
        self.requests = [sdk(whole, more) for more in range(23)] if as_sdk else [[whole]]
        self.stream = stream
        self.door = Door(worker)
        self.left = self.open = 0
        self.ended: asyncio.Future[None] | None = None
        self.clients = [self.client() for _ in range(CONNECTIONS)]
        pool: Any = worker.gateway.plan.providers["openai"].upstream
        if not isinstance(pool, Pool):
            raise SystemExit("this measures the gateway's own pool")
        self.pool = pool
        for _ in range(CONNECTIONS):
            self.provider(pool)

    def client(self) -> Callable[[], None]:
        """Return what has one more client ask."""
        connection = self.door.protocol()
        end = b"0\r\n\r\n" if self.stream else b""

        def taken(data: bytes) -> None:
            if not data.startswith(b"HTTP/1.1 200") and not end:
                raise SystemExit(f"a call failed: {data!r}")
            if data.endswith(end):
                self.open -= 1
                if self.left > 0:
                    ask()
                elif not self.open and self.ended is not None:
                    self.ended.set_result(None)

        def ask() -> None:
            self.left -= 1
            self.open += 1
            for part in self.requests[self.left % len(self.requests)]:
                self.loop.call_soon(connection.data_received, part)

        connection.connection_made(Wire(taken))
        return ask

    def provider(self, pool: Any) -> None:  # noqa: ANN401 - its insides are used
        """Give the pool one more connection, at rest."""
        link: Any = pool._new_link()  # noqa: SLF001 - the pool dials sockets only

        def taken(_: bytes) -> None:
            if self.stream:
                go(0)
            else:
                self.loop.call_soon(link.data_received, WHOLE)

        def go(number: int) -> None:
            link.data_received(STREAM[number])
            if number + 1 < len(STREAM):
                self.loop.call_soon(go, number + 1)

        link.connection_made(Wire(taken))
        pool._links.add(link)  # noqa: SLF001
        pool._open += 1  # noqa: SLF001
        pool._rest(link)  # noqa: SLF001

    async def run(self, calls: int) -> None:
        """Make so many calls."""
        self.left = calls
        self.ended = self.loop.create_future()
        for ask in self.clients:
            ask()
        await self.ended


def rarely() -> None:
    """Have what comes again with time come hardly ever: under valgrind a second has few calls."""
    telemetry.EVERY_S = worker_module.TICK_S = journal.SYNC_EVERY_S = 3600.0
    pool_module.SWEEP_S = server.SWEEP_S = 3600.0


class Tally:
    """Counts what Python does, by `sys.setprofile` and `sys.settrace`; our own ends left out."""

    def __init__(self) -> None:
        self.python = self.c = self.opcodes = 0
        self.names: dict[str, int] = {}

    def profile(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_filename == __file__:
            return
        if event == "call":
            self.python += 1
            where = f"{code.co_filename.rpartition('packshot/')[2]}:{code.co_qualname}"
        elif event == "c_call":
            self.c += 1
            where = f"  c {getattr(arg, '__qualname__', arg)}"
        else:
            return
        self.names[where] = self.names.get(where, 0) + 1

    def trace(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.opcodes += 1
            where = (
                f"{frame.f_code.co_filename.rpartition('packshot/')[2]}:{frame.f_code.co_qualname}"
            )
            self.names[where] = self.names.get(where, 0) + 1
        return self.trace


async def counted(options: argparse.Namespace) -> dict[str, float]:
    """Start the gateway, and count."""
    os.environ.setdefault(VARIABLE, SECRET)
    facts: dict[str, float] = {}
    if options.under_valgrind:
        rarely()
    with tempfile.TemporaryDirectory(prefix="packshot-hot-") as name:
        path = Path(name) / "packshot.yaml"
        path.write_text(CONFIG.format(v=VARIABLE))
        worker = Worker(path)
        await worker.start()
        bench = Counted(worker, stream=options.stream, as_sdk=options.sdk)
        per = EVENTS if options.stream else 1
        await bench.run(CONNECTIONS * 3)
        if options.under_valgrind:
            await bench.run(options.calls // 2)
            instrument()
            await bench.run(options.calls)
            os._exit(0)
        found: list[float] = []
        for _ in range(options.rounds):
            began = process_time()
            await bench.run(options.calls)
            found.append((process_time() - began) / options.calls / per * 1e6)
        facts |= {"us_least": min(found), "us_median": median(found)}
        tally, calls = Tally(), CONNECTIONS * 6
        sys.setprofile(tally.profile)
        await bench.run(calls)
        sys.setprofile(None)
        facts |= {"python": tally.python / calls / per, "c": tally.c / calls / per}
        show(tally, calls * per, options.list)
        tally = Tally()
        sys.settrace(tally.trace)
        await bench.run(calls)
        sys.settrace(None)
        facts["opcodes"] = tally.opcodes / calls / per
        show(tally, calls * per, options.list)
        bench.pool._links.clear()  # noqa: SLF001 - which nothing can close
        await worker.stop(5)
    return facts


def show(tally: Tally, calls: int, most: int) -> None:
    """Print what was counted most often."""
    for where, count in sorted(tally.names.items(), key=lambda pair: -pair[1])[:most]:
        print(f"{count / calls:8.2f}  {where}")


def instrument() -> None:
    """Have valgrind count from here on."""
    subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], check=True)


def instructions(options: argparse.Namespace) -> dict[str, float]:
    """Run this script under valgrind, and return what it counted per call."""
    with tempfile.TemporaryDirectory(prefix="packshot-hot-") as name:
        out = Path(name) / "out"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes",
                   "--I1=32768,8,64", "--D1=49152,12,64", "--LL=1048576,16,64",
                   f"--callgrind-out-file={out}", sys.executable, __file__, "--under-valgrind",
                   "--calls", str(options.calls)]  # fmt: skip
        command += ["--stream"] * options.stream + ["--sdk"] * options.sdk
        fixed = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=fixed)
        found = re.search(r"^(?:summary|totals): (.*)$", out.read_text(), re.MULTILINE)
        if found is None:
            raise SystemExit(done.stderr)
        if options.keep:
            Path(options.keep).write_bytes(out.read_bytes())
    per = options.calls * (EVENTS if options.stream else 1)
    ir, _, _, i1, dr1, dw1, il, dlr, dlw = (int(word) / per for word in found[1].split())
    return {
        "instructions": ir,
        "i1_misses": i1,
        "d1_misses": dr1 + dw1,
        "l2_misses": il + dlr + dlw,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--sdk", action="store_true", help="heads and bodies of OpenAI's client")
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--calls", type=int, default=0, help="of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--list", type=int, default=0, help="show the most frequent functions")
    parser.add_argument("--keep", default="", help="callgrind's file")
    parser.add_argument("--under-valgrind", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.calls = options.calls or (50 if options.stream else 2000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        facts = {} if options.instructions else runner.run(counted(options))
    if options.instructions:
        facts = instructions(options)
    what = "event of a stream" if options.stream else "call"
    print(f"per {what}, {sys.version.split()[0]}, uvloop {uvloop.__version__}")
    for name, value in facts.items():
        print(f"{name:<14}{value:>12,.1f}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
