"""Calendar periods of caps: which one an instant is in, what it is called, and when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, TypeAlias

from packshot.core.clock import HOUR_US, SECOND_US

__all__ = ["FOR_EVER", "Per", "end_of", "label_of", "over_by"]

Per: TypeAlias = Literal["hour", "day", "month", "ever"]

DAY_US = 24 * HOUR_US
FOR_EVER = 1 << 62
"""Microseconds since 1970: the end of "ever"."""


def label_of(per: Per, at: int, zone: tzinfo = UTC) -> str:
    """Return the period's name: "2026-11-25T13", "2026-11-25", "2026-11" or "ever".

    ``at`` is in microseconds since 1970-01-01 UTC. Hours outside UTC carry their offset, since an
    hour comes twice in the night when the clocks go back.
    """
    if per == "ever":
        return "ever"
    local = _local(at, zone)
    if per == "hour":
        return local.strftime("%Y-%m-%dT%H" if zone is UTC else "%Y-%m-%dT%H%z")
    return local.strftime("%Y-%m-%d" if per == "day" else "%Y-%m")


def end_of(per: Per, at: int, zone: tzinfo = UTC) -> int:
    """Return the first microsecond after the period that ``at`` is in."""
    if per == "ever":
        return FOR_EVER
    local = _local(at, zone)
    if per == "hour":
        # By what the clock shows: zones are off UTC by half hours, too.
        into = (local.minute * 60 + local.second) * SECOND_US + local.microsecond
        return at - into + HOUR_US
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if per == "day":
        after = midnight + timedelta(days=1)
    else:
        after = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    # The same wall time next day or month, whatever the clocks did in between.
    return int(after.replace(tzinfo=zone).timestamp()) * SECOND_US


def over_by(label: str) -> int:
    """Return an instant by which a period of this name is over, wherever its zone is.

    Raises:
        ValueError: no period is called that.
    """
    if label == "ever":
        return FOR_EVER
    per: Per = "hour" if "T" in label else "day" if label.count("-") == 2 else "month"
    begins = datetime.fromisoformat(f"{label}-01" if per == "month" else label[:10])
    at = int(begins.replace(tzinfo=UTC).timestamp()) * SECOND_US
    return end_of("day" if per == "hour" else per, at) + DAY_US  # zones are less than that off UTC


def _local(at: int, zone: tzinfo) -> datetime:
    seconds, micros = divmod(at, SECOND_US)
    return datetime.fromtimestamp(seconds, zone).replace(microsecond=micros)
