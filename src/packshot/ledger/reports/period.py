"""The stretch of time that a report is about, and which entries it counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import InvalidRequest, unknown_name

__all__ = ["DAY_US", "DIMENSIONS", "Period", "day_of", "period_of", "where"]

DAY_US = 24 * HOUR_US
UNITS = {"h": HOUR_US, "d": DAY_US, "w": 7 * DAY_US}
DIMENSIONS = (
    *("stage", "provider", "model", "route", "virtual_key", "team", "recipe", "batch", "device"),
)
"""By what the sums by hour can be asked for; "stage" has waste, idle and storage beside it."""


@dataclass(frozen=True, slots=True)
class Period:
    """From ``since`` up to, not including, ``until``: whole hours, in microseconds since 1970."""

    since: int
    until: int

    @property
    def before(self) -> Period:
        """The period of equal length that ends where this one begins."""
        return Period(2 * self.since - self.until, self.since)


def period_of(since: str, until: str, last: str, now: int, zone: tzinfo = UTC) -> Period:
    """Return the period that the options mean: the last 30 days where they say nothing.

    ``since`` and ``until`` are ISO dates or times in ``zone``; ``last`` is "12h", "7d", "2w", or
    "month" for the calendar month so far. The sums are by hour: the ends are moved outwards.

    Raises:
        InvalidRequest: an option cannot be read, two contradict, or the period is empty.
    """
    if last and since:
        raise InvalidRequest("got --last and --since; expected one of the two")
    end = _instant(until, "--until", zone) if until else now + 1
    end = -(-end // HOUR_US) * HOUR_US
    if last == "month":
        start = datetime.fromtimestamp((end - 1) / SECOND_US, zone)
        start = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        begin = int(start.timestamp()) * SECOND_US
    elif since:
        begin = _instant(since, "--since", zone)
    else:
        found = re.fullmatch(r"([1-9]\d{0,4})([hdw])", last or "30d")
        if not found:
            raise InvalidRequest(f"--last must be like 12h, 7d, 2w or month, got {last!r}")
        begin = end - int(found[1]) * UNITS[found[2]]
    begin -= begin % HOUR_US
    if begin >= end:
        raise InvalidRequest(f"the period is empty: it begins {day_of(begin)}, ends {day_of(end)}")
    return Period(begin, end)


def day_of(at: int) -> str:
    """Return the day (UTC) of an instant, like 2026-11-25."""
    return datetime.fromtimestamp(at // SECOND_US, UTC).date().isoformat()


def where(
    period: Period, only: Mapping[str, str], column: str = "hour"
) -> tuple[str, tuple[int | str, ...]]:
    """Return the condition, with its parameters, for a period and dimensions with one value each.

    Raises:
        InvalidRequest: a dimension that there is not.
    """
    for name in only:
        if name not in DIMENSIONS:
            raise unknown_name("dimension", name, DIMENSIONS)
    sql = "".join((f"{column} >= ? AND {column} < ?", *(f" AND {name} = ?" for name in only)))
    return sql, (period.since, period.until, *only.values())


def _instant(text: str, option: str, zone: tzinfo) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"{option} must be a date like 2026-11-25, got {text!r}") from error
    at = at if at.tzinfo else at.replace(tzinfo=zone)
    return int(at.timestamp()) * SECOND_US
