"""A budget worth 50 calls, 1,000 callers at once, and four worker processes: not one too many."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from packshot.core.clock import wall_us
from packshot.ledger.leases import open_shared
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.providers.fake import Fake
from packshot.providers.fake_script import FINE, Fault, Settings, Truth
from tests.gateway.caller import Caller
from tests.gateway.faults import Saw
from tests.gateway.process import Process, booked, provider
from tests.ledger.stores.conftest import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]

CALLS = 50
CALLERS = 1000
MODEL = "gpt-4o-mini"
YAML = """
providers:
  openai:
    base_url: {url}/v1
    keys: [{value: env.KEY_A}, {name: b, value: env.KEY_B}]
    network: {retry: {max_retries: 2, backoff_initial_ms: 1, backoff_max_ms: 5}}
server: {workers: {workers}, port: 0, admin_port: 0, state: state, max_connections: 4000}
ledger:
  store: {store}
  journal: {journal}
  caps: [{scope: total, eur: {eur}, per: month}]
"""
KEYS = {"KEY_A": "k1", "KEY_B": "k2"}


def write(
    folder: Path,
    url: str,
    nanos: int,
    *,
    workers: int = 4,
    name: str = "packshot",
    store: str = "ledger.db",
) -> Path:
    path = folder / f"{name}.yaml"
    given = {
        "url": url,
        "workers": str(workers),
        "eur": f"{nanos / 1e9:.9f}",
        "journal": f"journal-{name}",
        "store": store,
    }
    text = YAML
    for word, value in given.items():
        text = text.replace("{" + word + "}", value)
    path.write_text(text)
    return path


async def storm(ports: list[int], *, mixed: bool) -> list[Saw]:
    """Have all callers call at once; some stream, some of these leave in the middle."""
    gate = asyncio.Event()
    callers = [Caller(port, {"openai": f"openai/{MODEL}"}, limit_s=60) for port in ports]

    async def call(number: int) -> Saw:
        await gate.wait()
        stream = mixed and number % 2 == 1
        leaves = 2 if mixed and number % 6 == 1 else None
        caller = callers[number % len(callers)]
        return await caller(api="openai", stream=stream, hang_up_after=leaves)

    tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
    gate.set()
    return await asyncio.gather(*tasks)


async def until_refused(port: int, *, rounds: int = 8) -> list[Saw]:
    """Call on, one after the other, until nobody has anything left, not even in an idle slice."""
    caller, seen, refused = Caller(port, {"openai": f"openai/{MODEL}"}), [], 0
    while refused < rounds:
        saw = await caller(api="openai", stream=False)
        seen.append(saw)
        refused = refused + 1 if saw.status == 402 else 0
        if saw.status == 402:
            await asyncio.sleep(0.3)
    return seen


def bound_of(folder: Path, fake: Fake) -> int:
    """Return what one call is held at: what a call without a reported usage is booked at."""
    sub = folder / "one"
    sub.mkdir()
    path = write(sub, fake.url, 10**9, workers=1)
    with Process(path, KEYS) as gateway:
        fake.script = lambda _: Fault(usage="absent")
        asyncio.run(until_answered(gateway.port))
        assert gateway.end() == 0
    ((amount,),) = booked(path, "amount")
    fake.clear()
    return amount


async def until_answered(port: int) -> None:
    saw = await Caller(port, {"openai": f"openai/{MODEL}"})(api="openai", stream=False)
    assert saw.complete, saw


def left_open(path: Path) -> tuple[int, int]:
    """Return what the shared table says: nano-euros spent, and those still out in leases."""
    database = open_shared(load_settings(path).store)
    try:
        with database.transaction() as within:
            (row,) = within.query("SELECT spent, leased FROM cap_periods")
            assert within.query("SELECT amount FROM cap_leases WHERE amount > 0") == []
        return int(row[0]), int(row[1])
    finally:
        database.close()


def test_calls_of_one_price(tmp_path: Path) -> None:
    with provider(Settings(keys={"k1": None, "k2": None})) as (fake, _):
        bound = bound_of(tmp_path, fake)
        fake.script = lambda _: Fault(usage="absent")
        budget = CALLS * bound + bound // 2
        path = write(tmp_path, fake.url, budget)
        with Process(path, KEYS) as gateway:
            seen = asyncio.run(storm([gateway.port], mixed=False))
            seen += asyncio.run(until_refused(gateway.port))
            assert gateway.end() == 0, gateway.log()
        assert Counter(saw.status for saw in seen).keys() == {200, 402}
        assert sum(saw.status == 200 for saw in seen) == CALLS
        entries = booked(path, "outcome, amount")
        assert [amount for _, amount in entries] == [bound] * CALLS
        assert len(fake.truth) == CALLS, "calls went out that no budget covered"
        assert left_open(path) == (CALLS * bound, 0)


@pytest.mark.parametrize("gateways", [1, 2])
def test_streams_retries_and_callers_who_leave(
    tmp_path: Path, gateways: int, request: pytest.FixtureRequest
) -> None:
    """Nothing is spent above the budget, whoever bills for what; no hold is left over.

    Two gateways have two workers each, a folder of journals each, and share PostgreSQL.
    """
    store = "ledger.db" if gateways == 1 else request.getfixturevalue("postgres_url")

    def script(truth: Truth) -> Fault:
        if truth.number % 7 == 3:
            return Fault(status=503)
        if truth.number % 11 == 5:
            return Fault(status=504, billed="all")
        return Fault(every_s=0.002) if truth.stream else FINE

    with provider(Settings(keys={"k1": None, "k2": None})) as (fake, _):
        bound = bound_of(tmp_path, fake)
        fake.script = script
        budget = CALLS * bound
        names = [f"gateway-{number}" for number in range(gateways)]
        paths = [
            write(tmp_path, fake.url, budget, workers=4 // gateways, name=name, store=store)
            for name in names
        ]
        made = [Process(path, KEYS) for path in paths]
        try:
            ports = [one.port for one in made]
            seen = asyncio.run(storm(ports, mixed=True))
            assert [one.end() for one in made] == [0] * gateways, [one.log() for one in made]
        finally:
            for one in made:
                one.__exit__()
        assert any(saw.complete for saw in seen)
        assert any(saw.hung_up for saw in seen)
        assert any(saw.status == 402 for saw in seen)
        for path in paths:
            entries = booked(path, "outcome, amount")
        book = book_of(load_settings(paths[0]))
        billed = sum(
            book.charge(truth.billed, "openai", MODEL, wall_us()).amount
            for truth in fake.truth
            if truth.billed is not None
        )
        spent = sum(amount for _, amount in entries)
        assert len(entries) == len(fake.truth)
        assert billed <= spent <= budget
        assert left_open(path) == (spent, 0)
