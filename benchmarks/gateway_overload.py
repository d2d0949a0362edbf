"""Five times what a gateway has room for: who is served, and how soon the others know.

    ./packshot python benchmarks/gateway_overload.py

The fake provider takes half a second, the gateway one worker with `max_in_flight: 50`: room for 100
calls a second. Callers come at a fixed rate, whatever becomes of those before them (open loop):
below the limit, then five times it, then below it again. RELIABILITY R16 asks that nine tenths of
the peak are still served, that the surplus hears so within 50 ms, that what is served takes no
longer than twice as long, that memory stays within half as much again, and that all is as before
within 5 s. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from gateway_load import family
from gateway_soak import memory_of

from packshot.gateway.bench import started, started_fake

TAKES_S = 0.5
ROOM = 50
PEAK = ROOM / TAKES_S
CONFIG = """
providers:
  openai: {{base_url: "http://127.0.0.1:{port}/v1", keys: [{{value: env.BENCH_KEY}}]}}
server: {{max_in_flight: {room}, admin_port: 0, state: state}}
ledger: {{store: ledger.db, journal: journal}}
telemetry: {{log: "off"}}
"""
BODY = {
    "model": "openai/gpt-4o-mini",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "a white sneaker on a beach"}],
}


@dataclass(frozen=True)
class Phase:
    """What became of a phase's callers; times in ms, memory of the largest process in MiB."""

    what: str
    per_s: float
    served_per_s: float
    served_p50: float
    served_p99: float
    shed: int
    shed_p50: float
    shed_p99: float
    failed: int
    memory: float


def at(times: list[float], share: float) -> float:
    """Return a quantile in ms; 0 where there is none."""
    return sorted(times)[int(share * (len(times) - 1))] * 1e3 if times else 0.0


async def open_loop(port: int, per_s: float, seconds: float) -> list[tuple[float, int]]:
    """Call at a rate; return how long each call took, and its status (0: none)."""
    seen: list[tuple[float, int]] = []
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def call() -> None:
        began = time.perf_counter()
        try:
            async with session.post(url, json=BODY) as got:
                await got.read()
                status = got.status
        except aiohttp.ClientError:
            status = 0
        seen.append((time.perf_counter() - began, status))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=900)) as session:
        tasks: list[asyncio.Task[None]] = []
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < seconds:
            while len(tasks) < now * per_s:
                tasks.append(asyncio.create_task(call()))
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
    return seen


def phase(what: str, port: int, pid: int, per_s: float, seconds: float) -> Phase:
    """Run one phase and say what became of it."""
    seen = asyncio.run(open_loop(port, per_s, seconds))
    by = Counter(status for _, status in seen)
    served = [took for took, status in seen if status == 200]
    shed = [took for took, status in seen if status == 503]
    made = Phase(
        what, per_s, len(served) / seconds, at(served, 0.5), at(served, 0.99),
        len(shed), at(shed, 0.5), at(shed, 0.99), len(seen) - by[200] - by[503],
        max(memory_of(each) for each in family(pid)),
    )  # fmt: skip
    print(f"{what:<10}{per_s:>8.0f}{made.served_per_s:>10.1f}{made.served_p50:>9.1f}"
          f"{made.served_p99:>9.1f}{made.shed:>8,}{made.shed_p50:>8.1f}{made.shed_p99:>8.1f}"
          f"{made.failed:>8}{made.memory:>8.1f}", flush=True)  # fmt: skip
    return made


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    options = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores,"
          f" load {os.getloadavg()[0]:.1f}")  # fmt: skip
    os.environ["BENCH_KEY"] = "k" * 40
    with (
        tempfile.TemporaryDirectory(prefix="packshot-overload-") as name,
        started_fake(static=False) as (fake, _),
    ):
        rules = json.dumps([{"fault": {"head_after_s": TAKES_S}}]).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{fake}/fake/rules", rules).close()
        path = Path(name) / "packshot.yaml"
        path.write_text(CONFIG.format(port=fake, room=ROOM))
        with started(path) as (port, process):
            print(f"{'':<10}{'calls/s':>8}{'served/s':>10}{'p50 ms':>9}{'p99 ms':>9}"
                  f"{'shed':>8}{'p50 ms':>8}{'p99 ms':>8}{'failed':>8}{'MiB':>8}")  # fmt: skip
            plan = (("before", 0.9, 10.0), ("overload", 5.0, options.seconds), ("after", 0.9, 5.0))
            phases = [phase(what, port, process.pid, of * PEAK, s) for what, of, s in plan]
    print(json.dumps({"load": os.getloadavg(), "phases": [asdict(each) for each in phases]}))
    before, over, after = phases
    good = (
        over.served_per_s >= 0.9 * PEAK
        and over.shed_p99 < 50.0
        and over.served_p99 <= 2 * before.served_p99
        and over.memory <= 1.5 * before.memory
        and not (over.failed or after.failed or after.shed)
    )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
