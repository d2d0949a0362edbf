"""Traces: a span per request, a child per attempt, by OTLP to a collector; nothing of a secret."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from packshot.core.ids import new_id
from packshot.gateway import names
from packshot.gateway.log import Redactor
from packshot.gateway.traces import SpanRow, Traces
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.world import world

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{name: production, value: env.KEY_A}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 5}}
"""
HELLO: Any = [{"role": "user", "content": "an unreleased sneaker"}]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Run a collector; yield its URL and what it received."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", got
        finally:
            server.shutdown()
            thread.join()


def made(*rows: SpanRow, share: float = 1.0, redact: Any = str) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    traces = Traces("http://127.0.0.1:1", share, "gateway-0", redact, exporter)
    traces.start()
    for row in rows:
        if traces.sampled(row.request):
            traces.put(row)
    traces.stop()
    assert traces.dropped == 0
    return exporter.get_finished_spans()


def test_an_attempt_is_a_child_of_its_request() -> None:
    request = new_id()
    attributes: dict[str, Any] = {names.OPERATION: "chat", names.MODEL: "gpt-4o"}
    trouble = {**attributes, names.ERROR: "timeout"}
    child, other, parent = made(
        SpanRow(request, 1.0, 1.5, trouble, attempt=True),
        SpanRow(request, 1.5, 2.0, attributes, attempt=True),
        SpanRow(request, 0.5, 2.5, attributes),
    )
    assert parent.context is not None
    assert parent.context.trace_id == int(request, 16)
    assert parent.parent is None
    assert parent.name == "chat gpt-4o"
    assert (parent.kind, child.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert child.context != other.context
    for each in (child, other):
        assert each.parent is not None
        assert each.parent.span_id == parent.context.span_id
        assert each.context is not None
        assert each.context.trace_id == parent.context.trace_id
    assert child.status.status_code is StatusCode.ERROR
    assert other.status.status_code is StatusCode.UNSET
    assert parent.end_time is not None
    assert parent.start_time is not None
    assert parent.end_time - parent.start_time == 2_000_000_000


def test_a_share_of_the_requests_is_sampled() -> None:
    rows = [SpanRow(new_id(), 0.0, 1.0, {names.OPERATION: "chat"}) for _ in range(4000)]
    assert len(made(*rows, share=0.0)) == 0
    assert len(made(*rows, share=1.0)) == 4000
    assert 800 < len(made(*rows, share=0.25)) < 1200


def test_no_secret_is_in_an_attribute() -> None:
    row = SpanRow(new_id(), 0.0, 1.0, {names.OPERATION: "chat", names.MODEL: "the-canary-key"})
    (span,) = made(row, redact=Redactor(["the-canary-key"]))
    assert "canary" not in span.to_json()


def test_a_gateway_sends_its_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "sk-canary-A-0123456789abcdef")
    with collector() as (url, got):
        yaml = YAML + f"telemetry: {{log: off, otlp: '{url}'}}\n"
        with (
            world(tmp_path, yaml, one=Settings()) as there,
            openai.OpenAI(base_url=there.url + "/v1", api_key="n", max_retries=0) as caller,
        ):
            there.fakes["one"].next(Fault(status=500))
            raw = caller.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)
            request = raw.headers["x-packshot-request-id"]
        spans = [
            span
            for each in got
            for resource in each.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    text = b"".join(each.SerializeToString() for each in got)
    assert {span.trace_id.hex() for span in spans} == {request}
    (parent,) = (span for span in spans if not span.parent_span_id)
    children = [span for span in spans if span.parent_span_id == parent.span_id]
    assert len(children) == len(spans) - 1 == 2
    said = {each.key: each.value for each in parent.attributes}
    assert said["gen_ai.operation.name"].string_value == "chat"
    assert said["gen_ai.provider.name"].string_value == "openai"
    assert said["gen_ai.usage.input_tokens"].int_value > 0
    assert said["http.response.status_code"].int_value == 200
    for child in children:
        assert parent.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= parent.end_time_unix_nano
    errors = [a.value.string_value for c in children for a in c.attributes if a.key == "error.type"]
    assert errors == ["server"]
    assert b"canary" not in text
    assert b"sneaker" not in text


def test_opentelemetry_is_not_imported_where_traces_are_off() -> None:
    code = (
        "import sys; from packshot.gateway.worker import Worker;"
        "print([n for n in sys.modules if n.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
