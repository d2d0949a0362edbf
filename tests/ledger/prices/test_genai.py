"""The token prices of the package, against the package's own sums."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import TimeOfDateConstraint
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.types import Usage
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


def test_tokens_of_pictures_are_charged_at_their_own_higher_price() -> None:
    prices = {part.unit: part.price for part in genai.parts("google", "gemini-2.5-flash-image", AT)}
    assert prices["output_token"] == 30


def test_other_names_of_a_provider_are_known() -> None:
    assert genai.parts("gemini", "gemini-2.5-flash", AT) == genai.parts(
        "google", "gemini-2.5-flash", AT
    )
