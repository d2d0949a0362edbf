"""What the gateway is doing at this moment, as metrics. Another thread reads it: copy first."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from packshot.gateway import names
from packshot.gateway.wire.pool import Pool
from packshot.state.limits import Limits

if TYPE_CHECKING:
    from packshot.gateway.app import Gateway
    from packshot.gateway.plan import Plan

__all__ = ["Gauges", "gauges_of", "local_limits_of"]

Gauges: TypeAlias = dict[str, dict[tuple[str, ...], float]]


def gauges_of(gateway: Gateway, limits: Limits) -> Gauges:
    """Return every gauge of a worker."""
    found: Gauges = {
        names.IN_FLIGHT.name: {(): gateway.in_flight},
        names.DRAINS.name: {(): len(gateway.drains)},
        names.LIMITS_AWAY.name: {(): int(getattr(limits, "is_open", False))},
    }
    if gateway.cache is not None:
        front = gateway.cache.front
        found[names.CACHE_ENTRIES.name] = {(): len(front)}
        found[names.CACHE_BYTES.name] = {(): front.size}
        found[names.CACHE_OFF.name] = {(route,): 1 for route in gateway.cache.off()}
    found |= _keys(gateway.plan)
    found |= _pools(gateway.plan)
    return found


def local_limits_of(limits: Limits) -> int:
    """Return how many limits were decided without the shared store."""
    return int(getattr(limits, "fallbacks", 0))


def _keys(plan: Plan) -> Gauges:
    now = monotonic()
    rests: dict[tuple[str, ...], float] = {}
    out: dict[tuple[str, ...], float] = {}
    opened: dict[tuple[str, ...], float] = {}
    for provider in plan.providers.values():
        for key in provider.keys:
            name = (provider.name, key.name)
            rests[name] = int(key.ready_at > now)
            if key.out:
                out[*name, key.out] = 1
            for model, breaker in list(key.breakers.items()):
                opened[*name, model] = int(breaker.open_until > now)
    return {names.KEY_RESTS.name: rests, names.KEY_OUT.name: out, names.BREAKER_OPEN.name: opened}


def _pools(plan: Plan) -> Gauges:
    connections: dict[tuple[str, ...], float] = {}
    waiting: dict[tuple[str, ...], float] = {}
    for provider in plan.providers.values():
        if isinstance(provider.upstream, Pool):
            stats = provider.upstream.stats
            connections[provider.name, "idle"] = stats.idle
            connections[provider.name, "busy"] = stats.in_flight
            waiting[provider.name,] = stats.waiting
    return {names.CONNECTIONS.name: connections, names.WAITING.name: waiting}
