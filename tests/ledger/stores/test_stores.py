"""What a store must do, asked of both: SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace

import msgspec
import pytest

from packshot.core.clock import HOUR_US
from packshot.core.errors import LedgerCorrupt
from packshot.core.ids import new_id
from packshot.ledger.records import Dimensions, Held, Settled, Stamped
from packshot.ledger.stores import open_store
from packshot.ledger.stores.base import Store, bucket_of
from packshot.ledger.stores.rollup import MEASURES, RENDERS, ROLLUPS
from packshot.ledger.stores.schema import COLUMNS, TEXT
from packshot.ledger.stores.table_store import TableStore
from tests.ledger.stores.worlds import NOON, attempt, attempts


def count(store: Store) -> int:
    return store.query("SELECT count(*) FROM entries")[0][0]


def test_the_columns_are_the_fields_of_a_settled_attempt() -> None:
    fields: list[str] = []
    for name in Settled.__struct_fields__:
        fields += Dimensions.__struct_fields__ if name == "dimensions" else (name,)
    assert ("seq", "worker", "epoch", *fields) == COLUMNS
    numbers = {f.name for f in msgspec.structs.fields(Settled) if f.type in {int, bool}}
    assert {*COLUMNS} - TEXT == numbers | {"seq", "epoch"}


def test_a_row_comes_back_as_it_went_in(store: TableStore) -> None:
    given = attempt(1, reason="caf\u00e9 \U0001f4f7 'quoted' ?", priced=False, currency="USD")
    assert store.append([given]) == 1
    (row,) = store.query(f"SELECT {', '.join(COLUMNS)} FROM entries")  # noqa: S608
    found = dict(zip(COLUMNS, row, strict=True))
    settled = msgspec.structs.asdict(given.event)
    dimensions = msgspec.structs.asdict(settled.pop("dimensions"))
    for name, value in {**settled, **dimensions, "worker": "a", "epoch": 1, "seq": 1}.items():
        assert found[name] == (",".join(value) if isinstance(value, tuple) else value), name


def test_what_was_sent_before_is_skipped(store: TableStore) -> None:
    rows = attempts(30)
    assert store.append(rows[:20]) == 20
    assert store.append(rows[:20]) == 0
    assert store.append(rows[10:]) == 10
    assert store.append(rows + rows) == 0
    assert store.append([]) == 0
    assert store.marks() == {("a", 1): 60}
    assert count(store) == 30
    assert store.verify() == []


def test_records_out_of_order_are_refused_rather_than_lost(store: TableStore) -> None:
    one, two = attempts(2)
    for wrong in ([two, one], [one, one]):
        with pytest.raises(LedgerCorrupt, match="in order"):
            store.append(wrong)
    assert store.append([one, two]) == 2


def test_lives_of_workers_are_kept_apart(store: TableStore) -> None:
    lives = [attempts(9, worker=worker, epoch=epoch) for worker in "ab" for epoch in (1, 2)]
    mixed = [row for run in zip(*lives, strict=True) for row in run]
    assert store.append(mixed) == 36
    assert store.marks() == {(worker, epoch): 18 for worker in "ab" for epoch in (1, 2)}
    assert store.verify() == []


def test_a_store_is_found_again_as_it_was_left(url: str) -> None:
    for first in (1, 11, 21):
        again = open_store(url)
        again.append(attempts(10, first=first))
        assert again.verify() == []
        again.close()
    reader = open_store(url, read_only=True)
    assert count(reader) == 30
    reader.close()


def test_nothing_of_a_batch_is_stored_if_a_row_is_refused(store: TableStore) -> None:
    rows = attempts(5)
    store.append(rows[:2])
    twice = msgspec.structs.replace(rows[0].event, number=3)
    with pytest.raises(LedgerCorrupt, match="attempt"):
        store.append([*rows[2:], Stamped("b", 1, 2, twice)])
    assert count(store) == 2
    assert store.append(rows) == 3
    assert store.verify() == []


def test_a_number_that_no_store_holds_is_refused(store: TableStore) -> None:
    with pytest.raises(LedgerCorrupt):
        store.append([attempt(1, output_tokens=1 << 63)])
    assert store.append([attempt(1)]) == 1


def test_a_nul_in_a_text_does_not_stop_the_ledger(store: TableStore) -> None:
    assert store.append([attempt(1, reason="bad\0answer")]) == 1
    assert store.query("SELECT reason FROM entries") == [("bad\ufffdanswer",)]
    assert store.verify() == []


def test_only_settled_attempts_are_stored(store: TableStore) -> None:
    held = Held(new_id(), NOON, 5, NOON, Dimensions())
    with pytest.raises(LedgerCorrupt, match="settled"):
        store.append([Stamped("a", 1, 1, held)])


@pytest.mark.parametrize(
    "change",
    ["UPDATE entries SET amount = 0, payable = 0, depreciation = 0", "DELETE FROM entries"],
)
def test_entries_cannot_be_changed(store: TableStore, change: str) -> None:
    store.append(attempts(3))
    with pytest.raises(LedgerCorrupt, match="append a correction"), _write(store) as within:
        within.execute(change)
    assert store.verify() == []


def test_a_row_that_does_not_balance_is_refused_by_the_database(store: TableStore) -> None:
    store.append(attempts(1))
    columns = ", ".join((*COLUMNS, "hash"))
    values = columns.replace("seq,", "2,", 1).replace("attempt", "'x'").replace("number", "2")
    for broken in (("amount", "amount + 1"), ("outcome", "'won'")):
        swapped = values.replace(*broken, 1)
        with pytest.raises(LedgerCorrupt), _write(store) as within:
            within.execute(f"INSERT INTO entries ({columns}) SELECT {swapped} FROM entries")  # noqa: S608
    assert count(store) == 1


def test_derived_tables_are_the_sums_of_the_entries(store: TableStore) -> None:
    rows = [*attempts(40), attempt(41, account="waste", outcome="failed_billed", priced=False)]
    random.Random(1).shuffle(rows)
    rows = [replace_seq(row, k) for k, row in enumerate(rows, 1)]
    for at in range(0, len(rows), 7):
        store.append(rows[at : at + 7])
    events = [row.event for row in rows]
    (sums,) = store.query(f"SELECT {', '.join(f'sum({m})' for m in MEASURES)} FROM rollups")  # noqa: S608
    assert all(type(value) is int for value in sums)
    assert sums[0] == 41
    assert dict(zip(MEASURES, sums, strict=True))["amount"] == sum(e.amount for e in events)
    assert dict(zip(MEASURES, sums, strict=True))["unpriced"] == 1
    hours = {hour for (hour,) in store.query("SELECT hour FROM rollups")}
    assert hours == {e.settled_at // HOUR_US * HOUR_US for e in events}
    buckets = {bucket for (bucket,) in store.query("SELECT bucket FROM rollups")}
    assert buckets == {bucket_of(e.amount) for e in events}
    for row in store.query(f"SELECT {', '.join(RENDERS.columns)} FROM renders"):  # noqa: S608
        mine = [e for e in events if e.dimensions.render == row[0]]
        assert row[4] == min(e.held_at for e in mine)
        assert row[5] == max(e.settled_at for e in mine)
        assert row[6] == sum(e.amount for e in mine)
        assert row[7] == sum(e.amount for e in mine if e.account == "waste")
        assert row[8] == sum(e.seconds_us for e in mine)
        assert row[9] == any(e.dimensions.stage == "store" for e in mine)


def test_rebuilding_gives_the_same_tables(store: TableStore) -> None:
    for at in range(0, 60, 20):
        store.append(attempts(20, first=1 + at))
    before = [sorted(store.query(f"SELECT * FROM {t.name}")) for t in (ROLLUPS, RENDERS)]  # noqa: S608
    with _write(store) as within:
        within.execute("DELETE FROM rollups WHERE images = 0")
        within.execute("UPDATE renders SET amount = amount + 1")
    assert {finding.check for finding in store.verify()} == {"rollups", "renders"}
    store.rebuild()
    assert [sorted(store.query(f"SELECT * FROM {t.name}")) for t in (ROLLUPS, RENDERS)] == before  # noqa: S608
    assert store.verify() == []


def test_placeholders_and_kinds_of_results_are_the_same_in_both(store: TableStore) -> None:
    store.append(attempts(4))
    found = store.query(
        "SELECT count(*), sum(seq), '?' FROM entries WHERE seq > ? AND worker = ?", (1, "a")
    )
    assert found == [(3, 9, "?")]
    assert type(found[0][1]) is int


def test_it_can_be_called_from_a_thread_that_runs_a_loop(store: TableStore) -> None:
    async def inside() -> int:
        await asyncio.sleep(0)
        return store.append(attempts(3))

    assert asyncio.run(inside()) == 3


def test_readers_and_the_writer_do_not_disturb_one_another(store: TableStore) -> None:
    wrong: list[object] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            wrong.extend(store.verify())

    reader = threading.Thread(target=read)
    reader.start()
    for at in range(0, 400, 20):
        store.append(attempts(20, first=1 + at))
    over.set()
    reader.join()
    assert wrong == []
    assert count(store) == 400


def test_two_writers_that_take_turns_keep_one_chain(url: str) -> None:
    one, other = open_store(url), open_store(url)
    for at in range(0, 40, 10):
        one.append(attempts(10, first=1 + at, worker="a"))
        other.append(attempts(10, first=1 + at, worker="b"))
        assert other.append(attempts(10, first=1 + at, worker="a")) == 0
    assert one.verify() == []
    assert count(other) == 80
    one.close()
    other.close()


def replace_seq(row: Stamped, place: int) -> Stamped:
    """Put a row at another place of its journal."""
    event = msgspec.structs.replace(row.event, number=place)
    return Stamped(row.worker, row.epoch, 2 * place, event)


def _write(store: TableStore):
    return store.database.transaction()


def test_findings_are_data(store: TableStore) -> None:
    store.append([attempt(1), attempt(2, outcome="correction", corrects="nobody")])
    (finding,) = store.verify()
    assert finding.check == "orphans"
    assert "nobody" in replace(finding, where="x").message
