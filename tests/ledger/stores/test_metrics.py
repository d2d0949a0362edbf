"""The page for Prometheus is the same from either store."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from packshot.ledger.metrics import render_metrics
from packshot.ledger.settings import CapRow
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.world import World, busy

CAPS = (CapRow("total", Decimal(1)), CapRow("team", Decimal(2), "day", "red"))


def test_the_page_is_that_of_sqlite(store: TableStore, tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    reference = World(tmp_path / "reference")
    pages = []
    for world in (reference, World(tmp_path, store=store)):
        busy(world)
        pages.append(render_metrics(world.store, world.now, caps=CAPS))
    reference.store.close()
    assert pages[0] == pages[1]
    assert pages[0].count("\n") > 60
