"""What a batch came to: costs as the ledger has them, deliveries that a crash left unbooked."""

from __future__ import annotations

import json
from pathlib import Path

from packshot.ledger.wiring import local_ledger
from packshot.studio.batch.manifest import publish_manifest
from packshot.studio.batch.report import catch_up, costs_of, report_of
from packshot.studio.objects import Objects
from tests.studio.batch.world import World


def caught_up(world: World) -> int:
    ledger = local_ledger(world.ledger_settings, world.book)
    try:
        with world.opened() as store:
            return catch_up(world.state, store, world.setup(ledger).books)
    finally:
        ledger.close()
        world.drain()


def test_a_delivery_that_a_crash_left_out_is_booked_once(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug 1", "mug 2"])
    world.run()
    world.state._base.execute("UPDATE attempts SET booked = 0")
    assert caught_up(world) == 0, "the ledger has them: nothing is added"
    assert world.state.unbooked() == []
    world.state._base.execute("UPDATE attempts SET booked = 0")
    (render,) = world.state.unbooked()[:1]
    made = [row for row in world.state.rows() if row.made and row.made.render != render]
    world.state._base.execute("UPDATE attempts SET booked = 1 WHERE render <> ?", (render,))
    lost = "a render that the ledger never heard of"
    world.state._base.execute("UPDATE attempts SET render = ? WHERE render = ?", (lost, render))
    row = next(row for row in world.state.rows() if row.made and row.made.render == render)
    assert row.made is not None
    import msgspec

    content = msgspec.msgpack.encode(msgspec.structs.replace(row.made, render=lost))
    world.state._base.execute("UPDATE works SET made = ? WHERE work = ?", (content, row.work))
    assert caught_up(world) == 1
    assert caught_up(world) == 0
    assert world.query("SELECT delivered FROM renders WHERE render = ?", lost) == [(1,)]
    assert len(made) == 1


def test_the_report_is_the_ledgers_to_the_nano_euro(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug 1", "mug nan once", "shoe nan", "mug 2"])
    world.run()
    with world.opened() as store:
        report = report_of(world.state, store, "batch-1")
        assert report.costs == costs_of(store, "batch-1")
    ((total,),) = world.query("SELECT sum(amount) FROM entries WHERE batch = 'batch-1'")
    assert report.amount == total > 0
    assert sum(row.cost for row in world.state.rows()) == total
    waste = next(cost for cost in report.costs if cost.account == "waste")
    assert waste.attempts == 2 * 4, "of each failed attempt, encode and denoise"
    assert report.reasons == (("the picture came out as NaN (3 attempts)", 1),)
    assert json.loads(json.dumps(report.facts()))["cost_nano_eur"] == total


def test_the_manifest_is_written_once_and_says_what_became_of_each(tmp_path: Path) -> None:
    world = World(tmp_path, ["mug 1", "shoe refused", "mug 2"])
    world.run()
    store = Objects(str(tmp_path / "manifests-go-here"))
    counts = world.state.counts()
    first = publish_manifest(world.state, store, "b", {"name": "stub"}, counts)
    again = publish_manifest(world.state, store, "b", {"name": "stub"}, counts)
    assert (first.new, again.new) == (True, False)
    assert first.key == again.key
    head, *rows = map(json.loads, store.read(first.key).splitlines())
    assert (head["items"], head["delivered"], head["quarantined"]) == (3, 2, 1)
    assert [row["state"] for row in rows] == ["delivered", "quarantined", "delivered"]
    assert rows[1]["key"] is rows[1]["sha256"] is None
    for row in rows:
        assert set(row) >= {"id", "cost_nano_eur", "seed", "fingerprint", "facts"}
