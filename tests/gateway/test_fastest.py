"""`balance: fastest`: the target that answers soonest goes first, a busy one waits for its turn."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from packshot.providers.fake_script import Fault, Rule, Settings
from tests.gateway.world import World, world

YAML = """
providers:
  one: {kind: openai, base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
  two: {kind: openai, base_url: "{two}/v1", keys: [{value: env.KEY_A}]}
routes:
  - {id: soon, primary: one/gpt-4o-mini, fallbacks: [two/gpt-4o-mini], balance: fastest}
"""
SLOW = Fault(head_after_s=0.25)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")


def call(there: World, times: int = 1, at_once: int = 1) -> Counter[str]:
    """Call it, and return which provider answered how often."""
    body = {"model": "soon", "messages": [{"role": "user", "content": "hi"}]}

    def one(_: int) -> str:
        got = client.post(f"{there.url}/v1/chat/completions", json=body)
        assert got.status_code == 200, got.text
        return got.headers["x-packshot-provider"]

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(at_once) as threads:
        return Counter(threads.map(one, range(times)))


def test_the_faster_goes_first_and_who_was_slow_gets_another_chance(tmp_path: Path) -> None:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=SLOW))
        call(there, 2)  # both are unknown, and asked in their order
        assert call(there, 20) == {"two": 20}
        there.fakes["one"].clear()
        there.fakes["two"].rule(Rule(fault=SLOW))
        call(there)  # which shows
        assert call(there, 5) == {"one": 5}
        # The second is quick again. Nobody would know if nobody asked.
        there.fakes["two"].clear()
        for _ in range(200):
            if call(there, 50)["two"]:
                return
    pytest.fail("who was slow once is never asked again")


def test_who_has_calls_under_way_is_asked_later(tmp_path: Path) -> None:
    one, two = Settings(usual=SLOW), Settings(usual=Fault(head_after_s=0.5))
    with world(tmp_path, YAML, one=one, two=two) as there:
        call(there, 2)  # both are known now
        seen = call(there, 16, at_once=16)
    assert seen["one"] > seen["two"] >= 3, seen
