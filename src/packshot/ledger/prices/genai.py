"""Token prices from the snapshot that the package ``genai-prices`` carries; no network.

The package is imported at the first question (its data take 0.3 s and some 20 MB).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

from packshot.core.clock import SECOND_US
from packshot.ledger.prices.tokens import Part

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, TieredPrices

__all__ = ["models", "parts", "since"]

MILLION = 1_000_000

FIELDS = {
    "input_mtok": ("input_token", MILLION),
    "cache_read_mtok": ("cached_token", MILLION),
    "cache_write_mtok": ("written_token", MILLION),
    "output_mtok": ("output_token", MILLION),
    "requests_kcount": ("request", 1000),
}
"""The fields of a model's price that `Usage` can be multiplied with: our unit, and per how many."""


DEARER = {
    "input_mtok": ("input_image_mtok",),
    "cache_read_mtok": ("cache_image_read_mtok",),
    "output_mtok": ("output_image_mtok",),
}
"""Tokens of pictures, which some models charge at a higher price. `Usage` does not tell them from
those of text, so all count at the dearer one: too much for the text, never too little."""

ALIASES = {"bedrock": "aws", "gemini": "google", "vertex": "google", "xai": "x-ai"}
"""Other names of providers, as configurations have them."""


@cache
def _snapshot() -> DataSnapshot:
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


@cache
def source() -> str:
    """Return name and version of the package, as the source of its rows."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


@cache
def _providers() -> frozenset[str]:
    return frozenset(provider.id for provider in _snapshot().providers)


def _find(provider: str, model: str) -> ModelInfo | None:
    """Find a model by its provider's exact name: the package would take "my-openai" for OpenAI."""
    known = ALIASES.get(provider, provider)
    if known not in _providers():
        return None
    try:
        return _snapshot().find_provider_model(model, None, known, None)[1]
    except LookupError:
        return None


def parts(provider: str, model: str, at: int) -> list[Part]:
    """Return what the snapshot asks for a model at ``at`` (microseconds), all tiers; [] if unknown.

    Prices are USD. Times of day, where a provider has cheaper hours, are those of ``at``.
    """
    found = _find(provider, model) if provider and model else None
    if found is None:
        return []
    when = datetime.fromtimestamp(at // SECOND_US, UTC)
    listed = found.get_prices(when)
    result: list[Part] = []
    for field, (unit, per) in FIELDS.items():
        prices = [getattr(listed, name, None) for name in (field, *DEARER.get(field, ()))]
        known = [price for price in prices if price is not None]
        if not known:
            continue
        value = max(known, key=_base)
        steps = [(0, value)]
        if not isinstance(value, Decimal):
            steps = [(0, value.base), *((tier.start, tier.price) for tier in value.tiers)]
        result.extend(Part(unit, price, per, "USD", above) for above, price in steps)
    return result


def _base(value: Decimal | TieredPrices) -> Decimal:
    return value if isinstance(value, Decimal) else value.base


def since(provider: str, model: str, at: int) -> date | None:
    """Return the day from which the price at ``at`` holds, None where the snapshot has no date."""
    found = _find(provider, model)
    if found is None or not isinstance(found.prices, list):
        return None
    day = datetime.fromtimestamp(at // SECOND_US, UTC).date()
    starts = [getattr(each.constraint, "start_date", None) for each in found.prices]
    return max((start for start in starts if start is not None and start <= day), default=None)


def models() -> list[tuple[str, str]]:
    """Return (provider, model) of everything that the snapshot has a token price for."""
    return [(each.id, model.id) for each in _snapshot().providers for model in each.models]
