"""Real processes against one cap: exactly what it allows is admitted, and never more."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packshot.core.errors import BudgetExceeded
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.records import Settled
from packshot.ledger.stores import open_store
from tests.ledger.desk import CHAT, Desk, used

ROOT = Path(__file__).parent.parent.parent

WORKER = """import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from packshot.core.errors import BudgetExceeded
from packshot.ledger.caps import Cap
from packshot.ledger.journal import Journal
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.ledger import Ledger
from pathlib import Path
from tests.ledger.desk import CHAT, Book, used

journals, url, worker, count, limit, amount, cost = sys.argv[1:]
ledger = Ledger(
    Journal(Path(journals), worker), Book(), [Cap("team", "red", int(limit), "ever")],
    LeaseTable(open_shared(url)),
)
admitted = []

def call(number):
    try:
        hold = ledger.hold(CHAT, int(amount))
    except BudgetExceeded:
        return
    admitted.append(hold)
    if int(cost) >= 0:
        ledger.post(hold, used(int(cost)))
    if number % 20 == 0:
        ledger.tick()

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(call, range(int(count))))
print(len(admitted), flush=True)
os._exit(0)  # as if killed: nothing is given back, holds stay open
"""


def race(folder: Path, url: str, numbers: Sequence[int], workers: int = 4) -> int:
    """Let worker processes make calls at the same time; return how many were admitted."""
    arguments = [str(folder / "journal"), url]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments, f"w{number}", *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin"},
        )
        for number in range(workers)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    admitted = 0
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        admitted += int(out)
    return admitted


def drained(folder: Path, url: str) -> tuple[int, int, int]:
    """Drain what dead workers left; return the store's sum, and spent and leased of the period."""
    store, leases = open_store(url), LeaseTable(open_shared(url))
    drain = Drain(folder / "journal", store, leases, lambda: 10**15)
    for _ in range(3):
        drain.step()
    ((total,),) = store.query("SELECT coalesce(sum(amount), 0) FROM entries")
    with leases._database.transaction() as within:
        ((spent, leased),) = within.query("SELECT spent, leased FROM cap_periods")
    store.close()
    leases.close()
    return int(total), spent, leased


def test_a_thousand_holds_against_a_cap_of_fifty(tmp_path: Path, shared_url: str) -> None:
    """250 calls of 1 in each of four processes that are killed with all holds open."""
    assert race(tmp_path, shared_url, (250, 50, 1, -1)) == 50
    assert drained(tmp_path, shared_url) == (50, 50, 0)


def test_money_that_comes_back_is_spent_to_the_last_and_not_beyond(tmp_path: Path) -> None:
    """Holds of 100 that cost 3: the cap ends them only when it cannot carry one more hold."""
    url = str(tmp_path / "ledger.db")
    admitted = race(tmp_path, url, (150, 1000, 100, 3))
    total, spent, leased = drained(tmp_path, url)
    assert total == spent == 3 * admitted
    assert leased == 0
    assert total <= 1000


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 50, "ever")])
    start = threading.Barrier(8)

    def calls(_: int) -> int:
        start.wait()
        admitted = 0
        for _ in range(50):
            try:
                hold = desk.ledger.hold(CHAT, 1)
            except BudgetExceeded:
                continue
            admitted += 1
            desk.ledger.post(hold, used(1))
        return admitted

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(calls, range(8))) == 50
    ends = [event for event in desk.events() if isinstance(event, Settled)]
    assert [end.number for end in ends] == list(range(1, 51))
    desk.ledger.close()


def test_many_that_find_a_slice_empty_at_once_take_one(tmp_path: Path, monkeypatch) -> None:
    desk = Desk(tmp_path, [Cap("team", "red", 1_000_000, "ever")])
    taken: list[int] = []
    all_there = threading.Barrier(17)
    take = desk.leases.take

    def slowly(worker, epoch, wants):
        taken.append(len(wants))
        time.sleep(0.1)  # while the other fifteen come and stand in line
        return take(worker, epoch, wants)

    def call(_: int) -> None:
        all_there.wait(10)
        desk.ledger.hold(CHAT, 10)

    monkeypatch.setattr(desk.leases, "take", slowly)
    with ThreadPoolExecutor(16) as pool:
        made = pool.map(call, range(16))
        all_there.wait(10)
        list(made)
    assert taken == [1]
    assert desk.period("team:red@ever") == (0, 10_000)
    desk.ledger.close()
