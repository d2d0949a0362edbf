"""What the gateway tells of itself: counters, histograms, traces, one line of log per request.

What is called for every request only adds to counters of this process; everything else (adding up,
formatting, sealing, sending) is done by threads. See `packshot.gateway.names` for what there is.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, TypeAlias

from packshot.core.clock import wall_us
from packshot.core.errors import OutputError
from packshot.gateway import names
from packshot.gateway.gauges import Gauges
from packshot.gateway.job import Job
from packshot.gateway.keys import OUT_S, Key
from packshot.gateway.log import Line, Log, Redactor
from packshot.gateway.names import FIRST_SECONDS, OTHER, OVERHEAD_SECONDS, SECONDS, Metric
from packshot.gateway.plan import Plan, Target
from packshot.gateway.settings import GatewaySettings
from packshot.gateway.snapshots import Labels, Snapshot, add_up, merge, page, read, write
from packshot.ledger.private import make_private_folder
from packshot.providers.base import Failure, FailureKind

if TYPE_CHECKING:
    from packshot.gateway.content import ContentLog
    from packshot.gateway.relay import Send
    from packshot.gateway.traces import Traces

__all__ = ["Telemetry"]

CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""A code of an error that may stand in the log: a provider's own could be any text."""

EVERY_S = 1.0
"""How often what was counted is written for the worker that serves the page."""

MODELS = 100
"""Models that are not in the configuration and have series of their own, per worker: their names
come from callers, so only those count that answered once."""

CELLS = 1000
"""Series of requests per worker; beyond them route and model are "other"."""

CLEAN = 4096
"""Names that are known to hold no secret."""

Counter: TypeAlias = dict[Labels, int]


class Cell:
    """What was counted of requests with the same labels."""

    __slots__ = (
        "cost", "count", "duration", "duration_s", "first", "first_s", "input_tokens",
        "output_tokens", "overhead", "overhead_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = self.cost = self.input_tokens = self.output_tokens = 0
        self.duration = [0] * (len(SECONDS) + 1)
        self.first = [0] * (len(FIRST_SECONDS) + 1)
        self.overhead = [0] * (len(OVERHEAD_SECONDS) + 1)
        self.duration_s = self.first_s = self.overhead_s = 0.0


class Telemetry:
    """Takes note; every method is cheap, and none of them raises or waits.

    One that was not started counts, and tells nobody.
    """

    def __init__(self, worker: str = "gateway-0") -> None:
        self.worker = worker
        self.redactor = Redactor()
        self._cells: dict[Labels, Cell] = {}
        self._attempts: Counter = {}
        self._rare: dict[str, Counter] = {}
        self._models: dict[str, int] = {}
        self._strangers = 0
        self._clean: set[str] = set()
        self._log: Log | None = None
        self._lines = False
        self._traces: Traces | None = None
        self._content: ContentLog | None = None
        self._recordings: dict[str, Recording] = {}
        self._folder: Path | None = None
        self._base = Snapshot()
        self._gauges: Callable[[], Gauges] = dict
        self._local_limits: Callable[[], int] = int
        self._ending = threading.Event()
        self._writes = threading.Lock()
        self._writer = threading.Thread(target=self._run, name="packshot-metrics", daemon=True)

    # ------------------------------------------------------------ beginning and end
    def start(self, settings: GatewaySettings, secrets: Iterable[str] = ()) -> None:
        """Begin to tell; ``secrets`` are what must stand in no log.

        Raises:
            InvalidRequest: the section has a mistake, or what it needs is not installed.
            OutputError: a folder cannot be used.
        """
        self.redactor.learn(secrets)
        entry, folder = settings.telemetry, settings.server.folder
        if entry.otlp:
            from packshot.gateway.traces import Traces

            self._traces = Traces(entry.otlp, entry.trace_share, self.worker, self.redactor)
        if entry.content_key:
            from packshot.gateway.content import ContentLog

            key, days = entry.content_key, entry.content_days
            self._content = ContentLog(settings.content_folder, key, days, self.worker)
        self._folder = folder / "metrics"
        try:
            make_private_folder(self._folder)
        except OSError as error:
            raise OutputError(f"{self._folder}: {error}: metrics are kept there") from error
        self._base = read(self._folder, self.worker) or self._base
        self._log = Log(entry.log, self.redactor, self.worker)
        self._lines = entry.log != "off"
        for each in (self._log, self._traces, self._content):
            if each is not None:
                each.start()
        self._writer.start()

    def watch(self, gauges: Callable[[], Gauges], local_limits: Callable[[], int]) -> None:
        """Know whom to ask what is going on now; they are called from another thread."""
        self._gauges, self._local_limits = gauges, local_limits

    def admit(self, plan: Plan) -> None:
        """Give the models of a plan series of their own."""
        for provider in plan.providers.values():
            for model in provider.entry.models:
                self._models[f"{provider.name}/{model}"] = 0
        for route in plan.routes.values():
            for target in route.targets:
                self._models[target.name] = 0

    def stop(self) -> None:
        """Write everything, and end the threads."""
        self._ending.set()
        if self._writer.is_alive():
            self._writer.join()
        for each in (self._content, self._traces, self._log):
            if each is not None:
                each.stop()
        self._write()
        self._lines, self._traces, self._content, self._log = False, None, None, None

    # ------------------------------------------------------------ what is called while serving
    def attempt(self, job: Job, target: Target, key: Key, outcome: str, began: float = 0.0) -> None:
        """Note an attempt's end; it began at ``began`` (`time.monotonic`)."""
        labels = (target.provider.name, key.name, target.model, outcome)
        if labels in self._attempts:
            self._attempts[labels] += 1
        else:
            provider, model = target.provider.name, target.model
            shown = self._model(provider, model, answered=outcome == "succeeded")
            labels = (provider, key.name, shown, outcome)
            self._attempts[labels] = self._attempts.get(labels, 0) + 1
        if self._traces is not None and began and self._traces.sampled(job.id):
            self._trace_attempt(job, target, key, outcome, began)

    def retry(self, job: Job, target: Target, why: FailureKind) -> None:
        """Note a retry of the same target."""
        del job
        self._count(names.RETRIES, target.provider.name, why)

    def fallback(self, job: Job, target: Target) -> None:
        """Note that a job went on to its next target."""
        self._count(names.FALLBACKS, job.route.id, target.provider.name)

    def opened(self, target: Target, key: Key) -> None:
        """Note that a breaker opened."""
        provider = target.provider.name
        self._count(names.OPENED, provider, key.name, self._model(provider, target.model))

    def taken_out(self, key: Key, failure: Failure) -> None:
        """Say that a key is left alone until a person sees to it."""
        if self._log is None:
            return
        what = f"the account of the key {key.name} of {key.provider} has no money left"
        if failure.kind == "auth":
            what = f"{key.provider} refuses the key {key.name}"
        until = f"it is left out, and tried again every {OUT_S:.0f} s"
        self._log.say("warning", f"{what} (status {failure.status}): {until}")

    def cached(self, job: Job, result: str, saved: int = 0) -> None:
        """Note what the response cache did, and the nano-EUR that it saved."""
        self._count(names.CACHE, job.route.id, result)
        if saved:
            self._count(names.CACHE_SAVED, job.route.id, result, by=saved)

    def checked(self, route: str, verdict: str) -> None:
        """Note what the check of a semantic hit found."""
        self._count(names.CACHE_CHECKS, route, verdict)

    def embedded(self, result: str, texts: int) -> None:
        """Note what came of asking the embeddings route for the vectors of some texts."""
        self._count(names.CACHE_EMBEDDINGS, result, by=texts)

    def budget_spent(self, provider: str) -> None:
        """Note that a retry was not made for want of budget."""
        self._count(names.REFUSED_RETRIES, provider)

    def finished(
        self,
        job: Job | None,
        surface: str,
        status: int,
        seconds: float,
        code: str = "",
        owner: str = "",
        *,
        request: str = "",
    ) -> None:
        """Note a request's end; ``job`` is None where it was refused before it became one, and has
        the id ``request``. ``code`` is that of the error that its caller got, ``owner`` the id of
        the virtual key, where known.
        """
        if code and not CODE.fullmatch(code):
            code = "other"
        if job is None:
            cell = self._cell((surface, "", "", "", str(status)))
            cell.count += 1
            cell.duration[bisect_left(SECONDS, seconds)] += 1
            cell.duration_s += seconds
            if self._lines and self._log is not None:
                us = int(seconds * 1e6)
                told = Line(time(), request, surface, status, seconds * 1e3, us)
                told.virtual_key, told.code = owner, code
                self._log.line(told)
            return
        target = job.target
        provider, model = ("", "") if target is None else (target.provider.name, target.model)
        cell = self._cells.get((surface, job.route.id, provider, model, status))  # type: ignore[arg-type]
        if cell is None:
            cell = self._new_cell(surface, job.route.id, provider, model, status)
        overhead = seconds - job.upstream_s
        cell.count += 1
        cell.duration[bisect_left(SECONDS, seconds)] += 1
        cell.duration_s += seconds
        cell.overhead[bisect_left(OVERHEAD_SECONDS, overhead)] += 1
        cell.overhead_s += overhead
        cell.input_tokens += job.input_tokens
        cell.output_tokens += job.output_tokens
        cell.cost += job.cost
        if job.first_byte_s:
            cell.first[bisect_left(FIRST_SECONDS, job.first_byte_s)] += 1
            cell.first_s += job.first_byte_s
        if self._lines:
            self._tell(job, surface, status, seconds, overhead, code)
        if self._traces is not None and self._traces.sampled(job.id):
            self._trace(job, surface, status, seconds)
        if self._recordings:
            self._keep(job, surface, status)

    def error(self, job: Job | None, error: BaseException, request: str = "") -> None:
        """Note a failure of our own, for the log: the caller hears only its request's id, which is
        ``request`` where there is no job.
        """
        self._count(names.ERRORS)
        if self._log is not None:
            self._log.error(job.id if job is not None else request, error)

    def record(self, job: Job, body: bytes, send: Send) -> Send:
        """Return a ``send`` that keeps what goes through it, for a virtual key whose contents are
        logged; `finished` hands it on. Without a key to seal it, nothing is kept.
        """
        if self._content is None:
            return send
        recording = self._recordings[job.id] = Recording(body, send)
        return recording.send

    # ------------------------------------------------------------ the page
    def page(self) -> str:
        """Return the metrics of all workers; not for the event loop: it reads files."""
        self._write()
        now = wall_us()
        return page(merge(self._folder, now) if self._folder else self.collect())

    def collect(self) -> Snapshot:
        """Return all that this worker counted, what is in its file from before included."""
        made = Snapshot(wall_us(), models=dict(self._models))
        for metric in (names.REQUESTS, names.ATTEMPTS, names.TOKENS, names.COST):
            made.counters[metric.name] = {}
        for name, counter in list(self._rare.items()):
            made.counters[name] = dict(counter)
        made.counters[names.ATTEMPTS.name] = dict(self._attempts)
        for labels, cell in list(self._cells.items()):
            _spread(made, labels, cell)
        made.counters[names.LOCAL_LIMITS.name] = {(): self._local_limits()}
        made.counters[names.DROPPED.name] = {
            (what,): 0 if each is None else each.dropped
            for what, each in (
                ("log", self._log),
                ("traces", self._traces),
                ("content", self._content),
            )
        }
        made.gauges = dict(self._gauges())
        return add_up(made, self._base)

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            self._write()

    def _write(self) -> None:
        if self._folder is None:
            return
        with self._writes:
            try:
                write(self._folder, self.worker, self.collect())
            except Exception as error:  # noqa: BLE001 - said in the log; the page shows it by age
                self.error(None, error)

    # ------------------------------------------------------------ details
    def _count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        counter = self._rare.setdefault(metric.name, {})
        counter[labels] = counter.get(labels, 0) + by

    def _model(self, provider: str, model: str, *, answered: bool = False) -> str:
        """Return the label of a model: its name where it has series, else "other"."""
        name = f"{provider}/{model}"
        if name in self._models:
            return model
        if not answered or self._strangers >= MODELS:
            return OTHER if model else ""
        if self.redactor(name) != name:
            return OTHER
        self._strangers += 1
        self._models[name] = wall_us()
        return model

    def _new_cell(self, surface: str, route: str, provider: str, model: str, status: int) -> Cell:
        shown = self._model(provider, model, answered=status == 200) if model else ""
        return self._cell((surface, route, provider, shown, status))  # type: ignore[arg-type]

    def _cell(self, labels: Labels) -> Cell:
        cell = self._cells.get(labels)
        if cell is None:
            if len(self._cells) >= CELLS:
                surface, _, provider, _, status = labels
                labels = (surface, OTHER, provider, OTHER, status)
            cell = self._cells.setdefault(labels, Cell())
        return cell

    def _shown(self, text: str) -> str:
        """Return a caller's text as it may stand in a log."""
        if text in self._clean:
            return text
        shown = self.redactor(text)
        if shown == text and len(self._clean) < CLEAN:
            self._clean.add(text)
        return shown

    def _tell(
        self, job: Job, surface: str, status: int, seconds: float, overhead: float, code: str
    ) -> None:
        if self._log is None:
            return
        target = job.target
        self._log.line(
            Line(
                time(),
                job.id,
                surface,
                status,
                seconds * 1e3,
                int(overhead * 1e6),
                job.route.id,
                "" if target is None else target.provider.name,
                self._shown(job.model if target is None else target.model),
                job.key,
                job.owner.id,
                job.attempts,
                job.retries,
                job.fallbacks,
                job.input_tokens,
                job.output_tokens,
                job.cost,
                job.first_byte_s * 1e3,
                job.stream,
                job.replayed,
                code,
            )
        )

    def _keep(self, job: Job, surface: str, status: int) -> None:
        from packshot.gateway.content import Content

        recording = self._recordings.pop(job.id, None)
        if recording is None or self._content is None:
            return
        target = job.target
        provider, model = (
            ("", job.model) if target is None else (target.provider.name, target.model)
        )
        owner, route = job.owner, job.route.id
        answer = b"".join(recording.parts)
        self._content.put(
            Content(
                time(), job.id, owner.id, owner.team, surface, route, provider, model, status,
                recording.body, answer,
            )
        )  # fmt: skip

    def _trace(self, job: Job, surface: str, status: int, seconds: float) -> None:
        from packshot.gateway.traces import SpanRow

        target = job.target
        attributes: dict[str, str | int | float] = {
            names.OPERATION: names.OPERATIONS.get(surface, "chat"),
            names.PROVIDER: "" if target is None else target.provider.name,
            names.MODEL: job.model,
            names.INPUT_TOKENS: job.input_tokens,
            names.OUTPUT_TOKENS: job.output_tokens,
            names.STATUS: status,
            names.REQUEST: job.id,
            names.ROUTE: job.route.id,
            names.VIRTUAL_KEY: job.owner.id,
            names.TEAM: job.owner.team,
            names.COST_EUR: job.cost / 1e9,
        }
        if status >= 400:
            attributes[names.ERROR] = str(status)
        if self._traces is not None:
            self._traces.put(SpanRow(job.id, job.began, job.began + seconds, attributes))

    def _trace_attempt(
        self, job: Job, target: Target, key: Key, outcome: str, began: float
    ) -> None:
        from packshot.gateway.traces import SpanRow

        attributes: dict[str, str | int | float] = {
            names.OPERATION: names.OPERATIONS.get(job.surface, "chat"),
            names.PROVIDER: target.provider.name,
            names.MODEL: target.model,
            names.KEY: key.name,
        }
        if outcome != "succeeded":
            attributes[names.ERROR] = outcome
        if self._traces is not None:
            now = perf_counter()
            since = now - (monotonic() - began)
            self._traces.put(SpanRow(job.id, since, now, attributes, attempt=True))


class Recording:
    """What one caller sent and gets."""

    __slots__ = ("_send", "body", "parts")

    def __init__(self, body: bytes, send: Send) -> None:
        self.body = body
        self.parts: list[bytes] = []
        self._send = send

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's ``send``."""
        body = message.get("body")
        if body:
            self.parts.append(body)
        await self._send(message)


def _spread(made: Snapshot, labels: Labels, cell: Cell) -> None:
    """Add a cell to the families that come from it."""
    surface, route, provider, model, status = labels
    counters = made.counters
    _add(counters[names.REQUESTS.name], (surface, route, provider, model, str(status)), cell.count)
    if cell.input_tokens or cell.output_tokens:
        _add(counters[names.TOKENS.name], ("input", provider, model), cell.input_tokens)
        _add(counters[names.TOKENS.name], ("output", provider, model), cell.output_tokens)
    if cell.cost:
        _add(counters[names.COST.name], (route, provider, model), cell.cost)
    call = (surface, route, provider, model)
    _add_all(made, names.DURATION, call, [*cell.duration, cell.duration_s])
    if any(cell.first):
        _add_all(made, names.FIRST_BYTE, call, [*cell.first, cell.first_s])
    if any(cell.overhead):
        _add_all(made, names.OVERHEAD, (surface,), [*cell.overhead, cell.overhead_s])


def _add(counter: Counter, labels: Labels, value: int) -> None:
    counter[labels] = counter.get(labels, 0) + value


def _add_all(made: Snapshot, metric: Metric, labels: Labels, numbers: list[float]) -> None:
    table = made.histograms.setdefault(metric.name, {})
    before = table.get(labels)
    table[labels] = (
        numbers if before is None else [a + b for a, b in zip(before, numbers, strict=True)]
    )
