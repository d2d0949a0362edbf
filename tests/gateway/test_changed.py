"""A virtual key that is changed while its calls are under way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import perf_counter

import pytest

from packshot.core.errors import RateLimited
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.job import Job
from packshot.gateway.limiter import Limiter
from packshot.gateway.money import Money
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import GatewaySettings, ProviderEntry
from packshot.gateway.virtual_key import LimitEntry, VirtualKey
from packshot.ledger.journal import Journal
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import PriceBook
from packshot.state.limits import MemoryLimits

PLAN = build_plan(GatewaySettings(providers={"any": ProviderEntry(kind="ollama")}))


def job_of(owner: VirtualKey) -> Job:
    body = json.dumps({"model": "any/m", "max_tokens": 5, "messages": []}).encode()
    return make_job(DOORS["/v1/chat/completions"], PLAN, owner, {}, body, perf_counter())


def test_a_call_from_before_leaves_no_old_limit_to_those_after_it() -> None:
    before = VirtualKey("k", limits=LimitEntry(requests_per_minute=1000))
    after = VirtualKey("k", limits=LimitEntry(requests_per_minute=1))
    limiter = Limiter(MemoryLimits())

    limiter.forget()  # the key was changed while the first call's body was on its way
    assert limiter.take(job_of(before)) is None
    with pytest.raises(RateLimited):
        limiter.take(job_of(after))


def test_a_key_of_another_team_is_booked_on_it(tmp_path: Path) -> None:
    ledger = Ledger(Journal(tmp_path / "journal", "w"), PriceBook.load())
    money = Money(ledger, PriceBook.load())

    async def held(owner: VirtualKey) -> tuple[str, tuple[str, ...]]:
        job = job_of(owner)
        hold = await money.hold(job, job.route.targets[0], "none", 5)
        money.void(hold, "a test")
        return hold.held.dimensions.team, hold.held.dimensions.tags

    try:
        assert asyncio.run(held(VirtualKey("k", team="a")))[0] == "a"
        team, tags = asyncio.run(held(VirtualKey("k", team="b", tags=("shop=7",))))
        assert team == "b"
        assert "shop=7" in tags
    finally:
        ledger.close()
