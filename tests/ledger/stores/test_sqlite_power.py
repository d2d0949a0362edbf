"""The power goes while SQLite works: with our settings no acknowledged row is lost, with the usual
ones some are, and this harness sees it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

apsw = pytest.importorskip("apsw")

from packshot.core.errors import LedgerCorrupt  # noqa: E402
from packshot.ledger.leases import LeaseTable, Want  # noqa: E402
from packshot.ledger.leases_sqlite import LeaseFile  # noqa: E402
from packshot.ledger.stores import open_store  # noqa: E402
from packshot.ledger.stores.migrations import migrate  # noqa: E402
from packshot.ledger.stores.sqlite import SETTINGS  # noqa: E402
from packshot.ledger.stores.table_store import TableStore  # noqa: E402
from tests.ledger.stores.power_vfs import PowerCut, PowerLeases, PowerStore, PowerVfs  # noqa: E402
from tests.ledger.stores.worlds import attempts  # noqa: E402

SEEDS = 60
NEVER = 1 << 60
GONE = (PowerCut, apsw.Error)


def store_loses(seed: int, settings: Sequence[str] = SETTINGS, *, then: str = "") -> int:
    """Append until the power goes, and return how many acknowledged rows are not there after."""
    rng = random.Random(seed)
    acknowledged = 0
    with tempfile.TemporaryDirectory() as temporary:
        vfs = PowerVfs(f"power-{seed}", rng.randrange(30, 500))
        database = None
        with suppress(*GONE):
            database = PowerStore(Path(temporary) / "ledger.db", vfs, settings, then=then)
            checkpoint = rng.choice((10, 40, 8000))
            database._writer.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")  # type: ignore[union-attr]
            migrate(database)
            store = TableStore(database)
            for _ in range(rng.randrange(5, 25)):
                acknowledged += store.append(attempts(4, first=acknowledged + 1))
        after = Path(temporary) / "after"
        vfs.after(after, rng)
        vfs.cut_at = NEVER  # what is closed now is not looked at any more
        if database is not None:
            database.connection.close()
        again = open_store(str(after / "ledger.db"))
        ((rows,),) = again.query("SELECT count(*) FROM entries")
        assert again.verify() == [], "what is there is whole"
        again.append(attempts(4, first=rows + 1))
        again.close()
        vfs.unregister()
    return max(0, acknowledged - rows)


def test_nothing_that_was_acknowledged_is_lost() -> None:
    assert [seed for seed in range(SEEDS) if store_loses(seed)] == []


def test_normal_loses_acknowledged_rows_and_is_found_out() -> None:
    lost = [seed for seed in range(SEEDS) if store_loses(seed, then="synchronous = NORMAL")]
    assert len(lost) > SEEDS // 4


def test_a_rollback_journal_that_comes_back_is_found_out() -> None:
    """FULL does not sync the folder after the journal's deletion: EXTRA is for that."""
    full = [setting.replace("EXTRA", "FULL") for setting in SETTINGS]
    assert [seed for seed in range(SEEDS) if store_loses(seed, full)]


def leases_lose(seed: int, *, then: str = "") -> int:
    """Take leases until the power goes; return how much of those granted is not leased after."""
    rng = random.Random(seed)
    granted = 0
    with tempfile.TemporaryDirectory() as temporary:
        vfs = PowerVfs(f"leases-{seed}", rng.randrange(10, 150))
        database = None
        with suppress(*GONE):
            database = PowerLeases(Path(temporary) / "caps.db", vfs, then=then)
            leases = LeaseTable(database)
            for _ in range(20):
                granted += leases.take("w", 1, [Want("total@ever", 7, 1000)])[0].amount
        after = Path(temporary) / "after"
        vfs.after(after, rng)
        vfs.cut_at = NEVER  # what is closed now is not looked at any more
        if database is not None:
            database.connection.close()
        vfs.unregister()
        try:
            file = LeaseFile(after / "caps.db")
            try:
                (grant,) = LeaseTable(file).take("x", 1, [Want("total@ever", 1, 1000)])
            finally:
                file.close()
        except LedgerCorrupt:  # without any sync also the file itself
            return granted
    return max(0, granted - (grant.leased - grant.amount))


def test_no_lease_that_was_granted_is_lost() -> None:
    assert [seed for seed in range(SEEDS) if leases_lose(seed)] == []


def test_leases_that_are_not_synced_are_lost_and_that_is_found_out() -> None:
    assert any(leases_lose(seed, then="synchronous = OFF") for seed in range(SEEDS))
