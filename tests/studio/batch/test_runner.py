"""A run: what a worker does wrong costs an attempt, and what is made is delivered once."""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.core.errors import BudgetExceeded, OutputError, PackshotError, WorkerLost
from packshot.studio.batch.items import Item
from packshot.studio.batch.runner import Rules
from tests.studio.batch.world import World, items_of


def test_every_work_is_made_and_delivered_once(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(12)])
    run = world.run()
    assert run.tally.delivered == 12
    assert set(world.check_delivered().values()) == {"delivered"}
    assert all(count == 1 for count in world.shelf.puts.values())
    assert world.check_books() == {"succeeded": 12}
    ((delivered, amount),) = world.query("SELECT sum(delivered), sum(amount) FROM renders")
    assert delivered == 12
    assert amount == run.tally.amount == sum(row.cost for row in world.state.rows())
    assert not list((tmp_path / "run" / "made").iterdir())


def test_every_row_has_the_tags_that_the_worker_found(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug", "mug nan once", "mug unfit", "mug crash once"])
    world.run()
    rows = world.query(
        "SELECT tags, stage, outcome, reason FROM entries WHERE render <> '' ORDER BY seq"
    )
    assert {row[0] for row in rows if row[1] == "store"} == {"core=0", "core=1", "core=3"}
    lost = [row[0] for row in rows if row[3] == "WorkerLost"]
    assert set(lost) == {""}, "a dead worker says nothing"
    for tags, *row in rows:
        assert tags or row[2] == "WorkerLost"
    wasted = {row[0] for row in rows if row[2] == "failed_billed"}
    assert wasted == {"core=1", "core=2", ""}


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug", "shoe"])
    world.run()
    again = world.run()
    assert again.tally.made == 0
    assert again.tally.starts == 0
    assert len(world.truths()) == 4


@pytest.mark.parametrize("fault", ["crash", "hang", "freeze", "oom", "lost", "full", "nan", "disk"])
def test_what_goes_wrong_once_costs_one_attempt(tmp_path: Path, fault: str) -> None:
    world = World(tmp_path, ["mug 1", f"shoe {fault} once", "mug 2"])
    run = world.run()
    assert run.tally.failed_attempts == 1
    assert set(world.check_delivered().values()) == {"delivered"}
    books = world.check_books()
    assert books["succeeded"] == 3
    assert books["failed_billed"] == 1
    new_worker = fault in {"crash", "hang", "freeze", "oom", "lost"}
    assert run.tally.starts == 1 + new_worker


@pytest.mark.parametrize("fault", ["crash", "lost", "nan"])
def test_poison_is_quarantined_with_its_reason(tmp_path: Path, fault: str) -> None:
    world = World(tmp_path, ["mug 1", f"shoe {fault}", "mug 2"])
    run = world.run()
    assert run.tally.delivered == 2
    assert run.tally.quarantined == 1
    states = world.check_delivered()
    assert states == {"i0": "delivered", "i1": "quarantined", "i2": "delivered"}
    (bad,) = [row for row in world.state.rows() if row.state == "quarantined"]
    assert "(3 attempts)" in bad.reason
    assert {"crash": "SIGKILL", "lost": "context is broken", "nan": "NaN"}[fault] in bad.reason
    assert world.check_books() == {"succeeded": 2, "failed_billed": 3}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refused", "nobody can photograph this"),
        ("unfit", "the product is drawn on beyond its outline, with every seed"),
    ],
)
def test_what_can_never_be_done_is_tried_once(tmp_path: Path, fault: str, reason: str) -> None:
    world = World(tmp_path, ["mug", f"shoe {fault}"])
    run = world.run()
    assert run.tally.failed_attempts == 1
    (bad,) = [row for row in world.state.rows() if row.state == "quarantined"]
    assert bad.reason == reason


def test_a_quarantined_work_that_is_released_is_tried_anew(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug", "shoe nan"])
    world.run()
    assert world.state.release() == 1
    run = world.run()
    assert run.tally.failed_attempts == 3
    assert world.state.counts().quarantined == 1


def test_a_run_stops_where_every_work_fails(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k} crash" for k in range(9)])
    with pytest.raises(WorkerLost, match="4 works in a row"):
        world.run(rules=Rules(in_a_row=4))
    assert world.state.counts().todo == 9


@pytest.mark.parametrize("fault", ["crash", "refused"])
def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path, fault: str) -> None:
    world = World(tmp_path, ["mug"], load=fault)
    with pytest.raises(PackshotError, match=r"no worker could be started|nobody can"):
        world.run()
    assert world.state.counts().todo == 1


def test_a_model_that_is_loaded_the_second_time_will_do(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug"], load="crash once")
    assert world.run().tally.starts == 2
    assert world.state.counts().delivered == 1


def test_a_store_that_refuses_is_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug 1", "mug 2"])
    world.shelf.fails = 2
    world.run(rules=Rules(resend_s=0.01))
    assert set(world.check_delivered().values()) == {"delivered"}
    assert world.check_books() == {"succeeded": 2}


def test_a_store_that_takes_nothing_ends_the_run_and_what_is_made_waits(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(4)])
    world.shelf.fails = 1000
    with pytest.raises(OutputError, match=r"5 times in a row.*SlowDown"):
        world.run(rules=Rules(in_a_row=5, attempts=100, resend_s=0.01))
    made = len([truth for truth in world.truths() if truth.usage])
    world.shelf.fails = 0
    run = world.run()
    assert set(world.check_delivered().values()) == {"delivered"}
    assert run.tally.made == 4 - made, "what was made is not made again"
    assert world.check_books() == {"succeeded": 4}


def test_a_made_picture_that_is_gone_is_made_again(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug"])
    world.shelf.fails = 1000
    with pytest.raises(OutputError):
        world.run(rules=Rules(in_a_row=1))
    for path in (tmp_path / "run" / "made").iterdir():
        path.write_bytes(b"not what was made")
    world.shelf.fails = 0
    world.run()
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}


def test_items_that_ask_for_the_same_share_a_picture(tmp_path: Path) -> None:
    world = World(tmp_path, [])
    world.plan([Item("a", "mug", 1), Item("b", "mug", 1), Item("c", "mug", 2)])
    counts = world.state.counts()
    assert (counts.items, counts.works, counts.repeated) == (3, 2, 1)
    assert world.run().tally.made == 2
    keys = {row.item.id: row.delivered and row.delivered.key for row in world.state.rows()}
    assert keys["a"] == keys["b"] != keys["c"]


def test_only_what_changed_is_made_again_and_what_changes_back_is_found(tmp_path: Path) -> None:
    briefs = ["mug 1", "mug 2", "mug 3"]
    world = World(tmp_path, briefs)
    world.run()
    world.plan(items_of(["mug 1", "cup 2", "mug 3"]))
    assert world.run().tally.made == 1
    world.plan(items_of(briefs))
    assert world.run().tally.made == 0
    assert world.state.counts().delivered == 3


def test_a_run_that_costs_more_than_was_agreed_stops(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(9)])
    with pytest.raises(BudgetExceeded, match="were agreed"):
        world.run(agreed=10)
    counts = world.state.counts()
    assert 1 <= counts.delivered < 9
    assert counts.made == 0, "what was made is stored all the same"
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}


def test_a_run_that_is_stopped_ends_what_it_began(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(50)], pause_s=0.05)

    def tick(tally: object) -> None:
        if run.tally.delivered >= 3:
            run.stop.ask(1, "Ctrl-C")

    from packshot.ledger.wiring import local_ledger
    from packshot.studio.batch.runner import Run

    ledger = local_ledger(world.ledger_settings, world.book)
    run = Run(world.state, world.setup(ledger))
    run.go(tick)
    ledger.close()
    world.drain()
    counts = world.state.counts()
    assert counts.made == 0
    assert 3 <= counts.delivered < 50
    assert world.check_books() == {"succeeded": counts.delivered}
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}


def test_a_run_that_is_stopped_at_once_abandons_what_it_began(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug 1", "shoe hang once", "mug 2"])

    def tick(tally: object) -> None:
        if run.tally.delivered and len(world.truths()) == 3:
            run.stop.ask(2, "Ctrl-C twice")

    from packshot.ledger.wiring import local_ledger
    from packshot.studio.batch.runner import Run

    ledger = local_ledger(world.ledger_settings, world.book)
    run = Run(world.state, world.setup(ledger))
    run.go(tick)
    ledger.close()
    world.drain()
    assert world.check_books() == {"succeeded": 1, "failed_billed": 1}
    assert world.state.counts().quarantined == 0
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}
    assert len({row.item.id for row in world.state.rows()}) == 3
