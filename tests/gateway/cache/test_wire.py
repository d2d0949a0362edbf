"""Over real sockets: whose answers are whose among 50 tenants, and poisoning of a shared cache.

Every text has the same vector here, so that nothing but partition and guards keeps requests apart:
that is more than the attacks of arXiv 2601.23088 reach.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from packshot.gateway.cache.embed import Vectors
from packshot.gateway.cache.semantic import Semantic
from packshot.gateway.worker import Worker
from packshot.providers.fake_script import Settings
from tests.gateway.cache.test_attacks import PAYLOADS, SUFFIXES, VICTIMS, WRITINGS
from tests.gateway.cache.test_cache import body_of
from tests.gateway.faults import LONG
from tests.gateway.world import World

TENANTS = 50
GROUPS = 9
"""The last 18 tenants are in pairs."""
TURNS = 199 if LONG else 20
PHRASES = ("a white sneaker on a beach", "on a beach, a white sneaker")

YAML = """
providers:
  openai: {base_url: "{openai}/v1", keys: [{value: env.KEY_A}]}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
access:
  virtual_keys:
{keys}
semantic_cache: {enabled: true, similarity_threshold: 0.01, audit: {share: 0}}
server: {state: state}
"""


class Same:
    """An embedder to which all texts are the same."""

    name, dimension = "same@1", 8

    async def embed(self, texts: Sequence[str]) -> Vectors:
        return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.full((len(texts), 8), 8**-0.5, np.float32)


def tier_of(worker: Worker) -> None:
    cache = worker.gateway.cache
    assert cache is not None
    tell = lambda error: worker.telemetry.error(None, error)  # noqa: E731
    cache.tier = Semantic(Same(), 10_000, tell, longest_s=30.0)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(TENANTS):
        monkeypatch.setenv(f"SECRET_{number}", f"secret-{number:033}")
        shared = number - (TENANTS - 2 * GROUPS)
        group = f", cache_group: tenant-{shared // 2}" if shared >= 0 else ""
        rows.append(f"    - {{id: tenant-{number}, value: env.SECRET_{number}{group}}}")
    yaml = YAML.replace("{keys}", "\n".join(rows))
    made = World(tmp_path, yaml, {"openai": Settings()}, tier_of)
    made.start()
    yield made
    made.stop()
    assert not made.errors, made.errors


class Callers:
    """Calls of tenants, by number."""

    def __init__(self, there: World, session: aiohttp.ClientSession) -> None:
        self._url = f"{there.url}/v1/chat/completions"
        self._session = session

    async def ask(self, tenant: int, text: str) -> str:
        headers = {"authorization": f"Bearer secret-{tenant:033}"}
        async with self._session.post(self._url, json=body_of(text), headers=headers) as got:
            assert got.status == 200, await got.text()
            return got.headers["x-packshot-cache"]


def test_identical_prompts_of_50_tenants_are_a_call_for_each_and_no_more(there: World) -> None:
    async def test() -> Counter[str]:
        did: Counter[str] = Counter()
        async with aiohttp.ClientSession() as session:
            callers = Callers(there, session)
            for tenant in range(TENANTS):
                did[await callers.ask(tenant, PHRASES[0])] += 1
            for turn in range(TURNS):
                text = PHRASES[turn % 2]
                did.update(
                    await asyncio.gather(*(callers.ask(each, text) for each in range(TENANTS)))
                )
        return did

    did = asyncio.run(test())
    scopes = TENANTS - GROUPS
    assert did == {"miss": scopes, "hit": TENANTS * (TURNS + 1) - scopes}
    assert len(there.fakes["openai"].truth) == scopes


def test_no_poison_is_served_to_a_victim_of_the_same_group(there: World) -> None:
    mallory, victim = TENANTS - 2, TENANTS - 1

    async def test() -> list[str]:
        async with aiohttp.ClientSession() as session:
            callers = Callers(there, session)
            attacks = [
                f"{writing(text, payload)} {suffix}"
                for text in VICTIMS
                for writing in WRITINGS.values()
                for payload, suffix in zip(PAYLOADS, ("", *SUFFIXES), strict=True)
            ]
            for attack in attacks:
                await callers.ask(mallory, attack)
            found = [await callers.ask(victim, text) for text in VICTIMS]
            # And that they share a cache at all, and the tier is on.
            return [*found, await callers.ask(mallory, "on a sandy beach: white sneaker, EU 42")]

    assert asyncio.run(test()) == [*["miss"] * 3, "hit"]
