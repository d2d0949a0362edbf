"""A provider away for 40 minutes, on a virtual clock: the dispatcher as it is, no sockets."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, TypeAlias

import msgspec
import pytest

from packshot.core.clock import wall_us
from packshot.core.config import Secret
from packshot.core.errors import UpstreamBroken, UpstreamTimeout
from packshot.core.types import Usage
from packshot.gateway.access import NOBODY
from packshot.gateway.answers import of_failure
from packshot.gateway.dispatch import Dispatcher, Refused
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.job import Job
from packshot.gateway.money import Money
from packshot.gateway.plan import Plan, build_plan
from packshot.gateway.settings import (
    GatewaySettings,
    KeyEntry,
    ProviderEntry,
    RouteEntry,
    ServerEntry,
)
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.wire.upstream import Call, Reply
from packshot.ledger.ledger import open_ledger
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in
from tests.gateway.faults import LONG
from tests.gateway.travel import Travel, travel

OUTAGE_S = 2400.0
AFTER_S = 180.0
RATE = 117.0
"""280,000 calls in 40 minutes."""

QUICK_S = 0.3
"""How long a provider takes that is well."""

REFUSED_S = 0.02

ANSWER = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "beach"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
    }
)
BODY = b'{"model":"chat","max_tokens":50,"messages":[{"role":"user","content":"sneaker"}]}'
USED = Usage(stage="chat", input_tokens=20, output_tokens=5)

How: TypeAlias = Literal["well", "503", "reset", "silent", "429"]


class Whole:
    """An answer in one piece."""

    def __init__(self, status: int, body: bytes, headers: Mapping[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def read(self, limit: int) -> bytes:
        assert len(self._body) <= limit
        return self._body

    async def chunk(self) -> bytes:
        raise AssertionError("a whole answer is not read by parts")

    def abort(self) -> None:
        pass


@dataclass
class Script:
    """A provider: ``how`` it is at a time, and what came of each call."""

    how: Callable[[float], How]
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    seen: list[tuple[float, How]] = field(default_factory=list)
    silent_s: float = 60.0

    async def send(self, call: Call, /) -> Reply:
        loop = asyncio.get_running_loop()
        now = loop.time()
        how = self.how(now)
        self.seen.append((now, how))
        if how == "silent":
            await asyncio.sleep(min(call.timeouts.first_byte_s, call.deadline - now))
            raise UpstreamTimeout("silence", sent=True)
        if how == "reset":
            await asyncio.sleep(0.01)
            raise UpstreamBroken("reset", sent=True)
        await asyncio.sleep(QUICK_S if how == "well" else REFUSED_S)
        if how == "well":
            return Whole(200, ANSWER, {})
        return Whole(int(how), b'{"error":{"message":"no"}}', self.headers)

    async def close(self) -> None:
        pass

    def of(self, *hows: How) -> list[float]:
        return [at for at, how in self.seen if how in hows]


@dataclass
class Count:
    """Counts where the ledger would write: what was begun ends once."""

    ends: Counter[str] = field(default_factory=Counter)
    open: int = 0
    succeeded: Counter[str] = field(default_factory=Counter)

    def capped(self, _job: Job) -> bool:
        return False

    def hold_at_once(self, *_: object) -> object:
        self.open += 1
        return SimpleNamespace(amount=1)

    async def hold(self, *_: object) -> object:
        return self.hold_at_once()

    def post(self, job: Job, _hold: object, usage: Usage | None, outcome: str, *_: str) -> None:
        self.open -= 1
        self.ends[outcome] += 1
        if outcome == "succeeded":
            assert usage is not None
            self.succeeded[job.id] += 1

    def void(self, _hold: object, _reason: str) -> None:
        self.open -= 1
        self.ends["failed_free"] += 1


def plan_of(primary: Script, second: Script | None) -> Plan:
    """Return a plan of one route, to ``primary`` and then ``second``."""

    def entry(name: str) -> ProviderEntry:
        return ProviderEntry((KeyEntry(Secret(name)),), "openai", f"https://{name}.example/v1")

    providers = {"one": entry("one")}
    if second is not None:
        providers["two"] = entry("two")
    fallbacks = ("two/gpt-4o-mini",) if second else ()
    routes = (RouteEntry("chat", "one/gpt-4o-mini", fallbacks),)
    plan = build_plan(GatewaySettings(providers=providers, routes=routes))
    plan.providers["one"].upstream = primary
    if second is not None:
        plan.providers["two"].upstream = second
    return plan


class Told(Telemetry):
    """Remembers when breakers opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opens: list[float] = []

    def opened(self, *_: object) -> None:
        self.opens.append(asyncio.get_running_loop().time())


@dataclass
class Outcome:
    """What the callers saw: when each began, how long it took, and its answer or its refusal."""

    jobs: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[float, float, Refused]] = field(default_factory=list)
    opens: list[float] = field(default_factory=list)
    attempts: int = 0


async def drive(plan: Plan, money: object, seconds: float, rate: float) -> Outcome:
    """Make a call every 1/``rate`` s for so long, whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Travel)
    told = Told()
    dispatcher = Dispatcher(money, told, ServerEntry())  # type: ignore[arg-type]
    dispatcher._random = random.Random(7)
    outcome = Outcome(opens=told.opens)
    begin = loop.time()

    async def call() -> None:
        job = make_job(DOORS["/v1/chat/completions"], plan, NOBODY, {}, BODY, loop.time())
        job.deadline = loop.time() + 600.0
        at = loop.time()
        try:
            await dispatcher.answer(job)
        except Refused as refused:
            outcome.refusals.append((at, loop.time() - at, refused))
        else:
            outcome.answered[job.id] += 1
        outcome.attempts += job.attempts

    tasks: set[asyncio.Task[None]] = set()
    outcome.jobs = int(seconds * rate)
    for number in range(outcome.jobs):
        due = begin + number / rate
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        task = loop.create_task(call())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return outcome


def outage(begin: float) -> Callable[[float], How]:
    """Return a minute of health, the outage (503, then resets, then silence), and health again."""

    def how(now: float) -> How:
        since = now - begin - 60.0
        if since < 0 or since >= OUTAGE_S:
            return "well"
        if since < 0.05 * OUTAGE_S:
            return "503"
        return "reset" if since < 0.5 * OUTAGE_S else "silent"

    return how


START = 1_000.0
"""The virtual clock's beginning."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rate", [RATE / 20, RATE] if LONG else [RATE / 20])
def test_forty_minutes_with_a_second_provider(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    primary, second, money = Script(outage(START)), Script(lambda _: "well"), Count()
    plan = plan_of(primary, second)
    whole = 60 + OUTAGE_S + AFTER_S
    outcome = travel(drive(plan, money, whole, rate), monkeypatch)
    assert outcome.refusals == []
    assert set(outcome.answered.values()) == {1}
    assert len(outcome.answered) == outcome.jobs == sum(money.succeeded.values())
    assert set(money.succeeded.values()) == {1}, "an answer that was paid for twice"
    assert money.open == 0
    answers = len(primary.of("well")) + len(second.of("well"))
    assert money.ends["succeeded"] == answers, "the ledger and the providers' own count"
    assert outcome.attempts <= 1.02 * outcome.jobs

    gone, back = START + 60.0, START + 60.0 + OUTAGE_S
    failures = primary.of("503", "reset", "silent")
    opened = outcome.opens[0]
    # What was sent before the outage is still answered in its first moments, which is no failure
    # in a row; what is under way when the fifth failure comes was sent in good faith.
    assert len([at for at in failures if gone + QUICK_S <= at <= opened - REFUSED_S]) <= 5
    assert not [at for at in primary.of("503") if opened < at < opened + 29.9]
    assert opened < gone + 5 / rate + 2.0
    probes = [at for at in failures if at > opened]
    assert all(b - a >= 29.9 for a, b in pairwise(probes)), probes
    assert len(probes) >= OUTAGE_S / 61
    recovered = next(at for at in primary.of("well") if at >= back)
    assert recovered <= back + 60.0
    late = [at for at in second.of("well") if at > back + 62.0]
    assert not late, "the second provider is used although the first is well"


def test_silence_from_one_moment_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says no: the first timeouts do."""

    def how(now: float) -> How:
        return "silent" if START + 10 <= now < START + 600 else "well"

    primary, second, money = Script(how), Script(lambda _: "well"), Count()
    outcome = travel(drive(plan_of(primary, second), money, 700.0, 20.0), monkeypatch)
    assert outcome.refusals == []
    assert set(money.succeeded.values()) == {1}
    assert len(money.succeeded) == outcome.jobs
    assert outcome.opens[0] <= START + 10 + 60 + 2, "the first-byte timeout and two seconds"
    probes = [at for at in primary.of("silent") if at > outcome.opens[0] + 0.1]
    assert all(b - a >= 29.9 for a, b in pairwise(probes)), probes
    assert money.open == 0


def test_forty_minutes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second provider callers hear 503 and when to come back, and no load is added."""
    primary, money = Script(outage(START)), Count()
    outcome = travel(drive(plan_of(primary, None), money, 60 + OUTAGE_S + 70, 8.0), monkeypatch)
    assert len(outcome.refusals) + len(outcome.answered) == outcome.jobs
    assert len(primary.seen) <= 1.10 * outcome.jobs
    assert set(money.succeeded.values()) == {1}
    assert money.open == 0
    resting = [one for one in outcome.refusals if one[2].failure.status == 0 and not one[1]]
    assert len(resting) > 0.99 * len(outcome.refusals), "the others were probes"
    for _, _, refused in resting:
        trouble = of_failure(refused.failure)
        assert trouble.answer.status == 503
        assert dict(trouble.headers())[b"retry-after"]
    back = START + 60 + OUTAGE_S
    assert not [at for at, _, _ in outcome.refusals if at > back + 60.0]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"retry-after": b"20"},
        {b"retry-after-ms": b"20000"},
        {b"retry-after": b"1000000000"},
    ],
)
def test_a_storm_of_rate_limits(
    headers: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 for a minute, then for a tenth: few attempts meanwhile, and no stampede afterwards."""
    tenth = random.Random(3)

    def how(now: float) -> How:
        if now < START + 60:
            return "429"
        return "429" if tenth.random() < 0.1 and now < START + 120 else "well"

    primary, second, money = Script(how, headers), Script(lambda _: "well"), Count()
    outcome = travel(drive(plan_of(primary, second), money, 180.0, 50.0), monkeypatch)
    assert outcome.refusals == []
    assert outcome.attempts <= 1.2 * outcome.jobs
    assert money.open == 0
    limited = primary.of("429")
    if headers:
        apart = [b - a for a, b in pairwise(limited)]
        rests = [gap for gap in apart if gap > 1.0]
        assert all(gap >= 18.0 for gap in rests), "not left alone for as long as it asked"
    buckets = Counter(int(at) for at, _ in primary.seen if at >= START + 60)
    if buckets:
        assert max(buckets.values()) <= 3 * 50.0


def test_a_storm_of_rate_limits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that wait for the key do not all come back in the same second."""

    def how(now: float) -> How:
        return "429" if now < START + 60 else "well"

    primary, money = Script(how, {b"retry-after": b"20"}), Count()
    outcome = travel(drive(plan_of(primary, None), money, 180.0, 50.0), monkeypatch)
    assert len(primary.seen) <= 1.2 * outcome.jobs
    buckets = Counter(int(at) for at, _ in primary.seen if at >= START + 60)
    assert max(buckets.values()) <= 3 * sum(buckets.values()) / len(buckets)
    assert all(
        of_failure(each[2].failure).answer.status == 429 for each in outcome.refusals if each[1]
    )
    assert all(of_failure(each[2].failure).retry_after_s for each in outcome.refusals)


def test_the_books_after_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 calls through the real ledger: its entries are the providers' own count."""
    path = tmp_path / "packshot.yaml"
    path.write_text("ledger: {store: ledger.db, journal: journal}\n")
    settings = load_settings(path)
    book = book_of(settings)
    ledger = open_ledger(settings, book, "gateway-0")
    primary, second = Script(outage(START)), Script(lambda _: "well")
    plan = plan_of(primary, second)
    for provider in plan.providers.values():
        provider.price_as = "openai"
    rate = 5_000 / (60 + OUTAGE_S + AFTER_S)
    outcome = travel(drive(plan, Money(ledger, book), 60 + OUTAGE_S + AFTER_S, rate), monkeypatch)
    assert outcome.refusals == []
    assert not ledger.open_holds
    ledger.close()
    store = open_store(settings.store)
    try:
        bring_in(settings, store)
        assert store.verify() == []
        rows = store.query("SELECT outcome, amount FROM entries")
    finally:
        store.close()
    each = book.charge(USED, "openai", "gpt-4o-mini", wall_us()).amount
    paid = [amount for outcome, amount in rows if outcome == "succeeded"]
    assert len(paid) == len(primary.of("well")) + len(second.of("well"))
    assert set(paid) == {each}
    ends = Counter(outcome for outcome, _ in rows)
    assert ends["failed_free"] == len(primary.of("503"))
    assert ends["unknown"] == len(primary.of("reset", "silent"))
    assert sum(ends.values()) == outcome.attempts
