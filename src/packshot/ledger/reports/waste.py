"""What was billed and not delivered, by reason; and what could not be priced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packshot.core.money import Nanos
from packshot.ledger.reports.period import Period, where
from packshot.ledger.stores.base import Store

__all__ = ["Gap", "Loss", "unpriced", "waste"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Attempts that cost ``amount`` for nothing, and how many renders they belong to."""

    reason: str
    provider: str
    attempts: int
    renders: int
    amount: Nanos


@dataclass(frozen=True, slots=True)
class Gap:
    """Attempts that no price covers and no correcting entry has priced since."""

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


def waste(store: Store, period: Period, only: Mapping[str, str] | None = None) -> list[Loss]:
    """Return what was billed but not delivered, the dearest reason first."""
    condition, values = where(period, only or {}, "settled_at")
    rows = store.query(
        "SELECT reason, provider, COUNT(*),"  # noqa: S608 - names of ours
        " COUNT(DISTINCT CASE WHEN render <> '' THEN render END), SUM(amount)"
        f" FROM entries WHERE account = 'waste' AND {condition}"
        " GROUP BY reason, provider ORDER BY SUM(amount) DESC, reason, provider",
        values,
    )
    return [Loss(r, p, int(n), int(renders), int(amount)) for r, p, n, renders, amount in rows]


def unpriced(store: Store, period: Period, only: Mapping[str, str] | None = None) -> list[Gap]:
    """Return what could not be priced, by provider, model and device."""
    condition, values = where(period, only or {}, "settled_at")
    rows = store.query(
        "SELECT provider, model, device, COUNT(*), SUM(input_tokens), SUM(output_tokens),"  # noqa: S608 - names of ours
        " SUM(images), SUM(seconds_us), MIN(settled_at), MAX(settled_at) FROM entries"
        f" WHERE priced = 0 AND {condition} AND NOT EXISTS"
        " (SELECT 1 FROM entries later WHERE later.corrects = entries.attempt AND later.priced = 1)"
        " GROUP BY provider, model, device ORDER BY COUNT(*) DESC, provider, model, device",
        values,
    )
    return [Gap(p, m, d, *map(int, numbers)) for p, m, d, *numbers in rows]
