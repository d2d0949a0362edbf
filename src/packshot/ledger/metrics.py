"""The ledger as Prometheus sees it: text made from the store's rollups, and a server for it.

The store is the truth, so a scrape asks it; nothing is counted twice or lost with a process, and
every replica shows the same. Counters run from the start of the calendar month (UTC) and begin
again at the next, which `rate` and `increase` take for the restart that it is. Within a month they
never fall: corrections are a family of their own, and a label value that has a series keeps it.

Each label has at most `VALUES_PER_LABEL` values and each family `SERIES_PER_FAMILY` series: those
that cost most in the month before, then newcomers in the order of their arrival. The rest is
"other", so that sums stay exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import LedgerError
from packshot.core.money import NANO, eur
from packshot.ledger import names
from packshot.ledger.lag import Lag
from packshot.ledger.names import Metric
from packshot.ledger.settings import CapRow
from packshot.ledger.stores.base import Store

__all__ = [
    "CONTENT_TYPE",
    "SERIES_PER_FAMILY",
    "VALUES_PER_LABEL",
    "Memory",
    "family",
    "render_metrics",
    "text_of",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VALUES_PER_LABEL = 30
SERIES_PER_FAMILY = 1000
LABEL_CHARACTERS = 100
"""Longer values are cut: a reason may quote a provider's whole sentence."""

OTHER = "other"
QUIET_US = HOUR_US
"""A render without a picture that has been silent for so long counts as given up."""

FOR_EVER = 2**63 - 1
"""Later than every entry; one that a clock ahead of ours has dated counts as of now."""

WINDOWS = {"1h": HOUR_US, "24h": 24 * HOUR_US}
LIMITED = frozenset(
    "account stage provider model team recipe device virtual_key reason scope name".split()
)
Labels: TypeAlias = tuple[str, ...]

ROLLUP_LABELS: Labels = (
    *("outcome", "account", "stage", "provider", "model"),
    *("team", "recipe", "device", "virtual_key", "sign"),
)
AVOIDED_LABELS: Labels = ("kind", "stage", "provider", "model", "team", "virtual_key")
WASTE_LABELS: Labels = ("reason", "stage", "provider", "team")

Samples: TypeAlias = Mapping[Labels, int | Decimal]

# Both take a span of time: this month's for the values, the month's before for who has a series.
ROLLUPS = """
SELECT outcome, account, stage, provider, model, team, recipe, device, virtual_key,
       CASE WHEN bucket > 0 THEN 1 ELSE 0 END,
       sum(amount), sum(attempts), sum(seconds_us), sum(unpriced), min(hour)
FROM rollups WHERE hour >= ? AND hour < ? GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
"""
WASTE = """
SELECT reason, stage, provider, team, sum(amount), count(*), 0, 0, min(settled_at)
FROM entries
WHERE account = 'waste' AND outcome <> 'correction' AND settled_at >= ? AND settled_at < ?
GROUP BY 1, 2, 3, 4
"""
AVOIDED = """
SELECT kind, stage, provider, model, team, virtual_key, sum(amount), sum(hits), 0, 0, min(hour)
FROM avoided WHERE hour >= ? AND hour < ? GROUP BY 1, 2, 3, 4, 5, 6
"""
RENDERS = """
SELECT sum(CASE WHEN delivered = 1 AND last_at >= ? THEN 1 ELSE 0 END),
       sum(CASE WHEN delivered = 0 AND last_at >= ? AND last_at < ? THEN 1 ELSE 0 END),
       sum(CASE WHEN last_at >= ? THEN amount ELSE 0 END),
       sum(CASE WHEN last_at >= ? THEN delivered ELSE 0 END),
       sum(CASE WHEN last_at >= ? THEN amount ELSE 0 END),
       sum(CASE WHEN last_at >= ? THEN delivered ELSE 0 END)
FROM renders WHERE last_at >= ?
"""
# Written so that both tables' partial indexes serve it.
UNPRICED = """
SELECT provider, model, count(*) FROM entries AS e
WHERE e.priced = 0 AND NOT EXISTS (
    SELECT 1 FROM entries AS c
    WHERE c.corrects = e.attempt AND c.corrects <> '' AND c.priced = 1)
GROUP BY 1, 2
"""
BOOKED = "SELECT sum(amount) FROM rollups WHERE outcome <> 'accrual' AND hour >= ? AND "
# What accrues with time is in no cap: a cap refuses calls.
SPENT = {
    "total": BOOKED + "? = ''",
    "team": BOOKED + "team = ?",
    "virtual_key": BOOKED + "virtual_key = ?",
    "batch": BOOKED + "batch = ?",
}


class Group(NamedTuple):
    """What a group of entries sums to, and when it was first seen.

    One of the month before has ``before``, its amount, and nothing else: its series is shown with
    0 at first, so that its first cost of this month is seen as an increase.
    """

    labels: dict[str, str]
    amount: int
    attempts: int
    seconds_us: int
    unpriced: int
    first: int
    before: int = 0


@dataclass(slots=True)
class Memory:
    """Which label values and series were admitted this month: one that has a series keeps it.

    Without it, a page is still right by itself; only where the limits are exceeded within the
    hour of a name's arrival, or a render is delivered late, may a counter differ from the page
    before.
    """

    month: int = 0
    admitted: dict[str, set[str | Labels]] = field(default_factory=dict[str, set[str | Labels]])
    given_up: int = 0
    earlier: dict[str, list[Group]] = field(default_factory=dict[str, "list[Group]"])
    """What the month before cost, by statement: half the work, so asked for once a month."""

    def of(self, month: int) -> Memory:
        """Return itself, emptied if another month has begun."""
        if month != self.month:
            self.month, self.given_up = month, 0
            self.admitted.clear()
            self.earlier.clear()
        return self


def render_metrics(
    store: Store,
    now: int,
    *,
    lag: Lag | None = None,
    caps: Sequence[CapRow] = (),
    timezone: str = "UTC",
    memory: Memory | None = None,
) -> str:
    """Return the page for Prometheus (text format 0.0.4) at ``now`` (µs since 1970-01-01 UTC).

    ``lag`` is what the reader of the journals found, None if nobody looked. ``timezone`` is the
    one in which the periods of ``caps`` begin.

    Raises:
        LedgerError: the store cannot be read; `text_of` turns that into ``packshot_ledger_up 0``.
    """
    month = _month_start(now, ZoneInfo("UTC"))
    memory = (memory or Memory()).of(month)
    page = [family(names.UP, {(): 1})]
    page += _costs(store, month, memory)
    page += _renders(store, now, month, memory)
    page += _unpriced(store, memory)
    page += _budgets(store, now, caps, ZoneInfo(timezone))
    if lag is not None:
        page.append(family(names.LAG, {(): lag.seconds}))
        page.append(family(names.BACKLOG, {(): lag.attempts}))
        page.append(family(names.DAMAGED, {(): lag.damaged}))
    return "".join(page)


def text_of(make: Callable[[], str], tell: Callable[[str], None]) -> str:
    """Return what ``make`` returns, or a page that says that the ledger is down; ``tell`` why."""
    try:
        return make()
    except LedgerError as error:
        tell(str(error))
        return family(names.UP, {(): 0})


def _month_start(at: int, zone: ZoneInfo) -> int:
    day = datetime.fromtimestamp(at // SECOND_US, zone)
    return _us(day.replace(day=1, hour=0, minute=0, second=0, microsecond=0))


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_US


def _costs(store: Store, month: int, memory: Memory) -> list[str]:
    """Return the families that come from the rollups, those of waste and of what was avoided."""
    groups = _groups(store, ROLLUPS, ROLLUP_LABELS, month, memory)
    wasted = _groups(store, WASTE, WASTE_LABELS, month, memory)
    saved = _groups(store, AVOIDED, AVOIDED_LABELS, month, memory)

    # Bucket 0 holds what is nothing or less, so what it sums to is what was taken back.
    up = [g for g in groups if g.labels["sign"] == "up"]
    down = [g._replace(amount=-g.amount) for g in groups if g.labels["sign"] == "down"]
    booked = [g for g in up if g.labels["outcome"] != "correction"]
    moved = [g for g in up if g.labels["outcome"] == "correction"]
    moved += [g for g in down if g.amount or g.before]
    calls = [g for g in groups if g.labels["outcome"] not in {"correction", "accrual"}]
    keyed = [g for g in booked if g.labels["virtual_key"]]
    made: list[tuple[Metric, Iterable[Group], Callable[[Group], int], int]] = [
        (names.COST, booked, lambda g: g.amount, NANO),
        (names.CORRECTIONS, moved, lambda g: g.amount, NANO),
        (names.VIRTUAL_KEY_COST, keyed, lambda g: g.amount, NANO),
        (names.ATTEMPTS, calls, lambda g: g.attempts, 1),
        (names.STAGE_SECONDS, calls, lambda g: g.seconds_us, SECOND_US),
        (names.UNPRICED, [g for g in groups if g.unpriced], lambda g: g.unpriced, 1),
        (names.WASTE, wasted, lambda g: g.amount, NANO),
        (names.WASTED_ATTEMPTS, wasted, lambda g: g.attempts, 1),
        (names.AVOIDED, saved, lambda g: g.amount, NANO),
        (names.AVOIDED_HITS, saved, lambda g: g.attempts, 1),
    ]
    return [_counter(metric, rows, value, unit, memory) for metric, rows, value, unit in made]


def _groups(
    store: Store, statement: str, columns: Labels, month: int, memory: Memory
) -> list[Group]:
    """Return this month's groups and those of the month before, their label values limited."""
    earlier = memory.earlier.get(statement)
    if earlier is None:
        start = _month_start(month - 1, ZoneInfo("UTC"))
        rows = _read(store, statement, columns, start, month)
        earlier = [Group(g.labels, 0, 0, 0, 0, g.first, g.amount) for g in rows]
        memory.earlier[statement] = earlier
    groups = _read(store, statement, columns, month, FOR_EVER)
    groups += [g._replace(labels=dict(g.labels)) for g in earlier]
    _limit(groups, memory)
    return groups


def _read(store: Store, statement: str, columns: Labels, start: int, end: int) -> list[Group]:
    made: list[Group] = []
    for row in store.query(statement, (start, end)):
        labels = dict(zip(columns, row, strict=False))
        if "sign" in labels:
            labels["sign"] = "up" if labels["sign"] else "down"
        made.append(Group(labels, *map(int, row[len(columns) :])))
    return made


def _limit(groups: list[Group], memory: Memory) -> None:
    """Replace in place every label value that is beyond its label's limit by "other"."""
    for label in LIMITED.intersection(*(group.labels for group in groups[:1])):
        for group in groups:
            group.labels[label] = group.labels[label][:LABEL_CHARACTERS]
        rank = _ranked((group.labels[label], group) for group in groups)
        rank.pop("", None)
        kept = _admit(label, rank, VALUES_PER_LABEL, memory)
        for group in groups:
            if group.labels[label] and group.labels[label] not in kept:
                group.labels[label] = OTHER


Rank: TypeAlias = dict[str | Labels, tuple[int, int]]
"""By name: what it cost in the month before, negated, and when it was first seen."""


def _ranked(pairs: Iterable[tuple[str | Labels, Group]]) -> Rank:
    rank: Rank = {}
    for name, group in pairs:
        cost, first = rank.get(name, (0, group.first))
        rank[name] = (cost - group.before, min(first, group.first))
    return rank


def _admit(what: str, rank: Rank, limit: int, memory: Memory) -> set[str | Labels]:
    """Return who has a series of ``what``, those of the page before among them."""
    kept = memory.admitted.setdefault(what, set())
    for name in sorted(rank, key=lambda n: (*rank[n], n)):
        if len(kept) >= limit:
            break
        kept.add(name)
    return kept


def _counter(
    metric: Metric,
    groups: Iterable[Group],
    value: Callable[[Group], int],
    unit: int,
    memory: Memory,
) -> str:
    """Return a family of sums of ``value``, which counts in parts of ``unit``."""
    rows = [(tuple(g.labels[label] for label in metric.labels), g) for g in groups]
    kept = _admit(metric.name, _ranked(rows), SERIES_PER_FAMILY, memory)
    rest = (OTHER,) * len(metric.labels)
    sums: defaultdict[Labels, int] = defaultdict(int)
    for labels, group in rows:
        sums[labels if labels in kept else rest] += value(group)
    return family(metric, {labels: Decimal(total) / unit for labels, total in sums.items()})


def _renders(store: Store, now: int, month: int, memory: Memory) -> list[str]:
    """Return renders by outcome, and what a delivered one cost lately."""
    quiet = (month - QUIET_US, now - QUIET_US)
    starts = [now - length for length in WINDOWS.values() for _ in range(2)]
    sql = (RENDERS, (month, *quiet, *starts, min(quiet[0], *starts)))
    delivered, given_up, *sums = (int(value or 0) for value in store.query(*sql)[0])
    memory.given_up = max(memory.given_up, given_up)  # one delivered after all: it was counted
    costs = {
        (window,): Decimal(amount) / pictures / NANO
        for window, amount, pictures in zip(WINDOWS, sums[::2], sums[1::2], strict=True)
        if pictures
    }
    outcomes = {("delivered",): delivered, ("given_up",): memory.given_up}
    return [family(names.RENDERS, outcomes), family(names.COST_PER_RENDER, costs)]


def _number(store: Store, sql: str, *parameters: int | str) -> int:
    """Return the one number of a statement; the sum of no rows is 0."""
    return int(store.query(sql, parameters)[0][0] or 0)


def _unpriced(store: Store, memory: Memory) -> list[str]:
    """Return what still waits for a price."""
    groups = [
        Group({"provider": provider, "model": model}, 0, 0, 0, int(count), 0)
        for provider, model, count in store.query(UNPRICED)
    ]
    _limit(groups, memory)
    sums: defaultdict[Labels, int] = defaultdict(int)
    for group in groups:
        sums[group.labels["provider"], group.labels["model"]] += group.unpriced
    return [family(names.UNPRICED_NOW, sums)]


def _budgets(store: Store, now: int, caps: Sequence[CapRow], zone: ZoneInfo) -> list[str]:
    """Return limit, use and ratio of each cap; the first `SERIES_PER_FAMILY` of them."""
    limits: dict[Labels, Decimal] = {}
    used: dict[Labels, Decimal] = {}
    ratios: dict[Labels, Decimal] = {}
    for cap in caps[:SERIES_PER_FAMILY]:
        key = (cap.scope, cap.name[:LABEL_CHARACTERS], cap.per)
        spent = eur(_number(store, SPENT[cap.scope], _period_start(cap, now, zone), cap.name))
        limits[key], used[key] = cap.eur, spent
        ratios[key] = spent / cap.eur if cap.eur else Decimal(1)
    return [
        family(names.BUDGET_LIMIT, limits),
        family(names.BUDGET_USED, used),
        family(names.BUDGET_RATIO, ratios),
    ]


def _period_start(cap: CapRow, now: int, zone: ZoneInfo) -> int:
    """Return when the cap's period began, down to the full hour (UTC) that the rollups know."""
    if cap.per == "ever":
        return 0
    if cap.per == "hour":
        return now - now % HOUR_US
    if cap.per == "month":
        start = _month_start(now, zone)
    else:
        day = datetime.fromtimestamp(now // SECOND_US, zone)
        start = _us(day.replace(hour=0, minute=0, second=0, microsecond=0))
    return start - start % HOUR_US


def family(metric: Metric, samples: Samples) -> str:
    """Return a family in the text format, its series sorted."""
    lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
    for labels, value in sorted(samples.items()):
        named = names.labelled(metric.labels, labels)
        series = f"{metric.name}{{{named}}}" if named else metric.name
        lines.append(f"{series} {Decimal(value):f}")
    return "\n".join(lines) + "\n"
