"""What many renders will take and cost, judged by those that were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.core.money import Nanos
from packshot.ledger.reports.period import Period
from packshot.ledger.stores.base import Store

__all__ = ["Forecast", "forecast"]

Z95 = 1.959964
"""Two-sided 95 % of the normal distribution."""

NEWEST = 100_000
"""Renders looked at, the newest first: more would not narrow the interval that is seen."""

OF_RENDER = ("recipe", "team", "batch")
"""Dimensions that a render has as a whole, in the table of renders."""

ENOUGH = 30
"""With fewer, the normal approximation of the mean is not to be trusted."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """For ``renders`` delivered pictures: nano-EUR and microseconds, with a 95 % interval each.

    The interval holds what the mean is not sure of and the chance within the renders to come; not
    that prices or prompts change. ``observed`` delivered renders stand behind it; what failed
    meanwhile is in the cost of those that came. ``weak`` says that they are too few. The interval
    is None where only one was tried: one says nothing of how they differ.
    """

    renders: int
    observed: int
    amount: Nanos
    amount_low: Nanos | None
    amount_high: Nanos | None
    seconds_us: int
    seconds_low_us: int | None
    seconds_high_us: int | None
    weak: bool


def forecast(
    store: Store, period: Period, renders: int, only: Mapping[str, str] | None = None
) -> Forecast:
    """Return the forecast for ``renders`` pictures from those of the period.

    Raises:
        InvalidRequest: ``renders`` is not positive, the period has none delivered, or a dimension
            is none that a render has as a whole.
    """
    if renders < 1:
        raise InvalidRequest(f"--renders must be 1 or more, got {renders}")
    only = only or {}
    for name in only:
        if name not in OF_RENDER:
            raise unknown_name("dimension of a whole render", name, OF_RENDER)
    chosen = "".join(f" AND {name} = ?" for name in only)
    rows = store.query(
        "SELECT amount, seconds_us, delivered FROM renders WHERE last_at >= ? AND last_at < ?"  # noqa: S608 - names of ours
        f"{chosen} ORDER BY last_at DESC LIMIT ?",
        (period.since, period.until, *only.values(), NEWEST),
    )
    observed = sum(int(delivered) for _, _, delivered in rows)
    if not observed:
        raise InvalidRequest(
            "a forecast needs a delivered render, and the period has none;"
            " make some, or give a longer --last"
        )
    amount = _interval([int(row[0]) for row in rows], observed, renders)
    seconds = _interval([int(row[1]) for row in rows], observed, renders)
    return Forecast(renders, observed, *amount, *seconds, weak=observed < ENOUGH)


def _interval(values: list[int], observed: int, renders: int) -> tuple[int, int | None, int | None]:
    """Return the expected sum over ``renders`` deliveries, and its lower and upper end."""
    count, total = len(values), sum(values)
    middle = total * renders // observed
    if count < 2:
        return middle, None, None
    mean = total / count
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    tries = renders * count / observed  # failed renders come along at the observed rate
    half = Z95 * sqrt(spread * (tries + tries * tries / count))
    return middle, max(0, round(middle - half)), round(middle + half)
