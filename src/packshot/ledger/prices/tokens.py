"""Tariffs: what one model asks on one day, as integers that a charge only multiplies and adds.

Every coefficient of a tariff is a numerator over one common denominator, so that a charge is exact
until the one division at its end. Providers' tiers are cliffs: more than ``above`` input tokens
make the whole call dearer (or cheaper), not only the tokens beyond.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import inf, lcm

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import InvalidRequest, Unbounded
from packshot.core.money import EXACT, NANO
from packshot.core.types import Usage, UsageDetail

__all__ = [
    "Part",
    "Split",
    "Tariff",
    "Tier",
    "bound_of",
    "dearest_of",
    "half_even",
    "micros_of",
    "tariff_of",
    "top_of",
]

PLACES = 30
"""Digits after the point of an amount whose denominator is no power of ten, as of a price per hour.
Where it ends before, it is exact."""


@dataclass(frozen=True, slots=True)
class Part:
    """``price`` in ``currency`` for ``per`` units, of calls with more than ``above`` input tokens.

    ``above`` 0 is the base: it holds for calls without input tokens too.
    """

    unit: str
    price: Decimal
    per: int
    currency: str
    above: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """The numerators of what a `UsageDetail` tells apart; None where there is no price."""

    input: int | None
    cached: int | None
    written: int | None
    written_long: int | None
    output: int | None
    image_input: int | None
    image_cached: int | None
    image_output: int | None
    audio_input: int | None
    audio_cached: int | None
    audio_output: int | None
    search: int | None


@dataclass(frozen=True, slots=True)
class Tier:
    """Numerators over the tariff's denominator, in its currency; None where there is no price.

    Of one input, cached, written and output token, picture, microsecond and request. Tokens are
    those of a call in which nobody told text from pictures: each costs what the dearer does, which
    is too much for the text and never too little. ``split`` is for calls in which somebody did.
    ``all_tokens`` are the four prices of tokens, where none of them is missing; ``text_only`` are
    the same where a call has no price of its own beside them.
    """

    above: int
    input: int | None
    cached: int | None
    written: int | None
    output: int | None
    image: int | None
    us: int | None
    request: int | None
    split: Split | None = None
    all_tokens: tuple[int, int, int, int] | None = None
    text_only: tuple[int, int, int, int] | None = None

    @property
    def tokens(self) -> bool:
        """Whether this model is billed by tokens at all."""
        return self.input is not None or self.output is not None

    @property
    def otherwise(self) -> bool:
        """Whether it is billed by the picture, second or request."""
        return self.image is not None or self.us is not None or self.request is not None


@dataclass(frozen=True, slots=True)
class Tariff:
    """A model's tiers, the base first; ``nano`` over ``bottom`` turns their sums into nano-EUR."""

    tiers: tuple[Tier, ...]
    denominator: int
    currency: str
    rate: str
    price: str
    nano: int
    bottom: int
    stored: bool

    @property
    def by_output(self) -> bool:
        """Whether tokens that come out cost something."""
        return any(tier.output is not None for tier in self.tiers)

    @property
    def searches(self) -> bool:
        """Whether it has a price of a search."""
        return any(tier.split and tier.split.search is not None for tier in self.tiers)

    def tier(self, input_tokens: int) -> Tier:
        """Return the tier that a call with so many input tokens falls into."""
        found = self.tiers[0]
        for tier in self.tiers[1:]:
            if input_tokens > tier.above:
                found = tier
        return found


def half_even(top: int, bottom: int) -> int:
    """Return top / bottom rounded to the nearest integer, half to even; bottom is above 0."""
    whole, rest = divmod(top, bottom)
    twice = 2 * rest
    return whole + (twice > bottom or (twice == bottom and whole & 1))


def decimal_text(top: int, bottom: int) -> str:
    """Return a fraction, not negative, as decimal text, to `PLACES` digits if it has no end."""
    if not _is_ten(bottom):
        top, bottom = half_even(top * 10**PLACES, bottom), 10**PLACES
    whole, rest = divmod(top, bottom)
    # A power of ten in front keeps the zeros with which the digits behind the point begin.
    return f"{whole}.{str(bottom + rest)[1:].rstrip('0')}" if rest else str(whole)


@lru_cache(1024)
def _is_ten(number: int) -> bool:
    return number == 10 ** (len(str(number)) - 1)


def tariff_of(parts: Sequence[Part], rate: Decimal, price: str) -> Tariff:
    """Return the tariff of the parts of one model, all in one currency; ``rate`` is EUR per unit.

    Raises:
        InvalidRequest: the parts are in more than one currency.
    """
    currencies = sorted({part.currency for part in parts})
    if len(currencies) != 1:
        raise InvalidRequest(
            f"{price}: expected prices in one currency, got {', '.join(currencies)}"
        )
    unit_us = {"second": SECOND_US, "device_hour": HOUR_US}
    exact = [
        (part, Fraction(part.price) / (part.per * unit_us.get(part.unit, 1))) for part in parts
    ]
    denominator = lcm(*(value.denominator for _, value in exact))
    # A power of ten, where it is one at all, lets `original` be read off the digits.
    ten = 10 ** denominator.bit_length()
    denominator = _ten(denominator) if ten % denominator == 0 else denominator
    starts = sorted({0, *(part.above for part in parts)})
    tiers = tuple(_tier(exact, above, denominator) for above in starts)
    scale = Fraction(rate) * NANO / denominator
    return Tariff(
        tiers=tiers,
        denominator=denominator,
        currency=currencies[0],
        rate=f"{EXACT.normalize(rate):f}",
        price=price,
        nano=scale.numerator,
        bottom=scale.denominator,
        stored=any(part.unit in {"gb_month", "gb_egress"} for part in parts),
    )


def _ten(denominator: int) -> int:
    power = 1
    while power % denominator:
        power *= 10
    return power


def _tier(exact: Iterable[tuple[Part, Fraction]], above: int, denominator: int) -> Tier:
    units: dict[str, int] = {}
    for part, value in sorted(exact, key=lambda pair: pair[0].above):
        if part.above <= above:
            units[part.unit] = int(value * denominator)
    split = _split(units)
    asked = _dearer(split.input, units.get("input_image_token"))
    cached = _dearer(split.cached, split.image_cached)
    written = split.written
    output = _dearer(split.output, units.get("output_image_token"))
    together = None
    if asked is not None and cached is not None and written is not None and output is not None:
        together = asked, cached, written, output
    return Tier(
        above=above,
        input=asked,
        cached=cached,
        written=written,
        output=output,
        image=units.get("image"),
        us=units.get("second", units.get("device_hour")),
        request=units.get("request"),
        split=split,
        all_tokens=together,
        text_only=None if "request" in units else together,
    )


def _split(units: dict[str, int]) -> Split:
    asked, written = units.get("input_token"), units.get("written_token")
    # Without a price of its own, a cached or written token costs what any other does. One written
    # for an hour does not cost what one written for minutes does: nobody knows what, then.
    cached = units.get("cached_token", asked)
    image, audio = units.get("input_image_token"), units.get("input_audio_token")
    return Split(
        input=asked,
        cached=cached,
        written=asked if written is None else written,
        written_long=units.get("written_long_token", asked if written is None else None),
        output=units.get("output_token"),
        image_input=asked if image is None else image,
        image_cached=units.get("cached_image_token", cached if image is None else image),
        image_output=units.get("output_image_token", units.get("output_token")),
        audio_input=asked if audio is None else audio,
        audio_cached=units.get("cached_audio_token", cached if audio is None else audio),
        audio_output=units.get("output_audio_token", units.get("output_token")),
        search=units.get("search"),
    )


def _dearer(*prices: int | None) -> int | None:
    return max((price for price in prices if price is not None), default=None)


def top_of(usage: Usage, tier: Tier) -> int | None:
    """Return what a usage costs, over the tariff's denominator; None where a price is missing.

    A model is billed by its tokens if it has prices of tokens; else by picture, second or request,
    and its tokens cost nothing more. The pictures of a model without a price of pictures are its
    output tokens.

    Raises:
        InvalidRequest: a number is negative, or cached and written tokens exceed the input tokens.
    """
    cached, written, output = usage.cached_tokens, usage.written_tokens, usage.output_tokens
    plain = usage.input_tokens - cached - written
    if (
        tier.text_only is not None
        and usage.detail is None
        and not (usage.images or usage.requests or usage.seconds or usage.stored_bytes)
        and (plain | cached | written | output) >= 0
    ):
        a, b, c, d = tier.text_only  # as nearly always: only text, only by the token
        return plain * a + cached * b + written * c + output * d
    us = micros_of(usage) if usage.seconds else 0
    images, requests = usage.images, usage.requests
    # One by one: this is on the way of every call, and min() of so many takes longer.
    negative = plain < 0 or cached < 0 or written < 0 or output < 0 or images < 0 or requests < 0
    if negative or usage.stored_bytes < 0:
        raise InvalidRequest(
            "usage must not be negative, and its cached and written tokens must be part of its "
            f"input tokens; got {usage}"
        )
    counts = (plain, cached, written, output)
    if usage.detail is not None:
        tokens = _apart(counts, usage, tier)
    elif tier.all_tokens is not None:
        a, b, c, d = tier.all_tokens
        tokens = plain * a + cached * b + written * c + output * d
    else:
        tokens = _tokens(counts, tier)
    pictures = _pictures(usage, tier) if images else 0
    if tokens is None or pictures is None:
        return None
    top = tokens + pictures + us * (tier.us or 0)
    if tier.request is not None:
        # A call to a model is one request, also where nobody counted it.
        once = 1 if images or any(counts) else 0
        top += max(requests, once) * tier.request
    elif requests and not (tier.tokens or tier.otherwise):
        return None
    return top


def micros_of(usage: Usage) -> int:
    """Return the seconds of a usage as whole microseconds.

    Raises:
        InvalidRequest: they are negative or not finite.
    """
    if not 0 <= usage.seconds < inf:
        raise InvalidRequest(
            f"seconds of a usage must be finite and not negative, got {usage.seconds}"
        )
    return round(usage.seconds * SECOND_US)


def _tokens(counts: tuple[int, int, int, int], tier: Tier) -> int | None:
    if not tier.tokens:
        return 0 if tier.otherwise or not any(counts) else None
    return _sum(counts, (tier.input, tier.cached, tier.written, tier.output))


def _sum(counts: Sequence[int], prices: Sequence[int | None]) -> int | None:
    top = 0
    for count, price in zip(counts, prices, strict=True):
        if count and price is None:
            return None
        top += count * (price or 0)
    return top


def _apart(counts: tuple[int, int, int, int], usage: Usage, tier: Tier) -> int | None:
    """Return what tokens cost whose kinds are counted, and the searches made for them."""
    detail, split = usage.detail or UsageDetail(), tier.split
    plain, cached, written, output = counts
    image = detail.input_image_tokens - detail.cached_image_tokens
    audio = detail.input_audio_tokens - detail.cached_audio_tokens
    kinds = (
        plain - image - audio,
        cached - detail.cached_image_tokens - detail.cached_audio_tokens,
        written - detail.written_long_tokens,
        detail.written_long_tokens,
        output - detail.output_image_tokens - detail.output_audio_tokens,
        *(image, detail.cached_image_tokens, detail.output_image_tokens),
        *(audio, detail.cached_audio_tokens, detail.output_audio_tokens),
        detail.searches,
    )
    if min(kinds) < 0:
        raise InvalidRequest(
            "the parts of a usage must not be negative, and not exceed what they are parts of; "
            f"got {usage}"
        )
    if split is None:
        return _tokens(counts, tier)
    if not tier.tokens and tier.otherwise:
        return _sum((detail.searches,), (split.search,))
    return _sum(kinds, astuple(split))


def _pictures(usage: Usage, tier: Tier) -> int | None:
    """Return what the pictures of a usage that has some cost by the picture; None if unknown."""
    if tier.image is not None:
        return usage.images * tier.image
    elsewhere = tier.us is not None or tier.request is not None
    in_tokens = tier.output is not None and usage.output_tokens
    return 0 if elsewhere or in_tokens else None


def bound_of(
    tiers: Iterable[Tier], tokens: int, output: int | None, images: int, searches: int = 0
) -> int | None:
    """Return the most that a call can cost over the tiers it may fall into; None if unpriced.

    Where a search has no price a call that makes one is unpriced, and one that makes none is not.

    Raises:
        Unbounded: it is billed by the second, or by output tokens and has no limit of them.
    """
    dearest: int | None = None
    for tier in tiers:
        if tier.us is not None:
            raise Unbounded("the model is billed by time, which nothing limits; set no hard cap")
        into, out, search = dearest_of(tier)
        if out is not None and output is None:
            raise Unbounded("the call has no limit of output tokens; set max_tokens")
        if not (into is not None or out is not None or tier.image is not None or tier.request):
            continue
        if images and tier.image is None and tier.output is None and tier.request is None:
            continue
        top = tokens * (into or 0) + images * (tier.image or 0) + searches * (search or 0)
        top += (output or 0) * (out or 0) + (tier.request or 0)
        dearest = top if dearest is None else max(dearest, top)
    return dearest


def dearest_of(tier: Tier) -> tuple[int | None, int | None, int | None]:
    """Return the price of the dearest kind of token in and out, and that of a search."""
    split = tier.split
    if split is None:
        return _dearer(tier.input, tier.cached, tier.written), tier.output, None
    into = _dearer(
        *(tier.input, tier.cached, tier.written, split.written_long),
        *(split.audio_input, split.audio_cached),
    )
    return into, _dearer(tier.output, split.audio_output), split.search
