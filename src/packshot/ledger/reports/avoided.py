"""What was not spent, since an answer was served again: by a dimension, and how it was avoided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packshot.core.errors import unknown_name
from packshot.core.money import Nanos
from packshot.ledger.reports.period import DIMENSIONS, Period, where
from packshot.ledger.stores.base import Store

__all__ = ["Saving", "avoided", "avoided_by"]


@dataclass(frozen=True, slots=True)
class Saving:
    """``hits`` answers that had cost ``amount`` nano-EUR when they were made, 0 or more.

    ``name`` is a value of the dimension asked for, ``kind`` how it was avoided ("exact",
    "semantic").
    """

    name: str
    kind: str
    hits: int
    amount: Nanos


def avoided(store: Store, period: Period, only: Mapping[str, str], by: str) -> list[Saving]:
    """Return what was avoided in a period, the most first.

    Raises:
        InvalidRequest: a dimension that there is not.
    """
    if by not in DIMENSIONS:
        raise unknown_name("dimension", by, DIMENSIONS)
    condition, values = where(period, only)
    rows = store.query(
        f"SELECT {by}, kind, SUM(hits), SUM(amount) FROM avoided WHERE {condition}"  # noqa: S608 - names of ours
        f" GROUP BY {by}, kind",
        values,
    )
    found = [Saving(name, kind, int(hits), int(amount)) for name, kind, hits, amount in rows]
    return sorted(found, key=lambda each: (-each.amount, -each.hits, each.name, each.kind))


def avoided_by(
    store: Store, period: Period, only: Mapping[str, str], by: str
) -> dict[str, tuple[int, Nanos]]:
    """Return hits and nano-EUR of all kinds together, by the values of a dimension."""
    sums: dict[str, tuple[int, Nanos]] = {}
    for each in avoided(store, period, only, by):
        hits, amount = sums.get(each.name, (0, 0))
        sums[each.name] = hits + each.hits, amount + each.amount
    return sums
