"""Avoided costs: they reach the store once, whoever dies, and are in no other number."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US, wall_us
from packshot.core.errors import InvalidRequest, LedgerCorrupt, LedgerUnavailable
from packshot.ledger import avoided
from packshot.ledger.avoided import AvoidedCosts, Group
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.metrics import render_metrics
from packshot.ledger.notes import Notes
from packshot.ledger.notes_drain import NotesDrain
from packshot.ledger.records import Avoided, Dimensions
from packshot.ledger.reports.avoided import avoided as avoided_in
from packshot.ledger.reports.invoice import Billed, reconcile
from packshot.ledger.reports.period import DAY_US, DIMENSIONS, Period
from packshot.ledger.reports.stages import stage_table
from packshot.ledger.store_journal import StoreJournal
from packshot.ledger.stores import open_store
from packshot.ledger.stores.backup import backup, restore
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.desk import CHAT, Desk, used
from tests.ledger.world import NOW

EXACT = Group("exact", "chat", "openai", "gpt-4o-mini", "caption", "one", "red")
SIMILAR = EXACT._replace(kind="semantic")
ALL = Period(NOW - NOW % DAY_US, NOW - NOW % DAY_US + DAY_US)


def drain(desk: Desk, store: TableStore) -> int:
    return Drain(desk.folder, store, None, wall_us).step()


def rows(store: TableStore) -> list[tuple[object, ...]]:
    return store.query("SELECT kind, virtual_key, hits, amount FROM avoided ORDER BY 1, 2")


class Taking:
    """A journal that takes as many events as it is let to."""

    def __init__(self, most: int = 10**9) -> None:
        self.most = most
        self.events: list[Avoided] = []

    def append(self, event: Avoided) -> int:
        if len(self.events) >= self.most:
            raise LedgerUnavailable("the disk is full")
        self.events.append(event)
        return len(self.events)


def test_a_tick_brings_it_to_the_store_and_a_close_the_rest(tmp_path: Path) -> None:
    desk, store = Desk(tmp_path), open_store(str(tmp_path / "ledger.db"))
    for _ in range(3):
        desk.ledger.avoided.note(EXACT, 40)
    desk.ledger.avoided.note(SIMILAR, 7)
    assert desk.events() == []  # no write for a hit
    desk.ledger.tick()
    assert drain(desk, store) == 0  # no attempt is new
    assert rows(store) == [("exact", "one", 3, 120), ("semantic", "one", 1, 7)]
    desk.ledger.tick()
    assert len(desk.events()) == 2  # nothing new is nothing written
    desk.ledger.avoided.note(EXACT, 1)
    desk.ledger.close()
    for _ in range(2):
        drain(desk, store)
    assert rows(store) == [("exact", "one", 4, 121), ("semantic", "one", 1, 7)]
    assert store.verify() == []
    store.close()


def test_a_worker_that_is_killed_loses_what_it_had_not_flushed_and_nothing_else(
    tmp_path: Path,
) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    for life in range(3):
        desk = Desk(tmp_path, worker=f"w{life}")
        desk.ledger.post(desk.ledger.hold(CHAT, 10), used(5))
        desk.ledger.avoided.note(EXACT, 10)
        desk.ledger.tick()
        desk.ledger.avoided.note(EXACT, 10)  # and then kill -9
        desk.journal.close()
        desk.leases.close()
        drain(desk, store)
        drain(desk, store)
    assert rows(store) == [("exact", "one", 3, 30)]
    assert store.query("SELECT SUM(amount), COUNT(*) FROM entries") == [(15, 3)]
    assert store.verify() == []
    store.close()


def test_workers_and_threads_add_up(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    desks = [Desk(tmp_path, worker=f"w{number}") for number in range(3)]

    def work(desk: Desk) -> None:
        for number in range(500):
            desk.ledger.avoided.note(EXACT._replace(virtual_key=f"k{number % 7}"), number)
            if number % 50 == 0:
                desk.ledger.tick()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, desks * 2))
    for desk in desks:
        desk.ledger.close()
    drain(desks[0], store)
    assert store.query("SELECT SUM(hits), SUM(amount) FROM avoided") == [
        (6 * 500, 6 * sum(range(500)))
    ]
    store.close()


def test_each_counts_in_its_own_hour(tmp_path: Path) -> None:
    desk, store = Desk(tmp_path), open_store(str(tmp_path / "ledger.db"))
    desk.ledger.avoided.note(EXACT, 1)
    desk.now += HOUR_US
    desk.ledger.tick()  # it is the hour of the hit that counts, not that of the flush
    desk.ledger.avoided.note(EXACT, 2)
    desk.ledger.close()
    drain(desk, store)
    first = NOW - NOW % HOUR_US
    assert store.query("SELECT hour, amount FROM avoided ORDER BY hour") == [
        (first, 1),
        (first + HOUR_US, 2),
    ]
    store.close()


def test_nothing_is_taken_back() -> None:
    costs = AvoidedCosts(Taking())
    for amount, hits in ((-1, 1), (1, 0), (1, -1)):
        with pytest.raises(InvalidRequest, match="upwards"):
            costs.note(EXACT, amount, hits)
    with pytest.raises(LedgerCorrupt, match="upwards"):
        Avoided(NOW, "exact", Dimensions(), 1, -1)
    with pytest.raises(LedgerCorrupt, match="upwards"):
        Avoided(NOW, "exact", Dimensions(), 0, 1)


def test_what_the_journal_does_not_take_is_kept() -> None:
    journal = Taking(1)
    costs = AvoidedCosts(journal)
    for group in (EXACT, SIMILAR):
        costs.note(group, 5)
    with pytest.raises(LedgerUnavailable):
        costs.flush()
    costs.note(SIMILAR, 6)
    journal.most = 10
    costs.flush()
    assert [(each.kind, each.hits, each.amount) for each in journal.events] == [
        ("exact", 1, 5),
        ("semantic", 2, 11),
    ]


def test_memory_has_a_limit_and_the_sum_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avoided, "MOST_GROUPS", 10)
    journal = Taking()
    costs = AvoidedCosts(journal)
    for number in range(100):
        costs.note(EXACT._replace(virtual_key=f"k{number}"), number)
    costs.flush()
    assert len(journal.events) == 11
    assert sum(each.hits for each in journal.events) == 100
    assert sum(each.amount for each in journal.events) == sum(range(100))
    assert {each.kind for each in journal.events} == {"exact"}


KEYS = st.sampled_from(["one", "two"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), KEYS, st.integers(0, 10**12)),
        st.tuples(st.sampled_from(["exact", "semantic"]), KEYS, st.integers(0, 10**12)),
        st.tuples(st.just("tick"), KEYS, st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS)
def test_hits_change_no_number_but_their_own(events: list[tuple[str, str, int]]) -> None:
    """Books the same spending with hits and without: all else is equal, and the sums add up."""
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        for hits in (True, False):
            place = Path(folder) / str(hits)
            place.mkdir()
            desk = Desk(place, [Cap("total", "", 10**14, "ever")])
            store = open_store(str(place / "ledger.db"))
            for what, key, amount in events:
                of = Dimensions(stage="chat", provider="openai", model="m", virtual_key=key)
                if what == "spend":
                    desk.ledger.post(desk.ledger.hold(of, amount), used(amount))
                elif what == "tick":
                    desk.ledger.tick()
                elif hits:
                    group = Group(what, "chat", "openai", "m", virtual_key=key)
                    desk.ledger.avoided.note(group, amount)
            desk.ledger.close()
            leases = LeaseTable(open_shared(str(place / "ledger.db")))
            Drain(desk.folder, store, leases, wall_us).step()
            assert store.verify() == []
            bill = [Billed(ALL.since, "m", Decimal(1), "EUR")]
            seen.append(
                [
                    *(
                        store.query(f"SELECT * FROM {each} ORDER BY 1, 2, 3")  # noqa: S608
                        for each in ("rollups", "days", "renders")
                    ),
                    store.query("SELECT account, amount, number FROM entries ORDER BY number"),
                    [(x.booked, x.billed) for x in reconcile(store, "openai", bill)],
                    _spent(leases),
                ]
            )
            if hits:
                _adds_up(store, events)
            leases.close()
            store.close()
        assert seen[0] == seen[1]


def _spent(leases: LeaseTable) -> list[tuple[object, ...]]:
    with leases._database.transaction() as within:
        return within.query("SELECT period, spent, leased FROM cap_periods")


def _adds_up(store: TableStore, events: list[tuple[str, str, int]]) -> None:
    kinds, keys = Counter[str](), Counter[str]()
    for what, key, amount in events:
        if what in {"exact", "semantic"}:
            kinds[what] += amount
            keys[key] += amount
    whole = sum(kinds.values())
    found = store.query("SELECT kind, SUM(amount) FROM avoided GROUP BY kind")
    assert {kind: amount for kind, amount in found if amount} == +kinds
    assert all(amount >= 0 for (amount,) in store.query("SELECT amount FROM avoided"))
    for by in DIMENSIONS:
        assert sum(each.amount for each in avoided_in(store, ALL, {}, by)) == whole
        table = stage_table(store, ALL, by)
        assert table.total.avoided == sum(line.avoided for line in table.lines) == whole
    by_key = stage_table(store, ALL, "virtual_key").lines
    assert {line.name: line.avoided for line in by_key if line.avoided} == +keys
    for key in keys:
        assert stage_table(store, ALL, "stage", {"virtual_key": key}).total.avoided == keys[key]


def test_the_page_of_metrics_has_it_apart(tmp_path: Path) -> None:
    desk, store = Desk(tmp_path), open_store(str(tmp_path / "ledger.db"))
    desk.ledger.post(desk.ledger.hold(CHAT, 10), used(5))
    desk.ledger.avoided.note(EXACT, 2_500_000_000, 3)
    desk.ledger.close()
    drain(desk, store)
    page = render_metrics(store, NOW)
    labels = (
        '{kind="exact",stage="chat",provider="openai",model="gpt-4o-mini",team="red",'
        'virtual_key="one"}'
    )
    assert f"packshot_avoided_cost_eur_total{labels} 2.5\n" in page
    assert f"packshot_avoided_calls_total{labels} 3\n" in page
    (cost,) = [line for line in page.splitlines() if line.startswith("packshot_cost_eur_total{")]
    assert cost.endswith(" 5E-9") or float(cost.rpartition(" ")[2]) == pytest.approx(5e-9)
    store.close()


def test_a_backup_and_a_rebuild_keep_it(tmp_path: Path, shared_url: str) -> None:
    desk, store = Desk(tmp_path), open_store(shared_url)
    desk.ledger.post(desk.ledger.hold(CHAT, 10), used(5))
    desk.ledger.avoided.note(EXACT, 9)
    desk.ledger.close()
    drain(desk, store)
    store.rebuild()
    assert rows(store) == [("exact", "one", 1, 9)]
    backup(store, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", str(tmp_path / "again.db"))
    again = open_store(str(tmp_path / "again.db"))
    assert rows(again) == [("exact", "one", 1, 9)]
    assert drain(desk, again) == 0  # its marks came along: nothing is counted twice
    assert rows(again) == [("exact", "one", 1, 9)]
    again.close()
    store.close()


def test_in_durability_store_it_is_a_note_that_goes_once_it_is_stored(postgres_url: str) -> None:
    store = open_store(postgres_url)
    notes = Notes(store.database)
    journal = StoreJournal(notes, "gateway-0")
    costs = AvoidedCosts(journal)
    costs.note(EXACT, 4)
    costs.flush()
    costs.note(EXACT, 5)
    costs.flush()
    journal.wait(journal.seq)
    drains = NotesDrain(store)
    for _ in range(2):
        drains.step()
    assert rows(store) == [("exact", "one", 2, 9)]
    assert store.query("SELECT COUNT(*) FROM notes") == [(0,)]
    costs.note(EXACT, 1)
    costs.flush()
    journal.close()
    drains.step()
    assert rows(store) == [("exact", "one", 3, 10)]
    assert store.query("SELECT COUNT(*) FROM lives") == [(0,)]
    assert store.verify() == []
    store.close()


def test_flushes_at_once_count_once() -> None:
    journal = Taking()
    costs = AvoidedCosts(journal)
    for number in range(200):
        costs.note(EXACT._replace(virtual_key=f"k{number}"), 1)
    threads = [threading.Thread(target=costs.flush) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(each.hits for each in journal.events) == 200
