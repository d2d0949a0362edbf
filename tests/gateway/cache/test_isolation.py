"""Invariant 7: nothing of one virtual key is served to another, unless they are in one group."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import msgspec
import pytest

from packshot.gateway.cache import file_store
from packshot.gateway.cache.cache import ResponseCache
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.semantic import Semantic
from packshot.gateway.cache.settings import SemanticCacheEntry
from packshot.gateway.cache.store import MemoryStore
from packshot.gateway.dispatch import Answer
from packshot.gateway.job import Job
from packshot.gateway.plan import Route
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey
from tests.gateway.cache.test_semantic import Words

ROUTE = Route("caption", ())
PHRASES = ("a white sneaker on a beach", "on a beach, a white sneaker")


def whose(owner: VirtualKey) -> str:
    """Return whose answers a key may get, as the test has it."""
    return f"the group {owner.cache_group}" if owner.cache_group else f"the key {owner.id}"


class Owned:
    """A provider whose answer says for whom it was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def answer(self, job: Job) -> Answer:
        self.calls[job.owner.id] += 1
        await asyncio.sleep(0)
        message = {"role": "assistant", "content": whose(job.owner)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Answer(msgspec.json.encode({"choices": [choice]}))


def job_of(owner: VirtualKey, text: str) -> Job:
    body = {"model": "caption", "messages": [{"role": "user", "content": text}]}
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    now = perf_counter()
    return Job("id", "chat", owner, ROUTE, fields, "caption", False, now, monotonic() + 60, "chat")


def owners() -> list[VirtualKey]:
    """Return 50 tenants, whose names are made to be mistaken for one another's."""
    plain = [VirtualKey(f"tenant-{number}") for number in range(30)]
    groups = [
        VirtualKey(f"of-{number}", cache_group=f"tenant-{number // 2}") for number in range(18)
    ]
    odd = [VirtualKey("key:tenant-1"), VirtualKey("group", cache_group="group:tenant-1")]
    return [*plain, *groups, *odd]


@pytest.mark.parametrize("words", [PHRASES[:1], PHRASES])
def test_10_000_identical_prompts_of_50_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    # On a machine that is busy a call would not wait for the file, and be made once more.
    monkeypatch.setattr(file_store, "ANSWER_S", 60.0)

    async def test() -> None:
        provider: Any = Owned()
        tier = Semantic(Words(), 1000, pytest.fail, longest_s=30.0)
        back = FileStore(tmp_path / "answers.db", 1 << 24)
        cache = ResponseCache(
            SemanticCacheEntry(enabled=True),
            provider,
            Telemetry(),
            MemoryStore(4096),  # so small that most is read from the file
            back=back,
            tier=tier,
        )
        wrong: list[tuple[str, bytes]] = []
        hits = 0

        async def one(owner: VirtualKey, text: str) -> None:
            job = job_of(owner, text)

            async def deliver(got: Any) -> int:
                nonlocal hits
                said = msgspec.json.decode(got.body)["choices"][0]["message"]["content"]
                hits += b"cache: hit" in job.cache
                if said != whose(owner):
                    wrong.append((owner.id, got.body))
                return 200

            assert await cache.serve(job, deliver) == 200

        calls = [(owner, words[turn % len(words)]) for owner in owners() for turn in range(200)]
        random.Random(1).shuffle(calls)
        for at in range(0, len(calls), 100):
            await asyncio.gather(*(one(*call) for call in calls[at : at + 100]))
        await cache.aclose()
        assert len(calls) == 10_000
        assert wrong == []
        made = sum(provider.calls.values())
        assert hits + made == 10_000
        # Two texts of one tenant at the same moment are two calls; no more are made than that.
        assert 30 + 9 + 2 <= made <= 2 * (30 + 9 + 2)

    asyncio.run(test())
