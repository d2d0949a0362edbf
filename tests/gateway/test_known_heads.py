"""A head that came before is not read again; who sends it, and how much, is looked at each time."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from packshot.core.config import Secret
from packshot.gateway.virtual_key import AccessEntry, VirtualKeyEntry
from packshot.providers.fake_script import Settings
from tests.gateway.world import world

SECRET, OTHER = "pk-" + "s" * 43, "pk-" + "t" * 43
YAML = """
server: {max_body_bytes: 2000}
providers:
  openai:
    base_url: {one}/v1
    keys: [{name: production, value: env.KEY_A}]
access:
  virtual_keys: [{id: shop, value: env.VK}]
"""


class Caller:
    """One connection, on which the same head is sent each time."""

    def __init__(self, url: str) -> None:
        self.line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self.close = self.line.close

    def ask(self, text: str = "hi", secret: str = SECRET) -> tuple[int, str]:
        said = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
        headers = {"authorization": f"Bearer {secret}", "connection": "keep-alive"}
        self.line.request("POST", "/v1/chat/completions", json.dumps(said), headers)
        answer = self.line.getresponse()
        return answer.status, answer.read().decode()


def access(*entries: VirtualKeyEntry) -> AccessEntry:
    return AccessEntry(virtual_keys=entries)


def test_a_known_head_is_let_in_as_things_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")
    monkeypatch.setenv("VK", SECRET)
    with world(tmp_path, YAML, one=Settings()) as w, closing(Caller(w.url)) as caller:
        gate = w.worker.gateway.access
        digests: list[bytes] = []
        digest = gate.digest
        gate.digest = lambda headers: digests.append(digest(headers)) or digests[-1]  # type: ignore[method-assign]
        good = VirtualKeyEntry("shop", value=Secret(SECRET))
        assert [caller.ask("x" * n)[0] for n in range(5)] == [200] * 5
        assert len(digests) == 2  # that of the first, and that of those which are like it
        gate.replace(access(VirtualKeyEntry("shop", value=Secret(OTHER))))
        status, said = caller.ask()
        assert (status, "not known" in said) == (401, True)
        assert caller.ask(secret=OTHER)[0] == 200
        assert caller.ask(secret=OTHER)[0] == 200
        gate.replace(access(good))
        assert caller.ask(secret=OTHER)[0] == 401
        assert caller.ask()[0] == 200
        assert caller.ask("x" * 3000)[0] == 413
        assert caller.ask()[0] == 200
        gate.replace(access(VirtualKeyEntry("shop", value=Secret(SECRET), allow_ips=("10.9.9.9",))))
        assert caller.ask()[0] == 403
        gate.replace(access(good))
        assert caller.ask()[0] == 200


def test_no_secret_is_not_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")
    monkeypatch.setenv("VK", SECRET)
    with world(tmp_path, YAML, one=Settings()) as w, closing(Caller(w.url)) as caller:
        for _ in range(3):
            status, said = caller.ask(secret="")
            assert (status, "no virtual key" in said) == (401, True)
        for _ in range(3):
            status, said = caller.ask(secret="x" * 5000)
            assert (status, "not known" in said) == (401, True)
