"""The ceiling over calls of text says exactly what the bound of any call says."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.errors import Unbounded
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.prices.book import _bound as bound
from packshot.ledger.prices.ceiling import ceiling_of
from packshot.ledger.prices.rows import PriceRow, RateRow
from packshot.ledger.prices.tokens import Part, tariff_of

START = date(2026, 1, 1)
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * 1_000_000
UNITS = ("input_token", "cached_token", "written_token", "output_token")

rows = st.dictionaries(
    st.tuples(
        st.sampled_from(
            ["input_token", "cached_token", "output_token", "input_audio_token", "image", "request"]
        ),
        st.sampled_from(["standard", "batch", "priority"]),
    ),
    st.tuples(st.decimals(0, 100, places=3), st.sampled_from([1, 3, 1000, 10**6])),
)
counts = st.integers(0, 10**6)


@settings(deadline=None)
@given(
    rows=rows,
    eur=st.decimals("0.01", 10, places=4),
    tokens=counts,
    output=counts,
    tier=st.sampled_from([None, "standard", "batch", "flex"]),
)
def test_it_is_the_bound_of_a_call_without_pictures(
    rows: dict, eur: Decimal, tokens: int, output: int, tier: str | None
) -> None:
    book = PriceBook.load(
        [
            PriceRow("acme", "m", unit, each, "CHF", START, "test", per, tier=served)
            for (unit, served), (each, per) in rows.items()
        ],
        [RateRow("CHF", eur, START, "test")],
    )
    found = book.bound("acme", "m", NOON, body_bytes=tokens, max_output_tokens=output, tier=tier)
    assert found == book._bound("acme", "m", NOON, tier, (tokens, output, 0, 0))


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o", "gpt-image-1", "unheard-of"])
@pytest.mark.parametrize("tokens", [0, 1, 200_000, 200_001, 10**7])
def test_it_is_the_bound_for_models_that_are_sold(model: str, tokens: int) -> None:
    book = PriceBook.load()
    for provider in ("openai", "google", "anthropic"):
        for name in (model, "gemini-2.5-pro", "claude-sonnet-4-5"):
            found = book.bound(provider, name, NOON, body_bytes=tokens, max_output_tokens=300)
            assert found == book._bound(provider, name, NOON, None, (tokens, 300, 0, 0))


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(UNITS)), min_size=1
    ),
    tokens=st.integers(0, 7),
    output=st.integers(0, 7),
)
def test_steps_start_above_their_number_of_tokens(
    steps: list[tuple[int, int, str]], tokens: int, output: int
) -> None:
    parts = [Part(unit, Decimal(cost), 1, "EUR", above) for above, cost, unit in steps]
    tariff = tariff_of(parts, Decimal(1), "test")
    ceiling = ceiling_of([tariff])
    assert ceiling is not None
    assert ceiling.of(tokens, output) == bound(tariff, (tokens, output, 0, 0))


def test_time_has_no_ceiling() -> None:
    second = PriceRow("acme", "m", "second", Decimal(1), "EUR", START, "test")
    with pytest.raises(Unbounded, match="time"):
        PriceBook.load([second]).bound("acme", "m", NOON, body_bytes=9, max_output_tokens=9)


def test_what_is_cheaper_everywhere_is_left_out() -> None:
    book = PriceBook.load()
    ceiling = book._ceiling("openai", "gpt-4o-mini", NOON, None)
    assert ceiling is not None
    assert len(ceiling.lines) == 1, "five tiers, of which one is the dearest"


def test_ceilings_kept_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packshot.ledger.prices.book.CACHED", 3)
    book = PriceBook.load()
    for number in range(20):
        book.bound("openai", f"m{number}", NOON, body_bytes=9, max_output_tokens=9)
        assert len(book._ceilings) <= 3
