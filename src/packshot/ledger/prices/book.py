"""The price book: dated prices of three sources, and what a usage costs by them.

The operator's rows come first, then the token prices of ``genai-prices``, then our own tables. The
first source that has any price of a model on that day is used for it altogether: prices of two
sources are never mixed, as one may count in a picture what the other counts in its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from packshot.core.clock import HOUR_US
from packshot.core.config import read
from packshot.core.money import Nanos
from packshot.core.types import Usage
from packshot.ledger.prices import genai
from packshot.ledger.prices.rows import PriceRow, RateRow, check, price_row, rate_row
from packshot.ledger.prices.tokens import Part, Tariff, Tier, bound_of, micros_of, tariff_of, top_of
from packshot.ledger.settings import PriceEntry, RateEntry, Settings, state_folder

__all__ = [
    "Charge",
    "Credit",
    "PriceBook",
    "book_of",
    "day_of",
    "own_file",
    "own_rows",
    "read_rows",
]

Credit = Literal["payable", "depreciation", "storage"]

_Key: TypeAlias = tuple[str, str, int, "str | None", str, bool]

SLOT_US = HOUR_US // 4
"""How long a tariff is kept as it is: cheaper hours of providers start on a quarter of an hour."""

CACHED = 4096
"""Tariffs kept; models and picture sizes come from callers, so that there must be an end."""

SETTINGS = "packshot.yaml"
"""Source of the rows that stand in the settings."""

EPOCH = date(1970, 1, 1)
NOTHING = Tier(0, None, None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a usage costs, in the fields of `packshot.ledger.records.Settled`.

    ``original`` is exact decimal text in ``currency`` (to 30 places where it has no end, as with
    thirds), ``rate`` EUR for one of it, ``price`` the source, model and date of the rows used.
    Where no price is known ``priced`` is false, ``amount`` 0 and ``price`` "".
    """

    amount: Nanos
    credit: Credit
    priced: bool = True
    currency: str = "EUR"
    original: str = "0"
    rate: str = "1"
    price: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """The one section, ``book``, of a file of prices."""

    exchange_rates: tuple[RateEntry, ...] = ()
    prices: tuple[PriceEntry, ...] = ()


@dataclass(slots=True)
class PriceBook:
    """Every price that is known. Made by `load` or `book_of`; safe to share between threads."""

    own: tuple[PriceRow, ...]
    shipped: tuple[PriceRow, ...]
    own_rates: tuple[RateRow, ...]
    shipped_rates: tuple[RateRow, ...]
    _index: tuple[dict[str, list[PriceRow]], ...] = field(init=False, repr=False)
    _tariffs: dict[_Key, Tariff | None] = field(
        default_factory=dict[_Key, "Tariff | None"], init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Sort the rows by provider."""
        indexes: list[dict[str, list[PriceRow]]] = []
        for rows in (self.own, self.shipped):
            index: dict[str, list[PriceRow]] = {}
            for row in sorted(rows, key=lambda row: row.start):
                index.setdefault(row.provider, []).append(row)
            indexes.append(index)
        self._index = tuple(indexes)

    @classmethod
    def load(cls, own: Sequence[PriceRow] = (), rates: Sequence[RateRow] = ()) -> PriceBook:
        """Return the book of the operator's rows and rates before those that are shipped.

        Raises:
            InvalidRequest: two rows of one thing start on one day, or a currency has no rate.
        """
        shipped, shipped_rates = _shipped()
        check(own, rates, (*rates, *shipped_rates))
        return cls(tuple(own), shipped, tuple(rates), shipped_rates)

    def charge(self, usage: Usage, provider: str, model: str, at: int) -> Charge:
        """Return what a usage cost at ``at`` (microseconds), rounded once to nano-EUR.

        ``provider`` "" is our own device: seconds times the price of ``usage.device``; ``model``
        does not matter then. Stored bytes cost nothing here: they accrue by the day.

        Raises:
            InvalidRequest: a count is negative, or the parts of the input tokens exceed them.
        """
        if not provider:
            return self._of_device(usage, at)
        credit: Credit = "payable"
        by_picture = usage.images > 0 and not usage.output_tokens
        tariff = self.tariff(
            provider, model, at, usage.image_size, usage.image_quality, by_picture=by_picture
        )
        if tariff is None:
            top_of(usage, NOTHING)  # refuses what is negative
            return Charge(0, credit, priced=not _used(usage))
        if tariff.stored:
            credit = "storage"
        top = top_of(usage, tariff.tier(usage.input_tokens))
        if top is None or (usage.stored_bytes and not tariff.stored):
            return Charge(0, credit, priced=False)
        return _charge(tariff, top, credit)

    def _of_device(self, usage: Usage, at: int) -> Charge:
        us = micros_of(usage)
        tariff = self.tariff("", usage.device, at)
        if tariff is None:
            return Charge(0, "depreciation", priced=not us)
        return _charge(tariff, us * (tariff.tiers[0].us or 0), "depreciation")

    def bound(
        self,
        provider: str,
        model: str,
        at: int,
        *,
        body_bytes: int,
        input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        images: int = 0,
    ) -> Nanos | None:
        """Return the most that a call at ``at`` can cost; None where no price is known.

        Input tokens that are not counted are at most as many as the body has bytes. The dearest
        tier, and for pictures the dearest size and quality, that the call could fall into counts.
        A model that is billed by its tokens, but has a price of pictures too, makes no more output
        tokens for a picture than the dearest costs: that bounds a call without a limit of them.

        Raises:
            Unbounded: it is billed by time, or by output tokens and ``max_output_tokens`` is None.
        """
        tariff = self.tariff(provider, model, at, None)
        if tariff is None:
            return None
        tokens = body_bytes if input_tokens is None else input_tokens
        pictures = self.tariff(provider, model, at, None, by_picture=True) if images else tariff
        if pictures is None or pictures == tariff:
            return _bound(tariff, tokens, max_output_tokens, images)
        by_picture = _bound(pictures, tokens, max_output_tokens, images) or 0
        if max_output_tokens is None:
            return (_bound(tariff, tokens, 0, images) or 0) + by_picture
        return max(_bound(tariff, tokens, max_output_tokens, images) or 0, by_picture)

    def tariff(
        self,
        provider: str,
        model: str,
        at: int,
        size: str | None = "",
        quality: str = "",
        *,
        by_picture: bool = False,
    ) -> Tariff | None:
        """Return what a model asks at ``at``, None if unknown; ``size`` None: the dearest one.

        ``by_picture`` prefers, of what is not the operator's, a price of pictures to one of tokens:
        for calls whose answer does not count its tokens.
        """
        key = (provider, model, at // SLOT_US, size, quality, by_picture)
        try:
            return self._tariffs[key]
        except KeyError:
            found = self._find(provider, model, at, size, quality, by_picture=by_picture)
        if len(self._tariffs) >= CACHED:
            self._tariffs.clear()
        self._tariffs[key] = found
        return found

    def _find(
        self,
        provider: str,
        model: str,
        at: int,
        size: str | None,
        quality: str,
        *,
        by_picture: bool,
    ) -> Tariff | None:
        day = day_of(at)
        rows = _in_force(self._index[0], provider, model, day)
        if rows:
            return self._of_rows(rows, day, size, quality)
        rows = _in_force(self._index[1], provider, model, day)
        if by_picture and any(row.unit == "image" for row in rows):
            return self._of_rows(rows, day, size, quality)
        parts = genai.parts(provider, model, at)
        if parts:
            since = genai.since(provider, model, at)
            name = f"{genai.source()}: {provider}/{model}" + (f"@{since}" if since else "")
            return self._tariff(parts, day, name)
        return self._of_rows(rows, day, size, quality) if rows else None

    def _of_rows(
        self, rows: Sequence[PriceRow], day: date, size: str | None, quality: str
    ) -> Tariff | None:
        best: dict[str, PriceRow] = {}
        for row in rows:
            if size is not None and (
                row.size not in {"", size} or row.quality not in {"", quality}
            ):
                continue
            if row.unit not in best or _rank(row, size) > _rank(best[row.unit], size):
                best[row.unit] = row
        used = list(best.values())
        if not used:
            return None
        named = {
            f"{row.source}: {row.provider or 'device'}/{row.model or '*'}@{row.start}": None
            for row in used
        }
        parts = [Part(row.unit, row.price, row.per, row.currency) for row in used]
        return self._tariff(parts, day, "; ".join(named))

    def _tariff(self, parts: Sequence[Part], day: date, name: str) -> Tariff | None:
        rate = self.rate(parts[0].currency, day)
        return None if rate is None else tariff_of(parts, rate, name)

    def rate(self, currency: str, day: date) -> Decimal | None:
        """Return EUR for one of ``currency`` on a day, None where no rate is known."""
        if currency == "EUR":
            return Decimal(1)
        for rates in (self.own_rates, self.shipped_rates):
            held = [row for row in rates if row.currency == currency and row.start <= day]
            if held:
                return max(held, key=lambda row: row.start).eur
        return None


def _charge(tariff: Tariff, top: int, credit: Credit) -> Charge:
    return Charge(
        amount=tariff.amount(top),
        credit=credit,
        currency=tariff.currency,
        original=tariff.original(top),
        rate=tariff.rate,
        price=tariff.price,
    )


def _in_force(
    index: dict[str, list[PriceRow]], provider: str, model: str, day: date
) -> list[PriceRow]:
    """Return the rows of one source in force for a model, else those for all its models."""
    for wanted in (model, "") if provider else (model,):
        held: dict[tuple[str, str, str], PriceRow] = {}
        for row in index.get(provider, ()):
            if row.model == wanted and row.start <= day:
                held[row.unit, row.size, row.quality] = row  # the later one last
        if held:
            return list(held.values())
    return []


def _bound(tariff: Tariff, tokens: int, output: int | None, images: int) -> Nanos | None:
    tiers = [tier for tier in tariff.tiers if not tier.above or tokens > tier.above]
    top = bound_of(tiers, tokens, output, images)
    return None if top is None else -((-top * tariff.nano) // tariff.bottom)


def _rank(row: PriceRow, size: str | None) -> tuple[Fraction, bool, bool]:
    """Order rows that fit a picture: the most particular, or for a bound the dearest."""
    if size is None:
        return Fraction(row.price) / row.per, False, False
    return Fraction(0), row.size != "", row.quality != ""


def _used(usage: Usage) -> bool:
    return bool(
        usage.seconds
        or usage.input_tokens
        or usage.output_tokens
        or usage.images
        or usage.stored_bytes
        or usage.requests
    )


def day_of(at: int) -> date:
    """Return the day (UTC) of a time in microseconds since 1970."""
    return date.fromordinal(EPOCH.toordinal() + at // (24 * HOUR_US))


def read_rows(path: Path) -> tuple[tuple[PriceRow, ...], tuple[RateRow, ...]]:
    """Return the rows of a file of prices: a section ``book`` with rates and prices.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: it has a mistake.
    """
    found = read(path, frozenset({"book"})).section("book", _File) or _File()
    return tuple(map(price_row, found.prices)), tuple(map(rate_row, found.exchange_rates))


@cache
def _shipped() -> tuple[tuple[PriceRow, ...], tuple[RateRow, ...]]:
    prices: list[PriceRow] = []
    rates: list[RateRow] = []
    for path in sorted((Path(__file__).parent / "data").glob("*.yaml")):
        some, others = read_rows(path)
        prices.extend(some)
        rates.extend(others)
    check(prices, rates, rates)
    return tuple(prices), tuple(rates)


def own_file(settings: Settings) -> Path:
    """Return where the operator's append-only prices are: beside a SQLite ledger, else at home."""
    home = state_folder() if "://" in settings.store else Path(settings.store).parent
    return home / "prices.yaml"


def own_rows(settings: Settings) -> tuple[tuple[PriceRow, ...], tuple[RateRow, ...]]:
    """Return the operator's rows: of the settings, then of the file beside the ledger.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: an entry has a mistake.
    """
    rates: Iterable[RateRow] = map(rate_row, settings.exchange_rates)
    prices = [price_row(entry) for entry in settings.prices]
    prices += [
        PriceRow("", kind, "device_hour", price, "EUR", EPOCH, SETTINGS)
        for kind, price in settings.gpu_eur_per_hour.items()
    ]
    path = own_file(settings)
    more, more_rates = read_rows(path) if path.exists() else ((), ())
    return (*prices, *more), (*rates, *more_rates)


def book_of(settings: Settings) -> PriceBook:
    """Return the price book of an operator.

    Raises:
        OutputError: the operator's file of prices cannot be read.
        InvalidRequest: a row has a mistake, or the rows contradict each other.
    """
    own, rates = own_rows(settings)
    return PriceBook.load(own, rates)
