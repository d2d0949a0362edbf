"""The fault matrix against the real gateway, and its three accounts held against each other.

What the caller saw, what the provider billed (`Fake.truth`) and what the ledger says: exact where
the gateway knew, never less where it could not know, and exact again once what is unknown was
reconciled with the provider's own count.

Each case runs once in every run of the tests, its API and manner taken in turn; with `LONG` all
combinations do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from packshot.core.types import Usage
from packshot.ledger.clerk import corrector
from packshot.ledger.corrections import reprice, reverse
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.records import Dimensions, Settled
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.stores.schema import COLUMNS
from packshot.ledger.wiring import bring_in
from packshot.providers.fake_script import Fault, Rule, Settings, Truth
from tests.gateway.caller import Caller
from tests.gateway.faults import (
    ANSWER,
    CASES,
    CUT,
    KEYS,
    LONG,
    PATIENCE_S,
    RETRIES,
    Api,
    Case,
    check_books,
    hang_ups,
    run_case,
)
from tests.gateway.world import World, world

Way: TypeAlias = Literal["openai", "anthropic", "translated"]
"""The caller's API and the provider's; translated is from OpenAI's to Anthropic's."""

YAML = """
providers:
  PROVIDER:
    base_url: {one}PREFIX
    keys: [{name: a, value: env.KEY_A}, {name: b, value: env.KEY_B}]
    network:
      retry: {max_retries: RETRIES, backoff_initial_ms: 1, backoff_max_ms: 5}
      timeouts: {first_byte_s: PATIENCE, idle_s: PATIENCE}
      on_hangup: HANGUP
"""
PROVIDERS: dict[Way, tuple[str, str, str]] = {
    "openai": ("openai", "/v1", "gpt-4o-mini"),
    "anthropic": ("anthropic", "", "claude-haiku-4-5"),
    "translated": ("anthropic", "", "claude-haiku-4-5"),
}
"""Name, path and model."""

EVENTS = 12
"""Events of a stream after each of which a caller leaves."""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in zip("AB", KEYS, strict=True):
        monkeypatch.setenv(f"KEY_{name}", key)


def yaml_of(way: Way, hangup: str = "cancel") -> str:
    name, prefix, _ = PROVIDERS[way]
    put = {
        "PROVIDER": name,
        "PREFIX": prefix,
        "RETRIES": str(RETRIES),
        "PATIENCE": str(PATIENCE_S),
        "HANGUP": hangup,
    }
    made = YAML
    for word, value in put.items():
        made = made.replace(word, value)
    return made


def ways_of(case: Case) -> list[tuple[Way, bool]]:
    """Return the combinations that a case is true of."""
    ways: list[Way] = [*case.apis]
    if "anthropic" in case.apis:
        ways.append("translated")
    return [(way, stream) for way in ways for stream in case.streams]


def rows(cases: Sequence[Case]) -> Iterator[object]:
    """Yield each case in one of its ways, with `LONG` in all."""
    for number, case in enumerate(cases):
        ways = ways_of(case)
        for at, (way, stream) in enumerate(ways):
            if not LONG and at != number % len(ways):
                continue
            truly = before_the_first_byte(case) if way == "translated" and unseen(case) else case
            name = f"{case.name}, {way}, {'streamed' if stream else 'whole'}"
            yield pytest.param(truly, way, stream, id=name)


def unseen(case: Case) -> bool:
    """Tell whether a stream of Anthropic's breaks before it said what OpenAI's API has a word for:
    at its second or third event (``content_block_start`` and ``ping``).
    """
    return case.seen == CUT and len(case.faults) == 1 and case.faults[0].at in {1, 2}


def before_the_first_byte(case: Case) -> Case:
    """Return the case for a caller who has seen nothing yet: another attempt answers."""
    return replace(case, seen=ANSWER, books=("bound", "exact"))


def run(there: World, case: Case, way: Way, *, stream: bool, drained: bool = False) -> None:
    """Run a case and hold caller, provider and ledger against each other."""
    provider, _, model = PROVIDERS[way]
    api: Api = "anthropic" if way == "anthropic" else "openai"
    fake = there.fakes["one"]
    caller = Caller(int(there.url.rpartition(":")[2]), {api: f"{provider}/{model}"})
    report = asyncio.run(run_case(case, caller, fake, api=api, stream=stream))
    entries = settled(there, len(report.truths))
    book = there.worker.gateway._money.book

    def price(usage: Usage) -> int:
        return book.charge(usage, provider, model, entries[0].dispatched_at).amount

    check_books(report, entries, price, drained=drained)
    reconcile(there, entries, report.truths, book)
    billed = sum(price(truth.billed) for truth in report.truths if truth.billed is not None)
    assert there.worker.gateway._money.ledger.open_holds == {}, "a hold that nobody ended"
    assert sum(entry.amount for entry in stored(there)) == billed, "after reconciliation"


def settled(there: World, count: int) -> list[Settled]:
    """Return the entries, once there are as many as expected: a hang-up is heard a little later."""
    for _ in range(400):
        entries = stored(there)
        if len(entries) >= count:
            break
        time.sleep(0.01)
    return entries


def stored(there: World) -> list[Settled]:
    """Bring the journal into the store, and return its entries in the order of their attempts."""
    settings = load_settings(there.path)
    store = open_store(settings.store)
    try:
        bring_in(settings, store)
        assert store.verify() == []
        names = ", ".join(COLUMNS)
        found = store.query(f"SELECT {names} FROM entries ORDER BY held_at, seq")  # noqa: S608 - ours
        return [entry_of(dict(zip(COLUMNS, row, strict=True))) for row in found]
    finally:
        store.close()


def entry_of(row: dict[str, object]) -> Settled:
    own = {name: row[name] for name in Dimensions.__struct_fields__ if name != "tags"}
    rest = {name: row[name] for name in Settled.__struct_fields__ if name in row}
    rest["priced"] = bool(rest["priced"])
    rest["caps"] = ()
    return Settled(**{**rest, "dimensions": Dimensions(**own)})  # type: ignore[arg-type]


def reconcile(
    there: World, entries: Sequence[Settled], truths: Sequence[Truth], book: PriceBook
) -> None:
    """Correct the entries by the provider's own count, as a clerk with its invoice would."""
    settings = load_settings(there.path)
    store = open_store(settings.store)
    try:
        with corrector(settings, store, book) as clerk:
            for entry, truth in zip(entries, truths, strict=True):
                of = entry.dimensions
                if truth.billed is None:
                    if entry.amount:
                        assert entry.outcome == "unknown", entry
                        clerk.correct(reverse(entry, "the provider did not bill it"))
                    continue
                charge = book.charge(truth.billed, of.provider, of.model, entry.dispatched_at)
                if charge.amount != entry.amount:
                    assert entry.outcome in {"unknown", "succeeded"}, entry
                    clerk.correct(reprice(entry, charge, "the provider's count"))
    finally:
        store.close()


@pytest.mark.parametrize(("case", "way", "stream"), list(rows(CASES)))
def test_a_fault(tmp_path: Path, case: Case, way: Way, stream: bool) -> None:
    with world(tmp_path, yaml_of(way), one=case.settings) as there:
        run(there, case, way, stream=stream)


def some(cases: list[Case], hangup: str) -> list[Case]:
    """Return all, or, where each takes its time and the run is not `LONG`, a few."""
    return cases if LONG or hangup == "cancel" else cases[:: EVENTS // 3]


@pytest.mark.parametrize("hangup", ["cancel", "drain"])
@pytest.mark.parametrize("way", ["openai", "anthropic", "translated"])
def test_a_caller_leaves_after_each_event(tmp_path: Path, way: Way, hangup: str) -> None:
    for number, case in enumerate(some(hang_ups(EVENTS), hangup)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with world(folder, yaml_of(way, hangup), one=case.settings) as there:
            run(there, case, way, stream=True, drained=hangup == "drain")


@pytest.mark.parametrize("billed", ["sent", "nothing"])
def test_a_caller_leaves_and_the_provider_bills_less(
    tmp_path: Path, billed: Literal["sent", "nothing"]
) -> None:
    for number, case in enumerate(some(hang_ups(EVENTS, billed), "drain")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with world(folder, yaml_of("openai"), one=case.settings) as there:
            run(there, case, "openai", stream=True)


def test_a_provider_that_comes_and_goes(tmp_path: Path) -> None:
    """Every caller has an answer, and what each provider billed is what the ledger has of it."""
    yaml = (
        yaml_of("openai")
        + """
  anthropic:
    base_url: {two}
    keys: [{value: env.KEY_A}]
routes: [{id: chat, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-haiku-4-5]}]
"""
    )
    settings = Settings(keys=dict.fromkeys(KEYS))
    with world(tmp_path, yaml, one=settings, two=settings) as there:
        there.fakes["one"].rule(Rule(fault=Fault(status=503), up_s=0.2, down_s=0.2))
        caller = Caller(int(there.url.rpartition(":")[2]), {"openai": "chat"})

        async def call() -> None:
            for number in range(120):
                saw = await caller(api="openai", stream=number % 2 == 0)
                assert saw.complete, saw
                await asyncio.sleep(0.01)

        asyncio.run(call())
        there.ended()
        entries = settled(there, sum(len(fake.truth) for fake in there.fakes.values()))
        book = there.worker.gateway._money.book
        for name, model in (("one", "gpt-4o-mini"), ("two", "claude-haiku-4-5")):
            provider = "openai" if name == "one" else "anthropic"
            of = [entry for entry in entries if entry.dimensions.provider == provider]
            truths = there.fakes[name].truth
            assert len(of) == len(truths)
            costs = [
                book.charge(truth.billed, provider, model, of[0].dispatched_at).amount
                for truth in truths
                if truth.billed is not None
            ]
            assert sum(entry.amount for entry in of) == sum(costs)
        asked = len(there.fakes["one"].truth)
        failed = sum(truth.status == 503 for truth in there.fakes["one"].truth)
        assert asked
        assert failed <= 0.2 * 120 + 5, "retries beyond the budget, or a breaker that did not open"
