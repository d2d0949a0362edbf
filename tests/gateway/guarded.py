"""A gateway with keys of every kind before fake providers, for the tests of its security."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packshot.gateway.raw import PREFIX
from packshot.providers.fake_script import Settings
from packshot.state.limits import Rule
from tests.gateway.launched import bearer, http_post
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
  stability: {base_url: "{one}/v2beta", keys: [{value: env.KEY_A}]}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
  - {id: hedged, primary: openai/gpt-4o-mini, hedge_after_ms: 20}
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
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
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


def body_for(path: str) -> dict[str, Any]:
    if "messages" in path:
        return {**BODY, "model": "anthropic/claude-haiku-4-5", "max_tokens": 5}
    if "images" in path:
        return {"model": "stability/sd3.5-large", "prompt": "a red mug"}
    if "embeddings" in path:
        return {"model": "openai/text-embedding-3-small", "input": "a"}
    return {**BODY, "model": "gpt-4o-mini"} if path.startswith(PREFIX) else BODY


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


HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
