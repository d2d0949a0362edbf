"""One worker process of the gateway: built from the configuration, replaced in part by a reload.

A reload builds the new plan and keys first; where the file has a mistake, nothing changes. Calls
under way keep what they began with. What a reload cannot change (ports, workers, the ledger's
store) is said in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from packshot.core.clock import wall_us
from packshot.core.errors import InvalidRequest, OutputError, Unbounded
from packshot.core.money import nanos_of
from packshot.gateway.access import Access, VirtualKey, load_pepper, open_access, pepper_path
from packshot.gateway.app import Gateway
from packshot.gateway.drainer import Drainer
from packshot.gateway.gauges import gauges_of, local_limits_of
from packshot.gateway.intake import Receive, Scope
from packshot.gateway.limiter import Limiter
from packshot.gateway.log import secrets_in
from packshot.gateway.money import Money
from packshot.gateway.plan import Plan, Provider, build_plan
from packshot.gateway.relay import Send
from packshot.gateway.settings import GatewaySettings, ServerEntry, load_gateway
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.wire.cycle import Cycle
from packshot.gateway.wire.later import Later
from packshot.gateway.wire.pool import Pool, PoolLimits
from packshot.gateway.wire.upstream import Upstream
from packshot.ledger.caps import Cap
from packshot.ledger.ledger import Ledger, caps_of, open_ledger
from packshot.ledger.prices.book import PriceBook, book_of
from packshot.ledger.settings import Settings as LedgerSettings
from packshot.ledger.settings import load_settings
from packshot.state.limits import Limits, MemoryLimits

__all__ = ["Worker", "all_caps"]

THREADS = 64
"""Calls of one worker that may wait for a disk or a database at the same time."""

TICK_S = 1.0
"""How often holds that expired are settled and idle slices of budgets given back."""


class Worker:
    """An ASGI application that is started, reloaded and stopped.

    Args:
        path: the configuration file.
        name: this worker's name among the journals, stable over restarts ("gateway-0").
        drains: keep a process beside this one that moves the journals into the store.
    """

    def __init__(self, path: Path, name: str = "gateway-0", *, drains: bool = False) -> None:
        self.path = path
        self._drainer = Drainer(path) if drains else None
        self.name = name
        self.telemetry = Telemetry(name)
        self._gateway: Gateway | None = None
        self._ledger: Ledger | None = None
        self._access: Access | None = None
        self._limits: Limits | None = None
        self._money = LedgerSettings()
        self._ticks: asyncio.Task[None] | None = None
        self._changing = threading.Lock()
        """Caps come from the file and from the key store: who read one before must not set them
        after who has read the other since."""

    @property
    def gateway(self) -> Gateway:
        """Return the gateway; there is one after `start`."""
        if self._gateway is None:
            raise RuntimeError("the worker is not started")
        return self._gateway

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        return (self._gateway or self.gateway)(scope, receive, send)

    def serve(self, cycle: Cycle) -> Awaitable[None] | None:
        """Serve a call of a model; None for any other request, which is ASGI's."""
        return (self._gateway or self.gateway).serve(cycle)

    async def start(self) -> None:
        """Open the ledger, the keys and the limits.

        Raises:
            InvalidRequest, OutputError: the configuration has a mistake.
            LedgerUnavailable: money cannot be booked.
        """
        try:
            await self._begin()
        except BaseException:
            # Its thread would end with the process, and nobody would be told why there is no start.
            await asyncio.to_thread(self.telemetry.stop)
            raise

    async def _begin(self) -> None:
        settings, money_settings = load_gateway(self.path), load_settings(self.path)
        # What waits for a database waits here: the usual handful of threads would all be taken by
        # the calls of one second, and the rest would wait for them.
        threads = ThreadPoolExecutor(THREADS, "ledger")
        asyncio.get_running_loop().set_default_executor(threads)
        plan = build_plan(settings)
        self._money = money_settings
        book = book_of(money_settings)
        self._access = await asyncio.to_thread(open_access, settings, money_settings)
        secrets = all_secrets(settings, money_settings)
        await asyncio.to_thread(self.telemetry.start, settings, secrets)
        self.telemetry.admit(plan)
        caps = all_caps(money_settings, self._access.virtual_keys())
        self._ledger = await asyncio.to_thread(
            open_ledger,
            money_settings,
            book,
            self.name,
            caps=caps,
            idempotency=settings.server.idempotency,
        )
        await asyncio.to_thread(warm, book, plan)
        connect(plan)
        self._limits = open_limits(settings.server)
        self._gateway = Gateway(
            settings,
            plan,
            self._access,
            Limiter(self._limits),
            Money(self._ledger, book, longest_s=settings.server.ledger_wait_s),
            self.telemetry,
        )
        if settings.semantic_cache.enabled:
            from packshot.gateway.cache.opening import open_cache

            here = self._gateway
            here.cache = await open_cache(
                settings, here.dispatcher, self.telemetry, lambda: here.plan
            )
            here.cache.avoided = self._ledger.avoided
        gateway, limits = self._gateway, self._limits
        self.telemetry.watch(lambda: gauges_of(gateway, limits), lambda: local_limits_of(limits))
        self._access.on_change(self._keys_changed)
        self._keys_changed()  # some may have come since the caps were read
        self._ticks = asyncio.create_task(self._tick())
        if self._drainer is not None:
            await self._drainer.start()

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; return what is to be told of it.

        Raises:
            InvalidRequest, OutputError: it has a mistake; nothing has changed.
        """
        gateway = self.gateway
        settings, money_settings = load_gateway(self.path), load_settings(self.path)
        plan = build_plan(settings, gateway.plan)
        notes = [*plan.notes]
        if settings.server != gateway.settings.server:
            notes.append("server: a change there needs a restart; the old values are kept")
            settings = replace(settings, server=gateway.settings.server)
        if settings.telemetry != gateway.settings.telemetry:
            notes.append("telemetry: a change there needs a restart; the old values are kept")
            settings = replace(settings, telemetry=gateway.settings.telemetry)
        if settings.semantic_cache != gateway.settings.semantic_cache:
            notes.append("semantic_cache: a change there needs a restart; the old values are kept")
            settings = replace(settings, semantic_cache=gateway.settings.semantic_cache)
        self.telemetry.redactor.learn(all_secrets(settings, money_settings))
        self.telemetry.admit(plan)
        if replace(money_settings, caps=()) != replace(self._money, caps=()):
            notes.append("ledger: a change there needs a restart, except of caps")
            money_settings = replace(self._money, caps=money_settings.caps)
        connect(plan)
        with self._changing:
            if self._access is not None:
                # The last that can fail: what is new is new in all parts, or in none.
                self._set_caps(all_caps(money_settings, self._access.virtual_keys(settings.access)))
                self._access.replace(settings.access)
            self._money = money_settings
        old, gateway.plan, gateway.settings = gateway.plan, plan, settings
        kept = {id(provider.upstream) for provider in plan.providers.values()}
        for provider in old.providers.values():
            if provider.upstream is not None and id(provider.upstream) not in kept:
                asyncio.get_running_loop().call_later(
                    provider.entry.network.timeouts.total_s, _close_later, provider.upstream
                )
        return tuple(notes)

    def drain(self) -> None:
        """Say no to readiness probes from now on."""
        self.gateway.draining = True

    async def stop(self, grace_s: float) -> None:
        """Close the books; no call comes any more."""
        gateway = self.gateway
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await gateway.drains.close()
        if self._ticks is not None:
            self._ticks.cancel()
        if gateway.cache is not None:
            await gateway.cache.aclose()
        for provider in gateway.plan.providers.values():
            if provider.upstream is not None:
                await provider.upstream.close()
        if self._limits is not None:
            await self._limits.aclose()
        await asyncio.sleep(0)  # cancelled calls settle themselves
        if self._access is not None:
            await asyncio.to_thread(self._access.close)
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)
        if self._drainer is not None:
            await self._drainer.stop(grace_s)
        await asyncio.to_thread(self.telemetry.stop)

    def _keys_changed(self) -> None:
        """Virtual keys were made, changed or revoked: their budgets and limits are read anew."""
        if self._access is not None:
            # The file is not looked at: it may be in the middle of a change, or wrong.
            with self._changing:
                self._set_caps(all_caps(self._money, self._access.virtual_keys()))

    def _set_caps(self, caps: Sequence[Cap]) -> None:
        if self._ledger is not None:
            self._ledger.replace_caps(caps)
        self.gateway.forget_limits()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._ledger is not None:
                await self._told(asyncio.to_thread(self._ledger.tick))
            if self.gateway.cache is not None:
                await self._told(self.gateway.cache.tick())

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what comes again; where it fails, the log has it, or money stayed held for ever."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - it goes on
            self.telemetry.error(None, error)


def all_caps(settings: LedgerSettings, keys: Iterable[VirtualKey]) -> list[Cap]:
    """Return the caps of the ledger's section and the budgets of the virtual keys.

    Where the section has a cap on a virtual key, too, for the same period, the stricter one holds:
    a key can be issued at any time, and must not put out of force what the others may spend.
    """
    budgets = [
        Cap(
            "virtual_key",
            key.id,
            nanos_of(key.budget.eur),
            key.budget.per,
            key.budget.unpriced,
        )
        for key in keys
        if key.budget is not None
    ]
    found = {(cap.scope, cap.name, cap.per): cap for cap in caps_of(settings)}
    for cap in budgets:
        place = (cap.scope, cap.name, cap.per)
        other = found.get(place, cap)
        found[place] = replace(
            cap,
            limit=min(cap.limit, other.limit),
            unpriced="refuse" if "refuse" in {cap.unpriced, other.unpriced} else "allow",
        )
    return list(found.values())


def all_secrets(settings: GatewaySettings, money: LedgerSettings) -> list[str]:
    """Return every secret that this process knows, so that no log shows it."""
    pepper = load_pepper(settings.access, pepper_path(settings))
    return [*secrets_in(settings), *secrets_in(money), pepper.decode("utf-8", "replace")]


def warm(book: PriceBook, plan: Plan) -> None:
    """Look up what the first calls would: the snapshot of prices takes a tenth of a second."""
    at = wall_us()
    for route in plan.routes.values():
        for target in route.targets:
            with contextlib.suppress(Unbounded):
                book.bound(target.provider.price_as, target.model, at, body_bytes=1)
    for provider in plan.providers.values():
        with contextlib.suppress(Unbounded):
            book.bound(provider.price_as, "", at, body_bytes=1)


def connect(plan: Plan) -> None:
    """Give each provider its connections; call it in the event loop that will use them."""
    for provider in plan.providers.values():
        if provider.upstream is None:
            provider.upstream = _upstream(provider)


def open_limits(server: ServerEntry) -> Limits:
    """Return where requests and tokens per minute are counted."""
    where = server.limits or ("shared" if server.workers > 1 else "memory")
    if where == "memory":
        if server.workers > 1:
            raise InvalidRequest('limits: memory is one worker\'s own; with more, write "shared"')
        return MemoryLimits()
    if where == "shared":
        from packshot.state.shared import SharedLimits

        return SharedLimits(server.folder / "limits")
    from packshot.state.valkey import ValkeyLimits

    return ValkeyLimits(where, server.replicas * server.workers)


def _upstream(provider: Provider) -> Upstream:
    """Return the connections of a provider, which may answer some calls later."""
    pool, row = _pool(provider), provider.row
    if not row.later:
        return pool
    at = row.address.path
    paths = frozenset(f"{at}{path}".encode("ascii") for path in row.later)
    return Later(pool, paths, f"{at}{row.results}".encode("ascii"))


def _pool(provider: Provider) -> Upstream:
    network = provider.entry.network
    limits = PoolLimits(connections=network.max_connections)
    if network.proxy:
        from packshot.gateway.wire.aio import AioPool

        return AioPool(provider.origin, limits, network.proxy)
    try:
        return Pool(provider.origin, limits)
    except OSError as error:  # of ssl, about the file of certificates
        raise OutputError(f"providers.{provider.name}.network.ca: {error}") from error


def _close_later(upstream: Upstream) -> None:
    asyncio.get_running_loop().create_task(upstream.close())
