"""The token prices of the package, against the package's own sums."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import genai_prices
import msgspec
import pytest
from genai_prices.data import providers
from genai_prices.types import TimeOfDateConstraint
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.types import Usage, UsageDetail
from packshot.ledger.prices import genai
from packshot.ledger.prices.book import SLOT_US, PriceBook

MODELS = (
    ("openai", "gpt-4o-mini"),
    ("openai", "text-embedding-3-small"),
    ("anthropic", "claude-haiku-4-5"),
    ("google", "gemini-2.5-pro"),
    ("deepseek", "deepseek-chat"),
)
BOOK = PriceBook.load()
FIRST = 1_735_689_600  # 2025-01-01
LAST = 1_798_761_600  # 2027-01-01
LATE = 1_795_608_000_000_000  # 2026-11-25
AT = 1_790_000_000_000_000  # 2026-09-21


@settings(deadline=None)
@given(
    name=st.sampled_from(MODELS),
    parts=st.tuples(*[st.integers(0, 250_000)] * 3),
    output=st.integers(0, 100_000),
    second=st.integers(FIRST, LAST),
)
def test_our_sum_is_the_packages_sum(
    name: tuple[str, str], parts: tuple[int, int, int], output: int, second: int
) -> None:
    provider, model = name
    output = 0 if "embedding" in model else output
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=sum(parts),
            cache_read_tokens=parts[1],
            cache_write_tokens=parts[2],
            output_tokens=output,
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=datetime.fromtimestamp(second, UTC),
    )
    usage = Usage(
        "caption",
        input_tokens=sum(parts),
        cached_tokens=parts[1],
        written_tokens=parts[2],
        output_tokens=output,
    )
    ours = BOOK.charge(usage, provider, model, second * 1_000_000)
    assert ours.priced
    assert Fraction(ours.original) == Fraction(theirs.total_price)


def test_cheaper_hours_start_where_a_new_tariff_is_looked_up() -> None:
    """A tariff is kept for a quarter of an hour: no price may change within one."""
    hours = [
        each.constraint
        for provider in providers
        for model in provider.models
        if isinstance(model.prices, list)
        for each in model.prices
        if isinstance(each.constraint, TimeOfDateConstraint)
    ]
    assert hours
    for hour in hours:
        for time in (hour.start_time, hour.end_time):
            seconds = time.hour * 3600 + time.minute * 60 + time.second
            assert seconds * 1_000_000 % SLOT_US == 0, time


@pytest.mark.parametrize("name", [("", "gpt-4o-mini"), ("openai", ""), ("nobody", "nothing")])
def test_what_is_unknown_has_no_parts(name: tuple[str, str]) -> None:
    assert genai.parts(*name, FIRST * 1_000_000) == []


def test_every_model_has_a_tariff_or_none_and_never_an_error() -> None:
    for name in genai.models():
        BOOK.tariff(*name, LAST * 1_000_000)


@pytest.mark.parametrize("provider", ["my-openai-proxy", "local-openai", "OpenAI", "openai2"])
def test_a_name_that_only_resembles_a_provider_has_no_price(provider: str) -> None:
    assert genai.parts("openai", "gpt-4o-mini", AT)
    assert genai.parts(provider, "gpt-4o-mini", AT) == []


def test_tokens_of_pictures_are_charged_at_their_own_price_or_all_at_the_higher() -> None:
    image = ("google", "gemini-2.5-flash-image")
    unknown = BOOK.charge(Usage("denoise", output_tokens=10**6), *image, AT)
    assert unknown.original == "30"
    detail = UsageDetail(output_image_tokens=400_000)
    told = BOOK.charge(Usage("denoise", output_tokens=10**6, detail=detail), *image, AT)
    assert Fraction(told.original) == Fraction("0.4") * 30 + Fraction("0.6") * Fraction("2.5")


@settings(deadline=None)
@given(
    name=st.sampled_from(
        [
            ("openai", "gpt-image-1.5", ""),
            ("openai", "gpt-realtime", ""),
            ("anthropic", "claude-haiku-4-5", ""),
            ("anthropic", "claude-haiku-4-5", "batch"),
            ("openai", "gpt-5-mini", "flex"),
            ("openai", "gpt-5-mini", "priority"),
        ]
    ),
    text=st.tuples(*[st.integers(0, 250_000)] * 4),
    kinds=st.tuples(*[st.integers(0, 50_000)] * 6),
    long=st.integers(0, 50_000),
)
def test_kinds_and_tiers_are_summed_as_the_package_does(
    name: tuple[str, str, str],
    text: tuple[int, int, int, int],
    kinds: tuple[int, int, int, int, int, int],
    long: int,
) -> None:
    provider, model, tier = name
    if model != "gpt-realtime":
        kinds = (*(kinds[:3] if "image" in model else (0, 0, 0)), 0, 0, 0)
    long = long if provider == "anthropic" else 0
    cached = text[1] + kinds[1] + kinds[4]
    into = text[0] + text[2] + long + cached + kinds[0] + kinds[3]
    output = text[3] + kinds[2] + (kinds[5] if model == "gpt-realtime" else 0)
    usage = Usage(
        "caption",
        input_tokens=into,
        cached_tokens=cached,
        written_tokens=text[2] + long,
        output_tokens=output,
        tier=tier or "standard",
        detail=UsageDetail(
            written_long_tokens=long,
            input_image_tokens=kinds[0] + kinds[1],
            cached_image_tokens=kinds[1],
            output_image_tokens=kinds[2],
            input_audio_tokens=kinds[3] + kinds[4],
            cached_audio_tokens=kinds[4],
            output_audio_tokens=kinds[5],
        ),
    )
    at = LATE
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=into,
            cache_read_tokens=cached,
            cache_write_tokens=text[2] + long,
            cache_write_1h_tokens=long,
            output_tokens=output,
            input_image_tokens=kinds[0] + kinds[1],
            cache_image_read_tokens=kinds[1],
            output_image_tokens=kinds[2],
            input_audio_tokens=kinds[3] + kinds[4],
            cache_audio_read_tokens=kinds[4],
            output_audio_tokens=kinds[5],
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=datetime.fromtimestamp(at // 10**6, UTC),
        price_context={"batch": {"processing": "batch"}}.get(tier, {"service_tier": tier}),
    )
    ours = BOOK.charge(usage, provider, model, at)
    assert ours.priced
    assert Fraction(ours.original) == Fraction(theirs.total_price)
    assert tier in ours.price
    bound = BOOK.bound(provider, model, at, body_bytes=into, max_output_tokens=output)
    assert bound is not None
    assert bound >= ours.amount


def test_a_tier_without_a_price_is_unpriced_and_never_standard() -> None:
    usage = Usage("caption", input_tokens=1000, output_tokens=10, tier="flex")
    charge = BOOK.charge(usage, "openai", "gpt-4o-mini", LATE)
    assert (charge.amount, charge.priced, charge.price) == (0, False, "used: tier=flex")
    assert BOOK.bound("openai", "gpt-4o-mini", LATE, body_bytes=9, tier="flex") is None
    assert genai.parts("openai", "gpt-4o-mini", LATE, "no such tier") == []


def test_before_the_snapshot_has_a_batch_price_ours_of_the_whole_list_holds() -> None:
    usage = Usage("caption", input_tokens=10**6, tier="batch")
    charge = BOOK.charge(usage, "anthropic", "claude-haiku-4-5", AT)
    assert charge.original == "0.5"
    assert "x 0.5 batch@2025-11-08" in charge.price
    searched = msgspec.structs.replace(usage, detail=UsageDetail(searches=100))
    assert BOOK.charge(searched, "anthropic", "claude-haiku-4-5", AT).original == "1.5"
    assert not BOOK.charge(usage, "anthropic", "claude-haiku-4-5", FIRST * 10**6).priced


def test_pictures_in_a_dearer_or_cheaper_tier_are_bounded_without_a_limit_of_tokens() -> None:
    name = ("openai", "gpt-image-1")
    dearest = BOOK.bound(*name, LATE, body_bytes=100, images=2)
    standard = BOOK.bound(*name, LATE, body_bytes=100, images=2, tier="standard")
    assert dearest == standard  # its other tier, if it has one, is the cheaper batch


def test_other_names_of_a_provider_are_known() -> None:
    assert genai.parts("gemini", "gemini-2.5-flash", AT) == genai.parts(
        "google", "gemini-2.5-flash", AT
    )
