"""What callers say in headers, and what the gateway says in its own: on real sockets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from packshot.gateway.intake import STAGES_OF_CALLS
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.providers.fake_script import NEVER, Fault, Rule, Settings, limited
from tests.gateway.launched import http_post
from tests.gateway.world import World, world

YAML = """
providers:
  openai:
    base_url: "{one}/v1"
    keys: [{name: a, value: env.KEY_A}, {name: b, value: env.KEY_B}, {name: c, value: env.KEY_C}]
  anthropic: {base_url: "{two}", keys: [{value: env.KEY_A}]}
routes:
  - {id: words, primary: anthropic/claude-haiku-4-5}
"""
DELAY_S = 0.3


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ABC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")


def ask(there: World, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    content = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    said = {f"x-packshot-{name.replace('_', '-')}": value for name, value in headers.items()}
    return http_post(
        f"{there.url}/v1/chat/completions",
        content=json.dumps({**content, **(body or {})}).encode(),
        headers=said,
    )


def test_the_header_goes_before_what_the_body_says(tmp_path: Path) -> None:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        by = [
            ask(there),
            ask(there, route="words"),
            ask(there, target="anthropic/claude-haiku-4-5"),
            ask(there, {"model": "words"}, target="openai/gpt-4o"),
        ]
        assert [got.status_code for got in by] == [200] * 4
        assert [(e.route, e.provider, e.model) for e in there.booked()] == [
            ("", "openai", "gpt-4o-mini"),
            ("words", "anthropic", "claude-haiku-4-5"),
            ("", "anthropic", "claude-haiku-4-5"),
            ("", "openai", "gpt-4o"),
        ]
        for got, booked in zip(by, there.booked(), strict=True):
            assert got.headers["x-packshot-provider"] == booked.provider
            assert got.headers["x-packshot-model"] == booked.model


def test_the_bodys_metadata_says_the_same_and_a_header_goes_before_it(tmp_path: Path) -> None:
    says = {"packshot_route": "words", "packshot_tags": "season=spring", "shop": "12"}
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        assert ask(there, {"metadata": says}).status_code == 200
        assert ask(there, {"metadata": says}, route="openai/gpt-4o").status_code == 200
        first, second = there.booked()
        (sent,) = (json.loads(truth.body) for truth in there.fakes["one"].truth)
        late = {"packshot_timeout_ms": "100"}
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
        assert ask(there, {"metadata": late}).status_code == 504
    assert (first.route, first.model) == ("words", "claude-haiku-4-5")
    assert (second.route, second.model) == ("", "gpt-4o")
    assert "season=spring" in first.tags
    assert sent["metadata"] == {"shop": "12"}


def test_a_session_stays_with_one_key_and_sessions_spread(tmp_path: Path) -> None:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        keys = [
            {ask(there, session=f"conversation {nth}").headers["x-packshot-key"] for _ in range(4)}
            for nth in range(8)
        ]
    assert all(len(each) == 1 for each in keys)
    assert len(set[str]().union(*keys)) > 1


def test_what_a_call_is_booked_on(tmp_path: Path) -> None:
    stage = min(STAGES_OF_CALLS)
    said = {"render": "r-17", "recipe": "shoes", "batch": "autumn", "stage": stage}
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        assert ask(there, tags="season=spring, shop=12", **said).status_code == 200
        (booked,) = there.booked()
        store = open_store(load_settings(there.path).store, read_only=True)
        rows = store.query("SELECT render, recipe, batch, stage FROM entries")
        store.close()
    assert rows == [tuple(said.values())]
    assert "season=spring" in booked.tags
    assert "shop=12" in booked.tags


@pytest.mark.parametrize("stream", [False, True])
def test_the_overhead_is_what_is_left_when_the_provider_is_taken_out(
    tmp_path: Path, *, stream: bool
) -> None:
    """However slow this machine is: overhead and the provider's time are the whole."""
    slow = Settings(usual=Fault(head_after_s=DELAY_S, every_s=0.01))
    with world(tmp_path, YAML, one=slow, two=Settings()) as there:
        began = time.perf_counter()
        got = ask(there, {"stream": stream})
        whole = time.perf_counter() - began
        page = there.worker.telemetry.page()
    said = int(got.headers["x-packshot-overhead-us"]) / 1e6
    (counted,) = (
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("packshot_gateway_overhead_seconds_sum")
    )
    pauses = 0.01 * (got.text.count("data: ") - 5) if stream else 0.0
    assert 0 < said <= whole - DELAY_S + 0.01
    assert 0 < said <= counted <= whole - DELAY_S - pauses + 0.01


@pytest.mark.parametrize("fault", [limited("ms", DELAY_S), Fault(status=503)])
def test_a_wait_that_a_provider_is_to_blame_for_is_no_overhead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """A provider that is limited or down would look like a slow gateway."""
    monkeypatch.setattr("packshot.gateway.dispatch.backoff_s", lambda *_: DELAY_S)
    yaml = YAML.replace(", {name: b, value: env.KEY_B}, {name: c, value: env.KEY_C}", "")
    with world(tmp_path, yaml, one=Settings(), two=Settings()) as there:
        there.fakes["one"].next(fault)
        began = time.perf_counter()
        got = ask(there)
        whole = time.perf_counter() - began
    assert got.headers["x-packshot-attempts"] == "2"
    assert whole >= DELAY_S
    assert int(got.headers["x-packshot-overhead-us"]) / 1e6 <= whole - DELAY_S + 0.01
