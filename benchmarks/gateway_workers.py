"""How the gateway scales over workers, and whether a budget stays exact over all of them.

A part of `gateway.py`: `--workers 1,2,4,8`. The workers get one thread of each physical core, in
order; what is left over runs the drain (one), the provider and the load. Where there is nginx it is
the provider, in as many workers as it has cores, with the fake's own answer, for one Python process
could not feed eight; and with `--rivals nginx` it is measured in the gateway's place, too.

Then a budget that ends under load: what the ledger booked may not exceed it, and what was answered
must all be booked.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gateway_rivals as rivals
from gateway_load import Round, family, measure, pin, raw
from gateway_rivals import Absent, Running

from packshot.gateway.bench import SECRET, _Line, request_of, started_fake

PER_WORKER = 64
"""Connections of the load for each worker."""

BUDGET_CALLS = 20_000
"""How many calls the small budget pays for, for each worker."""

Show = Callable[[str, str, list[float], str, str], None]
"""Print the values of a table's line, and keep them."""


@dataclass(frozen=True)
class Layout:
    """Which cores do what; some of them twice where there are too few."""

    workers: list[int]
    drain: int
    provider: list[int]
    load: list[int]
    shared: bool


def layout(count: int) -> Layout:
    """Return a place for each part when there are ``count`` workers."""
    order = one_of_each() if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    rest = order[count:]
    shared = len(rest) < 3
    rest = rest if not shared else order
    ends = max(1, min(3, (len(rest) - 1) // 2))
    return Layout(
        workers=[order[each % len(order)] for each in range(count)],
        drain=rest[-1],
        provider=rest[-1 - ends : -1] or rest[:1],
        load=rest[max(0, len(rest) - 1 - 2 * ends) : -1 - ends] or rest[:1],
        shared=shared,
    )


def one_of_each() -> list[int]:
    """Return the cores: one thread of each physical one, then the seconds of them."""
    allowed = sorted(os.sched_getaffinity(0))
    ranks: dict[int, int] = {}
    for core in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        text = path.read_text() if path.exists() else str(core)
        mates = [int(part.split("-")[0]) for part in text.strip().split(",")]
        if "-" in text:
            first, last = text.strip().split("-")[:2]
            mates = list(range(int(first), int(last.split(",")[0]) + 1))
        ranks[core] = sorted(mates).index(core) if core in mates else 0
    return sorted(allowed, key=lambda core: (ranks[core], core))


def scaling(options: argparse.Namespace, folder: Path, show: Show) -> None:
    """Requests a second by the number of workers, each on a core of its own."""
    for count in options.workers:
        place = layout(count)
        print(f"\n{count} workers: {place}")
        if place.shared:
            print("  too few cores: they share them, so the speed says nothing")
        with ExitStack() as stack:
            home = folder / f"workers-{count}"
            home.mkdir()
            url = provider(stack, home, place.provider)
            nginx = "nginx" in options.rivals
            for name in ("packshot", "nginx") if nginx else ("packshot",):
                try:
                    with ExitStack() as inner:
                        made = started(inner, name, options, home, url, place)
                        rounds(made, place, home, options, show)
                except Absent as error:
                    print(f"SKIPPED {name}: {error}")
            small_budget(options, home, url, place, show)


def provider(stack: ExitStack, home: Path, cores: list[int]) -> str:
    """Start what answers: nginx with the fake's answer, else the fake; return its URL."""
    port, fake = stack.enter_context(started_fake())
    line = _Line(port, request_of(port, rivals.MODEL, SECRET))
    line.call()
    body = bytes(line.received).split(b"\r\n\r\n", 1)[1].decode()
    line.socket.close()
    try:
        made = stack.enter_context(rivals.answering(home, body, len(cores)))
    except Absent as error:
        print(f"the fake is the provider, in one process: {error}")
        pin(fake.pid, cores[0])
        return f"http://127.0.0.1:{port}"
    spread(workers_of(made.process.pid), cores)
    return f"http://127.0.0.1:{made.port}"


def started(
    stack: ExitStack, name: str, options: argparse.Namespace, home: Path, url: str, place: Layout
) -> Running:
    """Start a gateway with its workers where they belong."""
    folder = home / name
    folder.mkdir()
    count = len(place.workers)
    if name == "nginx":
        made = stack.enter_context(rivals.nginx(folder, url, None, workers=count))
    else:
        made = stack.enter_context(
            rivals.packshot(folder, url, "", None, 0, options.python, workers=count)
        )
    settle(made, place)
    return made


def settle(made: Running, place: Layout) -> None:
    """Wait for all workers, and pin them to their cores and the rest to the drain's."""
    workers = workers_of(made.process.pid)
    until = time.monotonic() + 30
    while len(workers) < len(place.workers) and time.monotonic() < until:
        time.sleep(0.1)
        workers = workers_of(made.process.pid)
    for _ in range(8 * len(place.workers)):  # each has been asked, by some of these
        line = _Line(made.port, raw(made))
        line.call()
        line.socket.close()
    for each in family(made.process.pid):
        pin(each, place.drain)
    spread(workers, place.workers)


def spread(processes: list[int], cores: list[int]) -> None:
    """Give each process a core."""
    for number, each in enumerate(processes):
        pin(each, cores[number % len(cores)])


def rounds(
    made: Running, place: Layout, home: Path, options: argparse.Namespace, show: Show
) -> None:
    """Measure a gateway, the first round as a warm-up."""
    count = len(place.workers)
    got: list[Round] = [
        measure(made, home, conns=PER_WORKER * count, seconds=options.seconds, cores=place.load)
        for _ in range(options.rounds + 1)
    ][1:]
    name = f"{made.name} x {count}"
    busy = median([r.cpu * r.per_s for r in got]) / 1e6 / count
    note = f"p99 {median([r.p99 for r in got]) / 1000:.2f} ms, cores {busy:.0%} busy"
    bad = sum(r.bad for r in got)
    show("workers", name, [r.per_s for r in got], "/s", note + (f", {bad} BAD" if bad else ""))
    show("workers/cpu", f"  CPU of {name}", [r.cpu for r in got], "us", "")
    if made.name == "packshot":
        show("workers/cpu", f"  drain of packshot x {count}", [r.drain for r in got], "us", "")


def small_budget(
    options: argparse.Namespace, home: Path, url: str, place: Layout, show: Show
) -> None:
    """Let a budget end under load from all connections, and compare with what was booked."""
    count = len(place.workers)
    folder = home / "budget"
    folder.mkdir()
    cost = cost_of_one(options, folder, url)
    budget = round(cost * BUDGET_CALLS * count, 9)
    words = (folder, url, "", None, 0, options.python)
    with rivals.packshot(*words, workers=count, budget=f"{budget:.9f}") as made:
        settle(made, place)  # eight calls a worker
        answered, bad, until = 8 * count, 0, time.monotonic() + 20
        while not bad and time.monotonic() < until:
            got = measure(made, folder, conns=PER_WORKER * count, seconds=1, cores=place.load)
            answered, bad = answered + got.calls - got.bad, got.bad
        # What the load's calls held and did not use came back, and pays for a few more.
        more, refused = one_by_one(made)
        until = time.monotonic() + 30
        while booked_of(folder)[1] < answered + more and time.monotonic() < until:
            time.sleep(0.2)  # one drain books for all workers
    booked, entries = booked_of(folder)
    print(f"budget {budget:.6f} EUR over {count} workers, {budget / cost:,.0f} calls: booked "
          f"{booked:.6f} in {entries:,} entries; answered {answered:,} at once, {more} one by one; "
          f"left {(budget - booked) / cost:,.1f} calls' worth")  # fmt: skip
    exact = booked <= budget + 1e-9 and entries >= answered + more and refused
    show("workers/budget", f"  share booked, x {count}", [booked / budget * 100], "%",
         "never more" if exact else "NOT EXACT")  # fmt: skip
    if not exact:
        raise SystemExit(f"a budget over {count} workers was not kept: see above")


def one_by_one(made: Running) -> tuple[int, bool]:
    """Call, each time on a new connection, until refused 20 times in a row; count the others."""
    answered = row = 0
    for _ in range(2_000):
        line = _Line(made.port, raw(made))
        line.send()
        code = int(line.socket.recv(1 << 16).split(b" ", 2)[1])
        line.socket.close()
        if code not in {200, 402}:
            raise SystemExit(f"a call was answered {code} where its budget ends")
        answered, row = (answered + 1, 0) if code == 200 else (answered, row + 1)
        if row == 20:
            return answered, True
    return answered, False


def cost_of_one(options: argparse.Namespace, folder: Path, url: str) -> float:
    """Return what a call costs, in EUR, as its answer says."""
    home = folder / "one"
    home.mkdir()
    with rivals.packshot(home, url, "", None, 0, options.python) as made:
        line = _Line(made.port, raw(made))
        line.call()
        head = bytes(line.received).split(b"\r\n\r\n", 1)[0].decode("latin-1").lower()
        line.socket.close()
    fields = dict(each.split(": ", 1) for each in head.split("\r\n")[1:])
    return float(fields["x-packshot-cost-eur"])


def booked_of(home: Path) -> tuple[float, int]:
    """Return what the ledger's store has booked, in EUR, and in how many entries."""
    with sqlite3.connect(f"file:{home / 'ledger.db'}?mode=ro", uri=True, timeout=30) as made:
        total, entries = made.execute(
            "SELECT coalesce(sum(amount), 0), count(*) FROM entries"
        ).fetchone()
    return total / 1e9, entries


def workers_of(supervisor: int) -> list[int]:
    """Return the worker processes of a gateway: those that listen, and not the drain."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [
        int(each) for each in children
        if b"drainer" not in Path(f"/proc/{each}/cmdline").read_bytes()
    ]  # fmt: skip
