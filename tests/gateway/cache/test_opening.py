"""From the configuration to a cache: which store, which tier, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from packshot.core.config import read
from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.opening import ANSWERS, open_cache
from packshot.gateway.cache.postgres_store import PostgresStore
from packshot.gateway.cache.settings import (
    AuditEntry,
    RouteCacheEntry,
    SemanticCacheEntry,
    SlotType,
)
from packshot.gateway.cache.slots import SLOT_TYPES
from packshot.gateway.cache.valkey_store import ValkeyStore
from packshot.gateway.settings import GatewaySettings, ServerEntry
from packshot.gateway.telemetry import Telemetry
from packshot.ledger.settings import SECTIONS


def opened(folder: Path, workers: int = 1, **entry: Any) -> Any:
    async def run() -> Any:
        settings = GatewaySettings(
            server=ServerEntry(state=folder, workers=workers),
            semantic_cache=SemanticCacheEntry(enabled=True, semantic=False, **entry),
        )
        none: Any = None
        cache = await open_cache(settings, none, Telemetry())
        await cache.aclose()
        return cache

    return asyncio.run(run())


def test_each_store(tmp_path: Path) -> None:
    assert isinstance(opened(tmp_path).back, FileStore)
    assert (tmp_path / ANSWERS).stat().st_mode & 0o777 == 0o600
    assert opened(tmp_path, store="memory").back is None
    assert isinstance(opened(tmp_path, store="valkey://127.0.0.1:1").back, ValkeyStore)
    database = "postgresql://127.0.0.1:1/none"
    assert isinstance(opened(tmp_path, store=database).back, PostgresStore)
    with pytest.raises(InvalidRequest, match="one worker's own"):
        opened(tmp_path, workers=2, store="memory")
    with pytest.raises(InvalidRequest, match="valkey://"):
        opened(tmp_path, store="http://example.com")


def test_the_slot_types_are_those_of_the_guards() -> None:
    assert SlotType.__args__ == SLOT_TYPES  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (SemanticCacheEntry, {"similarity_threshold": 0.0}),
        (SemanticCacheEntry, {"similarity_threshold": 1.01}),
        (SemanticCacheEntry, {"ttl_seconds": 0}),
        (SemanticCacheEntry, {"ttl_seconds": 10**9}),
        (SemanticCacheEntry, {"max_temperature": 2.1}),
        (SemanticCacheEntry, {"memory_mb": 0}),
        (SemanticCacheEntry, {"max_vectors": -1}),
        (SemanticCacheEntry, {"store": "disk"}),
        (RouteCacheEntry, {"ttl_seconds": -1}),
        (AuditEntry, {"share": 1.1}),
        (AuditEntry, {"limit": 0.0}),
        (AuditEntry, {"eur_per_day": -1}),
        (AuditEntry, {"keep": 0}),
    ],
)
def test_what_could_never_be_meant_is_refused(make: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        make(**values)


def test_names_that_are_none_are_told_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text("semantic_cache: {enabled: true, must_match: [number, color]}\n")
    with pytest.raises(InvalidRequest, match="colour"):
        read(path, SECTIONS).section("semantic_cache", SemanticCacheEntry)
