"""The security matrix against the whole gateway: S2, S3, S5, S6, S8, S10, S15, S18, S20."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import logging
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.gateway.app import MODELS
from packshot.gateway.intake import DOORS
from packshot.gateway.raw import PREFIX
from packshot.gateway.virtual_key import VirtualKeyEntry
from packshot.providers.fake_script import Fault, Settings, limited
from packshot.state.limits import Rule
from tests.gateway.launched import bearer, http_get, http_post, until
from tests.gateway.world import World, world

NAMES = ("whole", "route", "other", "expired", "far", "poor", "small")
KEYS = {name: f"pk-{name}-0123456789012345678901234567890" for name in NAMES}
PROVIDER_KEY = "sk-canary-7f3a9c51e2b84d06a1c7"
PEPPER = "pepper-canary-4c1d8e7b2a9f4c33aa01b2c3d4e5f607"

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 2}}
  anthropic:
    base_url: {two}/v1
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 2}}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
  - {id: dear, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-opus-4-1]}
access:
  pepper: env.PEPPER
  virtual_keys:
    - {id: whole, value: env.PK_WHOLE}
    - {id: route, value: env.PK_ROUTE, models: [caption]}
    - {id: other, value: env.PK_OTHER, models: [anthropic/*], keys: [anthropic/*]}
    - {id: expired, value: env.PK_EXPIRED, expires: 2020-01-01}
    - {id: far, value: env.PK_FAR, allow_ips: [10.0.0.0/8]}
    - {id: poor, value: env.PK_POOR, budget: {eur: 0.002}}
    - {id: small, value: env.PK_SMALL, max_cost_eur: 0.0001}
server: {state: state}
"""
BODY = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", PROVIDER_KEY)
    monkeypatch.setenv("PEPPER", PEPPER)
    for name, secret in KEYS.items():
        monkeypatch.setenv(f"PK_{name.upper()}", secret)
    # A hundred wrong secrets of one address are what is tested here.
    monkeypatch.setattr("packshot.gateway.access.FAILURES", Rule(10**6, 60.0))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as made:
        yield made


def post(there: World, path: str, body: Any, key: str = "whole", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = bearer(KEYS.get(key, key))
    return http_post(
        there.url + path,
        content=content,
        headers={**more, **{n.replace("_", "-"): v for n, v in headers.items()}},
    )


def upstream(there: World) -> int:
    return sum(len(fake.truth) for fake in there.fakes.values())


# ---------------------------------------------------------------- S2: who may what

CREDENTIALS = ["", "bad", "revoked", "expired", "far", "other", "route", "whole"]
OPENAI = [401, 401, 401, 401, 403, 403, 403, 200]
CLAUDE = [401, 401, 401, 401, 403, 200, 403, 200]
LIST = [401, 401, 401, 401, 403, 200, 200, 200]
OPEN = [200] * 8
TABLE: dict[tuple[str, str], list[int]] = {
    ("POST", "/v1/chat/completions"): OPENAI,
    ("POST", "/v1/embeddings"): OPENAI,
    ("POST", "/v1/messages"): CLAUDE,
    ("POST", "/v1/messages/count_tokens"): CLAUDE,
    ("POST", "/openai/v1/chat/completions"): OPENAI,
    ("POST", "/openai/v1/embeddings"): OPENAI,
    ("POST", "/anthropic/v1/messages"): CLAUDE,
    ("POST", "/anthropic/v1/messages/count_tokens"): CLAUDE,
    ("GET", "/v1/models"): LIST,
    ("GET", "/openai/v1/models"): LIST,
    ("GET", "/anthropic/v1/models"): LIST,
    ("POST", PREFIX + "openai/chat/completions"): OPENAI,
    ("GET", PREFIX + "openai/models"): OPENAI,
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
}
"""What every path answers to every credential, in the order above. The rest is 404 or 405."""


def body_for(path: str) -> dict[str, Any]:
    if "messages" in path:
        return {**BODY, "model": "anthropic/claude-haiku-4-5", "max_tokens": 5}
    if "embeddings" in path:
        return {"model": "openai/text-embedding-3-small", "input": "a"}
    return {**BODY, "model": "gpt-4o-mini"} if path.startswith(PREFIX) else BODY


def test_the_table_has_every_path_of_the_application() -> None:
    assert {path for method, path in TABLE if method == "POST" and PREFIX not in path} == set(DOORS)
    assert {path for _, path in TABLE if path.endswith("/v1/models")} == set(MODELS)


def test_every_path_with_every_credential(there: World) -> None:
    from packshot.gateway.access import Hasher
    from packshot.gateway.keystore import open_key_store

    store = open_key_store(str(there.folder / "ledger.db"), Hasher(PEPPER.encode()))
    revoked = store.create(VirtualKeyEntry("gone"), "test")
    until(lambda: post(there, "/v1/chat/completions", BODY, revoked).status_code == 200)
    store.revoke("gone", "test")
    until(lambda: post(there, "/v1/chat/completions", BODY, revoked).status_code == 401)
    store.close()
    secrets = {"": "", "bad": "pk-" + "x" * 43, "revoked": revoked}
    for (method, path), expected in TABLE.items():
        got: list[int] = []
        for name in CREDENTIALS:
            before = upstream(there)
            secret = secrets.get(name, KEYS.get(name, ""))
            if method == "POST":
                answer = post(there, path, body_for(path), secret)
            else:
                answer = http_get(there.url + path, headers=bearer(secret))
            got.append(answer.status_code)
            if answer.status_code != 200:
                assert upstream(there) == before, (path, name)
        assert got == expected, (method, path)


def test_a_route_is_all_that_its_key_may_ask_for_by_whatever_name(there: World) -> None:
    assert post(there, "/v1/chat/completions", {**BODY, "model": "caption"}, "route").is_success
    before = upstream(there)
    for headers in (
        {"x_packshot_target": "openai/gpt-4o"},
        {"x_packshot_route": "dear"},
        {"x_packshot_target": "openai/gpt-4o-mini"},
    ):
        answer = post(
            there, "/v1/chat/completions", {**BODY, "model": "caption"}, "route", **headers
        )
        assert answer.status_code == 403
    assert upstream(there) == before


# ---------------------------------------------------------------- S3, S10: one reading of a request


def say(there: World, data: bytes, *, linger_s: float = 0.3) -> bytes:
    """Send bytes as they are; return all that came back."""
    port = int(there.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        client.settimeout(linger_s)
        parts: list[bytes] = []
        with contextlib.suppress(OSError):
            while part := client.recv(65536):
                parts.append(part)
    return b"".join(parts)


def request(target: str, *lines: str, body: bytes = b"", host: str = "gateway") -> bytes:
    head = [f"POST {target} HTTP/1.1", f"Host: {host}", "Connection: close", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body


CONFUSING = [
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions/.",
    "/v1/chat/../chat/completions",
    "/healthz/../v1/chat/completions",
    "/healthz;/v1/chat/completions",
    "/healthz%2f..%2fv1/chat/completions",
    "/v1/chat%2fcompletions",
    "/V1/CHAT/COMPLETIONS",
    "/v1/chat/completions%00",
    "/v1/chat/completions%20",
    "/v1/chat/completions;a=b",
    "/v1/chat/completions\\",
    "http://other/v1/chat/completions",
    "http://healthz@other/v1/chat/completions",
    "/healthz?/v1/chat/completions",
    "/healthz#/v1/chat/completions",
    "/healthz/..;/v1/chat/completions",
    "/%76%31/%63hat/completions",
    "/raw/openai/../anthropic/messages",
    "/raw//openai/chat/completions",
    "/raw/openai/%2e%2e/%2e%2e/v1/chat/completions",
    "/%72aw/openai/chat/completions",
    "*",
]
REWRITING = [
    "X-Original-URL: /healthz",
    "X-Rewrite-URL: /healthz",
    "X-Forwarded-Host: other",
    "X-Forwarded-Prefix: /healthz",
    "X-Forwarded-For: 10.1.2.3",
    "Forwarded: for=10.1.2.3",
    "X-HTTP-Method-Override: GET",
]


@pytest.mark.parametrize("line", ["", *REWRITING])
def test_no_spelling_of_a_path_gets_past_the_key(there: World, line: str) -> None:
    body = json.dumps(BODY).encode()
    for target in CONFUSING:
        for key in ("", f"Authorization: Bearer {KEYS['other']}"):
            said = say(there, request(target, *filter(None, [line, key]), body=body), linger_s=2.0)
            status = int(said.split()[1])
            if target.startswith("/healthz?"):
                assert said.endswith(b'{"status":"ok"}')
                continue
            assert 400 <= status < 500, (target, key, said[:200])
    assert upstream(there) == 0


@pytest.mark.parametrize("line", REWRITING)
def test_no_header_makes_another_address_of_a_caller(there: World, line: str) -> None:
    key = f"Authorization: Bearer {KEYS['far']}"
    body = json.dumps(BODY).encode()
    said = say(there, request("/v1/chat/completions", line, key, body=body), linger_s=2.0)
    assert b" 403 " in said[:20]
    assert upstream(there) == 0


@pytest.mark.parametrize("host", ["a/b", "a?b", "a#b", "a@b", "a b", "a\\b", "", "[::1", "a:b:c"])
def test_a_host_that_is_none_is_refused(there: World, host: str) -> None:
    key = f"Authorization: Bearer {KEYS['whole']}"
    body = json.dumps(BODY).encode()
    said = say(there, request("/v1/chat/completions", key, body=body, host=host), linger_s=2.0)
    assert said.startswith(b"HTTP/1.1 400"), said[:100]
    assert upstream(there) == 0


INNER = request(
    "/v1/chat/completions", f"Authorization: Bearer {KEYS['whole']}", body=json.dumps(BODY).encode()
)
"""A whole, good request, hidden in what one side may take for a body."""

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(INNER), INNER)
SMUGGLED = {
    "CL.TE": f"Content-Length: {len(INNER)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b"0\r\n\r\n"
    + INNER,
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + INNER,
    "TE space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE tab": b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + INNER,
    "TE x": b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + INNER,
    "TE list": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
    "TE gzip": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + INNER,
    "two CL": f"Content-Length: 0\r\nContent-Length: {len(INNER)}\r\n\r\n".encode() + INNER,
    "CL list": f"Content-Length: 0, {len(INNER)}\r\n\r\n".encode() + INNER,
    "CL plus": b"Content-Length: +0\r\n\r\n" + INNER,
    "CL hex": b"Content-Length: 0x0\r\n\r\n" + INNER,
    "CL minus": b"Content-Length: -1\r\n\r\n" + INNER,
    "CL underscore": b"Content_Length: 0\r\n\r\n" + INNER,
    "bare LF": b"X: a\nContent-Length: 0\r\n\r\n" + INNER,
    "bare CR": b"X: a\rContent-Length: 0\r\n\r\n" + INNER,
    "fold": b"X: a\r\n Content-Length: 0\r\n\r\n" + INNER,
    "NUL": b"X: a\0b\r\nContent-Length: 0\r\n\r\n" + INNER,
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n" + INNER,
    "chunk size sign": b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" + INNER,
    "chunk overflow": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + INNER,
    "chunk LF": b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + INNER,
    "chunk no CRLF": b"Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n" + INNER,
    "1.0 TE": b"",
    "upgrade": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
    + INNER,
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_nothing_is_smuggled_past_a_refusal(there: World, name: str) -> None:
    head = HEAD.encode()
    rest = SMUGGLED[name]
    if name == "1.0 TE":
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
        rest = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER
    said = say(there, head + rest, linger_s=2.0)
    answers = re.findall(rb"HTTP/1\.1 (\d+)", said)
    assert len(answers) == 1, said
    assert answers[0] in {b"400", b"401"}
    assert b"onnection: close" in said
    assert upstream(there) == 0


# ---------------------------------------------------------------- S5: no address is a caller's


def test_no_address_in_a_request_is_called(there: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.05)
        port = canary.getsockname()[1]
        urls = [
            f"http://127.0.0.1:{port}/x",
            f"http://2130706433:{port}/",
            f"http://0x7f000001:{port}/",
            f"http://0177.0.0.1:{port}/",
            f"http://[::ffff:127.0.0.1]:{port}/",
            f"http://user@127.0.0.1:{port}/",
            f"//127.0.0.1:{port}/",
            "file:///etc/passwd",
            f"gopher://127.0.0.1:{port}/_x",
        ]
        for url in urls:
            picture = {"type": "image_url", "image_url": {"url": url}}
            source = {"type": "image", "source": {"type": "url", "url": url}}
            turn = [{"role": "user", "content": [picture]}]
            post(there, "/v1/chat/completions", {**BODY, "messages": turn})
            post(there, "/v1/chat/completions", {**BODY, "messages": turn, "model": "dear"})
            claude = {**body_for("messages"), "messages": [{"role": "user", "content": [source]}]}
            post(there, "/v1/messages", claude)
            for name in ("model", "base_url", "api_base", "endpoint", "callback_url"):
                post(there, "/v1/chat/completions", {**BODY, name: url})
            for header in (
                "x_packshot_target",
                "x_packshot_route",
                "x_portkey_custom_host",
                "x_base_url",
                "openai_base_url",
                "host_override",
            ):
                answer = post(there, "/v1/chat/completions", BODY, **{header: url})
                if "packshot" in header:  # it can name what is configured, or a bare model of it
                    assert answer.status_code < 500
            for path in (url, quote(url, safe=""), f"openai/{url}", f"{url}/openai"):
                post(there, PREFIX + path, BODY)
        with pytest.raises(TimeoutError):
            canary.accept()
    seen = {truth.path for fake in there.fakes.values() for truth in fake.truth}
    assert all(path.startswith("/v1/") for path in seen)


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


# ---------------------------------------------------------------- S8: no secret in any sink


def forms(secret: str) -> set[str]:
    """Return what a secret could be hidden as: whole, encoded, and every slice of 12."""
    raw = secret.encode()
    whole = {base64.b64encode(raw[at:]).decode()[2:-4] for at in range(3)}
    return {
        raw.hex(),
        quote(secret),
        json.dumps(secret),
        *whole,
        *(secret[at : at + 12] for at in range(len(secret) - 11)),
    }


def test_no_error_path_shows_a_secret(
    there: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prompt = "prompt-canary-0d9e8c7b6a5f"
    chat = {**BODY, "messages": [{"role": "user", "content": prompt}]}
    faults = [
        *(Fault(status=s) for s in (400, 401, 402, 403, 404, 408, 413, 422, 500, 502, 503, 504)),
        *(Fault(status=400, code=c) for c in ("quota", "context", "filter", "auth", "not_found")),
        limited(),
        *(Fault(ending=e, at=2) for e in ("close", "reset", "torn", "no_end", "error_event")),
        *(Fault(ending=e, at=2) for e in ("bad_json", "bad_chunk")),
    ]
    sinks: list[str] = []
    for fault in faults:
        for path in ("/v1/chat/completions", PREFIX + "openai/chat/completions"):
            for stream in (False, True):
                for fake in there.fakes.values():
                    fake.clear()
                    fake.next(fault, fault)
                for key in there.worker.gateway.plan.providers["openai"].keys:
                    key.ready_at = 0.0
                    key.breakers.clear()
                body = {**chat, "stream": stream, "model": body_for(path)["model"]}
                try:
                    answer = post(there, path, body)
                except httpx2.HTTPError as error:
                    sinks.append(repr(error))
                    continue
                sinks += [answer.text, str(answer.headers)]
    for key in ("", "nobody-at-all", KEYS["expired"] + "x", KEYS["far"]):
        answer = post(there, "/v1/chat/completions", chat, key)
        sinks += [answer.text, str(answer.headers)]
    gateway, worker = there.worker.gateway, there.worker
    for thing in (
        gateway.settings,
        gateway.settings.access,
        gateway.plan,
        *gateway.plan.providers.values(),
        *(key for p in gateway.plan.providers.values() for key in p.keys),
        gateway.access,
        vars(gateway.access),
        gateway,
        vars(worker),
        *worker.gateway.access.virtual_keys(),
    ):
        sinks += [repr(thing), str(thing)]
    with contextlib.suppress(TypeError):
        sinks.append(repr(dataclasses.asdict(gateway.settings.providers["openai"].keys[0])))
    out, err = capfd.readouterr()
    sinks += [out, err, caplog.text]
    sinks += [entry.reason + entry.tags for entry in there.booked()]
    database = (there.folder / "ledger.db").read_bytes().decode("latin-1")
    sinks.append(database)
    text = "\n".join(sinks)
    for secret in (PROVIDER_KEY, PEPPER, *KEYS.values()):
        found = [each for each in forms(secret) if each in text]
        # The pattern that all of a test's virtual keys share is no secret.
        found = [each for each in found if each not in "-0123456789012345678901234567890"]
        assert not found, (secret[:12], found[:3])
    said = "\n".join(each for each in sinks if prompt in each)
    assert not said, said[:300]
    there.errors.clear()


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
    assert answer.status_code == 402
    assert "max_cost_eur" in answer.json()["error"]["message"]
    assert not there.fakes["two"].truth
    entries = there.booked()
    assert sum(entry.amount for entry in entries[1:]) <= 100_000


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
    assert answer.status < 500, (path, body, headers, text)
    if answer.status >= 400 and answer.getheader("content-type", "") == "application/json":
        error = json.loads(text)["error"]
        assert error["message"]
        assert error["type"]
    assert not fuzzed.errors, fuzzed.errors
