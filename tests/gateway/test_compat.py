"""The two configurations of MISSION M6, unchanged: what they say is what happens (M6, M7, M8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.plan import Plan, build_plan
from packshot.gateway.settings import RetryEntry, load_gateway
from packshot.gateway.wire.pool import Pool, PoolLimits
from packshot.gateway.wire.upstream import Origin
from packshot.gateway.worker import Worker
from packshot.providers.fake_script import Fault, Settings, limited
from tests.gateway.launched import http_post
from tests.gateway.world import LEDGER, World

CAPTION = """\
providers:
  openai:
    keys:
      - value: env.OPENAI_KEY_PRIMARY
        weight: 0.7
      - value: env.OPENAI_KEY_BACKUP
        weight: 0.3
  anthropic:
    keys:
      - value: env.ANTHROPIC_KEY
        weight: 1.0

fallbacks:
  - primary: openai/gpt-4o-mini
    secondary: anthropic/claude-haiku-4-5
    tertiary: openai/gpt-4o-mini

semantic_cache:
  enabled: true
  similarity_threshold: 0.94
  ttl_seconds: 604800
"""

ROUTING = """\
providers:
  openai:
    keys:
      - value: env.OPENAI_KEY_PRIMARY
        weight: 0.7
      - value: env.OPENAI_KEY_SECONDARY
        weight: 0.3
    network:
      retry:
        max_retries: 2
        backoff_initial_ms: 100
  anthropic:
    keys:
      - value: env.ANTHROPIC_KEY
  stability:
    keys:
      - value: env.STABILITY_KEY

mcp:
  - id: prompt-rewrite
    primary: openai/gpt-4o-mini
    fallbacks:
      - anthropic/claude-haiku-4-5
"""

HELLO = [{"role": "user", "content": "white sneaker on beach"}]
NAMES = ("PRIMARY", "BACKUP", "SECONDARY")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(f"OPENAI_KEY_{name}", f"value-of-{name}")
    monkeypatch.setenv("ANTHROPIC_KEY", "value-of-ANTHROPIC")
    monkeypatch.setenv("STABILITY_KEY", "value-of-STABILITY")


def plan_of(folder: Path, text: str) -> Plan:
    path = folder / "packshot.yaml"
    path.write_text(text)
    return build_plan(load_gateway(path))


def to_the_fakes(worker: Worker, there: World) -> None:
    """Let the real addresses of the providers lead to the fakes: the file is not touched."""
    plan = worker.gateway.plan
    for name, provider in plan.providers.items():
        port = int(there.fakes[name].url.rpartition(":")[2])
        provider.upstream = Pool(Origin("http", "127.0.0.1", port), PoolLimits())


@contextmanager
def served(folder: Path, text: str) -> Iterator[World]:
    fakes = {"openai": Settings(), "anthropic": Settings(), "stability": Settings()}
    there = World(folder, text + LEDGER, fakes, lambda worker: to_the_fakes(worker, there))
    there.start()
    try:
        yield there
    finally:
        there.stop()
    assert not there.errors, there.errors


def ask(there: World, model: str, cache: str = "no-store") -> httpx2.Response:
    body = {"model": model, "messages": HELLO}
    return http_post(
        f"{there.url}/v1/chat/completions", json=body, headers={"x-packshot-cache": cache}
    )


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RetryEntry, int]]:
    """Return what is waited before each retry: the settings and which retry it is. None waits."""
    asked: list[tuple[RetryEntry, int]] = []

    def note(retry: RetryEntry, nth: int, _random: object) -> float:
        asked.append((retry, nth))
        return 0.0

    monkeypatch.setattr("packshot.gateway.dispatch.backoff_s", note)
    return asked


# ---------------------------------------------------------------- the file, read


@pytest.mark.parametrize(("text", "second"), [(CAPTION, "BACKUP"), (ROUTING, "SECONDARY")])
def test_values_come_from_the_environment(tmp_path: Path, text: str, second: str) -> None:
    plan = plan_of(tmp_path, text)
    headers = [key.header for key in plan.providers["openai"].keys]
    assert b"authorization: Bearer value-of-PRIMARY\r\n" in headers[0]
    assert f"authorization: Bearer value-of-{second}\r\n".encode() in headers[1]
    (claude,) = plan.providers["anthropic"].keys
    assert b"x-api-key: value-of-ANTHROPIC\r\n" in claude.header
    assert plan.providers["openai"].origin == Origin("https", "api.openai.com", 443)
    assert plan.providers["anthropic"].origin == Origin("https", "api.anthropic.com", 443)


@pytest.mark.parametrize("text", [CAPTION, ROUTING])
def test_a_variable_that_is_not_set_is_told_by_name_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.delenv("OPENAI_KEY_PRIMARY")
    with pytest.raises(InvalidRequest, match="OPENAI_KEY_PRIMARY") as error:
        plan_of(tmp_path, text)
    assert "packshot.yaml, line 4:" in str(error.value)


@pytest.mark.parametrize("text", [CAPTION, ROUTING])
def test_weights_are_70_to_30_within_one_percent_over_10_000_calls(
    tmp_path: Path, text: str
) -> None:
    keys = plan_of(tmp_path, text).providers["openai"].keys
    chosen = Counter(key.name for _ in range(10_000) if (key := keys.choose("gpt-4o-mini", 0.0)))
    assert abs(chosen["key-1"] - 7000) <= 100
    assert abs(chosen["key-2"] - 3000) <= 100


def test_the_retries_of_the_file(tmp_path: Path) -> None:
    retry = plan_of(tmp_path, ROUTING).providers["openai"].entry.network.retry
    assert (retry.max_retries, retry.backoff_initial_ms) == (2, 100)


def test_fallbacks_are_in_order_and_the_repeat_is_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, CAPTION)
    for asked in ("openai/gpt-4o-mini", "gpt-4o-mini"):
        assert [target.name for target in plan.route(asked, "chat").targets] == [
            "openai/gpt-4o-mini",
            "anthropic/claude-haiku-4-5",
            "openai/gpt-4o-mini",
        ]
    assert [t.name for t in plan.route("gpt-4o", "chat").targets] == ["openai/gpt-4o"]


def test_a_route_under_mcp_has_its_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ROUTING)
    assert [target.name for target in plan.route("prompt-rewrite", "chat").targets] == [
        "openai/gpt-4o-mini",
        "anthropic/claude-haiku-4-5",
    ]
    assert "prompt-rewrite" in plan.names()


def test_what_is_not_built_yet_is_said(tmp_path: Path) -> None:
    assert plan_of(tmp_path, ROUTING).notes == ()
    (replicate,) = plan_of(tmp_path, ROUTING.replace("stability", "replicate")).notes
    assert "providers.replicate is read but not built yet" in replicate
    plan_of(tmp_path, ROUTING)
    settings = load_gateway(tmp_path / "packshot.yaml")
    assert settings.providers["stability"].keys[0].value == "value-of-STABILITY"


def test_the_cache_section_is_read(tmp_path: Path) -> None:
    (tmp_path / "packshot.yaml").write_text(CAPTION)
    cache = load_gateway(tmp_path / "packshot.yaml").semantic_cache
    assert (cache.enabled, cache.similarity_threshold, cache.ttl_seconds) == (True, 0.94, 604_800)


MISTAKES = [
    (ROUTING, "max_retries", "max_retry", 10, "max_retries"),
    (ROUTING, "weight: 0.3", "wieght: 0.3", 7, "weight"),
    (ROUTING, "mcp:", "mpc:", 19, "mcp"),
    (ROUTING, "fallbacks:", "fallback:", 22, "fallbacks"),
    (CAPTION, "secondary", "secondry", 15, "secondary"),
    (CAPTION, "similarity_threshold", "similarity_treshold", 20, "similarity_threshold"),
]


@pytest.mark.parametrize(("text", "right", "wrong", "line", "nearest"), MISTAKES)
def test_an_unknown_key_is_an_error_that_names_the_nearest(
    tmp_path: Path, text: str, right: str, wrong: str, line: int, nearest: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        plan_of(tmp_path, text.replace(right, wrong))
    assert f"packshot.yaml, line {line}:" in str(error.value)
    assert repr(nearest) in str(error.value) or f" {nearest}" in str(error.value)


# ---------------------------------------------------------------- the file, at work


@pytest.mark.parametrize("text", [CAPTION, ROUTING])
def test_on_the_wire_the_keys_share_70_to_30(tmp_path: Path, text: str) -> None:
    with served(tmp_path, text) as there:
        body = {"model": "gpt-4o-mini", "messages": HELLO}
        with httpx2.Client(base_url=there.url) as client:
            headers = {"x-packshot-cache": "no-store"}
            for _ in range(300):
                answer = client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200
        keys = Counter(truth.key for truth in there.fakes["openai"].truth)
        assert sorted(keys.values()) == [90, 210]
        assert keys["value-of-PRIMARY"] == 210


def test_a_429_goes_to_the_other_key_at_once(
    tmp_path: Path, waits: list[tuple[RetryEntry, int]]
) -> None:
    with served(tmp_path, CAPTION) as there:
        there.fakes["openai"].next(limited("seconds", 3600))
        answer = ask(there, "gpt-4o-mini")
        assert answer.status_code == 200
        assert answer.headers["x-packshot-provider"] == "openai"
        first, second = (truth.key for truth in there.fakes["openai"].truth)
        assert {first, second} == {"value-of-PRIMARY", "value-of-BACKUP"}
        for _ in range(5):  # the limited key rests
            assert ask(there, "gpt-4o-mini").status_code == 200
        assert {truth.key for truth in there.fakes["openai"].truth[1:]} == {second}
        assert waits == []


def test_retries_then_each_fallback_in_order_and_the_repeat_saves_it(
    tmp_path: Path, waits: list[tuple[RetryEntry, int]]
) -> None:
    down = Fault(status=500)
    with served(tmp_path, CAPTION) as there:
        there.fakes["openai"].next(down, down, down)
        there.fakes["anthropic"].next(down, down, down)
        answer = ask(there, "gpt-4o-mini")
        assert answer.status_code == 200
        assert answer.headers["x-packshot-attempts"] == "7"
        assert answer.json()["object"] == "chat.completion"
        entries = there.booked()
        assert [entry.provider for entry in entries] == [
            *["openai"] * 3,
            *["anthropic"] * 3,
            "openai",
        ]
        assert [entry.outcome for entry in entries] == [*["failed_free"] * 6, "succeeded"]
        assert [nth for _, nth in waits] == [0, 1, 0, 1]


def test_the_named_route_retries_twice_from_100_ms_and_then_goes_to_anthropic(
    tmp_path: Path, waits: list[tuple[RetryEntry, int]]
) -> None:
    with served(tmp_path, ROUTING) as there:
        there.fakes["openai"].next(*[Fault(status=503)] * 3)
        answer = ask(there, "prompt-rewrite")
        assert answer.status_code == 200
        assert answer.headers["x-packshot-provider"] == "anthropic"
        assert answer.headers["x-packshot-model"] == "claude-haiku-4-5"
        assert len(there.fakes["openai"].truth) == 3
        assert [(retry.backoff_initial_ms, nth) for retry, nth in waits] == [(100, 0), (100, 1)]
        assert {entry.route for entry in there.booked()} == {"prompt-rewrite"}


def test_the_cache_is_on_and_stability_makes_pictures_alone(tmp_path: Path) -> None:
    with served(tmp_path, CAPTION) as there:
        for _ in range(2):
            assert ask(there, "gpt-4o-mini", cache="").status_code == 200
        assert len(there.fakes["openai"].truth) == 1
    with served(tmp_path, ROUTING) as there:
        answer = ask(there, "stability/sd3.5-large")
        assert answer.status_code == 404
        assert "stability does not serve chat" in answer.json()["error"]["message"]
        assert not any(fake.truth for fake in there.fakes.values())
        body = {"model": "stability/sd3.5-large", "prompt": "a red mug"}
        answer = http_post(f"{there.url}/v1/images/generations", json=body)
        assert answer.status_code == 200
        (truth,) = there.fakes["stability"].truth
        assert (truth.path, truth.key) == (
            "/v2beta/stable-image/generate/sd3",
            "value-of-STABILITY",
        )
