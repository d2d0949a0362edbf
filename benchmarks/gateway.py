"""What the gateway costs beside others: CPU per request, requests a second, latency, streams.

    ./packshot python benchmarks/gateway.py
    ./packshot python benchmarks/gateway.py --rivals nginx,tensorzero,portkey,litellm --rounds 7
    ./packshot python benchmarks/gateway.py --sustained 600
    ./packshot python benchmarks/gateway.py --only none --workers 1,2,4,8 --rivals nginx

Ours has everything on: a virtual key with limits and a budget, hold and post in the ledger with
journal and drain, three weighted provider keys. All answer 1 kB of JSON from the fake provider
(`packshot.providers.fake --static`), over plain HTTP and over TLS. A gateway whose turn it is not
is stopped. Two set-ups, rounds of all gateways in turn:

one core     gateway, load and provider on core 1. CPU is the scheduler's own count of the gateway's
             processes: the figure to compare; requests a second are no use here.
two cores    the gateway alone on core 1 (other work of the machine aside), load and provider on
             core 0; requests a second at 64 connections, added latency at one. The drain, a process
             of its own that brings the journal into the database, is on the gateway's core; a row
             more has it on core 0: then core 1 has the calls only.

Medians of the rounds, with the least and the most. The first round of each is a warm-up. The last
line is one JSON object. The load is wrk's where it is installed, else our own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import gateway_rivals as rivals
import gateway_workers as workers
from gateway_load import WRK, Round, awake, family, measure, pin, raw
from gateway_rivals import Absent, Running

from packshot.gateway.bench import SECRET, _Line, cpu_s, drive, request_of, started_fake
from packshot.providers.fake_tls import self_signed

PER_KIND = {"cpu", "rps", "latency", "streams"}
"""What is measured over each kind of upstream."""

EVENTS = 67
"""Of a stream: the role, 64 words, the reason of its end with the usage, and [DONE]."""

facts: dict[str, object] = {}


def show(table: str, name: str, values: list[float], unit: str, note: str = "") -> None:
    """Print a median with its spread, and keep it for the last line."""
    facts[f"{table}/{name}"] = [median(values), min(values), max(values)]
    spread = f"{min(values):,.1f} to {max(values):,.1f}"
    print(f"{name:<26}{median(values):>12,.1f} {unit:<5} {spread:<24}{note}", flush=True)


class Bench:
    """The gateways of one kind of upstream, all started, and what is asked of them in turn."""

    def __init__(
        self, stack: ExitStack, options: argparse.Namespace, folder: Path, *, tls: bool
    ) -> None:
        self.options = options
        self.folder = folder
        self.kind = "tls" if tls else "plain"
        words: list[str] = []
        self.ca = ""
        if tls:
            certificate, key = self_signed(folder)
            words, self.ca = ["--tls", str(certificate), str(key)], str(certificate)
        self.fake_port, self.fake = stack.enter_context(started_fake(*words))
        slow = stack.enter_context(started_fake("--every-ms", "5", *words))
        self.slow_port, self.slow = slow
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.fake_port}"
        self.running: list[Running] = []
        self._start(stack, "packshot")
        for name in options.rivals:
            self._start(stack, name)

    def _start(self, stack: ExitStack, name: str, url: str = "") -> Running | None:
        home = self.folder / f"{self.kind}-{name}{'-slow' if url else ''}"
        home.mkdir()
        url = url or self.url
        rival = {"litellm": rivals.litellm, "portkey": rivals.portkey,
                 "tensorzero": rivals.tensorzero}  # fmt: skip
        try:
            if name == "packshot":
                one = rivals.packshot(home, url, self.ca, None, 0, self.options.python)
            elif name == "nginx":
                one = rivals.nginx(home, url, None)
            else:
                one = rival[name](home, url, None, self.options.rivals_dir)
            made = stack.enter_context(one)
            drive(made.port, raw(made), 4, 0.5)
        except (Absent, RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"SKIPPED {name} ({self.kind}): {str(error)[:300]}", flush=True)
            return None
        except Exception as error:  # noqa: BLE001 - a rival that answers badly is skipped visibly
            print(f"SKIPPED {name} ({self.kind}): {str(error)[:300]}", flush=True)
            return None
        if url == self.url:
            self.running.append(made)
        with awake(made):
            pass
        return made

    def place(self, gateway: int, rest: int) -> None:
        """Say which cores the gateways and the provider work on."""
        for each in self.running:
            pin(each.process.pid, gateway)
        for fake in (self.fake, self.slow):
            pin(fake.pid, rest)

    def rounds(self, act: Callable[[Running], Round]) -> dict[str, list[Round]]:
        """Let all gateways have their turn, so many times; the first is a warm-up."""
        found: dict[str, list[Round]] = {}
        for number in range(self.options.rounds + 1):
            for each in self.running:
                with awake(each):
                    got = act(each)
                if number:
                    found.setdefault(each.name, []).append(got)
        return found

    def one_core(self) -> None:
        """CPU per request with everything on one core."""
        self.place(1, 1)
        seconds = self.options.seconds
        found = self.rounds(
            lambda each: measure(
                each, self.folder, conns=16, seconds=seconds, cores=[1], settle=0.5
            )
        )
        print(f"\n{self.kind}: CPU per request, everything on one core, 16 connections")
        for name, got in found.items():
            other = median([r.other for r in got])
            bad = sum(r.bad for r in got)
            note = f"others {other:.0%}" + (f", {bad} BAD" if bad else "")
            show(f"{self.kind}/cpu", name, [r.cpu for r in got], "us", note)
            if name == "packshot":
                show(f"{self.kind}/cpu", "  its drain", [r.drain for r in got], "us")

    def two_cores(self) -> None:
        """Requests a second, the gateway on a core of its own."""
        self.place(1, 0)
        seconds, aside = self.options.seconds, "  drain with the load"
        apart: list[Round] = []

        def act(each: Running) -> Round:
            got = measure(each, self.folder, conns=64, seconds=seconds, cores=[0])
            if drain := drain_of(each.process.pid):
                with beside(drain):
                    apart.append(measure(each, self.folder, conns=64, seconds=seconds, cores=[0]))
            return got

        found = self.rounds(act)
        if apart:  # beside the row with the drain on the gateway's core
            found = {"packshot": found.pop("packshot"), aside: apart[1:], **found}
        print(f"\n{self.kind}: requests a second, the gateway on one core, 64 connections")
        for name, got in found.items():
            p50, p99 = median([r.p50 for r in got]), median([r.p99 for r in got])
            note = f"p50 {p50 / 1000:.2f} ms, p99 {p99 / 1000:.2f} ms"
            bad = sum(r.bad for r in got)
            note += f", {bad} BAD" if bad else ""
            if name == "packshot":
                note += ", its drain on the same core"
            show(f"{self.kind}/rps", name, [r.per_s for r in got], "/s", note)

    def latency(self) -> None:
        """Latency at one connection, against direct calls in turn."""
        self.place(1, 0)
        os.sched_setaffinity(0, {0})
        print(f"\n{self.kind}: added latency at one connection, calls in turn with direct ones")
        times: dict[str, list[tuple[float, float]]] = {}
        for number in range(self.options.rounds + 1):
            for each in self.running:
                with awake(each):
                    got = self._turns(each)
                if number:
                    times.setdefault(each.name, []).append(got)
        for name, each in times.items():
            high = median([p99 for _, p99 in each])
            show(f"{self.kind}/latency", name, [p50 for p50, _ in each], "us", f"p99 {high:,.0f}")
        os.sched_setaffinity(0, range(os.cpu_count() or 1))

    def _turns(self, running: Running) -> tuple[float, float]:
        line = _Line(running.port, raw(running))
        other = _Line(self.plain_port, request_of(self.plain_port, "gpt-4o-mini", SECRET))
        try:
            until = time.perf_counter() + self.options.seconds
            found = [(line.call(), other.call())]
            while time.perf_counter() < until:
                found.append((line.call(), other.call()))
        finally:
            line.socket.close()
            other.socket.close()
        ours, direct = sorted(a for a, _ in found), sorted(b for _, b in found)
        high = len(found) * 99 // 100
        return median(ours) - median(direct), ours[high] - direct[high]

    plain_port = 0

    def streams(self, stack: ExitStack) -> None:
        """CPU per streamed chunk: 16 streams, 5 ms between their events."""
        url = self.url.replace(str(self.fake_port), str(self.slow_port))
        some = [self._start(stack, each.name, url) for each in self.running]
        pin(self.slow.pid, 0)
        os.sched_setaffinity(0, {0})
        found: dict[str, list[float]] = {}
        for number in range(self.options.rounds + 1):
            for each in (one for one in some if one is not None):
                pin(each.process.pid, 1)
                with awake(each):
                    try:
                        got = self._chunks(each)
                    except Exception as error:  # noqa: BLE001 - Portkey's fail: say so, go on
                        if not number:
                            print(f"SKIPPED streams of {each.name}: {str(error)[:200]}")
                        continue
                if number:
                    found.setdefault(each.name, []).append(got)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        print(f"\n{self.kind}: CPU per streamed chunk, 16 streams of {EVENTS} events, 5 ms apart")
        for name, values in found.items():
            show(f"{self.kind}/chunk", name, values, "us")

    def _chunks(self, running: Running) -> float:
        before = cpu_s(running.process.pid) or (0.0, 0.0)
        load = drive(running.port, raw(running, stream=True), 16, max(1.0, self.options.seconds))
        after = cpu_s(running.process.pid) or (0.0, 0.0)
        return (after[0] - before[0]) / (load.calls * EVENTS) * 1e6


def translation(stack: ExitStack, options: argparse.Namespace, folder: Path) -> None:
    """CPU per request of an OpenAI call that Anthropic answers."""
    port, fake = stack.enter_context(started_fake(static=False))
    home = folder / "translation"
    home.mkdir()
    url = f"http://127.0.0.1:{port}"
    ours = stack.enter_context(rivals.packshot(home, url, "", 1, port, options.python))
    pin(fake.pid, 0)
    print("\nOpenAI to Anthropic and back, the gateway on one core, 16 connections")
    ways = {"as it came": "openai/gpt-4o-mini", "translated": "anthropic/claude-haiku-4-5"}
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):
        for name, ours.model in ways.items():
            got = measure(ours, folder, conns=16, seconds=options.seconds, cores=[0])
            found[name].append(got)
    for name, rounds in found.items():
        bad = sum(r.bad for r in rounds)
        show("translation", name, [r.cpu for r in rounds[1:]], "us", f"{bad} BAD" if bad else "")


def decision(options: argparse.Namespace) -> None:
    """What deciding costs, in process; see `gateway_decision.py`."""
    script = Path(__file__).with_name("gateway_decision.py")
    command = [options.python or sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print("\n" + (done.stdout.rpartition("\n{")[0] or done.stderr))
    if done.returncode == 0:
        facts["decision"] = json.loads(done.stdout.strip().splitlines()[-1])


def sustained(stack: ExitStack, options: argparse.Namespace, folder: Path) -> None:
    """Top speed for a while: memory, and how far the ledger's store is behind."""
    port, fake = stack.enter_context(started_fake())
    home = folder / "sustained"
    home.mkdir()
    url = f"http://127.0.0.1:{port}"
    ours = stack.enter_context(rivals.packshot(home, url, "", None, 0, options.python))
    for each in family(ours.process.pid):  # the drain may use either core, as it would
        pin(each, 1)
    pin(drain_of(ours.process.pid), 0)
    pin(fake.pid, 0)
    made, bad, lags, sizes, speeds = 0, 0, [], [], []
    print(f"\nsustained: {options.sustained} s at top speed")
    slice_s = min(10.0, max(1.0, options.sustained / 10))
    until = time.monotonic() + options.sustained
    while time.monotonic() < until:
        got = measure(ours, folder, conns=64, seconds=slice_s, cores=[0])
        made += got.calls
        bad += got.bad
        speeds.append(got.per_s)
        lags.append(float(made - stored(home)))
        sizes.append(rss_kb(ours.process.pid) / 1024)
    show("sustained", "requests a second", speeds, "/s", f"{made:,} calls, {bad} bad")
    show("sustained", "behind the journal", lags, "calls", f"the last: {lags[-1]:,.0f}")
    show("sustained", "memory of the gateway", sizes, "MB", f"{sizes[0]:.1f} to {sizes[-1]:.1f}")
    waited = time.monotonic()
    while made - stored(home) > 0 and time.monotonic() < waited + 120:
        time.sleep(0.2)
    print(f"caught up {time.monotonic() - waited:.1f} s later; missing: {made - stored(home)}")
    facts["sustained/missing"], facts["sustained/bad"] = made - stored(home), bad


def stored(home: Path) -> int:
    """Return how many entries the ledger's store has."""
    with sqlite3.connect(f"file:{home / 'ledger.db'}?mode=ro", uri=True, timeout=30) as made:
        return int(made.execute("SELECT coalesce(max(rowid), 0) FROM entries").fetchone()[0])


def drain_of(pid: int) -> int:
    """Return the process of a gateway's drain; 0 where it has none."""
    found = [p for p in family(pid) if b"drainer" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return found[0] if found else 0


@contextmanager
def beside(drain: int) -> Generator[None]:
    """Have the drain work on core 0, beside the load; in the ordinary class of the scheduler, since
    the load would wait for whole slices of 100 ms where all are in the class of `chrt -r`.
    """
    before = os.sched_getscheduler(drain), os.sched_getparam(drain)
    pin(drain, 0)
    os.sched_setscheduler(drain, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(drain, *before)
        pin(drain, 1)


def rss_kb(pid: int) -> int:
    """Return the resident memory of a gateway's processes, the drain's aside."""
    total = 0
    for each in family(pid):
        if b"drainer" not in Path(f"/proc/{each}/cmdline").read_bytes():
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    return total


def environment(options: argparse.Namespace) -> None:
    """Say where this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    command = [options.python or sys.executable, "-VV"]
    version = subprocess.run(command, capture_output=True, text=True, check=True)
    facts["environment"] = {
        "cpu": sorted(names), "cores": os.cpu_count(), "kernel": platform.release(),
        "python": version.stdout.strip(), "load": os.getloadavg(), "wrk": bool(WRK),
        "rivals": {name: rivals.VERSIONS.get(name, "") for name in options.rivals},
    }  # fmt: skip
    for name, value in facts["environment"].items():  # type: ignore[attr-defined]
        print(f"{name}: {value}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rivals", default="nginx", help="with commas; none for ours alone")
    default = Path("~/.cache/packshot-rivals").expanduser()
    parser.add_argument("--rivals-dir", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--upstream", default="plain,tls")
    parser.add_argument("--only", default="cpu,rps,latency,streams,translation,decision")
    parser.add_argument("--sustained", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--workers", default="", metavar="N,N", help="scaling over workers")
    parser.add_argument("--python", default="", help="interpreter of ours, if not this one")
    options = parser.parse_args()
    options.rivals = [n for n in options.rivals.split(",") if n and n != "none"]
    options.workers = [int(each) for each in options.workers.split(",") if each]
    options.only = set(options.only.split(","))
    return options


def one_kind(options: argparse.Namespace, folder: Path, kind: str) -> None:
    """Measure everything over one kind of upstream."""
    with ExitStack() as stack:
        bench = Bench(stack, options, folder, tls=kind == "tls")
        bench.plain_port = stack.enter_context(started_fake())[0]
        acts = {"cpu": bench.one_core, "rps": bench.two_cores, "latency": bench.latency}
        for what, act in acts.items():
            if what in options.only:
                act()
        if "streams" in options.only:
            bench.streams(stack)


def main() -> None:
    options = arguments()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for load and provider")
    try:
        os.nice(-5)
    except PermissionError:
        print("nice -5 is not permitted: the rest of the machine counts for more")
    environment(options)
    with tempfile.TemporaryDirectory(prefix="packshot-gateway-") as name:
        folder = Path(name)
        for kind in options.upstream.split(",") if options.only & PER_KIND else ():
            one_kind(options, folder, kind)
        for what, act in (("translation", translation), ("sustained", sustained)):
            if what in options.only or (what == "sustained" and options.sustained):
                with ExitStack() as stack:
                    act(stack, options, folder)
        if options.workers:
            workers.scaling(options, folder, show)
        if "decision" in options.only:
            decision(options)
    facts["load at the end"] = os.getloadavg()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
