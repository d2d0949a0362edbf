"""Two works in hand: one has the device while the one before it is finished, and neither pays for
what the other does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.core.errors import BudgetExceeded, WorkerLost
from packshot.ledger.wiring import local_ledger
from packshot.studio.batch.runner import Rules, Run
from tests.studio.batch.world import World

PACE = {"pause_s": 0.02, "finish_s": 0.05}


def in_hand(world: World) -> list[int]:
    """Return how many works were in the worker at each line of the truth log."""
    count, found = 0, []
    for truth in world.truths():
        count += -1 if truth.usage else 1
        found.append(count)
    return found


def ended(world: World) -> dict[str, list[str]]:
    """Return how the attempts at each item ended, in their order."""
    rows = world.state._rows(
        "SELECT w.item, a.ended FROM attempts a JOIN works w ON w.work = a.work ORDER BY a.at"
    )
    found: dict[str, list[str]] = {}
    for item, how in rows:
        found.setdefault(str(item), []).append(str(how))
    return found


def test_a_picture_is_finished_while_the_next_has_the_device(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(12)], **PACE)
    run = world.run()
    assert max(in_hand(world)) == 2, "one on the device, one being finished"
    assert set(world.check_delivered().values()) == {"delivered"}
    assert all(count == 1 for count in world.shelf.puts.values())
    assert world.check_books() == {"succeeded": 12}
    assert run.tally.made == run.tally.delivered == 12
    ((delivered, amount),) = world.query("SELECT sum(delivered), sum(amount) FROM renders")
    assert delivered == 12
    assert amount == run.tally.amount == sum(row.cost for row in world.state.rows())


def test_works_get_the_device_in_their_order(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(12)], **PACE)
    world.run()
    begun = [truth.seed for truth in world.truths() if not truth.usage]
    assert begun == list(range(12))


def test_what_failed_comes_again_after_all_others(tmp_path: Path) -> None:
    world = World(tmp_path, [f"shoe {k} nan once" for k in range(6)], **PACE)
    world.run(rules=Rules(in_a_row=10))
    begun = [truth.seed for truth in world.truths() if not truth.usage]
    assert begun[:6] == list(range(6))
    assert sorted(begun[6:]) == list(range(6))
    assert set(world.check_delivered().values()) == {"delivered"}


def test_one_in_hand_is_one_after_the_other(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(4)], **PACE)
    world.run(rules=Rules(in_hand=1))
    assert in_hand(world) == [1, 0] * 4


def test_what_is_made_to_measure_is_made_one_by_one(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(6)], **PACE)
    assert world.run(most=3).tally.made == 3
    assert in_hand(world) == [1, 0] * 3


@pytest.mark.parametrize("fault", ["nan", "refused", "oom", "crash", "disk"])
@pytest.mark.parametrize("late", ["", "late "])
def test_an_error_is_its_own_work_s(tmp_path: Path, fault: str, late: str) -> None:
    briefs = [f"mug {k}" for k in range(6)]
    briefs[2] = f"shoe {late}{fault} once"
    world = World(tmp_path, briefs, **PACE)
    world.run()
    found = ended(world)
    bad = found.pop("i2")
    states = world.check_delivered()
    if fault == "refused":
        assert states.pop("i2") == "quarantined"
        assert bad == ["failed"]
    else:
        assert bad.count("made") == 1
        assert len(bad) == 2
    assert set(states.values()) == {"delivered"}
    spent = [how for tries in found.values() for how in tries if how not in {"made", "abandoned"}]
    # A process that dies while something is finished may have died of what was on the device.
    assert len(spent) <= (late != "" and fault in {"oom", "crash"})
    assert all(tries[-1] == "made" for tries in found.values())
    world.check_books()


@pytest.mark.parametrize("late", ["", "late "])
def test_poison_is_quarantined_and_takes_nobody_with_it(tmp_path: Path, late: str) -> None:
    briefs = [f"mug {k}" for k in range(8)]
    briefs[3] = f"shoe {late}crash"
    world = World(tmp_path, briefs, **PACE)
    run = world.run()
    assert run.tally.quarantined == 1
    states = world.check_delivered()
    assert states.pop("i3") == "quarantined"
    assert set(states.values()) == {"delivered"}
    assert ended(world)["i3"].count("lost") == 3
    assert run.tally.failed_attempts <= 4
    world.check_books()


def test_a_run_stops_where_every_work_fails(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k} crash" for k in range(9)], **PACE)
    with pytest.raises(WorkerLost, match="4 works in a row"):
        world.run(rules=Rules(in_a_row=4))
    assert world.state.counts().todo == 9


def test_what_is_in_hand_when_nothing_more_was_agreed_is_delivered(tmp_path: Path) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(12)], **PACE)
    with pytest.raises(BudgetExceeded, match="were agreed"):
        world.run(agreed=10)
    counts = world.state.counts()
    assert 1 <= counts.delivered < 12
    assert counts.made == 0
    assert in_hand(world)[-1] == 0
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}


@pytest.mark.parametrize("level", [1, 2])
def test_a_stop_ends_or_abandons_what_is_in_hand(tmp_path: Path, level: int) -> None:
    world = World(tmp_path, [f"mug {k}" for k in range(30)], **PACE)
    ledger = local_ledger(world.ledger_settings, world.book)
    run = Run(world.state, world.setup(ledger))

    def tick(tally: object) -> None:
        if run.tally.delivered >= 3:
            run.stop.ask(level, "Ctrl-C")

    run.go(tick)
    ledger.close()
    world.drain()
    hands = [how for tries in ended(world).values() for how in tries if how != "made"]
    assert hands == [] if level == 1 else set(hands) <= {"abandoned"}
    assert world.state.counts().quarantined == 0
    world.check_books()
    world.run()
    assert set(world.check_delivered().values()) == {"delivered"}
    assert all(count == 1 for count in world.shelf.puts.values())
