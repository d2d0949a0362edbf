"""Works that go to the hosted provider beside a worker that is well: late ones, and a long line."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.client import LocalClient
from packshot.gateway.settings import load_gateway
from packshot.ledger.caps import Cap
from packshot.ledger.ledger import Ledger, caps_of
from packshot.ledger.wiring import local_ledger
from packshot.providers.fake import Fake
from packshot.providers.fake_script import Fault, Rule, Settings
from packshot.studio.batch.elsewhere import Beside, Elsewhere
from packshot.studio.batch.items import read_items
from packshot.studio.batch.line import Line
from packshot.studio.batch.perform import with_engine
from packshot.studio.batch.report import hosted_of
from packshot.studio.batch.runner import Rules, Run
from packshot.studio.batch.state import NEVER, RunState
from packshot.studio.batch.supervise import Worker
from packshot.studio.hosted import ACCOUNT, HostedOrder, HostedProvider
from packshot.studio.overflow import Limits
from packshot.studio.recipes.recipe import load_recipe
from tests.studio.batch.test_elsewhere import PRICE, SD, Here
from tests.studio.batch.world import QUICK, items_of, work_of
from tests.studio.provider import provider

EACH_S = 4.0
"""What a picture takes here, on the clock of the test."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("KEY_A", "secret-a")
    with provider(Settings(keys={"secret-a": None})) as made:
        yield made


class Time:
    """A clock that the worker moves, by `EACH_S` for each picture that it makes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Beyond(Here):
    """A batch of which some is made beside the worker."""

    def run_beside(
        self,
        monkeypatch: pytest.MonkeyPatch,
        beside: Beside,
        limits: Limits,
        cap: int = 0,
        stop_at: int = 0,
        agreed: int | None = None,
    ) -> Run:
        self.time = time = Time()
        self_ = self

        class Timed(Worker):
            def ask(self, *arguments: Any) -> Any:
                if stop_at and len(self_.fake.truth) >= stop_at:
                    run.stop.ask(1, "enough")
                reply = super().ask(*arguments)
                time.now += EACH_S
                return reply

        monkeypatch.setattr("packshot.studio.batch.runner.Worker", Timed)
        caps = [*caps_of(self.ledger_settings)]
        if cap:
            caps.append(Cap("virtual_key", ACCOUNT, cap, "ever", "refuse"))
        ledger = local_ledger(self.ledger_settings, self.book, caps)
        try:
            setup = self.setup(ledger, QUICK, Rules(attempts=2), agreed)
            run = Run(self.state, replace(setup, elsewhere=self.out(ledger, limits, beside)))
            run.go()
        finally:
            left = dict(ledger.open_holds)
            ledger.close()
            self.drain()
        assert left == {}
        return run

    def out(self, ledger: Ledger, limits: Limits, beside: Beside) -> Elsewhere:
        def client() -> LocalClient:
            self.clients += 1
            return LocalClient(load_gateway(self.folder / "packshot.yaml"), ledger, self.book)

        told = {"recipe": load_recipe("text").facts(), "model": str(self.model)}
        order = HostedOrder(SD, "", 20.0, "stub", "batch-1")
        return Elsewhere(
            limits,
            lambda on_call: HostedProvider(client, order, on_call),
            lambda engine: with_engine(told, self.folder / "run", engine),
            self.time,
            beside,
        )

    def due(self, **deadlines: float) -> None:
        """Plan anew, with the deadline of each item that is named."""
        rows = items_of([f"mug {number}" for number in range(self.count)])
        self.plan(
            [msgspec.structs.replace(one, deadline_s=deadlines.get(one.id, 0.0)) for one in rows]
        )

    count = 0

    def check(self, run: Run) -> Counter[str]:
        """Hold everything against the truth; return how many were made where, and why."""
        assert set(self.check_delivered().values()) == {"delivered"}
        here = [truth.render for truth in self.truths() if truth.usage]
        there = self.query(
            "SELECT render, tags FROM entries WHERE provider <> '' AND outcome = 'succeeded'"
        )
        renders = [row.made.render for row in self.state.rows() if row.made is not None]
        assert Counter(here) + Counter(render for render, _ in there) == Counter(renders)
        assert self.billed() == sum(row[-1] for row in self.bought())
        for row in self.state.rows():
            assert row.made is not None
            marked = row.made.facts.get("hosted", {}).get("why", "here")
            tags = [tags for render, tags in there if render == row.made.render]
            assert tags == ([] if marked == "here" else [f"key=only,overflow={marked}"])
        ((amount,),) = self.query("SELECT sum(amount) FROM renders")
        assert run.tally.amount == amount == sum(row.cost for row in self.state.rows())
        why = Counter(
            "here" if row.made is None else row.made.facts.get("hosted", {}).get("why", "here")
            for row in self.state.rows()
        )
        assert run.tally.elsewhere == sum(why.values()) - why["here"]
        with self.opened() as store:
            assert sum(many for _, many in hosted_of(store, "batch-1")) == run.tally.elsewhere
        return why


def world(folder: Path, fake: Fake, model: Path, count: int) -> Beyond:
    made = Beyond(folder / "b", fake, model, [f"mug {number}" for number in range(count)])
    made.count = count
    return made


def test_what_would_be_late_goes_and_the_rest_stays(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 14)
    # Ten are due after 12 s, in which three are made here; four have all the time in the world.
    here.due(**{f"i{number}": 12.0 for number in range(4, 14)})
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits())
    assert here.check(run) == {"here": 7, "deadline": 7}
    assert len(fake.truth) == 7
    dated = [row for row in here.state.rows() if row.item.deadline_s]
    assert sum("hosted" in row.made.facts for row in dated if row.made) == 7
    assert sum(amount for *_, amount in here.bought()) == 7 * PRICE


def test_deadlines_that_can_be_met_here_cost_nothing_there(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 8)
    # The last row is due first, and is made first: by rows it would be the last of eight.
    here.due(i7=4.0, i6=8.0, i0=12.0)
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits(when_wait_exceeds_s=1.0))
    assert here.check(run) == {"here": 8}
    assert (here.clients, fake.truth, fake.connections) == (0, [], set())
    briefs = [truth.brief for truth in here.truths() if truth.usage]
    assert briefs[:4] == ["mug 7", "mug 6", "mug 0", "mug 1"]


def test_a_long_line_goes_only_where_the_operator_says_so_and_comes_back(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 20)
    # 20 works of 4 s are 80 s: they go until the line is 24 s, and what is left is made here.
    limits = Limits(when_wait_exceeds_s=40.0, back_below_s=24.0, dwell_s=0.0)
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S, whole=True), limits)
    why = here.check(run)
    assert set(why) == {"here", "wait"}
    assert why["here"] >= 6
    assert why["wait"] >= 1
    assert len(fake.truth) == why["wait"]


def test_a_short_line_stays(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 6)
    limits = Limits(when_wait_exceeds_s=40.0, back_below_s=20.0, dwell_s=0.0)
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S, whole=True), limits)
    assert here.check(run) == {"here": 6}
    assert fake.connections == set()


def test_the_budget_ends_it_and_the_rest_is_made_here(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 10)
    here.due(**{f"i{number}": 4.0 for number in range(10)})
    run = here.run_beside(
        monkeypatch, Beside(seconds=EACH_S), Limits(dwell_s=1e9), cap=3 * PRICE + 1
    )
    why = here.check(run)
    assert why == {"here": 7, "deadline": 3}
    assert len(fake.truth) == 3
    assert "studio/overflow" in run.tally.not_taken
    assert run.tally.failed_attempts == 0
    assert sum(amount for *_, amount in here.bought()) == 3 * PRICE


def test_no_more_goes_than_what_was_agreed_covers(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 10)
    here.due(**{f"i{number}": 1.0 for number in range(10)})
    agreed = 2 * PRICE + 30_000_000  # what is made here costs far less than the rest of it
    beside = Beside(seconds=EACH_S, price=PRICE)
    run = here.run_beside(monkeypatch, beside, Limits(dwell_s=1e9), agreed=agreed)
    assert here.check(run) == {"here": 8, "deadline": 2}
    assert run.tally.amount <= agreed
    assert "agreed" in run.tally.not_taken


def test_a_run_that_was_stopped_goes_on_and_makes_nothing_twice(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 30)
    here.due(**{f"i{number}": 40.0 for number in range(30)})
    first = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits(), stop_at=1)
    assert first.stop.level == 1
    assert here.state.counts().left > 0
    begun = first.tally.elsewhere
    rest = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits())
    assert set(here.check_delivered().values()) == {"delivered"}
    assert first.tally.made + rest.tally.made == 30
    assert len(fake.truth) == begun + rest.tally.elsewhere
    assert here.billed() == sum(row[-1] for row in here.bought())
    there = [render for (render,) in here.query("SELECT render FROM entries WHERE provider <> ''")]
    made_here = [truth.render for truth in here.truths() if truth.usage]
    renders = [row.made.render for row in here.state.rows() if row.made is not None]
    assert Counter(there) + Counter(made_here) == Counter(renders)


def test_an_outage_there_keeps_them_here(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.rule(Rule(fault=Fault(status=503)))
    here = world(tmp_path, fake, folder, 12)
    here.due(**{f"i{number}": 4.0 for number in range(12)})
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits(dwell_s=1e9))
    assert here.check(run) == {"here": 12}
    assert 1 <= len(fake.truth) <= 4  # those that were in work there when the first failed
    assert run.tally.failed_attempts == 0
    assert "made no picture" in run.tally.not_taken


def test_what_the_filter_refuses_is_quarantined_and_not_made_here(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.rule(Rule(fault=Fault(code="filter")))
    here = world(tmp_path, fake, folder, 4)
    here.due(i3=1.0)
    run = here.run_beside(monkeypatch, Beside(seconds=EACH_S), Limits())
    assert here.check_delivered()["i3"] == "quarantined"
    assert (run.tally.delivered, run.tally.quarantined, len(fake.truth)) == (3, 1, 1)
    assert "mug 3" not in {truth.brief for truth in here.truths()}


def test_nothing_goes_before_anybody_knows_what_one_takes(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, fake, folder, 3)
    here.due(i0=3600.0, i1=3600.0, i2=3600.0)
    assert here.check(here.run_beside(monkeypatch, Beside(), Limits())) == {"here": 3}
    assert fake.connections == set()


# ------------------------------------------------------------------------------ the column


def test_a_deadline_decides_nothing_of_a_picture_nor_of_its_name(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("brief,deadline_s\nmug,\nmug,90.5\n")
    (_, plain), (_, dated) = read_items(table)
    assert (plain.deadline_s, dated.deadline_s) == (0.0, 90.5)
    assert (plain.id, plain.seed, work_of(plain)) == (dated.id, dated.seed, work_of(dated))
    other = tmp_path / "t.jsonl"
    other.write_text('{"brief": "mug", "deadline_s": 90.5}\n')
    ((_, again),) = read_items(other)
    assert again == dated


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan", "inf", "2592001"])
def test_a_deadline_that_could_never_be_meant(tmp_path: Path, said: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"id,brief,deadline_s\na,mug,{said}\n")
    with pytest.raises(InvalidRequest, match="seconds after the run began, above 0"):
        list(read_items(table))


# ------------------------------------------------------------------------------ the line


def test_two_never_have_the_same_work(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    items = items_of(["a", "b"])
    state.replan([(n, work_of(item), item) for n, item in enumerate(items)], "x")
    line = Line(state)
    first = line.first()
    assert first is not None
    assert line.take(first.work) is None
    second = line.first()
    assert second is not None
    assert second.work != first.work
    assert line.first() is None
    state.quarantine(first.work, "so that it does not wait any more")
    line.leave(first.work)
    assert line.take(first.work) is None
    line.leave(second.work)
    assert line.take(second.work) == second
    state.close()


def test_works_that_items_share_are_due_when_the_first_is(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    one, two, three = items_of(["a", "b", "c"])
    late = msgspec.structs.replace(one, id="late", deadline_s=90.0)
    soon = msgspec.structs.replace(one, id="soon", deadline_s=30.0)
    rows = [one, two, late, soon, msgspec.structs.replace(three, deadline_s=60.0)]
    state.replan([(n, work_of(item), item) for n, item in enumerate(rows)], "x")
    assert [(todo.item.brief, todo.due) for todo in state.waiting("todo")] == [
        ("a", 30.0),
        ("c", 60.0),
        ("b", NEVER),
    ]
    assert state.dated() == [(work_of(one), 30.0), (work_of(three), 60.0)]
    plain = items_of(["a", "b", "c"])
    state.replan([(n, work_of(item), item) for n, item in enumerate(plain)], "y")
    assert state.dated() == []  # what was due in another plan is not in this one
    state.close()


def test_a_state_of_before_there_were_deadlines_goes_on(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    items = items_of(["a", "b"])
    state.replan([(n, work_of(item), item) for n, item in enumerate(items)], "x")
    state.close()
    with sqlite3.connect(tmp_path / "run.db", isolation_level=None) as base:
        base.executescript(
            "DROP INDEX works_in_line; ALTER TABLE works DROP COLUMN due;"
            "ALTER TABLE items DROP COLUMN due;"
            "CREATE INDEX works_to_do ON works (plan, state, turn, row); PRAGMA user_version = 1"
        )
    base.close()
    state = RunState(tmp_path)
    assert [todo.item.brief for todo in state.waiting("todo")] == ["a", "b"]
    state.close()
