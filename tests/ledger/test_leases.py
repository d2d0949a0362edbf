"""The lease table, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.leases import LeaseTable, Want, open_shared
from packshot.ledger.periods import over_by

P = "total@ever"


def rows(table: LeaseTable) -> tuple[int, int, int]:
    """Return spent, leased, and the sum of slices above zero of the period."""
    with table._database.transaction() as within:
        ((spent, leased),) = within.query(
            "SELECT spent, leased FROM cap_periods WHERE period = ?", (P,)
        )
        slices = within.query("SELECT amount FROM cap_leases WHERE period = ?", (P,))
    return spent, leased, sum(max(amount, 0) for (amount,) in slices)


def test_a_slice_is_the_need_or_a_hundredth_of_what_is_left(leases: LeaseTable) -> None:
    (grant,) = leases.take("a", 1, [Want(P, 1, 10_000)])
    assert (grant.amount, grant.spent, grant.leased) == (100, 0, 100)
    (grant,) = leases.take("a", 1, [Want(P, 500, 10_000)])
    assert grant.amount == 500
    (grant,) = leases.take("b", 1, [Want(P, 9_400, 10_000)])
    assert grant.amount == 9_400
    (grant,) = leases.take("b", 1, [Want(P, 1, 10_000)])
    assert (grant.amount, grant.leased) == (0, 10_000)


def test_slices_shrink_to_the_need_near_the_end(leases: LeaseTable) -> None:
    for _ in range(50):
        assert leases.take("a", 1, [Want(P, 1, 50)])[0].amount == 1
    assert leases.take("a", 1, [Want(P, 1, 50)])[0].amount == 0


def test_grants_come_in_the_order_of_the_wants(leases: LeaseTable) -> None:
    grants = leases.take("a", 1, [Want("team:z@ever", 7, 7), Want("team:a@ever", 9, 8)])
    assert [grant.amount for grant in grants] == [7, 0]


def test_a_settlement_counts_once_however_often_it_is_sent(leases: LeaseTable) -> None:
    leases.take("a", 1, [Want(P, 10, 10)])
    assert leases.settle("a", 1, 5, {P: 4})
    assert not leases.settle("a", 1, 5, {P: 4})
    assert not leases.settle("a", 1, 4, {P: 3})
    assert leases.settle("a", 2, 1, {})
    assert rows(leases) == (4, 6, 6)
    assert leases.marks() == {("a", 1): 5, ("a", 2): 1}


def test_what_a_dead_worker_held_is_free_again_and_what_it_spent_is_not(leases: LeaseTable) -> None:
    leases.take("a", 1, [Want(P, 10, 10)])
    leases.settle("a", 1, 5, {P: 4})
    leases.release("a", 1)
    assert rows(leases) == (4, 0, 0)
    assert leases.take("b", 1, [Want(P, 7, 10)])[0].amount == 0
    assert leases.take("b", 1, [Want(P, 6, 10)])[0].amount == 6


def test_a_cost_above_its_hold_is_not_handed_out_to_others(leases: LeaseTable) -> None:
    leases.take("a", 1, [Want(P, 10, 50)])
    leases.settle("a", 1, 1, {P: 15})
    assert rows(leases) == (15, 0, 0)
    assert leases.take("b", 1, [Want(P, 36, 50)])[0].amount == 0
    assert leases.take("b", 1, [Want(P, 35, 50)])[0].amount == 35


def test_a_refused_want_is_seen_until_there_is_enough(leases: LeaseTable) -> None:
    leases.take("a", 1, [Want(P, 10, 10)])
    assert leases.wanted([P]) == set()
    leases.take("b", 1, [Want(P, 4, 10)])
    assert leases.wanted([P, "team:x@ever"]) == {P}
    leases.give_back("a", 1, {P: 3})
    assert leases.wanted([P]) == {P}
    leases.give_back("a", 1, {P: 1})
    assert leases.wanted([P]) == set()
    assert leases.wanted([]) == set()


def test_a_lower_limit_counts_from_the_next_want_on(leases: LeaseTable) -> None:
    leases.take("a", 1, [Want(P, 10, 10)])
    assert leases.take("a", 1, [Want(P, 1, 5)])[0].amount == 0
    assert leases.take("a", 1, [Want(P, 10, 20)])[0].amount == 10


def test_what_is_over_goes_unless_somebody_holds_a_part(leases: LeaseTable) -> None:
    names = ["total@2026-09", "team:a@b@2026-09-30", "total@2026-09-30T23+0200"]
    kept = ["total@2026-10", "total@ever"]
    for period in (*names, *kept):
        leases.take("a", 1, [Want(period, 10, 100)])
        leases.settle("a", 1, 1, {})
    end = over_by("2026-09") + 1
    assert leases.prune(end) == 0, "the holds are open"
    leases.settle("a", 1, 2, {names[0]: 10})
    assert leases.prune(end - 1) == 0
    assert leases.prune(end) == 1
    leases.release("a", 1)
    assert leases.prune(end) == 2
    assert leases.prune(end) == 0
    with leases.database.transaction() as within:
        left = within.query("SELECT period FROM cap_periods ORDER BY period")
        slices = within.query("SELECT period FROM cap_leases")
    assert [period for (period,) in left] == kept
    assert slices == []
    leases.settle("a", 1, 3, {names[0]: 4})
    assert leases.take("b", 1, [Want(names[0], 97, 100)])[0].amount == 0, "it counts again"


STEP = st.one_of(
    st.tuples(st.just("take"), st.sampled_from("ab"), st.integers(1, 40)),
    st.tuples(st.just("back"), st.sampled_from("ab"), st.integers(0, 20)),
    st.tuples(st.just("settle"), st.sampled_from("ab"), st.integers(-10, 60)),
    st.tuples(st.just("release"), st.sampled_from("ab"), st.just(0)),
)


@given(st.lists(STEP, max_size=25))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_sum_of_slices_is_kept_and_no_grant_passes_the_limit(tmp_path: Path, steps) -> None:
    table = LeaseTable(open_shared(str(tmp_path / "ledger.db")))
    with table._database.transaction() as within:
        for name in ("cap_periods", "cap_leases", "cap_marks"):
            within.execute(f"DELETE FROM {name}")  # noqa: S608 - names of ours
    table.take("a", 1, [Want(P, 1, 100)])
    for seq, (what, worker, amount) in enumerate(steps, 1):
        if what == "take":
            (grant,) = table.take(worker, 1, [Want(P, amount, 100)])
            assert grant.amount == 0 or grant.amount >= amount
            assert grant.amount == 0 or grant.spent + grant.leased <= 100
        elif what == "back":
            table.give_back(worker, 1, {P: amount})
        elif what == "settle":
            table.settle(worker, 1, seq, {P: amount})
        else:
            table.release(worker, 1)
        _, leased, slices = rows(table)
        assert leased == slices
    table.close()


def test_the_file_has_a_rollback_journal_and_full_sync(tmp_path: Path) -> None:
    database = open_shared(str(tmp_path / "ledger.db"))
    assert (tmp_path / "caps.db").exists()
    writer = database._writer
    assert isinstance(writer, sqlite3.Connection)
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (3,)
    database.close()


def test_a_folder_that_is_not_there_is_an_error_of_the_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        open_shared(str(tmp_path / "missing" / "ledger.db"))


def test_charges_that_count_from_an_older_mark_are_not_moved(leases: LeaseTable) -> None:
    """Two drains read the mark 0; the slower one brings what the faster one has charged, too."""
    leases.take("w", 1, [Want("total@ever", 100, 1000)])
    assert leases.settle("w", 1, 4, {"total@ever": 10}, after=0)
    assert not leases.settle("w", 1, 6, {"total@ever": 10 + 7}, after=0)
    assert leases.marks() == {("w", 1): 4}
    assert leases.settle("w", 1, 6, {"total@ever": 7}, after=4)
    (grant,) = leases.take("x", 1, [Want("total@ever", 1, 1000)])
    assert grant.spent == 17
