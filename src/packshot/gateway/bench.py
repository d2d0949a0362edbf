"""What the gateway costs: a configuration's own overhead, on this machine, against going direct.

The configuration is copied with every provider at a fake one (`packshot.providers.fake`), every
secret a dummy, and ledger and state in a folder that is removed afterwards: nothing is sent to
anybody and nothing is booked. The virtual key of the calls has limits and a budget, so that all
that a call passes through is at work. Calls through the gateway and calls straight to the fake take
turns.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from statistics import median
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec
import yaml

from packshot.core.config import read
from packshot.core.errors import InvalidRequest, PackshotError
from packshot.gateway.settings import load_gateway
from packshot.ledger.settings import SECTIONS
from packshot.providers.rows import COMPATIBLE, ROWS

__all__ = [
    "Figures",
    "Load",
    "Options",
    "bench",
    "cpu_s",
    "drive",
    "prepared",
    "request_of",
    "started",
    "started_fake",
]

SECRET = "pk-bench-0123456789abcdef0123456789abcdef"  # noqa: S105 - opens nothing
VARIABLE = "PACKSHOT_BENCH_SECRET"
"""Holds `SECRET` in the gateway's environment: it stands for every secret of the configuration."""

PLENTY = "1000000000"
PATIENCE_S = 30.0
"""How long the gateway may take to get ready."""

PROMPT_BYTES = 700
KEPT = ("providers", "routes", "mcp", "fallbacks", "access", "server", "telemetry", "ledger")
"""Sections that are copied; the others do not touch a call."""

PACE_MS = "2"
"""Between the events of a stream: as one burst they would come in a few pieces."""

Running: TypeAlias = tuple[int, subprocess.Popen[str]]
"""A port, and the process that listens there."""

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure: ``rounds`` of ``seconds`` each way, over ``connections`` at once.

    ``model`` is what the calls ask for; "" takes the first route, or the first provider's first
    model.
    """

    rounds: int = 5
    seconds: float = 1.0
    connections: int = 16
    model: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out; times in microseconds, medians of the rounds.

    ``added_*`` is the latency at one connection less that of a direct call. CPU times are None
    where the system does not tell them, that of a chunk also where Anthropic is asked. ``drain_us``
    is what the ledger's drain used meanwhile, for a call.
    """

    model: str
    calls: int
    direct_p50_us: float
    added_p50_us: float
    added_p99_us: float
    per_s: float
    direct_per_s: float
    cpu_us: float | None
    drain_us: float | None
    chunk_us: float | None
    load: float


@dataclass(frozen=True, slots=True)
class Load:
    """What a stretch of calls came to."""

    calls: int
    seconds: float
    times_us: list[float]


def bench(path: Path, options: Options) -> Figures:
    """Measure the configuration in ``path``.

    Raises:
        InvalidRequest, OutputError: the configuration has a mistake.
        PackshotError: the gateway did not get ready, or a call failed; the message has its answer.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packshot-bench-")))
        # The fast fake speaks OpenAI's API only. The other paces whole answers, too.
        static = not _asks_anthropic(path, options.model)
        pace = ("--every-ms", PACE_MS) if static else ()
        fake, _ = stack.enter_context(started_fake(*pace, static=static))
        config, model = prepared(path, folder, fake, options.model)
        port, process = stack.enter_context(started(config))
        # A request of its own for each: a route's name means nothing to the provider.
        ours = request_of(port, model, SECRET)
        theirs = request_of(fake, "gpt-4o-mini", SECRET)
        drive(port, ours, options.connections, 0.5)  # warm-up: connections, caches, the price list
        drive(fake, theirs, options.connections, 0.2)
        through, direct = _in_turns(port, ours, fake, theirs, options.seconds)
        loads: list[Load] = []
        plain: list[Load] = []
        used: list[tuple[float, float] | None] = []
        for _ in range(options.rounds):
            plain.append(drive(fake, theirs, options.connections, options.seconds / 4))
            before = cpu_s(process.pid)
            loads.append(drive(port, ours, options.connections, options.seconds))
            used.append(_since(before, cpu_s(process.pid), loads[-1].calls))
        cpu = [each for each in used if each is not None]
        return Figures(
            model,
            sum(load.calls for load in loads) + len(through),
            median(direct),
            median(through) - median(direct),
            _high(through) - _high(direct),
            median([load.calls / load.seconds for load in loads]),
            median([load.calls / load.seconds for load in plain]),
            median([each[0] for each in cpu]) if cpu else None,
            median([each[1] for each in cpu]) if cpu else None,
            _chunks(port, process.pid, model, options) if static else None,
            os.getloadavg()[0],
        )


# ------------------------------------------------------------------------------ the configuration


def prepared(path: Path, folder: Path, fake: int, model: str = "") -> tuple[Path, str]:
    """Write the configuration of the measurement to ``folder``; return it and the model to ask for.

    ``fake`` is the fake provider's port.

    Raises:
        InvalidRequest, OutputError: the configuration has a mistake.
    """
    given = _document(path)
    made = {name: given[name] for name in KEPT if name in given}
    providers = cast("dict[str, dict[str, Any]]", made.get("providers", {}))
    if not providers:
        raise InvalidRequest(f"{path}: no provider is configured: add providers: with keys")
    for name, entry in providers.items():
        _redirect(name, entry, fake)
    key = {
        "id": "packshot-bench",
        "value": f"env.{VARIABLE}",
        "limits": {"requests_per_minute": PLENTY, "tokens_per_minute": PLENTY + "000"},
        "budget": {"eur": PLENTY, "unpriced": "allow"},
    }
    # The keys of others are of no use here, and their dummies would be one secret twice.
    made["access"] = {"virtual_keys": [key], "pepper": f"env.{VARIABLE}"}
    server = dict(made.get("server", {}))
    server |= {"state": "state", "admin_port": "0", "host": "127.0.0.1"}
    if "://" in server.get("limits", ""):
        server.pop("limits")  # a shared store is not ours to write to
    made["server"] = server
    made.get("telemetry", {}).pop("otlp", None)
    for name in ("content_log", "content_key"):
        made.get("telemetry", {}).pop(name, None)
    ledger = dict(made.get("ledger", {}))
    ledger.pop("storage", None)
    if ledger.get("durability") == "store":
        ledger["durability"] = "power"
    for cap in ledger.get("caps", ()):
        cap |= {"eur": PLENTY, "unpriced": "allow"}
    made["ledger"] = ledger | {"store": "ledger.db", "journal": "journal"}
    copy = folder / "packshot.yaml"
    copy.write_text(yaml.safe_dump(made), encoding="utf-8")
    os.environ.setdefault(VARIABLE, SECRET)
    load_gateway(copy)
    return copy, model or _model_of(made)


def _document(path: Path) -> dict[str, Any]:
    """Return the file as plain lists and texts; numbers keep the digits that were typed."""
    read(path, SECTIONS)
    loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - texts only
    return cast("dict[str, Any]", _without_nothing(loaded or {}))


def _without_nothing(value: Any) -> Any:  # noqa: ANN401 - whatever YAML has
    """Leave out what is null or empty: it means that nothing is said."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {k: _without_nothing(v) for k, v in pairs if v not in ("", "~", "null")}
    if isinstance(value, list):
        return [_without_nothing(each) for each in cast("list[Any]", value)]
    return value


def _redirect(name: str, entry: dict[str, Any], fake: int) -> None:
    """Point a provider at the fake, under the path that it has at home."""
    url = entry.get("base_url", "")
    kind = entry.get("kind") or (name if name in ROWS or not url else COMPATIBLE.name)
    row = ROWS.get(kind, COMPATIBLE)
    entry["kind"] = kind
    entry["base_url"] = f"http://127.0.0.1:{fake}{urlsplit(url or row.base_url).path}"
    for key in entry.get("keys", ()):
        key["value"] = f"env.{VARIABLE}"
    for name_of_file in ("ca", "proxy"):
        entry.get("network", {}).pop(name_of_file, None)


def _asks_anthropic(path: Path, model: str) -> bool:
    """Tell whether the calls go to a provider that speaks Anthropic's API."""
    given = _document(path)
    routes = {route["id"]: route for route in given.get("routes") or given.get("mcp") or ()}
    model = model or _model_of(given)
    target: str = routes[model].get("primary", "") if model in routes else model
    provider = target.partition("/")[0]
    return "anthropic" in (given.get("providers", {}).get(provider, {}).get("kind"), provider)


def _model_of(made: Mapping[str, Any]) -> str:
    routes = made.get("routes") or made.get("mcp")
    if routes:
        return str(routes[0]["id"])
    providers: dict[str, dict[str, Any]] = made.get("providers", {})
    name = next(iter(providers), "")
    models: dict[str, Any] = providers[name].get("models", {}) if name else {}
    return f"{name}/{next(iter(models), 'gpt-4o-mini')}"


# ------------------------------------------------------------------------------ the processes


@contextmanager
def started_fake(*words: str, static: bool = True) -> Generator[Running]:
    """Run the fake provider in a process of its own; yield its port."""
    command = [sys.executable, "-P", "-m", "packshot.providers.fake", "--reply-bytes", "1024"]
    command += ["--static" if static else "--no-bodies", *words]
    with _running(command, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("port "):
            raise PackshotError(f"the fake provider did not start: {line!r}")
        yield int(line.split()[1]), process


@contextmanager
def started(config: Path, *words: str) -> Generator[Running]:
    """Run the gateway of a prepared configuration; yield its port once it is ready.

    Raises:
        PackshotError: it ended, or was not ready in time; the message has what it said.
    """
    log = config.with_suffix(".log")
    command = [sys.executable, "-P", "-m", "packshot", "gateway", "-c", str(config), "--port", "0"]
    with log.open("w") as out, _running([*command, *words], stdout=out, stderr=out) as process:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and process.poll() is None:
            found = ADDRESS.search(log.read_text())
            if found and _is_ready(int(found[1])):
                yield int(found[1]), process
                return
            time.sleep(0.05)
        raise PackshotError(f"the gateway did not get ready: {log.read_text().strip()[-2000:]}")


@contextmanager
def _running(command: list[str], **streams: Any) -> Generator[subprocess.Popen[str]]:  # noqa: ANN401
    environment = {**os.environ, VARIABLE: SECRET}
    process = subprocess.Popen(command, text=True, env=environment, **streams)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as made:
            made.sendall(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return b" 200 " in made.recv(100)
    except OSError:
        return False


def cpu_s(pid: int) -> tuple[float, float] | None:
    """Return the CPU seconds of a gateway so far, and those of its drain; None where unknown."""
    own, drain = 0.0, 0.0
    for each in _family(pid):
        seconds = _threads_s(each)
        if b"packshot.gateway.drainer" in _read(f"/proc/{each}/cmdline"):
            drain += seconds
        else:
            own += seconds
    return (own, drain) if own else None


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in _list(f"/proc/{pid}/task"):
        for child in _read(f"/proc/{pid}/task/{task}/children").split():
            yield from _family(int(child))


def _threads_s(pid: int) -> float:
    # The scheduler's own count, in nanoseconds: that of `times` goes by ticks of 4 ms or more.
    counts = (_read(f"/proc/{pid}/task/{each}/schedstat") for each in _list(f"/proc/{pid}/task"))
    return sum(int(count.split()[0]) for count in counts if count) / 1e9


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return []


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError:
        return b""


def _since(
    before: tuple[float, float] | None, after: tuple[float, float] | None, calls: int
) -> tuple[float, float] | None:
    """Return microseconds per call, of the gateway and of its drain."""
    if before is None or after is None or not calls:
        return None
    return (after[0] - before[0]) / calls * 1e6, (after[1] - before[1]) / calls * 1e6


# ------------------------------------------------------------------------------ the calls


def request_of(port: int, model: str, secret: str, *, stream: bool = False) -> bytes:
    """Return a chat request of some 1.2 kB, with the headers that OpenAI's client sends."""
    text = "the quick brown fox jumps over the lazy dog " * (PROMPT_BYTES // 44 + 1)
    content: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": text[: PROMPT_BYTES // 3]},
            {"role": "user", "content": text[: PROMPT_BYTES * 2 // 3]},
        ],
        "max_tokens": 200,
        "temperature": 0.2,
    }
    if stream:
        content["stream"] = True
    body = msgspec.json.encode(content)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        "accept-encoding: gzip, deflate\r\nconnection: keep-alive\r\naccept: application/json\r\n"
        "content-type: application/json\r\nuser-agent: OpenAI/Python 2.0.0\r\n"
        f"authorization: Bearer {secret}\r\nx-stainless-lang: python\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Line:
    """One connection with one call under way at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.sent = 0.0
        self.received = bytearray()

    def send(self) -> None:
        self.received.clear()
        self.sent = time.perf_counter()
        self.socket.sendall(self.request)

    def has_all(self) -> bool:
        """Read what is there, and tell whether it is the whole answer.

        Raises:
            PackshotError: it is another than 200.
        """
        data = self.socket.recv(1 << 18)
        if not data:
            raise PackshotError("a connection was closed in the middle of a call")
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return False
        if not self.received.startswith(b"HTTP/1.1 200 "):
            raise PackshotError(f"a call failed: {bytes(self.received[:1000]).decode('latin-1')}")
        length = LENGTH.search(self.received, 0, head)
        if length is None:
            return self.received.endswith(b"0\r\n\r\n")
        return len(self.received) >= head + 4 + int(length[1])

    def call(self) -> float:
        """Make a call and return its microseconds."""
        self.send()
        while not self.has_all():
            pass
        return (time.perf_counter() - self.sent) * 1e6


def drive(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Keep calls under way on all connections for so long, and wait for the last ones.

    Raises:
        PackshotError: a call failed.
    """
    lines = [_Line(port, request) for _ in range(connections)]
    times: list[float] = []
    try:
        with DefaultSelector() as selector:
            for line in lines:
                selector.register(line.socket, EVENT_READ, line)
                line.send()
            began = now = time.perf_counter()
            open_calls = connections
            while open_calls:
                for key, _ in selector.select(PATIENCE_S):
                    line = cast("_Line", key.data)
                    if line.has_all():
                        now = time.perf_counter()
                        times.append((now - line.sent) * 1e6)
                        if now < began + seconds:
                            line.send()
                        else:
                            open_calls -= 1
            return Load(len(times), now - began, times)
    finally:
        for line in lines:
            line.socket.close()


def _in_turns(
    port: int, ours: bytes, fake: int, theirs: bytes, seconds: float
) -> tuple[list[float], list[float]]:
    """Return the microseconds of calls through the gateway and of direct ones, made in turns."""
    through, direct = _Line(port, ours), _Line(fake, theirs)
    try:
        until = time.perf_counter() + seconds
        times = [(through.call(), direct.call())]
        while time.perf_counter() < until:
            times.append((through.call(), direct.call()))
    finally:
        through.socket.close()
        direct.socket.close()
    return [each[0] for each in times], [each[1] for each in times]


def _chunks(port: int, pid: int, model: str, options: Options) -> float | None:
    """Return the CPU microseconds of a streamed chunk, its share of the call included."""
    request = request_of(port, model, SECRET, stream=True)
    line = _Line(port, request)
    try:
        line.call()
        events = line.received.count(b"data: ")
    finally:
        line.socket.close()
    found: list[float] = []
    for _ in range(options.rounds):
        before = cpu_s(pid)
        load = drive(port, request, options.connections, options.seconds / 2)
        each = _since(before, cpu_s(pid), load.calls * events)
        if each is not None:
            found.append(each[0])
    return median(found) if found else None


def _high(times: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[len(times) * 99 // 100]
