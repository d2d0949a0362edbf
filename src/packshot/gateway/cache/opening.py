"""From the section ``semantic_cache`` to a worker's response cache."""

from __future__ import annotations

import asyncio
from pathlib import Path

from packshot.gateway.cache.cache import ResponseCache
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.store import MemoryStore, Store
from packshot.gateway.dispatch import Dispatcher
from packshot.gateway.settings import GatewaySettings
from packshot.gateway.telemetry import Telemetry

__all__ = ["answers_file", "open_cache"]


def answers_file(settings: GatewaySettings) -> Path:
    """Return the file that the workers of this machine keep answers in."""
    return settings.server.folder / "answers.db"


async def open_cache(
    settings: GatewaySettings, dispatcher: Dispatcher, telemetry: Telemetry
) -> ResponseCache:
    """Open the cache of one worker.

    Raises:
        StateUnavailable: its file cannot be used.
        InvalidRequest: the store's address is none.
    """
    entry = settings.semantic_cache
    back: Store | None = None
    if not entry.store:
        size = entry.file_mb << 20
        back = await asyncio.to_thread(FileStore, answers_file(settings), size)
    front = MemoryStore(entry.memory_mb << 20)
    cache = ResponseCache(entry, dispatcher, telemetry, front, back=back)
    await cache.tick()
    return cache
