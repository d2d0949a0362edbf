"""The rows of the price book: dated, with their source, checked when they are made.

A row holds from the start of its day (UTC) until the next row of the same thing starts. So rows are
only ever added, and two of the same thing never start on one day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.ledger.settings import PriceEntry, RateEntry

__all__ = ["STANDARD", "UNITS", "PriceRow", "RateRow", "TierRow", "check", "price_row", "rate_row"]

UNITS = (
    "input_token",
    "cached_token",
    "written_token",
    "written_long_token",
    "output_token",
    "input_image_token",
    "cached_image_token",
    "output_image_token",
    "input_audio_token",
    "cached_audio_token",
    "output_audio_token",
    "search",
    "image",
    "second",
    "gb_month",
    "gb_egress",
    "request",
    "device_hour",
)
"""What a price can be of. ``cached_token`` was read from the provider's prompt cache,
``written_token`` written to it (``written_long_token`` for an hour); tokens of pictures and sound
have units of their own where they are charged otherwise; a ``search`` is one of the web, made for a
call; a ``device_hour`` is of our own device, a ``second`` of theirs."""

STANDARD = "standard"
"""The tier of a call about which nothing else was said."""

CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class PriceRow:
    """``price`` in ``currency`` for ``per`` units, from the day ``start`` (UTC).

    ``provider`` is "" for our own devices, whose kind is the ``model``. ``model`` "" means every
    model of the provider that has no row of its own, ``size`` and ``quality`` "" every picture.
    ``tier`` is how the provider serves the call: a price of one tier says nothing of another.

    Raises:
        InvalidRequest: the unit is unknown, or a number or the currency could never be meant.
    """

    provider: str
    model: str
    unit: str
    price: Decimal
    currency: str
    start: date
    source: str
    per: int = 1
    size: str = ""
    quality: str = ""
    tier: str = STANDARD

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.unit not in UNITS:
            raise unknown_name("unit of a price", self.unit, UNITS)
        _amount(self.price, f"price of {self.name}")
        _currency(self.currency, self.name)
        if not self.tier:
            raise InvalidRequest(f"tier of {self.name} must not be empty; leave it out")
        if self.per < 1:
            raise InvalidRequest(f"per of {self.name} must be 1 or more, got {self.per}")
        if (self.provider == "") != (self.unit == "device_hour"):
            raise InvalidRequest(
                f"{self.name}: a device_hour has no provider, and every other unit has one"
            )

    @property
    def name(self) -> str:
        """Of what this is the price, for messages."""
        words = (self.size, self.quality, "" if self.tier == STANDARD else self.tier)
        picture = "".join(f" {word}" for word in words if word)
        return f"{self.provider or 'device'}/{self.model or '*'} {self.unit}{picture}"


@dataclass(frozen=True, slots=True)
class RateRow:
    """``eur`` for one unit of ``currency`` from the day ``start`` (UTC)."""

    currency: str
    eur: Decimal
    start: date
    source: str

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        _currency(self.currency, "a rate")
        _amount(self.eur, f"rate of {self.currency}")
        if not self.eur:
            raise InvalidRequest(f"rate of {self.currency} must be above 0, got {self.eur}")


@dataclass(frozen=True, slots=True)
class TierRow:
    """All tokens of a provider cost ``times`` their standard price in a tier, from ``start`` on.

    For what a provider says of its whole list, where no price of the tier itself is known.
    """

    provider: str
    tier: str
    times: Decimal
    start: date
    source: str

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        _amount(self.times, f"times of {self.provider} {self.tier}")


def _amount(number: Decimal, what: str) -> None:
    if not number.is_finite() or number < 0:
        raise InvalidRequest(f"{what} must be finite and not negative, got {number}")


def _currency(text: str, what: str) -> None:
    if not CURRENCY.fullmatch(text):
        raise InvalidRequest(f"currency of {what} must be a code like EUR or USD, got {text!r}")


def _day(text: str, what: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"since of {what} must be a day like 2026-11-25, got {text!r}") from (
            error
        )


def price_row(entry: PriceEntry) -> PriceRow:
    """Return the row that an entry of a file describes.

    Raises:
        InvalidRequest: as `PriceRow` does, or where ``since`` or ``per`` are malformed.
    """
    what = f"{entry.provider or 'device'}/{entry.model} {entry.unit}"
    if not entry.per.is_finite() or entry.per != entry.per.to_integral_value():
        raise InvalidRequest(f"per of {what} must be a whole number, got {entry.per}")
    return PriceRow(
        provider=entry.provider,
        model=entry.model,
        unit=entry.unit,
        price=entry.price,
        currency=entry.currency,
        start=_day(entry.since, what),
        source=entry.source,
        per=int(entry.per),
        size=entry.size,
        quality=entry.quality,
        tier=entry.tier,
    )


def rate_row(entry: RateEntry) -> RateRow:
    """Return the row that an entry of a file describes.

    Raises:
        InvalidRequest: as `RateRow` does, or where ``since`` is malformed.
    """
    start = _day(entry.since, f"rate {entry.currency}")
    return RateRow(currency=entry.currency, eur=entry.eur, start=start, source=entry.source)


def check(prices: Sequence[PriceRow], rates: Sequence[RateRow], known: Iterable[RateRow]) -> None:
    """Hold the rows of one source against each other; ``known`` are all rates that may be used.

    Raises:
        InvalidRequest: two rows of the same thing start on one day, or a price is in a currency
            that has no rate on the day it starts.
    """
    seen: set[tuple[object, ...]] = set()
    for row in prices:
        key = (row.provider, row.model, row.unit, row.size, row.quality, row.tier, row.start)
        if key in seen:
            raise InvalidRequest(
                f"two prices of {row.name} start on {row.start}; remove one, or date it later"
            )
        seen.add(key)
    for rate in rates:
        if (rate.currency, rate.start) in seen:
            raise InvalidRequest(f"two rates of {rate.currency} start on {rate.start}; remove one")
        seen.add((rate.currency, rate.start))
    first: dict[str, date] = {"EUR": date.min}
    for rate in known:
        first[rate.currency] = min(rate.start, first.get(rate.currency, date.max))
    for row in prices:
        if row.start < first.get(row.currency, date.max):
            raise InvalidRequest(
                f"price of {row.name} is in {row.currency} from {row.start}, which has no rate on "
                f"that day; add one under exchange_rates"
            )
