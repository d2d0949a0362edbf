"""What is sent to hurt: S6, S15, S18, S20 of the security matrix."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.gateway.intake import DOORS
from packshot.gateway.raw import PREFIX
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.guarded import (
    BODY,
    HEAD,
    KEYS,
    PEPPER,
    PROVIDER_KEY,
    YAML,
    body_for,
    credentials,
    post,
    say,
    there,
    upstream,
)
from tests.gateway.launched import bearer
from tests.gateway.world import World, world

__all__ = ["credentials", "there"]
# ---------------------------------------------------------------- S6, S15: what is too much


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@contextlib.contextmanager
def bounded(most_mib: float = 64) -> Iterator[None]:
    """Hold the memory of this process, gateway included, to so much more than before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_mib()
    yield
    assert peak_mib() - before <= most_mib


def test_ten_gigabytes_are_refused_unread(there: World) -> None:
    head = HEAD + f"Authorization: Bearer {KEYS['whole']}\r\nContent-Length: 10737418240\r\n\r\n"
    with bounded(8):
        said = say(there, head.encode())
    assert b" 413 " in said[:20]


def test_chunks_without_end_are_cut_off(there: World) -> None:
    head = HEAD + f"Authorization: Bearer {KEYS['whole']}\r\nTransfer-Encoding: chunked\r\n\r\n"
    port = int(there.url.rpartition(":")[2])
    sent = 0
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    with bounded(), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode())
        while not select.select([client], [], [], 0)[0]:
            client.sendall(chunk)
            sent += len(chunk)
            assert sent < 100 << 20
        assert b" 413 " in client.recv(1000)[:20]


MEGA = 1 << 20
MANY = b"{" + b",".join(b'"%x":1' % n for n in range(10**6)) + b"}"
BOMBS = {
    "a million members": MANY,
    "with spaces": MANY[: 5 * MEGA].replace(b":", b" :"),
    "nested members": b'{"model":"m","messages":' + MANY + b"}",
    "depth of objects": b'{"a":' * 100_000,
    "depth of lists": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep messages": b'{"model":"caption","messages":[{"role":"user","content":'
    + b"[" * 900
    + b"]" * 900
    + b"}]}",
    "a number of 100,000 digits": b'{"model":"caption","max_tokens":' + b"9" * 100_000 + b"}",
    "n of 100,000 digits": b'{"model":"caption","n":' + b"9" * 100_000 + b"}",
    "an exponent": b'{"model":"caption","max_tokens":1e999999}',
    "a name of a megabyte": b'{"' + b"a" * MEGA + b'":1}',
    "a model of a megabyte": b'{"model":"' + b"a" * MEGA + b'","messages":[]}',
    "no UTF-8": b'{"model":"\xff\xfe"}',
    "half a surrogate": b'{"model":"\\ud800","messages":[]}',
    "NUL": b'{"model":"\\u0000","messages":[]}',
    "NaN": b'{"model":"caption","temperature":NaN}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bodies_that_would_grow_are_refused_small(there: World, name: str) -> None:
    body = BOMBS[name]
    with bounded():
        for path in ("/v1/chat/completions", "/v1/messages", PREFIX + "openai/chat/completions"):
            answer = post(there, path, body)
            assert 400 <= answer.status_code < 500 or name == "deep messages", answer.text[:200]
            assert answer.status_code < 500, answer.text[:200]
            assert len(answer.content) < 2000
    assert post(there, "/v1/chat/completions", BODY).status_code == 200


def test_slow_clients_keep_nobody_out_and_are_sent_away(there: World) -> None:
    port = int(there.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(300)
        ]
        for each in slow[:150]:
            each.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: gat")
        for each in slow[150:]:
            each.sendall(HEAD.encode() + b"Content-Length: 100000\r\n\r\n{")
        for _ in range(20):
            assert post(there, "/v1/chat/completions", BODY).status_code == 200
        door = there._door
        assert door is not None

        async def later() -> int:
            """Look at the clock as if half a minute more had passed."""
            for each in list(door.connections):
                each.check(time.perf_counter() + 31.0)
            return len(door.connections)

        there.run(later())
        assert {each.recv(20)[9:12] for each in slow[:150]} == {b"408"}
        # Without a key nobody's body is waited for at all.
        assert {each.recv(20)[9:12] for each in slow[150:]} == {b"401"}
    assert upstream(there) == 20


# ---------------------------------------------------------------- S18: denial of wallet


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"n": 1000}, 400, "invalid_request"),
        ({"n": 128, "max_tokens": 1 << 24}, 402, "budget_exceeded"),
        ({"max_tokens": 1 << 24}, 402, "budget_exceeded"),
        ({"max_tokens": 1 << 25}, 400, "invalid_request"),
        ({"max_tokens": -1}, 400, "invalid_request"),
        ({"max_tokens": 0}, 400, "invalid_request"),
        ({"max_tokens": True}, 400, "invalid_request"),
        ({"max_tokens": "5"}, 400, "invalid_request"),
        ({"max_tokens": 5.5}, 400, "invalid_request"),
        ({"max_tokens": 5, "max_completion_tokens": 1 << 20}, None, ""),
        ({"model": "openai/gpt-4o-mini-2099-01-01"}, 403, "unpriced_model"),
        ({"model": "openai/o1-pro"}, 402, "budget_exceeded"),
    ],
)
@pytest.mark.parametrize("key", ["poor", "small"])
def test_what_could_cost_more_is_not_begun(
    there: World, key: str, more: dict[str, Any], status: int | None, code: str
) -> None:
    answer = post(there, "/v1/chat/completions", {**BODY, **more}, key)
    if status is None:
        assert answer.status_code in {400, 402}
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert upstream(there) == 0


def test_one_call_costs_no_more_than_it_may_its_attempts_together(there: World) -> None:
    """The first attempt may have been billed; the fallback is dearer than what is left."""
    assert post(there, "/v1/chat/completions", {**BODY, "max_tokens": 20}, "small").is_success
    there.fakes["one"].next(Fault(status=504), Fault(status=504))
    body = {**BODY, "model": "dear", "max_tokens": 20}
    answer = post(there, "/v1/chat/completions", body, "small")
    assert answer.status_code == 504
    assert "max_cost_eur" in answer.text
    assert "max_cost_eur" in answer.json()["error"]["message"]
    assert not there.fakes["two"].truth
    entries = there.booked()
    assert sum(entry.amount for entry in entries[1:]) <= 100_000


OPEN_ENDED = [
    {"web_search_options": {}},
    {"plugins": [{"id": "web"}]},
    {"search_parameters": {"mode": "auto"}},
    {"mcp_servers": [{"type": "url", "url": "https://tools.example"}]},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [{"type": "code_execution_20250522", "name": "x"}]},
    {"tools": {"type": "function"}},
]
OURS = [
    {"web_search_options": None, "plugins": []},
    {"tools": [{"type": "function", "function": {"name": "web_search", "parameters": {}}}]},
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", PREFIX + "openai/chat/completions"])
def test_a_tool_that_the_provider_runs_has_no_bound(there: World, path: str) -> None:
    body = {**body_for(path), "max_tokens": 5}
    for more in OPEN_ENDED:
        answer = post(there, path, {**body, **more}, "poor")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unbounded_cost"), more
    assert upstream(there) == 0
    for more in OURS:
        assert post(there, path, {**body, **more}, "poor").status_code == 200, more
    assert post(there, path, {**body, **OPEN_ENDED[0]}).status_code == 200


def test_a_retry_counts_with_what_came_before_it(there: World) -> None:
    """Each attempt alone would fit; the first may have been billed, so the second must not be."""
    there.fakes["one"].next(Fault(status=504))
    answer = post(there, "/v1/chat/completions", {**BODY, "max_tokens": 60}, "small")
    assert answer.status_code == 504, "what went wrong; the budget is why it was the last"
    assert "max_cost_eur" in answer.text
    assert len(there.fakes["one"].truth) == 1
    (entry,) = there.booked()
    assert entry.outcome == "unknown"
    assert 50_000 < entry.amount <= 100_000


def test_a_second_attempt_beside_the_first_counts_too(there: World) -> None:
    there.fakes["one"].next(Fault(head_after_s=0.5))
    body = {**BODY, "model": "hedged", "max_tokens": 60}
    assert post(there, "/v1/chat/completions", body, "small").status_code == 200
    assert len(there.fakes["one"].truth) == 1


def test_a_budget_is_not_exceeded_by_many_at_once(there: World) -> None:
    threads = [
        threading.Thread(
            target=lambda: post(there, "/v1/chat/completions", {**BODY, "max_tokens": 300}, "poor")
        )
        for _ in range(40)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert 0 < sum(e.amount for e in there.booked() if e.virtual_key == "poor") <= 2_000_000


# ---------------------------------------------------------------- S20: whatever comes, no 5xx

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["user", "system", "assistant", "tool", "text", "image_url", "auto", "data:,"]),
)
WORDS = st.sampled_from(
    [
        *("role", "content", "type", "text", "image_url", "url", "tool_calls", "function", "name"),
        *("arguments", "id", "tool_call_id", "input_schema", "source", "data", "media_type"),
        *("json_schema", "schema", "strict", "include_usage", "budget_tokens", "cache_control"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("messages", "model", "max_tokens", "max_completion_tokens", "n", "stream", "tools"),
        *("stream_options", "tool_choice", "response_format", "temperature", "top_p", "stop"),
        *("system", "thinking", "metadata", "user", "input", "encoding_format", "dimensions"),
        *("logprobs", "seed", "reasoning_effort", "functions", "modalities", "prediction"),
    ]
)
PATHS = st.sampled_from([*DOORS, PREFIX + "openai/chat/completions", PREFIX + "anthropic/messages"])
TARGETS = st.sampled_from(["caption", "dear", "anthropic/claude-haiku-4-5", "openai/x", "nobody/x"])
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("x-packshot-target", "x-packshot-timeout-ms", "x-packshot-tags", "content-type"),
            *("x-packshot-session", "x-packshot-stage", "anthropic-version", "anthropic-beta"),
            *("idempotency-key", "content-encoding", "accept", "expect", "x-packshot-render"),
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12),
    max_size=3,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_A", PROVIDER_KEY)
        patch.setenv("PEPPER", PEPPER)
        for name, secret in KEYS.items():
            patch.setenv(f"PK_{name.upper()}", secret)
        with world(tmp_path_factory.mktemp("fuzzed"), YAML, one=Settings(), two=Settings()) as made:
            yield made


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=PATHS,
    target=TARGETS,
    fields=st.dictionaries(FIELDS, VALUES, max_size=6),
    good=st.booleans(),
    headers=HEADERS,
)
def test_whatever_is_asked_the_answer_is_no_failure_of_ours(
    fuzzed: World,
    path: str,
    target: str,
    fields: dict[str, Any],
    good: bool,
    headers: dict[str, str],
) -> None:
    body = {"model": target, **fields}
    if good:
        body = {"messages": BODY["messages"], "input": "a", "max_tokens": 5, **body}
    client = http.client.HTTPConnection(fuzzed.url.removeprefix("http://"))
    try:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        raw = json.dumps(body).encode()
        client.request("POST", path, raw, {**bearer(KEYS["whole"]), **encoded})
        answer = client.getresponse()
        text = answer.read()
    finally:
        client.close()
    late = answer.status == 504 and "x-packshot-timeout-ms" in headers  # as the caller wished
    assert answer.status < 500 or late, (path, body, headers, text)
    if answer.status >= 400 and answer.getheader("content-type", "") == "application/json":
        error = json.loads(text)["error"]
        assert error["message"]
        assert error["type"]
    assert not fuzzed.errors, fuzzed.errors
