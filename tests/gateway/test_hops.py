"""To whom a call goes on: to a target that can do what it needs, and not where it was refused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from packshot.providers.fake_script import Fault, Rule, Settings, limited
from tests.gateway.launched import http_post
from tests.gateway.world import World, world

YAML = """
providers:
  first:
    kind: openai
    base_url: "{first}/v1"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
    models: {m: {context_tokens: FIRST}}
  second:
    kind: openai
    base_url: "{second}/v1"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
    models: {m: {context_tokens: SECOND, lacks: LACKS}}
  third:
    kind: anthropic
    base_url: "{third}"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
    models: {m: {context_tokens: THIRD}}
routes:
  - {id: long, primary: first/m, fallbacks: [second/m, third/m]}
"""
HELLO = [{"role": "user", "content": "white sneaker on beach"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NEEDS: dict[str, dict[str, Any]] = {
    "tools": {"messages": HELLO, "tools": [TOOL]},
    "vision": {"messages": [{"role": "user", "content": [PICTURE]}]},
    "json": {"messages": HELLO, "response_format": {"type": "json_object"}},
    "prefill": {"messages": [*HELLO, {"role": "assistant", "content": "A sneaker"}]},
    "audio": {"messages": HELLO, "modalities": ["text", "audio"], "audio": {"voice": "alloy"}},
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")


def three(
    folder: Path,
    windows: tuple[int, int, int] = (8, 8, 8),
    lacks: str = "",
    second: str = "openai",
) -> Any:
    yaml = YAML.replace("LACKS", f"[{lacks}]")
    yaml = yaml.replace("second:\n    kind: openai", f"second:\n    kind: {second}")
    for name, tokens in zip(("FIRST", "SECOND", "THIRD"), windows, strict=True):
        yaml = yaml.replace(name, str(tokens * 1000))
    return world(folder, yaml, first=Settings(), second=Settings(), third=Settings())


def ask(there: World, **more: Any) -> httpx.Response:
    body = {"model": "long", "messages": HELLO, **more}
    return http_post(f"{there.url}/v1/chat/completions", json=body)


def asked(there: World) -> list[str]:
    """Return who was called, in the order of the route."""
    there.ended()
    return [name for name, fake in there.fakes.items() if fake.truth]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("windows", "called"),
    [
        ((8, 16, 32), ["first", "second"]),
        ((8, 4, 32), ["first", "third"]),
        ((8, 8, 32), ["first", "third"]),
        ((8, 0, 32), ["first", "third"]),  # not known
        ((8, 4, 8), ["first"]),
        ((0, 16, 32), ["first"]),  # what is larger than what is not known?
    ],
)
def test_a_prompt_that_is_too_long_goes_to_a_larger_context(
    tmp_path: Path, windows: tuple[int, int, int], called: list[str], *, stream: bool
) -> None:
    with three(tmp_path, windows) as there:
        there.fakes["first"].rule(Rule(fault=Fault(status=400, code="context")))
        got = ask(there, stream=stream)
        assert asked(there) == called
        if called == ["first"]:
            assert got.status_code == 400
            assert got.json()["error"]["code"] == "context_length_exceeded"
        else:
            assert got.status_code == 200
            assert got.headers["x-packshot-provider"] == called[-1]


def test_what_is_too_long_for_all_is_told(tmp_path: Path) -> None:
    with three(tmp_path, (8, 16, 32)) as there:
        for fake in there.fakes.values():
            fake.rule(Rule(fault=Fault(status=400, code="context")))
        got = ask(there)
        assert got.json()["error"]["code"] == "context_length_exceeded"
        assert asked(there) == ["first", "second", "third"]
        assert [entry.outcome for entry in there.booked()] == ["failed_free"] * 3


@pytest.mark.parametrize("need", NEEDS)
def test_a_fallback_that_lacks_what_is_asked_for_is_passed_over(tmp_path: Path, need: str) -> None:
    with three(tmp_path, lacks=need) as there:
        there.fakes["first"].rule(Rule(fault=Fault(status=503)))
        assert ask(there).status_code == 200
        assert asked(there) == ["first", "second"], "it can do everything else"
        for fake in there.fakes.values():
            fake.truth.clear()
        got = ask(there, **NEEDS[need])
        if need == "audio":  # Anthropic has none: what the first said is what is told
            assert got.status_code == 503
            assert asked(there) == ["first"]
        else:
            assert got.headers["x-packshot-provider"] == "third", got.text
            assert asked(there) == ["first", "third"]


def test_what_a_provider_lacks_by_its_kind_is_known(tmp_path: Path) -> None:
    with three(tmp_path, second="deepseek") as there:
        there.fakes["first"].rule(Rule(fault=Fault(status=503)))
        assert ask(there, **NEEDS["vision"]).status_code == 200
        assert asked(there) == ["first", "third"]


@pytest.mark.parametrize(
    "fault",
    [Fault(status=400), Fault(status=400, code="filter"), Fault(status=422)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_refused_is_not_asked_elsewhere(
    tmp_path: Path, fault: Fault, *, stream: bool
) -> None:
    with three(tmp_path, (8, 16, 32)) as there:
        there.fakes["first"].rule(Rule(fault=fault))
        got = ask(there, stream=stream)
        assert 400 <= got.status_code < 500
        assert got.headers["x-should-retry"] == "false"
        assert asked(there) == ["first"]


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504, 529, 401, 402, 403])
def test_the_provider_s_own_trouble_goes_on(tmp_path: Path, status: int) -> None:
    with three(tmp_path) as there:
        there.fakes["first"].rule(Rule(fault=Fault(status=status)))
        there.fakes["second"].rule(Rule(fault=Fault(status=status)))
        got = ask(there)
        assert (got.status_code, got.headers["x-packshot-provider"]) == (200, "third")
        assert asked(there) == ["first", "second", "third"]


@pytest.mark.parametrize("waits", [1, 2])
def test_the_only_key_of_the_only_target_is_waited_for_and_then_asked(
    tmp_path: Path, waits: int
) -> None:
    """Timers count whole milliseconds, and may be early by a part of one: too early to ask."""
    yaml = YAML.replace("max_retries: 0", "max_retries: 2").replace("[second/m, third/m]", "[]")
    for name in ("FIRST", "SECOND", "THIRD"):
        yaml = yaml.replace(name, "8000")
    yaml = yaml.replace("LACKS", "[]")
    with world(tmp_path, yaml, first=Settings(), second=Settings(), third=Settings()) as there:
        for tenths in range(8):
            there.fakes["first"].next(*[limited("ms", 0.02 + tenths / 10_000)] * waits)
            got = ask(there)
            assert got.status_code == 200, got.text
            assert got.headers["x-packshot-attempts"] == str(1 + waits)
            for _ in range(10):  # a fifth of the calls may be retries
                assert ask(there).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_from_before_its_trouble_brings_no_provider_back(
    tmp_path: Path, *, stream: bool
) -> None:
    with three(tmp_path) as there, ThreadPoolExecutor(1) as thread:
        first = there.fakes["first"]
        first.next(Fault(head_after_s=1.5))
        long = thread.submit(ask, there, stream=stream)
        while not first.truth:
            time.sleep(0.01)
        first.rule(Rule(fault=Fault(status=503)))
        for _ in range(5):
            assert ask(there).headers["x-packshot-provider"] == "second"
        if long.done():
            pytest.skip("five calls took 1.5 s on this machine")
        assert long.result().status_code == 200
        assert len(first.truth) == 6
        assert ask(there).headers["x-packshot-provider"] == "second"
        assert len(first.truth) == 6, "it was asked again"
