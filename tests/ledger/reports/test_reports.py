"""Every report against sums that can be done in the head."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US
from packshot.core.errors import InvalidRequest
from packshot.ledger.records import Settled, Stamped
from packshot.ledger.reports.export import exported, write_csv, write_parquet
from packshot.ledger.reports.forecast import forecast
from packshot.ledger.reports.invoice import Difference, correct, read_invoice, reconcile
from packshot.ledger.reports.period import DAY_US, Period, day_of, period_of
from packshot.ledger.reports.stages import percentile, stage_table
from packshot.ledger.reports.story import story_of
from packshot.ledger.reports.waste import unpriced, waste
from packshot.ledger.stores import open_store
from packshot.ledger.stores.base import Store, bucket_of
from tests.ledger.reports.worlds import DAY, entry

TODAY = Period(DAY, DAY + DAY_US)


def test_stage_table(store: Store) -> None:
    table = stage_table(store, TODAY)
    lines = {line.name: line for line in table.lines}
    assert table.renders == 3
    assert table.total.amount == 3_100_000
    assert [line.name for line in table.lines][:3] == ["denoise", "caption", "waste"]
    assert lines["denoise"].cost_share == pytest.approx(24 / 31)
    assert lines["denoise"].wall_share == pytest.approx(3 / 11)
    assert lines["denoise"].per_render == 800_000
    assert lines["denoise"].p50 == pytest.approx(800_000, rel=0.02)
    # Yesterday: 1 render at 400_000, today 3 at 800_000 each.
    assert lines["denoise"].trend == pytest.approx(1.0)
    assert lines["waste"].trend is None
    assert table.total.unpriced == 1


def test_what_accrues_is_shown_and_is_not_in_the_cost_per_render(store: Store) -> None:
    before = stage_table(store, TODAY)
    assert before.total.per_render == before.total.per_render_full
    accounts = (("load", 30_000), ("idle", 600_000), ("storage", 0))
    store.append(
        [
            entry(number, "", amount, account=account, outcome="accrual")
            for number, (account, amount) in enumerate(accounts, 14)
        ]
    )
    table = stage_table(store, TODAY)
    lines = {line.name: line for line in table.lines}
    for account, amount in accounts:
        assert (lines[account].amount, lines[account].per_render) == (amount, None)
    assert table.total.per_render == before.total.per_render
    assert table.total.per_render_full == round((3_100_000 + 630_000) / 3)
    assert table.total.amount == 3_730_000
    assert table.total.trend == before.total.trend


def test_another_dimension_and_a_filter(store: Store) -> None:
    teams = {line.name: line.amount for line in stage_table(store, TODAY, "team").lines}
    assert teams == {"red": 2_100_000, "blue": 1_000_000}
    blue = stage_table(store, TODAY, only={"team": "blue"})
    assert (blue.renders, blue.total.amount) == (1, 1_000_000)
    with pytest.raises(InvalidRequest, match="Did you mean 'team'"):
        stage_table(store, TODAY, "teem")


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Generator[Store]:
    """Return a store with an entry in every hour of five days."""
    opened = open_store(str(tmp_path_factory.mktemp("months") / "ledger.db"))
    stages = ("caption", "denoise", "store")
    opened.append(
        [
            entry(n + 1, stages[n % 3], n * 1000, at=DAY + n * HOUR_US, priced=n % 7 != 0)
            for n in range(5 * 24)
        ]
    )
    yield opened
    opened.close()


@given(since=st.integers(-30, 150), hours=st.integers(1, 150))
def test_sums_by_day_and_hour_make_what_sums_by_hour_make(
    months: Store, since: int, hours: int
) -> None:
    period = Period(DAY + since * HOUR_US, DAY + (since + hours) * HOUR_US)
    by_day = stage_table(months, period)
    # All of them are of one team: a filter, so that the sums by hour are read.
    by_hour = stage_table(months, period, only={"team": "red"})
    assert by_day == by_hour
    inside = [n for n in range(5 * 24) if since <= n < since + hours]
    assert by_day.total.amount == sum(n * 1000 for n in inside)
    assert by_day.renders == len([n for n in inside if n % 3 == 2])


def test_percentile() -> None:
    assert percentile({}, 0.5) == 0
    buckets = {bucket_of(1000): 95, bucket_of(10**6): 5}
    assert percentile(buckets, 0.5) == pytest.approx(1000, rel=0.02)
    assert percentile(buckets, 0.99) == pytest.approx(10**6, rel=0.02)


def test_story(store: Store) -> None:
    story = story_of(store, "r0")
    assert (story.render, story.amount, story.delivered) == ("r0-id", 1_000_000, True)
    assert [each["stage"] for each in story.entries] == ["caption", "denoise", "store"]
    with pytest.raises(InvalidRequest, match="several"):
        story_of(store, "r")
    with pytest.raises(InvalidRequest, match="no render"):
        story_of(store, "q")


def test_waste_and_unpriced(store: Store) -> None:
    (loss,) = waste(store, TODAY)
    assert (loss.reason, loss.attempts, loss.renders, loss.amount) == ("timeout", 1, 1, 100_000)
    (gap,) = unpriced(store, TODAY)
    assert (gap.model, gap.attempts) == ("new", 1)
    priced = entry(14, "chat", 5, provider="openai", model="new", corrects="attempt-11")
    assert unpriced(store, TODAY, {"provider": "fal"}) == []
    assert [(x.name, x.attempts) for x in unpriced(store, TODAY, by="team")] == [("red", 1)]
    assert [(x.name, x.amount) for x in waste(store, TODAY, by="model")] == [("gpt-4o", 100_000)]
    assert waste(store, TODAY, {"model": "new"}) == []
    with pytest.raises(InvalidRequest, match="Did you mean 'team'"):
        waste(store, TODAY, by="teem")
    with pytest.raises(InvalidRequest, match="Did you mean 'team'"):
        unpriced(store, TODAY, by="teem")
    store.append([priced])
    assert unpriced(store, TODAY) == []


def test_forecast(store: Store) -> None:
    found = forecast(store, TODAY, 3_000_000)
    # Three pictures and the failed one cost 3.1 million nano-EUR.
    assert (found.observed, found.amount) == (3, 3_100_000_000_000)
    assert found.amount_low < found.amount < found.amount_high
    assert found.weak
    one = forecast(store, TODAY.before, 10)  # of one render that cost 400,000
    assert (one.observed, one.amount, one.weak) == (1, 4_000_000, True)
    assert (one.amount_low, one.amount_high, one.seconds_low_us) == (None, None, None)
    with pytest.raises(InvalidRequest, match="needs a delivered render"):
        forecast(store, TODAY.before.before, 10)
    blue = forecast(store, TODAY, 1, {"team": "blue"})
    assert (blue.observed, blue.amount) == (1, 1_000_000)
    with pytest.raises(InvalidRequest, match="whole render"):
        forecast(store, TODAY, 1, {"model": "gpt-4o"})
    with pytest.raises(InvalidRequest, match="--renders"):
        forecast(store, TODAY, 0)


def test_export(store: Store, tmp_path: Path) -> None:
    rows = list(exported(store, TODAY))
    assert len(rows) == 11
    assert sum(row["BilledCost"] for row in rows) == Decimal("0.0031")
    assert rows[0]["ProviderName"] == "openai"
    assert rows[0]["BillingPeriodEnd"] == "2025-12-01T00:00:00Z"
    assert rows[0]["Tags"] == {"a": "b"}
    assert write_csv(iter(rows), tmp_path / "x.csv") == 11
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert sum(int(row["x_amount"]) for row in read) == 3_100_000
    assert write_csv(iter(()), tmp_path / "none.csv") == 0


def test_parquet(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_parquet(exported(store, TODAY), tmp_path / "x.parquet") == 11
    costs = parquet.read_table(tmp_path / "x.parquet")["BilledCost"].to_pylist()
    assert sum(costs) == Decimal("0.0031")


class Straight:
    """Corrections that go into the store at once; those of a ledger are tested with the clerk."""

    def __init__(self, store: Store) -> None:
        self.store, self.rows = store, list[Settled]()

    def correct(self, correction: Settled) -> Settled:
        self.rows.append(correction)
        number = len(self.rows)
        settled = msgspec.structs.replace(correction, number=number)
        self.store.append([Stamped("clerk", 1, number, settled)])
        return settled


def test_an_invoice_is_reconciled_and_corrected_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "invoice.csv"
    file.write_text(f"date,model,amount\n{day_of(DAY)},gpt-4o,0.002\n{day_of(DAY)},o9,1\n")
    lines = read_invoice(file)
    found = {each.model: each for each in reconcile(store, "openai", lines)}
    # 0.002 USD at 0.5; the ledger has three captions and the one that failed.
    assert (found["gpt-4o"].booked, found["gpt-4o"].billed) == (700_000, 1_000_000)
    assert found["o9"].amount == 500_000_000
    clerk = Straight(store)
    total = ("total@2025-11",)
    assert correct(store, clerk, "openai", list(found.values()), "i", lambda _: total) == 2
    assert [row.caps for row in clerk.rows] == [(), total]
    again = reconcile(store, "openai", lines)
    assert [each.amount for each in again if each.amount] == []
    assert correct(store, clerk, "openai", again, "i") == 0
    assert store.verify() == []


@given(
    costs=st.lists(st.integers(0, 10**9), min_size=1, max_size=5),
    billed=st.integers(0, 10**10),
)
def test_a_difference_is_shared_out_over_the_caps_without_a_rest(
    costs: list[int], billed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/ledger.db")
        rows = [
            Stamped("w", 1, n, msgspec.structs.replace(
                entry(n, "chat", each, provider="openai", model="m", team=f"t{n}").event,
                caps=(f"team:t{n}@2025-11", "total@2025-11"),
            ))
            for n, each in enumerate(costs, 1)
        ]  # fmt: skip
        store.append(rows)
        clerk = Straight(store)
        difference = Difference(DAY, "m", sum(costs), billed)
        correct(store, clerk, "openai", [difference], "i")
        assert sum(row.amount for row in clerk.rows) == difference.amount
        weights = costs if any(costs) else [1] * len(costs)
        for row in clerk.rows:
            number = int(row.dimensions.team[1:])
            assert row.caps == (f"team:t{number}@2025-11", "total@2025-11")
            share = difference.amount * weights[number - 1] / sum(weights)
            assert abs(row.amount - share) <= 1
        store.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("date,model\n2025-11-08,a\n", "no column for the amount"),
        ("date,model,amount\nsoon,a,1\n", ":2: expected a day"),
        ("date,model,amount\n2025-11-08,a,nan\n", "finite"),
        ("date,model,amount\n", "no lines"),
    ],
)
def test_a_bad_invoice(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=problem):
        read_invoice(file)


def test_periods() -> None:
    assert period_of("2025-11-08", "2025-11-09", "", 0) == TODAY
    assert TODAY.before == Period(DAY - DAY_US, DAY)
    month = period_of("", "", "month", DAY + 5)
    assert day_of(month.since) == "2025-11-01"
    assert month.until > DAY + 5
    for bad in (("", "", "soon"), ("x", "", ""), ("2025-11-08", "", "7d")):
        with pytest.raises(InvalidRequest):
            period_of(*bad, DAY)
    with pytest.raises(InvalidRequest, match="empty"):
        period_of("2025-11-09", "2025-11-08", "", 0)
