"""From the section ``semantic_cache`` to a worker's response cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from packshot.core.databases import POSTGRES
from packshot.core.errors import InvalidRequest, ModelNotFound
from packshot.gateway.cache.audit_log import AuditLog
from packshot.gateway.cache.cache import ResponseCache
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.settings import JudgeEntry, SemanticCacheEntry
from packshot.gateway.cache.store import MemoryStore, Neighbours, Store
from packshot.gateway.dispatch import Dispatcher
from packshot.gateway.settings import GatewaySettings
from packshot.gateway.telemetry import Telemetry

if TYPE_CHECKING:
    from packshot.gateway.cache.judge import Judge
    from packshot.gateway.cache.semantic import Semantic
    from packshot.gateway.plan import Plan

__all__ = ["ANSWERS", "AUDIT", "open_cache"]

ANSWERS = "answers.db"
AUDIT = "cache-audit.db"
"""Files of the state folder: answers, and the checks of semantic hits."""


async def open_cache(
    settings: GatewaySettings,
    dispatcher: Dispatcher,
    telemetry: Telemetry,
    plan: Callable[[], Plan] | None = None,
) -> ResponseCache:
    """Open the cache of one worker; ``plan`` returns the gateway's current one.

    Raises:
        StateUnavailable: its file cannot be used.
        InvalidRequest: the store's address is none.
        ModelCorrupt: the embedding model is not the one that was made.
    """
    entry = settings.semantic_cache
    if entry.store == "memory" and settings.server.workers > 1:
        raise InvalidRequest(
            "semantic_cache.store: memory is one worker's own, and what is purged would stay in the"
            ' others; with more workers leave it out, for a file, or set "valkey://host"'
        )
    back, far = await asyncio.to_thread(_stores, entry, settings.server.folder)
    front = MemoryStore(entry.memory_mb << 20)
    tier: Semantic | None = None
    if entry.embeddings.asked and plan is not None:
        tier = _asking_tier(entry, plan, dispatcher, telemetry, far)
    else:
        tier = await asyncio.to_thread(_tier, entry, telemetry, far)
    cache = ResponseCache(entry, dispatcher, telemetry, front, back=back, tier=tier)
    if tier is not None and entry.audit.share:
        from packshot.gateway.cache.audit import Auditor

        log = await asyncio.to_thread(AuditLog, settings.server.folder / AUDIT, entry.audit.keep)
        judge = _judge(entry.audit.judge, plan, dispatcher)
        parts = (dispatcher, tier.embedder, telemetry)
        cache.shadow = Auditor(entry.audit, log, *parts, judge=judge)
    await cache.tick()
    return cache


def _stores(entry: SemanticCacheEntry, folder: Path) -> tuple[Store | None, Neighbours | None]:
    """Return what lies behind the memory, and the same where it searches vectors itself."""
    size = entry.file_mb << 20
    if not entry.store:
        return FileStore(folder / ANSWERS, size), None
    if entry.store == "memory":
        return None, None
    is_database = entry.store.startswith(POSTGRES)
    try:
        if is_database:
            from packshot.gateway.cache.postgres_store import PostgresStore

            store = PostgresStore(entry.store, size)
            return store, store
        from packshot.gateway.cache.valkey_store import ValkeyStore

        return ValkeyStore(entry.store, size, most_news=entry.max_vectors), None
    except ImportError as error:
        extra = "postgres" if is_database else "shared"
        raise InvalidRequest(
            f"semantic_cache.store: {error}: pip install 'packshot[{extra}]'"
        ) from error


def _asking_tier(
    entry: SemanticCacheEntry,
    plan: Callable[[], Plan],
    dispatcher: Dispatcher,
    telemetry: Telemetry,
    far: Neighbours | None,
) -> Semantic | None:
    """Return the semantic tier whose vectors a provider makes; None where there is to be none."""
    if not _wanted(entry):
        return None
    from packshot.gateway.cache.embed_route import RouteEmbedder
    from packshot.gateway.cache.semantic import LONGEST_S, Semantic

    embedder = RouteEmbedder(entry.embeddings, plan, dispatcher, telemetry)
    longest_s = embedder.deadline_s + LONGEST_S
    tell = partial(telemetry.error, None)
    return Semantic(embedder, entry.max_vectors, tell, far=far, longest_s=longest_s)


def _wanted(entry: SemanticCacheEntry) -> bool:
    """Tell whether any route has a semantic tier."""
    by_route = any(route.semantic for route in entry.routes.values())
    return entry.max_vectors > 0 and (entry.semantic or by_route)


def _judge(
    entry: JudgeEntry, plan: Callable[[], Plan] | None, dispatcher: Dispatcher
) -> Judge | None:
    """Return who judges checked hits; None for the machine alone."""
    if not entry.route or plan is None:
        return None
    from packshot.gateway.cache.judge import Judge

    return Judge(entry, plan, dispatcher)


def _tier(
    entry: SemanticCacheEntry, telemetry: Telemetry, far: Neighbours | None
) -> Semantic | None:
    """Return the semantic tier; None where there is to be none, or no model (`plan` says so)."""
    if not _wanted(entry):
        return None
    tell = partial(telemetry.error, None)
    try:
        from packshot.gateway.cache.embed import MiniLM, Offloaded
        from packshot.gateway.cache.minilm import default_folder
        from packshot.gateway.cache.semantic import Semantic

        model = MiniLM(entry.model if entry.model.name else default_folder())
    except ModelNotFound:
        return None
    except ImportError as error:
        tell(InvalidRequest(f"semantic_cache: {error}: pip install 'packshot[embed]'"))
        return None
    return Semantic(Offloaded(model), entry.max_vectors, tell, far=far)
