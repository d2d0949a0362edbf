"""The price book: dated prices of three sources, and what a usage costs by them.

The operator's rows come first, then the token prices of ``genai-prices``, then our own tables. The
first source that has any price of a model on that day is used for it altogether: prices of two
sources are never mixed, as one may count in a picture what the other counts in its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from packshot.core.clock import HOUR_US
from packshot.core.config import read
from packshot.core.errors import InvalidRequest, Unbounded
from packshot.core.money import EXACT, Nanos
from packshot.core.types import Usage
from packshot.ledger.prices import genai
from packshot.ledger.prices.ceiling import Ceiling, ceiling_of
from packshot.ledger.prices.rows import (
    STANDARD,
    PriceRow,
    RateRow,
    TierRow,
    check,
    price_row,
    rate_row,
)
from packshot.ledger.prices.tokens import (
    Part,
    Tariff,
    Tier,
    bound_of,
    decimal_text,
    half_even,
    micros_of,
    tariff_of,
    top_of,
)
from packshot.ledger.prices.usage import kept_of
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

_Key: TypeAlias = tuple[str, str, int, "str | None", str, bool, str]

_Of: TypeAlias = "tuple[str | None, str, str]"  # size (None: the dearest), quality, tier
_Most: TypeAlias = "tuple[int, int | None, int, int]"  # tokens in, out, images, searches

SLOT_US = HOUR_US // 4
"""How long a tariff is kept as it is: cheaper hours of providers start on a quarter of an hour."""

CACHED = 4096
"""Tariffs kept; models and picture sizes come from callers, so that there must be an end."""

TIERS = (STANDARD, "batch", "flex", "priority", "fast")
"""How providers serve calls, as far as prices of it are known anywhere: what a bound looks at."""

SETTINGS = "packshot.yaml"
"""Source of the rows that stand in the settings."""

BILLION = 1_000_000_000
"""So many tokens that the ratio of two tiers' prices is seen exactly enough."""

EPOCH = date(1970, 1, 1)
NOTHING = Tier(0, None, None, None, None, None, None, None)


class Charge(msgspec.Struct, frozen=True, gc=False):
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
class _TierEntry:
    """A line of ``tiers``, of a shipped file only."""

    provider: str
    tier: str
    times: Decimal
    since: str
    source: str


@dataclass(frozen=True, slots=True)
class _File:
    """The one section, ``book``, of a file of prices."""

    exchange_rates: tuple[RateEntry, ...] = ()
    prices: tuple[PriceEntry, ...] = ()
    tiers: tuple[_TierEntry, ...] = ()


@dataclass(slots=True)
class PriceBook:
    """Every price that is known. Made by `load` or `book_of`; safe to share between threads."""

    own: tuple[PriceRow, ...]
    shipped: tuple[PriceRow, ...]
    own_rates: tuple[RateRow, ...]
    shipped_rates: tuple[RateRow, ...]
    shipped_tiers: tuple[TierRow, ...] = ()
    _index: tuple[dict[str, list[PriceRow]], ...] = field(init=False, repr=False)
    _tariffs: dict[_Key, Tariff | None] = field(
        default_factory=dict[_Key, "Tariff | None"], init=False, repr=False
    )
    _ceilings: dict[tuple[str, str, int, str | None], Ceiling | None] = field(
        default_factory=dict[tuple[str, str, int, "str | None"], "Ceiling | None"],
        init=False,
        repr=False,
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
        shipped, shipped_rates, tiers = _shipped()
        check(own, rates, (*rates, *shipped_rates))
        return cls(tuple(own), shipped, tuple(rates), shipped_rates, tiers)

    def charge(self, usage: Usage, provider: str, model: str, at: int) -> Charge:
        """Return what a usage cost at ``at`` (microseconds), rounded once to nano-EUR.

        ``provider`` "" is our own device: seconds times the price of ``usage.device``; ``model``
        does not matter then. Stored bytes cost nothing here: they accrue by the day. A call served
        in a tier that no price is known of is unpriced; ``price`` then keeps what the columns of an
        entry do not (`packshot.ledger.prices.usage.kept_of`).

        Raises:
            InvalidRequest: a count is negative, or the parts of the input tokens exceed them.
        """
        if not provider:
            return self._of_device(usage, at)
        credit: Credit = "payable"
        by_picture = usage.images > 0 and not usage.output_tokens
        of = (usage.image_size, usage.image_quality, by_picture, usage.tier)
        # Every call comes by here: what was found before is taken without a further call.
        tariff = self._tariffs.get((provider, model, at // SLOT_US, *of))
        if tariff is None:
            size, quality, _, tier = of
            tariff = self.tariff(
                *(provider, model, at, size, quality), by_picture=by_picture, tier=tier
            )
        if tariff is None:
            top_of(usage, NOTHING)  # refuses what is negative
            if not _used(usage):
                return Charge(0, credit)
            return Charge(0, credit, priced=False, price=kept_of(usage))
        if tariff.stored:
            credit = "storage"
        tiers = tariff.tiers
        top = top_of(usage, tiers[0] if len(tiers) == 1 else tariff.tier(usage.input_tokens))
        if top is None or (usage.stored_bytes and not tariff.stored):
            return Charge(0, credit, priced=False, price=kept_of(usage))
        return _charge(tariff, top, credit)

    def _of_device(self, usage: Usage, at: int) -> Charge:
        us = micros_of(usage)
        tariff = self.tariff("", usage.device, at)
        if tariff is None:
            return Charge(0, "depreciation", priced=not us)
        return _charge(tariff, us * (tariff.tiers[0].us or 0), "depreciation")

    def bound(  # noqa: PLR0913 - each of them limits what a call can cost
        self,
        provider: str,
        model: str,
        at: int,
        *,
        body_bytes: int,
        input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        images: int = 0,
        searches: int = 0,
        tier: str | None = None,
    ) -> Nanos | None:
        """Return the most that a call at ``at`` can cost; None where no price is known.

        Input tokens that are not counted are at most as many as the body has bytes. The dearest
        step, kind of token and tier, and for pictures the dearest size and quality, that the call
        could fall into counts. Where the caller asks for a ``tier`` it is that or the standard one.
        A model that is billed by its tokens, but has a price of pictures too, makes no more output
        tokens for a picture than the dearest costs: that bounds a call without a limit of them.

        Raises:
            Unbounded: it is billed by time, or by output tokens and ``max_output_tokens`` is None.
        """
        tokens = body_bytes if input_tokens is None else input_tokens
        if not images and not searches and max_output_tokens is not None:
            ceiling = self._ceilings.get((provider, model, at // SLOT_US, tier))
            if ceiling is None:
                ceiling = self._ceiling(provider, model, at, tier)
            if ceiling is not None:
                return ceiling.of(tokens, max_output_tokens)
        most = (tokens, max_output_tokens, images, searches)
        return self._bound(provider, model, at, tier, most)

    def _ceiling(self, provider: str, model: str, at: int, tier: str | None) -> Ceiling | None:
        """Return what bounds a call of text; None where only `_bound` can say."""
        key = (provider, model, at // SLOT_US, tier)
        try:
            return self._ceilings[key]
        except KeyError:
            found = [self.tariff(provider, model, at, None, tier=each) for each in _tiers(tier)]
        known = self.tariff(provider, model, at, None, tier=tier or STANDARD) is not None
        ceiling = ceiling_of([each for each in found if known and each is not None])
        if len(self._ceilings) >= CACHED:
            self._ceilings.clear()
        self._ceilings[key] = ceiling
        return ceiling

    def _bound(
        self, provider: str, model: str, at: int, tier: str | None, most: _Most
    ) -> Nanos | None:
        asked = self.tariff(provider, model, at, None, tier=tier or STANDARD)
        if asked is None or (most[3] and not asked.searches):
            return None
        found = [self._bound_in(each, provider, model, at, most) for each in _tiers(tier)]
        return max((each for each in found if each is not None), default=None)

    def _bound_in(self, tier: str, provider: str, model: str, at: int, most: _Most) -> Nanos | None:
        tariff = self.tariff(provider, model, at, None, tier=tier)
        if tariff is None:
            return None
        tokens, output, images, searches = most
        if output is None and images and tier != STANDARD and tariff.by_output:
            return self._pictures_in(tier, provider, model, at, most)
        pictures = tariff
        if images:
            pictures = self.tariff(provider, model, at, None, by_picture=True, tier=tier)
        if pictures is None or pictures == tariff:
            return _bound(tariff, most)
        by_picture = _bound(pictures, most) or 0
        if output is None:
            return (_bound(tariff, (tokens, 0, images, searches)) or 0) + by_picture
        return max(_bound(tariff, most) or 0, by_picture)

    def _pictures_in(
        self, tier: str, provider: str, model: str, at: int, most: _Most
    ) -> Nanos | None:
        """Bound pictures in a tier that only has prices of tokens: as many as in the standard one.

        The dearest picture costs there what it does in the standard tier, times the price of its
        output tokens over theirs.
        """
        tokens, _, images, searches = most
        tariffs = [self.tariff(provider, model, at, None, tier=each) for each in (tier, STANDARD)]
        drawn = self._bound_in(STANDARD, provider, model, at, (0, None, images, 0))
        many = [each and _bound(each, (0, BILLION, 0, 0)) for each in tariffs]
        if drawn is None or not tariffs[0] or not many[0] or not many[1]:
            raise Unbounded("the call has no limit of output tokens; set max_tokens")
        rest = _bound(tariffs[0], (tokens, 0, 0, searches)) or 0
        return rest - (-drawn * many[0] // many[1])

    def tariff(
        self,
        provider: str,
        model: str,
        at: int,
        size: str | None = "",
        quality: str = "",
        *,
        by_picture: bool = False,
        tier: str = STANDARD,
    ) -> Tariff | None:
        """Return what a model asks at ``at``, None if unknown; ``size`` None: the dearest one.

        ``by_picture`` prefers, of what is not the operator's, a price of pictures to one of tokens:
        for calls whose answer does not count its tokens.
        """
        key = (provider, model, at // SLOT_US, size, quality, by_picture, tier)
        try:
            return self._tariffs[key]
        except KeyError:
            found = self._find(provider, model, at, (size, quality, tier), by_picture=by_picture)
        if len(self._tariffs) >= CACHED:
            self._tariffs.clear()
        self._tariffs[key] = found
        return found

    def _find(
        self, provider: str, model: str, at: int, of: _Of, *, by_picture: bool
    ) -> Tariff | None:
        day = day_of(at)
        rows = _in_force(self._index[0], provider, model, day)
        if rows:
            return self._of_rows(rows, day, of)
        rows = _in_force(self._index[1], provider, model, day)
        if by_picture and any(row.unit == "image" for row in rows):
            return self._of_rows(rows, day, of)
        tier = of[2]
        since = genai.since(provider, model, at)
        name = f"{genai.source()}: {provider}/{model}" + (f"@{since}" if since else "")
        parts = genai.parts(provider, model, at, tier)
        if parts:
            name += "" if tier == STANDARD else f" {tier}"
            return self._tariff(parts, day, name)
        times = self._times(provider, tier, day)
        parts = genai.parts(provider, model, at) if times else []
        if times and parts:
            name = f"{name} x {times.times:f} {tier}@{times.start}, {times.source}"
            return self._tariff(_scaled(parts, times.times), day, name)
        return self._of_rows(rows, day, of) if rows else None

    def _times(self, provider: str, tier: str, day: date) -> TierRow | None:
        held = [
            row
            for row in self.shipped_tiers
            if (row.provider, row.tier) == (provider, tier) and row.start <= day
        ]
        return max(held, key=lambda row: row.start, default=None)

    def _of_rows(self, rows: Sequence[PriceRow], day: date, of: _Of) -> Tariff | None:
        size, quality, tier = of
        best: dict[str, PriceRow] = {}
        for row in rows:
            if row.tier != tier:
                continue
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
            f"{row.source}: {row.provider or 'device'}/{row.model or '*'}@{row.start}"
            + ("" if tier == STANDARD else f" {tier}"): None
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


def _tiers(tier: str | None) -> Iterable[str]:
    """Return the tiers that a call may be served in which asks for this one, or for none."""
    return TIERS if tier is None else {STANDARD: 0, tier: 0}


def _charge(tariff: Tariff, top: int, credit: Credit) -> Charge:
    amount = half_even(top * tariff.nano, tariff.bottom)
    original = decimal_text(top, tariff.denominator)
    return Charge(amount, credit, True, tariff.currency, original, tariff.rate, tariff.price)


def _in_force(
    index: dict[str, list[PriceRow]], provider: str, model: str, day: date
) -> list[PriceRow]:
    """Return the rows of one source in force for a model, else those for all its models."""
    for wanted in (model, "") if provider else (model,):
        held: dict[tuple[str, str, str, str], PriceRow] = {}
        for row in index.get(provider, ()):
            if row.model == wanted and row.start <= day:
                held[row.unit, row.size, row.quality, row.tier] = row  # the later one last
        if held:
            return list(held.values())
    return []


def _scaled(parts: Iterable[Part], times: Decimal) -> list[Part]:
    """Return the parts with their tokens at ``times`` the price; a search costs what it did."""
    return [
        replace(part, price=EXACT.multiply(part.price, times))
        if part.unit.endswith("_token")
        else part
        for part in parts
    ]


def _bound(tariff: Tariff, most: _Most) -> Nanos | None:
    tokens = most[0]
    tiers = [tier for tier in tariff.tiers if not tier.above or tokens > tier.above]
    top = bound_of(tiers, *most)
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
        or (usage.detail is not None and usage.detail.searches)
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
    if found.tiers:
        raise InvalidRequest(f"{path}: `tiers:` is of shipped files; give a price its `tier:`")
    return tuple(map(price_row, found.prices)), tuple(map(rate_row, found.exchange_rates))


@cache
def _shipped() -> tuple[tuple[PriceRow, ...], tuple[RateRow, ...], tuple[TierRow, ...]]:
    prices: list[PriceRow] = []
    rates: list[RateRow] = []
    tiers: list[TierRow] = []
    for path in sorted((Path(__file__).parent / "data").glob("*.yaml")):
        found = read(path, frozenset({"book"})).section("book", _File) or _File()
        prices.extend(map(price_row, found.prices))
        rates.extend(map(rate_row, found.exchange_rates))
        tiers += [
            TierRow(row.provider, row.tier, row.times, date.fromisoformat(row.since), row.source)
            for row in found.tiers
        ]
    check(prices, rates, rates)
    return tuple(prices), tuple(rates), tuple(tiers)


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
