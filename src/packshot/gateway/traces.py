"""Traces, off by default: a span per request, a child per attempt, sent by OTLP over HTTP.

A request's id is its trace's, so a line of log leads to its trace. Spans are made in a thread,
after the fact, with the times of the requests; OpenTelemetry is imported only where traces are on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.gateway import names
from packshot.gateway.batcher import Batcher

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["SpanRow", "Traces"]

MAX_SPANS = 20_000
"""Spans that may wait to be made; as many again may wait to be sent."""

SHARE_BITS = 56
"""Of a trace's id, the last ones decide whether it is sampled (W3C Trace Context, level 2)."""

LOW = (1 << 64) - 1


class SpanRow(msgspec.Struct):
    """A span to be made. ``began`` and ``ended`` are seconds of `time.perf_counter`."""

    request: str
    began: float
    ended: float
    attributes: dict[str, str | int | float]
    attempt: bool = False
    """A child of the request's span."""


class Traces:
    """Makes spans and sends them.

    ``share`` of the requests, 0 to 1, have theirs sent. ``exporter`` is for tests.

    Raises:
        InvalidRequest: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        url: str,
        share: float,
        worker: str,
        redact: Callable[[str], str] = str,
        exporter: SpanExporter | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(
                f"telemetry.otlp is a collector's http(s) URL, got {redact(url)!r}"
            )
        if not 0 <= share <= 1:
            raise InvalidRequest(f"telemetry.trace_share is 0 to 1, got {share:g}")
        self._least = round((1 - share) * (1 << SHARE_BITS))
        self._maker = _maker(url, worker, exporter)
        self._redact = redact
        # Both clocks are read once: what an adjustment of the wall clock moves is not a request.
        self._epoch_ns = time_ns() - perf_counter_ns()
        self._batcher: Batcher[SpanRow] = Batcher("traces", self._make, MAX_SPANS, 0.25)

    @property
    def dropped(self) -> int:
        """Spans that could not be made."""
        return self._batcher.dropped

    def start(self) -> None:
        """Start the threads."""
        self._batcher.start()

    def stop(self) -> None:
        """Send what waits, and end."""
        self._batcher.stop()
        self._maker.close()

    def sampled(self, request: str) -> bool:
        """Tell whether a request's spans are sent."""
        return int(request[-14:], 16) >= self._least

    def put(self, row: SpanRow) -> None:
        """Take a span."""
        self._batcher.put(row)

    def _make(self, batch: list[SpanRow]) -> None:
        for row in batch:
            attributes = {
                name: self._redact(value) if isinstance(value, str) else value
                for name, value in row.attributes.items()
                if value != ""
            }
            start, end = (self._epoch_ns + int(at * 1e9) for at in (row.began, row.ended))
            self._maker.make(row, attributes, start, end)


class _Maker:
    """OpenTelemetry's part, behind what it is imported for."""

    def __init__(self, url: str, worker: str, exporter: SpanExporter | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """Gives the request's span its place, under which attempts find it."""

            trace = 0
            span = 0

            def generate_trace_id(self) -> int:
                return self.trace or super().generate_trace_id()

            def generate_span_id(self) -> int:
                return self.span or super().generate_span_id()

        self._ids = Ids()
        resource = Resource.create({"service.name": "packshot", "service.instance.id": worker})
        self._provider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        exporter = exporter or OTLPSpanExporter(endpoint=url)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_SPANS))
        self._tracer = self._provider.get_tracer("packshot.gateway")

    def make(
        self, row: SpanRow, attributes: Mapping[str, str | int | float], start: int, end: int
    ) -> None:
        """Make one span."""
        from opentelemetry.context import Context
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            SpanKind,
            Status,
            StatusCode,
            TraceFlags,
            set_span_in_context,
        )

        trace = int(row.request, 16)
        context = Context()
        if row.attempt:
            parent = SpanContext(trace, trace & LOW, is_remote=False, trace_flags=TraceFlags(1))
            context = set_span_in_context(NonRecordingSpan(parent), context)
        self._ids.trace, self._ids.span = trace, 0 if row.attempt else trace & LOW
        span = self._tracer.start_span(
            f"{attributes[names.OPERATION]} {attributes.get(names.MODEL, '')}".rstrip(),
            context,
            SpanKind.CLIENT if row.attempt else SpanKind.SERVER,
            attributes,
            start_time=start,
        )
        if names.ERROR in attributes:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _maker(url: str, worker: str, exporter: SpanExporter | None) -> _Maker:
    try:
        return _Maker(url, worker, exporter)
    except ImportError as error:
        raise InvalidRequest(
            "telemetry.otlp needs OpenTelemetry: pip install 'packshot[traces]', or remove it"
        ) from error
