"""Caps: what may be spent at most, by whom and per calendar period.

A cap period has a key, "team:research@2026-11", under which the leases of all processes are kept
(`packshot.ledger.leases`). A hold counts in the period in which it is made, also when it is posted
in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal
from zoneinfo import ZoneInfo

from packshot.core.clock import SECOND_US
from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos
from packshot.ledger.records import Dimensions

__all__ = ["Cap", "CapPeriod", "Caps", "period_name"]

Scope = Literal["total", "team", "virtual_key", "batch"]
Per = Literal["hour", "day", "month", "ever"]

FORMATS: dict[Per, str] = {
    "hour": "%Y-%m-%dT%H%z",  # with the offset: the hour that a clock change repeats is two hours
    "day": "%Y-%m-%d",
    "month": "%Y-%m",
    "ever": "ever",
}


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit in nano-EUR on one scope, per calendar period."""

    scope: Scope
    limit: Nanos
    name: str = ""
    per: Per = "month"
    unpriced: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        """Refuse a limit below nothing."""
        if self.limit < 0:
            raise InvalidRequest(f"a cap must not be negative, got {self.limit} nano-EUR")


@dataclass(frozen=True, slots=True)
class CapPeriod:
    """One cap in one of its periods; ``key`` names it in the leases and on entries."""

    key: str
    cap: Cap


class Caps:
    """All caps of a ledger, found by the dimensions of a hold.

    The instants that `periods` is asked about never go back: a clock that is set back stays in the
    period that it had reached, so no limit is granted twice.
    """

    def __init__(self, caps: Sequence[Cap] = (), zone: str = "UTC") -> None:
        self._by_scope: dict[tuple[str, str], list[Cap]] = {}
        for cap in caps:
            self._by_scope.setdefault((cap.scope, cap.name), []).append(cap)
        self._zone = ZoneInfo(zone)
        self._latest = 0

    def __bool__(self) -> bool:
        """Whether there is any cap."""
        return bool(self._by_scope)

    def periods(self, dimensions: Dimensions, at: int) -> tuple[CapPeriod, ...]:
        """Return the cap periods that a hold of these dimensions counts in."""
        if not self._by_scope:
            return ()
        self._latest = at = max(at, self._latest)
        scopes = (
            ("total", ""),
            ("team", dimensions.team),
            ("virtual_key", dimensions.virtual_key),
            ("batch", dimensions.batch),
        )
        return tuple(
            CapPeriod(f"{_who(cap)}@{period_name(cap.per, at, self._zone)}", cap)
            for scope in scopes
            for cap in self._by_scope.get(scope, ())
        )


def _who(cap: Cap) -> str:
    return f"{cap.scope}:{cap.name}" if cap.name else cap.scope


def period_name(per: Per, at: int, zone: ZoneInfo) -> str:
    """Return the name of the calendar period that holds ``at`` (microseconds, UTC) in ``zone``."""
    moment = datetime.fromtimestamp(at // SECOND_US, timezone.utc).astimezone(zone)  # noqa: UP017
    return moment.strftime(FORMATS[per])
