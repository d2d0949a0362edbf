"""Captions ahead of the rendering: none is lost, none is paid for twice, and nobody is pestered."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from time import monotonic
from types import SimpleNamespace

import pytest

from packshot.core.errors import BudgetExceeded
from packshot.gateway import client as client_module
from packshot.gateway.client import Ask, LocalClient
from packshot.gateway.dispatch import Dispatcher
from packshot.gateway.settings import ServerEntry
from packshot.gateway.telemetry import Telemetry
from packshot.studio.batch.captions import Gate, Unanswered, Waiting, write_all
from packshot.studio.batch.items import Item
from packshot.studio.batch.state import Todo
from packshot.studio.caption import Caption, Writer
from tests.gateway.faults import LONG
from tests.gateway.test_outage import OUTAGE_S, QUICK_S, START, Count, Script, outage, plan_of
from tests.gateway.travel import Travel, travel

RULES = Caption("a mug", None)


def jobs(count: int) -> Iterator[Todo]:
    for number in range(count):
        yield Todo(number.to_bytes(4), Item(str(number), f"mug {number}", 1), 0, None)


def written(why: str = "") -> Caption:
    return replace(RULES, writer=Writer("llm" if not why else "rules", why=why), problem=why)  # type: ignore[arg-type]


class Kept:
    def __init__(self) -> None:
        self.captions: Counter[bytes] = Counter()
        self.by: Counter[str] = Counter()

    def __call__(self, todo: Todo, caption: Caption) -> None:
        self.captions[todo.work] += 1
        self.by[caption.writer.by] += 1


def asking(primary: Script, second: Script | None, money: Count, patch: pytest.MonkeyPatch):
    """Return what asks a route of the real dispatcher, as a batch does, on the loop's clock."""
    plan = plan_of(primary, second)
    client = object.__new__(LocalClient)
    dispatcher = Dispatcher(money, Telemetry(), ServerEntry())  # type: ignore[arg-type]
    dispatcher._random = random.Random(7)

    async def flush() -> None: ...

    client.__dict__.update(
        _plan=plan, _book=None, _dispatcher=dispatcher, _money=SimpleNamespace(flush=flush)
    )
    patch.setattr(client_module, "connect", lambda _: None)
    patch.setattr(LocalClient, "_reply", lambda _self, _job, text, trouble, kind: (text, kind))

    async def write(todo: Todo) -> Caption:
        now = asyncio.get_running_loop().time()
        patch.setattr(client_module, "monotonic", asyncio.get_running_loop().time)
        ask = Ask("chat", (("user", todo.item.brief),), 50, now + 8.0)
        text, kind = await client.chat(ask)
        return written(kind if not text else "")

    return write


async def all_of(count: int, write, kept: Kept, waiting: Waiting) -> float:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Travel)
    begin = loop.time()
    await write_all(jobs(count), write, kept, Gate(waiting))
    return loop.time() - begin


JOBS = 280_000 if LONG else 14_000
HANDS = Waiting(at_once=36 if LONG else 2)
"""Together 117 captions a second in the long run: 280,000 take as long as the outage."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("has_second", [False, True])
def test_forty_minutes_without_the_provider_lose_no_caption(
    has_second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, money, kept = Script(outage(START)), Count(), Kept()
    second = Script(lambda _: "well") if has_second else None
    write = asking(primary, second, money, monkeypatch)
    took = travel(all_of(JOBS, write, kept, HANDS), monkeypatch)
    assert len(kept.captions) == JOBS
    assert set(kept.captions.values()) == {1}
    assert kept.by == {"llm": JOBS}, "the rules wrote where it was worth waiting"
    assert money.open == 0
    answers = len(primary.of("well")) + (len(second.of("well")) if second else 0)
    assert money.ends["succeeded"] == answers == JOBS, "a caption that was paid for twice"
    gone = START + 60.0
    calls = primary.of("503", "reset", "silent")
    assert len(calls) + answers <= 1.10 * JOBS
    if has_second:
        assert took < 2 * JOBS / HANDS.at_once * QUICK_S, "the second provider was not used"
    else:
        assert took > OUTAGE_S
        late = [at for at in calls if at > gone + 120.0]
        assert all(b - a >= 29.9 for a, b in pairwise(late)), "asked again and again"
        back = next(at for at in primary.of("well") if at >= gone + OUTAGE_S)
        assert back <= gone + OUTAGE_S + 60.0


def run(work):
    return asyncio.run(work)


def test_a_brief_whose_answers_cannot_be_used_is_left_to_the_rules_at_once() -> None:
    kept = Kept()
    tries: Counter[str] = Counter()

    async def write(todo: Todo) -> Caption:
        tries[todo.item.id] += 1
        return written("unusable" if todo.item.id == "3" else "")

    run(write_all(jobs(40), write, kept, Gate(Waiting(at_once=2))))
    assert kept.by == {"llm": 39, "rules": 1}
    assert tries["3"] == 1


def test_a_brief_that_is_never_answered_is_left_to_the_rules_and_holds_up_nobody() -> None:
    gate, kept = Gate(Waiting(at_once=2, enough=1, probe_s=0.01, tries=3)), Kept()

    async def write(todo: Todo) -> Caption:
        return written("deadline" if todo.item.id in {"0", "1", "39"} else "")

    run(asyncio.wait_for(write_all(jobs(40), write, kept, gate), 20.0))
    assert kept.by == {"rules": 3, "llm": 37}


def test_nobody_answers_for_too_long() -> None:
    async def write(todo: Todo) -> Caption:
        return written("unanswered")

    with pytest.raises(Unanswered, match=r"no caption for .* because: unanswered"):
        run(write_all(jobs(9), write, Kept(), Gate(Waiting(probe_s=0.01, patience_s=0.05))))


def test_an_exhausted_budget_ends_it_at_once() -> None:
    calls: list[float] = []

    async def write(todo: Todo) -> Caption:
        calls.append(monotonic())
        return written("budget")

    with pytest.raises(BudgetExceeded, match="budget"):
        run(write_all(jobs(100), write, Kept(), Gate(Waiting(at_once=2))))
    assert len(calls) <= 2
