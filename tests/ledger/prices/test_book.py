"""Charges against fractions, dates at their edges, and bounds that hold."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US
from packshot.core.errors import InvalidRequest, Unbounded
from packshot.core.types import Usage
from packshot.ledger.prices.book import PriceBook, book_of, day_of, own_file, read_rows
from packshot.ledger.prices.rows import UNITS, PriceRow, RateRow
from packshot.ledger.prices.tokens import decimal_text, half_even
from packshot.ledger.settings import PriceEntry, RateEntry, Settings

START = date(2026, 1, 1)


def micros(year: int, month: int, day: int, hour: int = 12) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * 1_000_000


NOON = micros(2026, 11, 25)


def price(unit: str, text: str, start: date = START, per: int = 1, **more: str) -> PriceRow:
    named = {"provider": "acme", "model": "m", "currency": "EUR", "source": "test", **more}
    return PriceRow(unit=unit, price=Decimal(text), start=start, per=per, **named)


def tokens(input_: str, output: str, **more: str) -> PriceBook:
    million = 1_000_000
    rows = [price("input_token", input_, per=million), price("output_token", output, per=million)]
    rows += [price(f"{name}_token", text, per=million) for name, text in more.items()]
    return PriceBook.load(rows)


def nearest_even(value: Fraction) -> int:
    return round(value)  # Python rounds fractions half to even, exactly


amounts = st.decimals(0, 1000, places=6)
counts = st.integers(0, 10**9)


@settings(deadline=None)
@given(top=st.integers(0, 10**30), bottom=st.integers(1, 10**15))
def test_division_rounds_half_to_even(top: int, bottom: int) -> None:
    assert half_even(top, bottom) == nearest_even(Fraction(top, bottom))


@settings(deadline=None)
@given(whole=st.integers(0, 10**12), bottom=st.integers(1, 10**9))
def test_a_half_goes_to_the_even_neighbour(whole: int, bottom: int) -> None:
    assert half_even((2 * whole + 1) * bottom, 2 * bottom) == whole + whole % 2


@settings(deadline=None)
@given(number=st.decimals(0, 10**9, places=12))
def test_original_text_is_exact(number: Decimal) -> None:
    value = Fraction(number)
    text = decimal_text(value.numerator, value.denominator)
    assert Fraction(text) == value
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))


@settings(deadline=None)
@given(
    prices=st.tuples(amounts, amounts, amounts, amounts),
    eur=st.decimals("0.001", 10, places=5),
    used=st.tuples(counts, counts, counts, counts),
    per=st.sampled_from([1, 3, 7, 1000, 10**6]),
)
def test_charge_equals_the_fractions(
    prices: tuple[Decimal, ...], eur: Decimal, used: tuple[int, ...], per: int
) -> None:
    units = ("input_token", "cached_token", "written_token", "output_token")
    rows = [
        price(unit, str(each), per=per, currency="CHF")
        for unit, each in zip(units, prices, strict=True)
    ]
    book = PriceBook.load(rows, [RateRow("CHF", eur, START, "test")])
    usage = Usage(
        "caption",
        input_tokens=sum(used[:3]),
        cached_tokens=used[1],
        written_tokens=used[2],
        output_tokens=used[3],
    )
    charge = book.charge(usage, "acme", "m", NOON)
    original = sum(
        (count * Fraction(each) / per for count, each in zip(used, prices, strict=True)),
        Fraction(0),
    )
    assert charge.amount == nearest_even(original * Fraction(eur) * 10**9)
    assert charge.priced
    assert abs(Fraction(charge.original) - original) <= Fraction(1, 10**30)
    if per % 3 and per % 7:
        assert Fraction(charge.original) == original
    assert charge.currency == "CHF"
    assert Decimal(charge.rate) == eur


@settings(deadline=None)
@given(used=st.tuples(counts, counts, counts), more=st.tuples(counts, counts, counts))
def test_more_usage_never_costs_less(used: tuple[int, ...], more: tuple[int, ...]) -> None:
    book = PriceBook.load([*tokens("3", "15").own, price("image", "0.04")])

    def cost(parts: tuple[int, ...]) -> int:
        usage = Usage("caption", input_tokens=parts[0], output_tokens=parts[1], images=parts[2])
        return book.charge(usage, "acme", "m", NOON).amount

    assert cost(used) <= cost(tuple(a + b for a, b in zip(used, more, strict=True)))


@settings(deadline=None)
@given(
    model=st.sampled_from(
        [
            ("openai", "gpt-4o-mini"),
            ("openai", "gpt-image-1"),
            ("anthropic", "claude-haiku-4-5"),
            ("google", "gemini-2.5-pro"),
            ("acme", "m"),
        ]
    ),
    parts=st.tuples(*[st.integers(0, 300_000)] * 3),
    output=st.integers(0, 100_000),
    slack=st.integers(0, 1000),
    images=st.integers(0, 5),
    size=st.sampled_from(["", "1024x1024", "1536x1024"]),
    quality=st.sampled_from(["", "low", "high"]),
)
def test_a_bound_holds(
    model: tuple[str, str],
    parts: tuple[int, int, int],
    output: int,
    slack: int,
    images: int,
    size: str,
    quality: str,
) -> None:
    rows = [*tokens("3", "15", cached="0.3", written="3.75").own]
    rows += [price("image", "0.04"), price("image", "0.09", size="1536x1024", quality="high")]
    book = PriceBook.load(rows)
    usage = Usage(
        "caption",
        input_tokens=sum(parts),
        cached_tokens=parts[1],
        written_tokens=parts[2],
        output_tokens=output,
        images=images,
        image_size=size,
        image_quality=quality,
    )
    charge = book.charge(usage, *model, NOON)
    bound = book.bound(
        *model,
        NOON,
        body_bytes=sum(parts) + slack,
        max_output_tokens=output + slack,
        images=images,
    )
    assert bound is not None
    assert bound >= charge.amount


def test_cached_and_written_tokens_have_their_prices_or_that_of_input() -> None:
    usage = Usage("caption", input_tokens=1000, cached_tokens=600, written_tokens=100)
    dear = tokens("3", "15").charge(usage, "acme", "m", NOON)
    assert dear.amount == 3_000_000
    cheap = tokens("3", "15", cached="0.3", written="3.75")
    assert cheap.charge(usage, "acme", "m", NOON).amount == 900_000 + 180_000 + 375_000


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (micros(2026, 2, 28, 23), 1),
        (micros(2026, 3, 1, 0) - 1, 1),
        (micros(2026, 3, 1, 0), 2),
        (micros(2026, 12, 31, 23), 2),
        (micros(2027, 1, 1, 0), 3),
    ],
)
def test_a_price_holds_from_its_first_microsecond(at: int, expected: int) -> None:
    starts = (START, date(2026, 3, 1), date(2027, 1, 1))
    rows = [price("image", str(each), start) for each, start in enumerate(starts, 1)]
    charge = PriceBook.load(rows).charge(Usage("denoise", images=1), "acme", "m", at)
    assert charge.amount == expected * 10**9
    assert str(starts[expected - 1]) in charge.price


@settings(deadline=None)
@given(day=st.dates(date(2000, 1, 1), date(2100, 12, 31)), us=st.integers(0, 24 * HOUR_US - 1))
def test_days_are_those_of_utc(day: date, us: int) -> None:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    at = (midnight - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) + us
    assert day_of(at) == day


def test_before_the_first_row_nothing_is_priced() -> None:
    book = PriceBook.load([price("image", "1")])
    charge = book.charge(Usage("denoise", images=1), "acme", "m", micros(2025, 12, 31))
    assert (charge.amount, charge.priced, charge.price) == (0, False, "")
    assert book.bound("acme", "m", micros(2025, 12, 31), body_bytes=9, images=1) is None


def test_the_rate_is_that_of_the_day() -> None:
    rates = [RateRow("CHF", Decimal(each), start, "test") for each, start in
             (("1.1", START), ("1.2", date(2026, 7, 1)))]  # fmt: skip
    book = PriceBook.load([price("image", "1", currency="CHF")], rates)
    usage = Usage("denoise", images=1)
    assert book.charge(usage, "acme", "m", micros(2026, 6, 30)).rate == "1.1"
    after = book.charge(usage, "acme", "m", micros(2026, 7, 1))
    assert (after.rate, after.amount, after.original) == ("1.2", 1_200_000_000, "1")


def test_own_devices_by_the_second() -> None:
    book = PriceBook.load()
    charge = book.charge(Usage("denoise", seconds=3600.0, device="h100"), "", "sdxl", NOON)
    assert (charge.amount, charge.credit, charge.original) == (2_300_000_000, "depreciation", "2.3")
    unknown = book.charge(Usage("denoise", seconds=1.0, device="abacus"), "", "", NOON)
    assert (unknown.amount, unknown.priced) == (0, False)
    assert book.charge(Usage("denoise", device="abacus"), "", "", NOON).priced
    with pytest.raises(Unbounded):
        book.bound("", "h100", NOON, body_bytes=0)


@pytest.mark.parametrize("kind", ["cpu", "h100", "h200", "a100", "a10g", "l4", "rtx-4090"])
def test_devices_are_filed_under_the_name_that_the_engine_gives_them(kind: str) -> None:
    assert PriceBook.load().charge(Usage("denoise", seconds=1.0, device=kind), "", "", NOON).amount


def test_storage_is_credited_to_storage() -> None:
    charge = PriceBook.load().charge(
        Usage("store", stored_bytes=10**6, requests=2), "s3", "bucket", NOON
    )
    assert (charge.credit, charge.original) == ("storage", "0.00001")


def test_the_operators_rows_come_before_all_others() -> None:
    usage = Usage("caption", input_tokens=10**6)
    listed = PriceBook.load().charge(usage, "openai", "gpt-4o-mini", NOON)
    assert listed.price.startswith("genai-prices")
    assert listed.original == "0.15"
    own = price("input_token", "1", per=10**6, provider="openai", model="gpt-4o-mini")
    mine = PriceBook.load([own]).charge(usage, "openai", "gpt-4o-mini", NOON)
    assert mine.amount == 10**9
    # Half of the operator's and half of another list would be neither's price.
    both = Usage("caption", input_tokens=10**6, output_tokens=1)
    assert not PriceBook.load([own]).charge(both, "openai", "gpt-4o-mini", NOON).priced


def test_more_than_200000_input_tokens_make_all_of_gemini_dearer() -> None:
    book = PriceBook.load()

    def original(count: int) -> Decimal:
        usage = Usage("caption", input_tokens=count)
        return Decimal(book.charge(usage, "google", "gemini-2.5-pro", NOON).original)

    assert original(200_000) == Decimal("0.25")
    assert original(200_001) == 200_001 * Decimal("0.0000025")
    low = book.bound("google", "gemini-2.5-pro", NOON, body_bytes=200_000, max_output_tokens=0)
    high = book.bound("google", "gemini-2.5-pro", NOON, body_bytes=200_001, max_output_tokens=0)
    assert low is not None
    assert high is not None
    assert high > 1.9 * low


def test_pictures_by_size_and_quality_and_without_counted_tokens() -> None:
    book = PriceBook.load()
    plain = Usage("denoise", images=1, image_size="1024x1024", image_quality="low")
    assert book.charge(plain, "openai", "gpt-image-1", NOON).original == "0.011"
    counted = Usage("denoise", images=1, input_tokens=10, output_tokens=1000)
    assert book.charge(counted, "openai", "gpt-image-1", NOON).original == "0.0401"
    assert not book.charge(Usage("denoise", images=1), "openai", "dall-e-3", NOON).priced
    bound = book.bound("openai", "gpt-image-1", NOON, body_bytes=100, images=2)
    assert bound == 430_860_000  # two of the dearest, 0.25, and 100 tokens of 10 per million


def test_a_call_is_a_request_also_where_nobody_counts() -> None:
    book = PriceBook.load([price("request", "0.5"), *tokens("1", "1").own])
    charge = book.charge(Usage("caption", input_tokens=1), "acme", "m", NOON)
    assert charge.original == "0.500001"
    assert book.charge(Usage("caption"), "acme", "m", NOON).amount == 0


def test_without_a_limit_of_output_there_is_no_bound() -> None:
    with pytest.raises(Unbounded, match="max_tokens"):
        tokens("1", "2").bound("acme", "m", NOON, body_bytes=10)
    by_time = PriceBook.load([price("second", "0.001")])
    with pytest.raises(Unbounded, match="time"):
        by_time.bound("acme", "m", NOON, body_bytes=10)


@pytest.mark.parametrize(
    "usage",
    [
        Usage("caption", input_tokens=5, cached_tokens=6),
        Usage("caption", input_tokens=-1),
        Usage("denoise", images=-1),
        Usage("denoise", seconds=-1.0),
        Usage("denoise", seconds=float("nan")),
        Usage("denoise", seconds=float("inf")),
    ],
)
@pytest.mark.parametrize("provider", ["acme", "nobody"])
def test_negative_usage_is_refused(usage: Usage, provider: str) -> None:
    with pytest.raises(InvalidRequest, match="usage"):
        tokens("1", "2").charge(usage, provider, "m", NOON)


@pytest.mark.parametrize("unit", sorted(set(UNITS) - {"device_hour"}))
@pytest.mark.parametrize("text", ["-0.01", "NaN", "Infinity"])
def test_bad_prices_are_refused(unit: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="finite and not negative"):
        price(unit, text)


def test_other_bad_rows_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'image'"):
        price("imgae", "1")
    with pytest.raises(InvalidRequest, match="per of"):
        price("image", "1", per=0)
    with pytest.raises(InvalidRequest, match="code like EUR"):
        price("image", "1", currency="euro")
    with pytest.raises(InvalidRequest, match="device_hour"):
        price("device_hour", "1")
    with pytest.raises(InvalidRequest, match="above 0"):
        RateRow("USD", Decimal(0), START, "test")
    with pytest.raises(InvalidRequest, match="two prices of acme/m image"):
        PriceBook.load([price("image", "1"), price("image", "2")])
    with pytest.raises(InvalidRequest, match="two rates of CHF"):
        PriceBook.load([], [RateRow("CHF", Decimal(1), START, "a")] * 2)
    with pytest.raises(InvalidRequest, match="no rate"):
        PriceBook.load([price("image", "1", currency="XXX")])
    late = RateRow("CHF", Decimal(1), date(2026, 2, 1), "test")
    with pytest.raises(InvalidRequest, match="no rate"):
        PriceBook.load([price("image", "1", currency="CHF")], [late])


def test_prices_in_two_currencies_cannot_be_one_tariff() -> None:
    rows = [price("input_token", "1"), price("output_token", "1", currency="USD")]
    with pytest.raises(InvalidRequest, match="one currency"):
        PriceBook.load(rows).charge(Usage("caption", input_tokens=1), "acme", "m", NOON)


def test_the_book_of_the_settings(tmp_path: Path) -> None:
    chosen = Settings(
        store=str(tmp_path / "ledger.db"),
        gpu_eur_per_hour={"cpu": Decimal("0.36"), "abacus": Decimal("3.6")},
        prices=(
            PriceEntry("acme", "m", "image", Decimal(2), "2026-01-01", "deal", currency="CHF"),
        ),
        exchange_rates=(RateEntry("CHF", Decimal("1.5"), "2026-01-01", "bank"),),
    )
    own_file(chosen).write_text(
        "book:\n  prices:\n    - {provider: acme, model: m, unit: image, price: 3,"
        " since: 2026-06-01, source: letter}\n"
    )
    book = book_of(chosen)
    abacus = book.charge(Usage("denoise", seconds=1.0, device="abacus"), "", "", NOON)
    assert (abacus.amount, abacus.original) == (1_000_000, "0.001")
    assert abacus.price == "packshot.yaml: device/abacus@1970-01-01"
    usage = Usage("denoise", images=1)
    assert book.charge(usage, "acme", "m", micros(2026, 5, 31)).amount == 3_000_000_000
    assert book.charge(usage, "acme", "m", micros(2026, 6, 1)).price == "letter: acme/m@2026-06-01"


@pytest.mark.parametrize(
    ("fields", "said"),
    [("since: soon", "since of"), ("since: 2026-01-01, per: 1.5", "whole number")],
)
def test_bad_entries_of_a_file(tmp_path: Path, fields: str, said: str) -> None:
    file = tmp_path / "prices.yaml"
    row = "provider: a, model: b, unit: image, price: 1, source: c"
    file.write_text(f"book:\n  prices:\n    - {{{row}, {fields}}}\n")
    with pytest.raises(InvalidRequest, match=said):
        read_rows(file)


def test_every_shipped_row_has_a_source_and_is_of_a_known_unit() -> None:
    book = PriceBook.load()
    assert {row.provider for row in book.shipped} >= {"", "s3", "stability", "fal", "replicate"}
    assert all(row.source for row in (*book.shipped, *book.shipped_rates))


def test_tariffs_kept_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packshot.ledger.prices.book.CACHED", 3)
    book = PriceBook.load([price("image", "1")])
    for size in range(10):
        usage = Usage("denoise", images=1, image_size=str(size))
        assert book.charge(usage, "acme", "m", NOON).amount == 10**9
    assert len(book._tariffs) <= 3  # pyright: ignore[reportPrivateUsage]


def tiered() -> PriceBook:
    """Return tokens at 3 and 15 per million, at twice that with priority, at half in batches."""
    rows = [*tokens("3", "15").own]
    for tier, into, out in (("priority", "6", "30"), ("batch", "1.5", "7.5")):
        rows += [
            price("input_token", into, per=10**6, tier=tier),
            price("output_token", out, per=10**6, tier=tier),
        ]
    return PriceBook.load([*rows, price("search", "0.01")])


@pytest.mark.parametrize(
    ("tier", "expected"), [("standard", 3), ("priority", 6), ("batch", 1.5), ("flex", None)]
)
def test_a_tier_has_its_own_price_or_none(tier: str, expected: float | None) -> None:
    book = tiered()
    charge = book.charge(Usage("caption", input_tokens=10**6, tier=tier), "acme", "m", NOON)
    assert charge.priced == (expected is not None)
    assert charge.amount == int((expected or 0) * 10**9)
    assert charge.price == {"flex": "used: tier=flex"}.get(tier, charge.price)
    assert ("priority" in charge.price) == (tier == "priority")


def test_a_bound_is_that_of_the_dearest_tier_unless_one_is_asked_for() -> None:
    book = tiered()

    def bound(**more: str | int | None) -> int | None:
        given = {"body_bytes": 10**6, "max_output_tokens": 10**6, **more}
        return book.bound("acme", "m", NOON, **given)  # pyright: ignore[reportArgumentType]

    assert bound() == 36 * 10**9
    assert bound(tier="standard") == 18 * 10**9
    assert bound(tier="batch") == 18 * 10**9  # a provider may serve it as standard
    assert bound(tier="flex") is None
    assert bound(tier="standard", searches=5) == 18 * 10**9 + 5 * 10**7
    with pytest.raises(Unbounded, match="max_tokens"):
        bound(max_output_tokens=None)
    # Nobody has a price of a search in the tier of priority: with one it would be unpriced, but
    # without one it costs what it costs.
    assert bound(tier="priority", searches=1) is None
    assert bound(searches=1) == 36 * 10**9


def test_rows_of_different_tiers_may_start_on_one_day_and_of_one_may_not() -> None:
    rows = [price("image", "1"), price("image", "2", tier="batch")]
    PriceBook.load(rows)
    with pytest.raises(InvalidRequest, match="two prices of acme/m image batch"):
        PriceBook.load([*rows, price("image", "3", tier="batch")])
    with pytest.raises(InvalidRequest, match="tier of"):
        price("image", "1", tier="")


def test_a_file_of_the_operator_gives_prices_a_tier_and_no_multiples(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    row = "{provider: a, tier: batch, times: 0.5, since: 2026-01-01, source: c}"
    file.write_text(f"book:\n  tiers:\n    - {row}\n")
    with pytest.raises(InvalidRequest, match="give a price its"):
        read_rows(file)
