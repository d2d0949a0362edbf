"""What many renders will take and cost, judged by those that were made."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos
from packshot.ledger.reports.period import Period
from packshot.ledger.stores.base import Store

__all__ = ["Forecast", "forecast"]

Z95 = 1.959964
"""Two-sided 95 % of the normal distribution."""

NEWEST = 100_000
"""Renders looked at, the newest first: more would not narrow the interval that is seen."""

ENOUGH = 30
"""With fewer, the normal approximation of the mean is not to be trusted."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """For ``renders`` delivered pictures: nano-EUR and microseconds, with a 95 % interval each.

    The interval holds what the mean is not sure of and the chance within the renders to come; not
    that prices or prompts change. ``observed`` delivered renders stand behind it; what failed
    meanwhile is in the cost of those that came. ``weak`` says that they are too few.
    """

    renders: int
    observed: int
    amount: Nanos
    amount_low: Nanos
    amount_high: Nanos
    seconds_us: int
    seconds_low_us: int
    seconds_high_us: int
    weak: bool


def forecast(store: Store, period: Period, renders: int) -> Forecast:
    """Return the forecast for ``renders`` pictures from those of the period.

    Raises:
        InvalidRequest: ``renders`` is not positive, or the period has fewer than 2 delivered.
    """
    if renders < 1:
        raise InvalidRequest(f"--renders must be 1 or more, got {renders}")
    rows = store.query(
        "SELECT amount, seconds_us, delivered FROM renders WHERE last_at >= ? AND last_at < ?"
        " ORDER BY last_at DESC LIMIT ?",
        (period.since, period.until, NEWEST),
    )
    observed = sum(int(delivered) for _, _, delivered in rows)
    if observed < 2:
        raise InvalidRequest(
            f"a forecast needs 2 delivered renders at the least, the period has {observed};"
            " make some, or give a longer --last"
        )
    amount = _interval([int(row[0]) for row in rows], observed, renders)
    seconds = _interval([int(row[1]) for row in rows], observed, renders)
    return Forecast(renders, observed, *amount, *seconds, weak=observed < ENOUGH)


def _interval(values: list[int], observed: int, renders: int) -> tuple[int, int, int]:
    """Return the expected sum over ``renders`` deliveries, and its lower and upper end."""
    count, total = len(values), sum(values)
    mean = total / count
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    tries = renders * count / observed  # failed renders come along at the observed rate
    middle = total * renders // observed
    half = Z95 * sqrt(spread * (tries + tries * tries / count))
    return middle, max(0, round(middle - half)), round(middle + half)
