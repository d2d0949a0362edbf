"""Which surface is served by which API: the one table that the gateway asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from packshot.providers.anthropic import AnthropicCountTokens, AnthropicMessages
from packshot.providers.base import Api, Exchange, Surface
from packshot.providers.openai import OpenAIChat, OpenAIEmbeddings
from packshot.providers.rows import ROWS, Row
from packshot.providers.stability import StabilityImages
from packshot.providers.translate import ChatToAnthropic

__all__ = ["EXCHANGES", "exchange_of"]

MAKERS: dict[tuple[Surface, Api], Callable[[Row], Exchange]] = {
    ("chat", "openai"): OpenAIChat,
    ("embeddings", "openai"): OpenAIEmbeddings,
    ("chat", "anthropic"): ChatToAnthropic,
    ("messages", "anthropic"): AnthropicMessages,
    ("count_tokens", "anthropic"): AnthropicCountTokens,
    ("images", "stability"): StabilityImages,
}

EXCHANGES: dict[tuple[Surface, Api], Exchange] = {
    (surface, api): make(ROWS[api]) for (surface, api), make in MAKERS.items()
}
"""The exchanges with the providers that made the APIs; for others, `exchange_of` their row."""


@cache
def exchange_of(surface: Surface, row: Row) -> Exchange | None:
    """Return how a provider serves a surface, None where it does not. One object for each row."""
    make = MAKERS.get((surface, row.api))
    return make(row) if make is not None and surface in row.surfaces else None
