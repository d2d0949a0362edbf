"""Token prices from the snapshot that the package ``genai-prices`` carries; no network.

The package is imported at the first question (its data take 0.3 s and some 20 MB).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

from packshot.core.clock import SECOND_US
from packshot.ledger.prices.rows import STANDARD
from packshot.ledger.prices.tokens import Part

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, PriceContext

__all__ = ["models", "parts", "since"]

MILLION = 1_000_000

FIELDS = {
    "input_mtok": ("input_token", MILLION),
    "cache_read_mtok": ("cached_token", MILLION),
    "cache_write_mtok": ("written_token", MILLION),
    "cache_write_1h_mtok": ("written_long_token", MILLION),
    "output_mtok": ("output_token", MILLION),
    "input_image_mtok": ("input_image_token", MILLION),
    "cache_image_read_mtok": ("cached_image_token", MILLION),
    "output_image_mtok": ("output_image_token", MILLION),
    "input_audio_mtok": ("input_audio_token", MILLION),
    "cache_audio_read_mtok": ("cached_audio_token", MILLION),
    "output_audio_mtok": ("output_audio_token", MILLION),
    "web_searches_kcount": ("search", 1000),
    "requests_kcount": ("request", 1000),
}
"""The fields of a model's price that `Usage` can be multiplied with: our unit, and per how many."""

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


def parts(provider: str, model: str, at: int, tier: str = STANDARD) -> list[Part]:
    """Return what the snapshot asks for a model at ``at`` (microseconds), all steps; [] if unknown.

    Prices are USD. Times of day, where a provider has cheaper hours, are those of ``at``. A tier
    that the snapshot does not know at that time has no price: the standard one is none of it. What
    a known tier does not name costs what it costs in the standard one, as the snapshot means it.
    """
    found = _find(provider, model) if provider and model else None
    if found is None:
        return []
    when = datetime.fromtimestamp(at // SECOND_US, UTC)
    context: PriceContext | None = None
    if tier != STANDARD:
        context = _context(found, when, tier)
        if context is None:
            return []
    listed = found.get_prices(when, context)
    result: list[Part] = []
    for field, (unit, per) in FIELDS.items():
        value = getattr(listed, field, None)
        if value is None:
            continue
        steps = [(0, value)]
        if not isinstance(value, Decimal):
            steps = [(0, value.base), *((step.start, step.price) for step in value.tiers)]
        result.extend(Part(unit, price, per, "USD", above) for above, price in steps)
    return result


def _context(model: ModelInfo, when: datetime, tier: str) -> PriceContext | None:
    """Return what the package calls a tier for a model; None where it has no price of it then."""
    words = [{"processing": tier}, {"service_tier": tier}, {"speed": tier}]
    for variant in model.price_variants or ():
        active = variant.constraint is None or variant.constraint.active(when)
        if active and variant.when in words and any(variant.prices.__dict__.values()):
            return variant.when
    return None


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
