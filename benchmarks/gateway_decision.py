"""What the gateway's own decisions cost, without a socket: microseconds of CPU, in process.

    ./packshot python benchmarks/gateway_decision.py

"deciding" is what the Go gateway that claims 11 us counts: who calls, what they may take and spend,
which key makes the call, and what of it is counted; no HTTP, no JSON, no journal. "a whole call" is
the application from request to answer with everything on (ledger and journal, too), as our own
server calls it, and an upstream that answers at once. Medians of rounds with the least and the
most. The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import monotonic, process_time
from types import SimpleNamespace
from typing import Any

import uvloop

from packshot.core.clock import wall_us
from packshot.gateway.bench import SECRET, VARIABLE, request_of
from packshot.gateway.wire.cycle import Cycle
from packshot.gateway.wire.outbox import Outbox
from packshot.gateway.worker import Worker
from packshot.state.limits import Ask

ROUNDS = 15
CALLS = 2000
CONFIG = """
server: {{state: state}}
telemetry: {{log: "off"}}
providers:
  openai: {{keys: [{{name: a, value: env.{v}, weight: 0.7}}, {{name: b, value: env.{v}}}]}}
access:
  virtual_keys:
    - id: bench
      team: red
      value: env.{v}
      limits: {{requests_per_minute: 1000000000, tokens_per_minute: 1000000000000}}
      budget: {{eur: 1000000, per: month}}
ledger: {{store: ledger.db, journal: journal}}
"""
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 600}}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 80, "total_tokens": 200},
    }
).encode()

facts: dict[str, list[float]] = {}


class Answered:
    """An answer that is there at once."""

    status = 200

    def __init__(self) -> None:
        self.headers = {b"content-type": b"application/json"}

    async def read(self, _limit: int) -> bytes:
        return REPLY

    def abort(self) -> None: ...


class Upstream:
    def __init__(self) -> None:
        self.answer = Answered()

    async def send(self, _call: object, /) -> Answered:
        return self.answer

    async def close(self) -> None: ...


class Link:
    """A client's connection, as far as a request knows it."""

    read_paused = write_paused = False
    client = "127.0.0.1"

    def __init__(self) -> None:
        date = b"date: Wed, 25 Nov 2026 20:00:00 GMT\r\n"
        self.door = SimpleNamespace(date=date, outbox=Outbox())
        self.transport = self
        self.said = b""

    def write(self, data: bytes) -> None:
        self.said = data

    def answered(self) -> None: ...


async def measure(name: str, act: Callable[[], Awaitable[object] | object], *, waits: bool) -> None:
    found: list[float] = []
    for _ in range(ROUNDS + 1):
        began = process_time()
        for _ in range(CALLS):
            got = act()
            if waits:
                await got  # type: ignore[misc]
        found.append((process_time() - began) / CALLS * 1e6)
    values = found[1:]  # the first is a warm-up
    facts[name] = [median(values), min(values), max(values)]
    spread = f"{min(values):,.1f} to {max(values):,.1f}"
    print(f"{name:<26}{median(values):>12,.1f} us    {spread}")


def deciding(worker: Worker, headers: dict[bytes, bytes]) -> Callable[[], object]:
    """Return all decisions on one call, one after the other."""
    gateway = worker.gateway
    access, limiter = gateway.access, gateway._limiter  # noqa: SLF001 - it is these that are measured
    limits: Any = limiter._limits  # noqa: SLF001
    caps: Any = gateway._money.ledger._caps  # noqa: SLF001
    owner = access.authenticate(headers, "127.0.0.1")
    target = gateway.plan.target("openai/gpt-4o-mini")
    keys = target.provider.keys
    rates = limiter.rates_of(owner)

    class Of:
        team, virtual_key, batch, provider, model, device = "red", "bench", "", "openai", "m", ""

    got = caps.reserve(Of, 10**6, wall_us())  # the slice of the call before has as much
    caps.settle(got, 10**6, 0)

    def decide() -> None:
        access.authenticate(headers, "127.0.0.1")
        owner.may_use("openai", "gpt-4o-mini", "")
        tokens = rates.of_tokens[0]
        limits.take_now((*rates.of_requests, Ask(tokens.key, tokens.rule, 500)))
        now = monotonic()
        key = keys.choose(target.model, now)
        parts = caps.reserve(Of, 1000, wall_us())
        breaker = key.breaker(target.model)
        breaker.begin(now)
        breaker.success(now)
        key.succeeded()
        caps.settle(parts, 1000, 900)

    return decide


async def main() -> None:
    os.environ.setdefault(VARIABLE, SECRET)
    with tempfile.TemporaryDirectory(prefix="packshot-decision-") as name:
        path = Path(name) / "packshot.yaml"
        path.write_text(CONFIG.format(v=VARIABLE))
        worker = Worker(path)
        await worker.start()
        provider = worker.gateway.plan.providers["openai"]
        real, provider.upstream = provider.upstream, Upstream()
        head, body = request_of(1, "openai/gpt-4o-mini", SECRET).split(b"\r\n\r\n", 1)
        pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        lines = [(name.lower(), value) for name, value in pairs]
        link, headers = Link(), dict(lines)

        def call() -> Awaitable[None]:
            cycle = Cycle(link, headers, b"POST", b"/v1/chat/completions", 0.0)  # type: ignore[arg-type]
            cycle.parts, cycle.more_body = [body], False
            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
                     "headers": lines, "client": ("127.0.0.1", 1),
                     "packshot.gone": cycle}  # fmt: skip
            return worker(scope, cycle.receive, cycle.send)

        await call()
        if b" 200 " not in link.said[:20]:
            raise SystemExit(f"a call failed: {link.said!r}")
        print("in process, one call after the other")
        await measure("deciding", deciding(worker, dict(lines)), waits=False)
        await measure("a whole call", call, waits=True)
        provider.upstream = real
        await worker.stop(5)
    print(json.dumps(facts))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
