"""Who gets in, and what a request means: S2, S3, S5, S10 of the security matrix."""

from __future__ import annotations

import json
import re
import socket
from urllib.parse import quote

import pytest

from packshot.gateway.app import MODELS
from packshot.gateway.intake import DOORS
from packshot.gateway.raw import PREFIX
from packshot.gateway.virtual_key import VirtualKeyEntry
from tests.gateway.guarded import (
    BODY,
    HEAD,
    KEYS,
    PEPPER,
    body_for,
    credentials,
    post,
    request,
    say,
    there,
    upstream,
)
from tests.gateway.launched import bearer, http_get, until
from tests.gateway.world import World

__all__ = ["credentials", "there"]
# ---------------------------------------------------------------- S2: who may what

CREDENTIALS = ["", "bad", "revoked", "expired", "far", "other", "route", "whole"]
OPENAI = [401, 401, 401, 401, 403, 403, 403, 200]
CLAUDE = [401, 401, 401, 401, 403, 200, 403, 200]
LIST = [401, 401, 401, 401, 403, 200, 200, 200]
OPEN = [200] * 8
TABLE: dict[tuple[str, str], list[int]] = {
    ("POST", "/v1/chat/completions"): OPENAI,
    ("POST", "/v1/embeddings"): OPENAI,
    ("POST", "/v1/images/generations"): OPENAI,
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
