"""Storage costs while it lies there: on an account apart from the cost of a render."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from packshot.core.clock import SECOND_US
from packshot.core.errors import InvalidRequest
from packshot.core.money import EXACT, nanos_of
from packshot.ledger.records import Dimensions, Settled

__all__ = ["Stored", "accrue", "attempt_of"]

GB = 10**9
"""Bytes in the GB of the price lists."""

DAY_US = 24 * 3600 * SECOND_US


@dataclass(frozen=True, slots=True)
class Stored:
    """What lay in a bucket of a storage service on one day (UTC).

    ``byte_us`` is bytes times the microseconds that each lay there: a GB all day is 8.64e19.
    ``eur_per_gb_month`` is the price of that day.
    """

    day: date
    provider: str
    bucket: str
    byte_us: int
    eur_per_gb_month: Decimal
    team: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.byte_us < 0 or not self.eur_per_gb_month.is_finite() or self.eur_per_gb_month < 0:
            raise InvalidRequest(f"bytes and price must be finite and not negative, got {self}")


def accrue(stored: Sequence[Stored]) -> list[Settled]:
    """Return the entries of some days, numbered from 1, each rounded once, half to even.

    A day costs its part of its own month (1/28 to 1/31). An attempt's id comes from the day and the
    bucket alone: `Store` takes each once, however often this runs.
    """
    return [_entry(number, each) for number, each in enumerate(stored, 1)]


def attempt_of(day: date, provider: str, bucket: str) -> str:
    """Return the id of a day's entry for a bucket."""
    return f"storage:{day.isoformat()}:{provider}:{bucket}"


def _entry(number: int, each: Stored) -> Settled:
    days = monthrange(each.day.year, each.day.month)[1]
    exact = EXACT.divide(
        EXACT.multiply(Decimal(each.byte_us), each.eur_per_gb_month),
        Decimal(GB * DAY_US * days),
    )
    amount = nanos_of(exact)
    morning = datetime(each.day.year, each.day.month, each.day.day, tzinfo=UTC)
    # The last microsecond of the day: within its month, also on the 31st.
    at = int((morning + timedelta(days=1)).timestamp()) * SECOND_US - 1
    return Settled(
        attempt=attempt_of(each.day, each.provider, each.bucket),
        number=number,
        held_at=0,
        dispatched_at=at + 1 - DAY_US,
        settled_at=at,
        outcome="accrual",
        reason="stored",
        dimensions=Dimensions(
            provider=each.provider,
            model=each.bucket,
            team=each.team,
            tags=(f"bucket={each.bucket}",),
        ),
        stored_bytes=each.byte_us // DAY_US,
        account="storage",
        amount=amount,
        storage=amount,
        original=str(exact),
        price=f"{each.eur_per_gb_month} EUR/GB-month @{each.day.isoformat()}",
    )
