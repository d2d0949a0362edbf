"""Clocks that step by an hour, at the end of a month: no cap is passed, no charge is lost."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import BudgetExceeded
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal
from packshot.ledger.ledger import Hold
from packshot.ledger.records import Dispatched
from packshot.ledger.stores import open_store
from tests.ledger.desk import CHAT, Desk, used

MONTH_END = 1_796_083_200 * SECOND_US
"""2026-12-01 00:00 UTC."""

LIMITS = {"hour": 100, "day": 150, "month": 200}
STEPS = (-HOUR_US, HOUR_US, -60 * SECOND_US, 60 * SECOND_US, 20 * 60 * SECOND_US)

ACTS = st.one_of(
    st.tuples(st.just("hold"), st.sampled_from("ab"), st.integers(0, 80)),
    st.tuples(st.just("post"), st.sampled_from("ab"), st.integers(0, 100)),
    st.tuples(st.just("void"), st.sampled_from("ab"), st.just(0)),
    st.tuples(st.just("step"), st.sampled_from("ab"), st.sampled_from(STEPS)),
    st.tuples(st.just("tick"), st.sampled_from("ab"), st.just(0)),
    st.tuples(st.just("drain"), st.just("a"), st.just(0)),
)


class World:
    """Two workers with a clock each, that share an hourly, a daily and a monthly cap."""

    def __init__(self, folder: Path, before: int) -> None:
        caps = [Cap("total", "", limit, per) for per, limit in LIMITS.items()]  # type: ignore[arg-type]
        self.desks = {worker: Desk(folder, caps, worker) for worker in "ab"}
        for desk in self.desks.values():
            desk.now = MONTH_END - before
        self.open: dict[str, list[Hold]] = {"a": [], "b": []}
        self.use: Counter[str] = Counter()
        self.store = open_store(str(folder / "ledger.db"))
        leases = self.desks["a"].leases
        self.drain = Drain(folder / "journal", self.store, leases, lambda: self.desks["a"].now)

    def act(self, what: str, worker: str, number: int) -> None:
        desk, holds = self.desks[worker], self.open[worker]
        if what == "hold":
            try:
                holds.append(desk.ledger.hold(CHAT, number))
            except BudgetExceeded:
                return
            self.use.update(dict.fromkeys(holds[-1].held.caps, number))
        elif what in {"post", "void"} and holds:
            hold = holds.pop(0)
            cost = hold.amount * number // 100
            settled = (
                desk.ledger.void(hold, "no")
                if what == "void"
                else desk.ledger.post(hold, used(cost))
            )
            assert settled.caps == hold.held.caps, "it is charged where it was held"
            self.use.subtract(dict.fromkeys(hold.held.caps, hold.amount - settled.amount))
        elif what == "step":
            desk.now += number
        elif what == "tick":
            desk.ledger.tick()
            assert set(holds) == set(desk.ledger.open_holds.values()), "no step expires a hold"
        elif what == "drain":
            self.drain.step()

    def check(self) -> None:
        for period, amount in self.use.items():
            label = period.rpartition("@")[2]
            limit = LIMITS[{7: "month", 10: "day", 13: "hour"}[len(label)]]
            spent, leased = self.desks["a"].period(period)
            assert amount <= spent + leased <= limit or amount == 0

    def end(self) -> None:
        for worker, holds in self.open.items():
            for hold in holds:
                self.desks[worker].ledger.void(hold, "over")
                self.use.subtract(dict.fromkeys(hold.held.caps, hold.amount))
        self.desks["b"].ledger.close()
        ledger = self.desks["a"].ledger
        ledger._give_back(ledger._caps.everything())  # type: ignore[union-attr]
        self.desks["a"].journal.close()
        for _ in range(2):
            self.drain.step()
        spent: Counter[str] = Counter()
        for caps, amount in self.store.query("SELECT caps, amount FROM entries"):
            spent.update(dict.fromkeys(caps.split(","), amount))
        assert +spent == +self.use
        for period, amount in spent.items():
            assert self.desks["a"].period(period) == (amount, 0)
        assert self.store.verify() == []


@settings(max_examples=30, deadline=None)
@given(
    before=st.sampled_from((1, 30 * 60 * SECOND_US, HOUR_US, 2 * HOUR_US)),
    acts=st.lists(ACTS, min_size=5, max_size=60),
)
def test_steps_of_an_hour_pass_no_cap_and_lose_no_charge(
    before: int, acts: list[tuple[str, str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), before)
        for act in acts:
            world.act(*act)
            world.check()
        world.end()
        world.store.close()
        world.desks["a"].leases.close()


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.sampled_from((-3600, 0, 1, 3600)), min_size=2, max_size=8))
def test_each_life_comes_after_those_before_it(steps: list[int]) -> None:
    """A life's number is the clock's seconds, unless the clock has stepped back since the last."""
    now, epochs = 1_796_083_200, []
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            now += step
            with patch("packshot.ledger.journal.time.time", return_value=now):
                journal = Journal(Path(folder), "w")
            journal.append(Dispatched("a", 1))
            epochs.append(journal.epoch)
            journal.close()
            assert journal.epoch >= now
    assert epochs == sorted(set(epochs))
