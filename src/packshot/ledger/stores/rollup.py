"""What is derived from the entries: sums by hour and dimension, by day, and one row per render.

Both are gathered in memory over a batch and merged into the tables once per key. The same code
makes them anew from all entries, so that the two can be compared.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from packshot.core.clock import HOUR_US
from packshot.ledger.stores.base import bucket_of
from packshot.ledger.stores.database import Row, Table, Transaction
from packshot.ledger.stores.schema import COLUMNS

__all__ = ["DAYS", "DAY_KEY", "RENDERS", "ROLLUPS", "ROLLUP_KEY", "Sums", "days_of"]

GROUPED = (
    *("outcome", "account", "stage", "provider", "model", "route", "virtual_key", "team"),
    *("recipe", "batch", "device"),
)
SUMMED = ("seconds_us", "input_tokens", "output_tokens", "images", "stored_bytes", "amount")

ROLLUP_KEY = ("hour", *GROUPED, "bucket")
MEASURES = ("attempts", *SUMMED, "unpriced")
ROLLUPS = Table(
    "rollups",
    (*ROLLUP_KEY, *MEASURES),
    frozenset(GROUPED),
    on_conflict=f"ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in MEASURES),
)

DAY_US = 24 * HOUR_US
DAY_KEY = ("day", "account", "outcome", "bucket")
DAY_MEASURES = ("attempts", "seconds_us", "amount", "unpriced")
DAYS = Table(
    "days",
    (*DAY_KEY, *DAY_MEASURES),
    frozenset({"account", "outcome"}),
    on_conflict=f"ON CONFLICT ({', '.join(DAY_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = days.{name} + excluded.{name}" for name in DAY_MEASURES),
)
"""What the table of stages reads: some thousand rows a month, whatever the sums by hour have."""

PLACES = tuple(MEASURES.index(name) for name in DAY_MEASURES)

NAMES = ("recipe", "team", "batch")
OLD, NEW = "renders", "excluded"
RENDER_MERGE = (
    *(f"{n} = CASE WHEN {OLD}.{n} = '' THEN {NEW}.{n} ELSE {OLD}.{n} END" for n in NAMES),
    *(f"{n} = {OLD}.{n} + {NEW}.{n}" for n in ("amount", "waste", "seconds_us")),
    *(
        f"{n} = CASE WHEN {NEW}.{n} {order} {OLD}.{n} THEN {NEW}.{n} ELSE {OLD}.{n} END"
        for n, order in (("first_at", "<"), ("last_at", ">"), ("delivered", ">"))
    ),
)
RENDERS = Table(
    "renders",
    (
        *("render", "recipe", "team", "batch", "first_at", "last_at"),
        *("amount", "waste", "seconds_us", "delivered"),
    ),
    frozenset({"render", *NAMES}),
    on_conflict=f"ON CONFLICT (render) DO UPDATE SET {', '.join(RENDER_MERGE)}",
)

group_of = itemgetter(*map(COLUMNS.index, GROUPED))
measures_of = itemgetter(*map(COLUMNS.index, (*SUMMED, "priced", "settled_at")))
render_of = itemgetter(
    *map(COLUMNS.index, ("render", *NAMES, "held_at", "account", "stage", "outcome"))
)


class Sums:
    """The derived rows of some entries, gathered by `add` and merged into the tables by `flush`."""

    def __init__(self) -> None:
        self.rollups: dict[Row, list[int]] = {}
        self.renders: dict[str, list[Any]] = {}

    def add(self, row: Row) -> None:
        """Count one row of ``entries``, with or without its hash."""
        seconds, tokens_in, tokens_out, images, stored, amount, priced, settled = measures_of(row)
        key = (settled - settled % HOUR_US, *group_of(row), bucket_of(amount))
        sums = self.rollups.get(key)
        if sums is None:
            self.rollups[key] = [
                *(1, seconds, tokens_in, tokens_out, images, stored, amount, 1 - priced)
            ]
        else:
            sums[0] += 1
            sums[1] += seconds
            sums[2] += tokens_in
            sums[3] += tokens_out
            sums[4] += images
            sums[5] += stored
            sums[6] += amount
            sums[7] += 1 - priced
        if row[RENDER]:
            self._add_render(row, amount, seconds, settled)

    def _add_render(self, row: Row, amount: int, seconds: int, settled: int) -> None:
        render, recipe, team, batch, held_at, account, stage, outcome = render_of(row)
        waste = amount if account == "waste" else 0
        delivered = int(stage == "store" and outcome == "succeeded")
        first = held_at or settled  # what accrues or corrects was never held
        old = self.renders.get(render)
        if old is None:
            self.renders[render] = [
                *(recipe, team, batch, first, settled, amount, waste, seconds, delivered)
            ]
            return
        for place, name in enumerate((recipe, team, batch)):
            if not old[place]:
                old[place] = name
        old[3] = min(old[3], first)
        old[4] = max(old[4], settled)
        old[5] += amount
        old[6] += waste
        old[7] += seconds
        old[8] |= delivered

    def flush(self, into: Transaction) -> None:
        """Merge into the tables what was gathered, and start anew."""
        if self.rollups:
            into.insert(ROLLUPS, [(*key, *sums) for key, sums in self.rollups.items()])
        if days := days_of(self.rollups):
            into.insert(DAYS, [(*key, *sums) for key, sums in days.items()])
        if self.renders:
            into.insert(RENDERS, [(key, *values) for key, values in self.renders.items()])
        self.rollups.clear()
        self.renders.clear()


def days_of(rollups: dict[Row, list[int]]) -> dict[Row, list[int]]:
    """Return the sums by day that sums by hour make."""
    attempts, seconds, amount, unpriced = PLACES
    found: dict[Row, list[int]] = {}
    for key, sums in rollups.items():
        # A key is ROLLUP_KEY: hour, outcome, account, …, bucket.
        day = (key[0] - key[0] % DAY_US, key[2], key[1], key[-1])
        row = found.get(day)
        if row is None:
            found[day] = [sums[attempts], sums[seconds], sums[amount], sums[unpriced]]
        else:
            row[0] += sums[attempts]
            row[1] += sums[seconds]
            row[2] += sums[amount]
            row[3] += sums[unpriced]
    return found


RENDER = COLUMNS.index("render")
