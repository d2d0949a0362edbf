"""Load, CPU time and noise for `gateway.py`: wrk where it is installed, else our own load."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gateway_rivals import Running

from packshot.gateway.bench import SECRET, cpu_s, drive, request_of

WRK = shutil.which("wrk")

REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"calls":%d,"us":%d,"bad":%d,"p50":%d,"p99":%d}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Round:
    """One stretch of load against one gateway; times in us, CPU per call."""

    calls: int
    per_s: float
    p50: float
    p99: float
    cpu: float
    drain: float
    bad: int
    other: float
    """Share of one core that went to processes that have nothing to do with this."""


def script(folder: Path, running: Running) -> Path:
    """Write what wrk sends."""
    request = request_of(running.port, running.model, SECRET)
    head, body = request.split(b"\r\n\r\n", 1)
    headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
    for name in ("host", "content-length", "connection"):
        del headers[name]
    headers |= running.headers
    lines = [f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items()]
    text = ["wrk.method = 'POST'", f"wrk.body = [[{body.decode()}]]", *lines, REPORT]
    path = folder / f"{running.name}.lua"
    path.write_text("\n".join(text))
    return path


def raw(running: Running, *, stream: bool = False) -> bytes:
    """Return the bytes of a request to a gateway."""
    request = request_of(running.port, running.model, SECRET, stream=stream)
    more = "".join(f"{k}: {v}\r\n" for k, v in running.headers.items()).encode()
    request = request.replace(b"/v1/chat/completions", running.path.encode(), 1)
    return request.replace(b"accept: ", more + b"accept: ", 1)


def family(pid: int) -> list[int]:
    """Return a process with its children, and theirs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def pin(pid: int, core: int) -> None:
    """Keep a process, its threads and its children on one core."""
    for each in family(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            try:
                os.sched_setaffinity(int(task.name), {core})
            except ProcessLookupError:
                continue


@contextmanager
def awake(running: Running) -> Generator[None]:
    """Let a gateway run; at other times it is stopped, so that it takes nobody's turn."""
    os.killpg(running.process.pid, signal.SIGCONT)
    try:
        yield
    finally:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGSTOP)


def busy_s() -> float:
    """Return the seconds that all cores worked so far, steal included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def measure(
    running: Running, folder: Path, *, conns: int, seconds: float, cores: list[int],
    settle: float = 0.0,
) -> Round:  # fmt: skip
    """Put load on a gateway from ``cores``, a thread of wrk's on each.

    ``settle`` is how long its drain may go on afterwards.
    """
    before, busy = _cpu(running), busy_s()
    own = time.process_time() + _children_s()
    if WRK:
        url = f"http://127.0.0.1:{running.port}{running.path}"
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), WRK, f"-t{len(cores)}", f"-c{conns}",
             f"-d{max(1, round(seconds))}", "-s", str(script(folder, running)), url],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)
        if found is None:
            raise RuntimeError(done.stdout + done.stderr)
        said = json.loads(found[0])
        calls, us, bad, p50, p99 = (said[k] for k in ("calls", "us", "bad", "p50", "p99"))
    else:
        os.sched_setaffinity(0, cores)
        load = drive(running.port, raw(running), conns, seconds)
        times = sorted(load.times_us)
        calls, us, bad = load.calls, load.seconds * 1e6, 0
        p50, p99 = median(times), times[len(times) * 99 // 100]
    after = _cpu(running)
    passed, own = busy_s() - busy, time.process_time() + _children_s() - own
    if settle:
        time.sleep(settle)
    drained = _cpu(running)[1] - before[1]
    calls = max(calls, 1)
    cpu = after[0] - before[0]
    other = max(0.0, passed - own - cpu - (after[1] - before[1])) / (us / 1e6)
    return Round(calls, calls / us * 1e6, p50, p99, cpu / calls * 1e6, drained / calls * 1e6,
                 bad, other)  # fmt: skip


def _cpu(running: Running) -> tuple[float, float]:
    return cpu_s(running.process.pid) or (0.0, 0.0)


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
