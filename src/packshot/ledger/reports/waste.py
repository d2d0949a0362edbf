"""What was billed and not delivered, by reason; and what could not be priced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packshot.core.errors import unknown_name
from packshot.core.money import Nanos
from packshot.ledger.reports.period import DIMENSIONS, Period, where
from packshot.ledger.stores.base import Store

__all__ = ["UNCORRECTED", "Gap", "Loss", "unpriced", "waste"]

UNCORRECTED = (
    "NOT EXISTS (SELECT 1 FROM entries later WHERE later.corrects = entries.attempt"
    " AND later.corrects <> '' AND later.priced = 1)"
)
"""The condition that no later entry has priced one. Without its second part neither database sees
that the index of corrections, which has only those, will do."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Attempts that cost ``amount`` for nothing, and how many renders they belong to.

    ``name`` is their value of the dimension that was asked by.
    """

    reason: str
    name: str
    attempts: int
    renders: int
    amount: Nanos


@dataclass(frozen=True, slots=True)
class Gap:
    """Attempts that no price covers and no correcting entry has priced since.

    ``name`` is their value of the dimension that was asked by, "" where none was.
    """

    name: str
    provider: str
    model: str
    device: str
    attempts: int
    input_tokens: int
    output_tokens: int
    images: int
    seconds_us: int
    first_at: int
    last_at: int


def waste(
    store: Store, period: Period, only: Mapping[str, str] | None = None, by: str = "provider"
) -> list[Loss]:
    """Return what was billed but not delivered, the dearest first, by reason and a dimension.

    Raises:
        InvalidRequest: a dimension that there is not.
    """
    _known(by)
    condition, values = where(period, only or {}, "settled_at")
    rows = store.query(
        f"SELECT reason, {by}, COUNT(*),"  # noqa: S608 - names of ours
        " COUNT(DISTINCT CASE WHEN render <> '' THEN render END), SUM(amount)"
        f" FROM entries WHERE account = 'waste' AND {condition}"
        f" GROUP BY reason, {by} ORDER BY SUM(amount) DESC, reason, {by}",
        values,
    )
    return [
        Loss(r, name, int(n), int(renders), int(amount)) for r, name, n, renders, amount in rows
    ]


def unpriced(
    store: Store, period: Period, only: Mapping[str, str] | None = None, by: str = ""
) -> list[Gap]:
    """Return what could not be priced, by provider, model and device, and by a dimension.

    Raises:
        InvalidRequest: a dimension that there is not.
    """
    if by:
        _known(by)
    condition, values = where(period, only or {}, "settled_at")
    name = by or "''"
    groups = f"{by}, provider, model, device" if by else "provider, model, device"
    rows = store.query(
        f"SELECT {name}, provider, model, device, COUNT(*), SUM(input_tokens),"  # noqa: S608 - names of ours
        " SUM(output_tokens), SUM(images), SUM(seconds_us), MIN(settled_at), MAX(settled_at)"
        f" FROM entries WHERE priced = 0 AND {condition} AND"
        f" {UNCORRECTED}"
        f" GROUP BY {groups} ORDER BY COUNT(*) DESC, {groups}",
        values,
    )
    return [Gap(name, p, m, d, *map(int, numbers)) for name, p, m, d, *numbers in rows]


def _known(by: str) -> None:
    if by not in DIMENSIONS:
        raise unknown_name("dimension", by, DIMENSIONS)
