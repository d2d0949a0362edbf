"""Whose keys make whose calls: a virtual key's `keys` hold for every target of every route."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import GatewaySettings, ProviderEntry, RouteEntry
from packshot.gateway.virtual_key import VirtualKey
from packshot.providers.fake_script import Settings
from tests.gateway.launched import http_post
from tests.gateway.world import world

SECRET = "pk-" + "s" * 43
HELLO = {
    "model": "rewrite",
    "messages": [{"role": "user", "content": "white sneaker on beach"}],
}
YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{name: production, value: env.KEY_A}]
  anthropic:
    base_url: {two}
    keys: [{name: research, value: env.KEY_C}]
routes:
  - {id: rewrite, primary: openai/gpt-4o-mini, fallbacks: FALLBACKS}
access:
  virtual_keys: [{id: bound, keys: [anthropic/research], value: env.VK}]
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")
    monkeypatch.setenv("VK", SECRET)


@pytest.mark.parametrize("fallbacks", ["[]", "[anthropic/claude-haiku-4-5]"])
def test_a_routes_first_target_is_not_called_by_keys_that_the_caller_is_not_bound_to(
    tmp_path: Path, fallbacks: str
) -> None:
    with world(tmp_path, YAML.replace("FALLBACKS", fallbacks), one=Settings(), two=Settings()) as w:
        headers = {"authorization": f"Bearer {SECRET}"}
        content = json.dumps(HELLO).encode()
        got = http_post(f"{w.url}/v1/chat/completions", content=content, headers=headers)
        assert got.headers.get("x-packshot-provider") != "openai", got.text
        assert not [e for e in w.booked() if e.provider == "openai"]
        assert (got.status_code == 200) is (fallbacks != "[]"), got.text


def test_the_fastest_target_is_one_that_can_do_what_is_asked(tmp_path: Path) -> None:
    yaml = (
        YAML.partition("access:")[0]
        .replace("FALLBACKS", "[anthropic/claude-haiku-4-5], balance: fastest")
        .replace("KEY_A}]", "KEY_A}]\n    models: {gpt-4o-mini: {lacks: [tools]}}")
    )
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with world(tmp_path, yaml, one=Settings(), two=Settings()) as w:
        content = json.dumps({**HELLO, "tools": [tool]}).encode()
        got = http_post(f"{w.url}/v1/chat/completions", content=content)
        assert got.headers["x-packshot-provider"] == "anthropic", got.text


@pytest.mark.parametrize(("path", "header"), [("messages", ""), ("chat/completions", "secret-x")])
def test_a_mistake_is_told_without_names_that_are_not_the_caller_s(path: str, header: str) -> None:
    providers = {name: ProviderEntry(kind="ollama") for name in ("mine", "secret-one")}
    routes = (RouteEntry("ours", "mine/m"), RouteEntry("secret-route", "secret-one/m"))
    plan = build_plan(GatewaySettings(providers=providers, routes=routes))
    owner = VirtualKey("k", models=("ours", "mine/*"))
    headers = {b"x-packshot-target": header.encode()} if header else {}
    with pytest.raises(InvalidRequest) as told:
        make_job(DOORS[f"/v1/{path}"], plan, owner, headers, b'{"model": "x"}', 0.0)
    assert "ours" in str(told.value)
    assert "mine/" in str(told.value)
    assert "secret-one" not in str(told.value)
    assert "secret-route" not in str(told.value)
