"""Where the money went: shares of time and cost by stage, or by any other dimension.

Read from the sums by hour alone, so that ten million entries answer as fast as ten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packshot.core.errors import unknown_name
from packshot.core.money import Nanos
from packshot.ledger.reports.avoided import avoided_by
from packshot.ledger.reports.period import DAY_US, DIMENSIONS, Period, where
from packshot.ledger.stores.base import Store, amount_of

__all__ = ["Line", "Table", "percentile", "stage_table"]

BOOKED = frozenset({"succeeded", "failed_billed", "unknown"})
"""Outcomes whose amounts are those of one call: what the percentiles are of."""

OF_RENDER = frozenset({"team", "virtual_key", "recipe", "batch"})
"""Dimensions that all stages of a render share: they choose renders, the others parts of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row: shares are 0 to 1; amounts nano-EUR; percentiles (within 2 %) are of one attempt.

    ``per_render`` is the cost over the delivered renders, without what accrues with time (a device
    that loads or waits, stored bytes); None where there are none, or where all of it accrues.
    ``per_render_full`` is the same with it. ``trend`` is the change against the period before (0.1:
    a tenth dearer), of the cost per render where both periods delivered, else of the cost; None
    where the period before cost nothing. ``avoided`` is what ``avoided_hits``
    answers from the cache would have cost: it is in no other number.
    """

    name: str
    attempts: int
    seconds_us: int
    wall_share: float
    amount: Nanos
    cost_share: float
    per_render: Nanos | None
    per_render_full: Nanos | None
    p50: Nanos
    p95: Nanos
    trend: float | None
    unpriced: int
    avoided: Nanos = 0
    avoided_hits: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The rows, the dearest first, and their sum. ``renders`` is how many were delivered."""

    by: str
    period: Period
    renders: int
    lines: tuple[Line, ...]
    total: Line


class _Sums:
    """What one row is made from."""

    def __init__(self) -> None:
        self.attempts = self.seconds = self.amount = self.unpriced = 0
        self.accrued = self.accruals = self.others = 0
        self.hits = self.avoided = 0
        self.buckets: dict[int, int] = defaultdict(int)

    def add(self, other: _Sums) -> None:
        self.attempts += other.attempts
        self.seconds += other.seconds
        self.amount += other.amount
        self.accrued += other.accrued
        self.accruals += other.accruals
        self.others += other.others
        self.unpriced += other.unpriced
        self.hits += other.hits
        self.avoided += other.avoided
        for bucket, count in other.buckets.items():
            self.buckets[bucket] += count

    @property
    def made(self) -> Nanos:
        """The cost of renders and calls: without what accrues with time."""
        return self.amount - self.accrued


def stage_table(
    store: Store, period: Period, by: str = "stage", only: Mapping[str, str] | None = None
) -> Table:
    """Return time and cost by a dimension, of the entries that have the values in ``only``.

    Raises:
        InvalidRequest: a dimension that there is not.
    """
    if by not in DIMENSIONS:
        raise unknown_name("dimension", by, DIMENSIONS)
    only = only or {}
    now, before = _sums(store, period, by, only), _sums(store, period.before, by, only)
    renders, earlier = _renders(store, period, only), _renders(store, period.before, only)
    whole, whole_before = _Sums(), _Sums()
    for name, (hits, amount) in avoided_by(store, period, only, by).items():
        now[name].hits, now[name].avoided = hits, amount
    for sums in now.values():
        whole.add(sums)
    for sums in before.values():
        whole_before.add(sums)

    def line(name: str, sums: _Sums, old: _Sums) -> Line:
        trend = None
        only_accrues = sums.accruals > 0 and not sums.others
        # A device that waits costs by the hour, however many renders there were.
        now_cost, old_cost = sums.made or sums.amount, old.made or old.amount
        if old_cost > 0:
            scale = earlier / renders if renders and earlier and old.made else 1.0
            trend = now_cost / old_cost * scale - 1
        return Line(
            name=name,
            attempts=sums.attempts,
            seconds_us=sums.seconds,
            wall_share=sums.seconds / whole.seconds if whole.seconds else 0.0,
            amount=sums.amount,
            cost_share=sums.amount / whole.amount if whole.amount else 0.0,
            per_render=round(sums.made / renders) if renders and not only_accrues else None,
            per_render_full=round(sums.amount / renders) if renders else None,
            p50=percentile(sums.buckets, 0.50),
            p95=percentile(sums.buckets, 0.95),
            trend=trend,
            unpriced=sums.unpriced,
            avoided=sums.avoided,
            avoided_hits=sums.hits,
        )

    names = sorted(now, key=lambda name: (-now[name].amount, -now[name].seconds, name))
    lines = tuple(line(name, now[name], before.get(name, _Sums())) for name in names)
    return Table(by, period, renders, lines, line("total", whole, whole_before))


def percentile(buckets: Mapping[int, int], share: float) -> Nanos:
    """Return the amount at ``share`` (0 to 1) of counted buckets, within 2 %; 0 of none."""
    rank, seen = share * (sum(buckets.values()) - 1), 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen > rank:
            return amount_of(bucket)
    return 0


def _sums(store: Store, period: Period, by: str, only: Mapping[str, str]) -> dict[str, _Sums]:
    # Waste, idle devices and stored bytes stand beside the stages: that is what an account is.
    column = "account" if by == "stage" else by
    found: dict[str, _Sums] = defaultdict(_Sums)
    rows = _rows(store, period, column, only)
    for name, outcome, bucket, attempts, seconds, amount, unpriced in rows:
        sums = found[name]
        sums.seconds += int(seconds)
        sums.amount += int(amount)
        if outcome == "accrual":
            sums.accrued += int(amount)
            sums.accruals += int(attempts)
        else:
            sums.others += int(attempts)
        sums.unpriced += int(unpriced)
        if outcome in BOOKED:
            sums.attempts += int(attempts)
            sums.buckets[bucket] += int(attempts)
    return found


def _rows(
    store: Store, period: Period, column: str, only: Mapping[str, str]
) -> list[tuple[Any, ...]]:
    """Return sums by a column, outcome and bucket: by day as far as may be, else by hour."""
    by_day = column == "account" and not only
    rows = _by_day(store, period) if by_day else []
    for part in _edges(period) if by_day else [period]:
        condition, values = where(part, only)
        rows += store.query(
            f"SELECT {column}, outcome, bucket, SUM(attempts), SUM(seconds_us), SUM(amount),"  # noqa: S608 - a name of ours
            f" SUM(unpriced) FROM rollups WHERE {condition} GROUP BY {column}, outcome, bucket",
            values,
        )
    return rows


def _by_day(store: Store, period: Period) -> list[tuple[Any, ...]]:
    """Return the sums of the whole days (UTC) of a period, in the form of those by hour."""
    return store.query(
        "SELECT account, outcome, bucket, SUM(attempts), SUM(seconds_us), SUM(amount),"
        " SUM(unpriced) FROM days WHERE day >= ? AND day < ? GROUP BY account, outcome, bucket",
        _days(period),
    )


def _days(period: Period) -> tuple[int, int]:
    """Return where the first whole day of a period begins, and where the last one ends."""
    first = -(-period.since // DAY_US) * DAY_US
    return first, max(first, period.until // DAY_US * DAY_US)


def _edges(period: Period) -> list[Period]:
    """Return what a period has before its first whole day, and after its last one."""
    first, last = _days(period)
    first, last = min(first, period.until), min(last, period.until)
    found = (Period(period.since, first), Period(last, period.until))
    return [each for each in found if each.since < each.until]


def _renders(store: Store, period: Period, only: Mapping[str, str]) -> int:
    """Count the delivered renders: those whose picture was stored."""
    if not only:
        return sum(
            int(attempts)
            for name, outcome, _, attempts, *_ in _rows(store, period, "account", only)
            if name == "store" and outcome == "succeeded"
        )
    condition, values = where(period, {k: v for k, v in only.items() if k in OF_RENDER})
    ((count,),) = store.query(
        f"SELECT COALESCE(SUM(attempts), 0) FROM rollups WHERE {condition}"  # noqa: S608 - names of ours
        " AND stage = 'store' AND outcome = 'succeeded'",
        values,
    )
    return int(count)
