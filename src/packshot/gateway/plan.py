"""From settings to what a call can use: providers with their keys, targets, and named routes.

A `Plan` is built whole or not at all, and never changed: a reload builds another. What is learned
about a key (its cooldown, its breakers) is carried over where provider and key are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.gateway.cache.embedding_models import asked_model
from packshot.gateway.cache.settings import SemanticCacheEntry
from packshot.gateway.keys import Key, Keys
from packshot.gateway.retry import RetryBudget
from packshot.gateway.settings import (
    GatewaySettings,
    KeyEntry,
    ModelEntry,
    ProviderEntry,
    RouteEntry,
)
from packshot.gateway.wire.lines import lines_of
from packshot.gateway.wire.upstream import Origin, Timeouts, Upstream
from packshot.providers.base import SURFACES, Exchange, Surface
from packshot.providers.exchanges import exchange_of
from packshot.providers.rows import COMPATIBLE, ROWS, Row, row_of

__all__ = ["Plan", "Provider", "Route", "Target", "build_plan"]

UNBUILT = frozenset({"fal", "replicate"})
"""Providers of pictures that the configuration may name already."""

MAX_TARGETS = 2048
"""Targets that callers named themselves and that are remembered, per plan."""


@dataclass(slots=True, eq=False)
class Provider:
    """A provider as configured. ``name`` is the operator's, ``price_as`` the price book's."""

    name: str
    row: Row
    entry: ProviderEntry
    origin: Origin
    keys: Keys
    timeouts: Timeouts
    budget: RetryBudget
    price_as: str
    exchanges: Mapping[Surface, Exchange]
    upstream: Upstream | None = None
    """Its connections: set by whoever runs the event loop."""

    @property
    def connections(self) -> Upstream:
        """Return its connections; there are some from the gateway's start on."""
        if self.upstream is None:
            raise RuntimeError(f"provider {self.name} is used before the gateway was started")
        return self.upstream

    @property
    def drains(self) -> bool:
        """Whether a stream is read to its end although its caller is gone."""
        return (self.entry.network.on_hangup or self.row.on_hangup) == "drain"


@dataclass(slots=True, eq=False)
class Target:
    """A model of a provider: what a call is sent to."""

    provider: Provider
    model: str
    entry: ModelEntry
    latency_s: float = 0.0
    """A moving average of the time to the first byte; 0 before the first answer."""
    in_flight: int = 0
    paths: dict[str, bytes] = field(default_factory=dict[str, bytes])
    told: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def path(self, suffix: str) -> bytes:
        """Return path and query of a call, made once."""
        found = self.paths.get(suffix)
        if found is None:
            found = self.paths[suffix] = self.provider.row.target(suffix, self.model)
        return found

    def told_of(self, key: str) -> bytes:
        """Return the header lines that tell a caller who answered, made once for each key."""
        found = self.told.get(key)
        if found is None:
            names = {"provider": self.provider.name, "model": self.model, "key": key}
            found = self.told[key] = lines_of(
                (b"x-packshot-" + what.encode(), name.encode("latin-1", "replace"))
                for what, name in names.items()
            )
        return found

    @property
    def name(self) -> str:
        """Return "provider/model"."""
        return f"{self.provider.name}/{self.model}"

    def answered(self, seconds: float) -> None:
        """Take a time to the first byte into the average: at once when it rose (peak EWMA)."""
        if seconds > self.latency_s:
            self.latency_s = seconds
        else:
            self.latency_s += 0.1 * (seconds - self.latency_s)


@dataclass(frozen=True, slots=True)
class Route:
    """Targets in the order in which they are tried. ``id`` is "" for one that has no name."""

    id: str
    targets: tuple[Target, ...]
    fastest: bool = False
    hedge_s: float = 0.0


@dataclass(slots=True, eq=False)
class Plan:
    """All that calls are routed by."""

    providers: Mapping[str, Provider]
    routes: Mapping[str, Route]
    fallbacks: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    """What is configured, and not built yet or not going to work: told at start."""
    unbuilt: frozenset[str] = frozenset()
    """Providers that are configured and to which no call goes yet."""
    _named: dict[str, Route] = field(default_factory=dict[str, Route])

    def route(
        self,
        model: str,
        surface: Surface,
        prefix: str = "",
        may_see: Callable[[str], bool] = bool,
    ) -> Route:
        """Return the route that a caller's ``model`` means: a route's id, "provider/model", or a
        bare model of the provider in the path's ``prefix``, or of the surface's own provider.

        Raises:
            InvalidRequest: no such route or provider; the message lists what there is that the
                caller ``may_see``.
        """
        # A name of the second kind is that of a provider's model, whatever else was asked.
        found = self.routes.get(model) or self._named.get(model)
        if found is not None:
            return found
        provider, slash, rest = model.partition("/")
        if slash and provider in self.unbuilt:
            raise InvalidRequest(f"provider {provider} is configured but not built yet")
        if not (slash and provider in self.providers):
            provider, rest = prefix or self._home(surface, model, may_see), model
        name = f"{provider}/{rest}"
        route = self._named.get(name)
        if route is None:
            targets = [name, *self.fallbacks.get(name, ())]
            route = Route("", tuple(self.target(each) for each in targets))
            if len(self._named) < MAX_TARGETS:
                self._named[name] = route
        return route

    def knows(self, name: str) -> bool:
        """Tell whether this is a route's id, or a model of a provider that is configured."""
        return name in self.routes or name.partition("/")[0] in self.providers

    def names(self) -> list[str]:
        """Return what a caller may ask for by name: routes, and the models that are configured."""
        models = [f"{p.name}/{model}" for p in self.providers.values() for model in p.entry.models]
        targets = [target.name for route in self.routes.values() for target in route.targets]
        return list(dict.fromkeys([*self.routes, *models, *targets, *self.fallbacks]))

    def target(self, name: str) -> Target:
        """Return the target "provider/model"."""
        provider, _, model = name.partition("/")
        found = self.providers.get(provider)
        if found is None:
            raise unknown_name("provider", provider, self.providers)
        if not model or len(model) > 200 or not model.isprintable():
            raise InvalidRequest(f"a target is provider/model, got {name[:220]!r}")
        return Target(found, model, found.entry.models.get(model, ModelEntry()))

    def _home(self, surface: Surface, model: str, may_see: Callable[[str], bool]) -> str:
        api = "anthropic" if surface in {"messages", "count_tokens"} else "openai"
        for provider in (api, *self.providers):
            found = self.providers.get(provider)
            if found is not None and found.row.api == api:
                return provider
        known = filter(may_see, [*self.routes, *(f"{name}/…" for name in self.providers)])
        raise InvalidRequest(
            f"no provider here serves a model by its bare name {model[:100]!r}; write "
            f"provider/model, or a route: {', '.join(known) or 'there is none for this key'}"
        )


def build_plan(settings: GatewaySettings, before: Plan | None = None) -> Plan:
    """Build the plan of a configuration; ``before`` is the plan that it replaces.

    Raises:
        InvalidRequest: a route names a provider that there is not, twice the same id, and so on.
    """
    providers = {
        name: _provider(name, entry, None if before is None else before.providers.get(name))
        for name, entry in settings.providers.items()
        if not _is_unbuilt(name, entry)
    }
    fallbacks = _fallbacks(settings)
    unbuilt = frozenset(settings.providers).difference(providers)
    plan = Plan(providers, {}, fallbacks, _notes(settings, providers), unbuilt)
    routes: dict[str, Route] = {}
    for entry in settings.routes:
        if entry.id in routes:
            raise InvalidRequest(f"two routes have the id {entry.id!r}: rename one")
        if "/" in entry.id or not entry.id:
            raise InvalidRequest(f"a route's id has no slash and is not empty, got {entry.id!r}")
        with _told_at(f"routes, {entry.id}"):
            routes[entry.id] = _route(plan, entry)
    for primary, others in fallbacks.items():
        with _told_at(f"fallbacks, {primary}"):
            for name in (primary, *others):
                plan.target(name)
    plan.routes = routes
    if settings.semantic_cache.embeddings.asked:
        asked_model(settings.semantic_cache.embeddings, plan)
    judge = settings.semantic_cache.audit.judge.route
    if judge and not plan.knows(judge):
        raise unknown_name("route of semantic_cache.audit.judge", judge, plan.names())
    return plan


@contextmanager
def _told_at(place: str) -> Generator[None]:
    """Say of a mistake where in the file it stands."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error}") from error


def _is_unbuilt(name: str, entry: ProviderEntry) -> bool:
    return (entry.kind or name) in UNBUILT


def _notes(settings: GatewaySettings, providers: Mapping[str, Provider]) -> tuple[str, ...]:
    """Return what the operator may believe to be at work, and is not."""
    notes = [
        f"providers.{name} is read but not built yet: no call goes there"
        for name, entry in settings.providers.items()
        if _is_unbuilt(name, entry)
    ]
    if (note := _of_model(settings.semantic_cache)) is not None:
        notes.append(note)
    embeddings = settings.semantic_cache.embeddings
    if embeddings.asked and embeddings.account in {k.id for k in settings.access.virtual_keys}:
        notes.append(
            f"semantic_cache.embeddings.account: {embeddings.account!r} is a caller's virtual key, "
            "whose budget pays for the vectors of all; name another"
        )
    notes += [
        f"semantic_cache.routes.{route} is no route's id: nothing is cached by it"
        for route in settings.semantic_cache.routes
        if route not in {entry.id for entry in settings.routes}
    ]
    notes += [
        f"providers.{name} has no keys: calls to it are refused there"
        for name, provider in providers.items()
        if not provider.entry.keys and not provider.row.keyless
    ]
    return tuple(notes)


def _of_model(cache: SemanticCacheEntry) -> str | None:
    """Say where the semantic tier has no model to compare requests with."""
    if not (cache.enabled and cache.semantic) or cache.embeddings.asked:
        return None
    try:
        from packshot.gateway.cache.minilm import default_folder
    except ImportError as error:
        return (
            f"semantic_cache: only identical requests are answered from the cache: {error}; "
            "in a checkout, ./packshot cache model mends it; else pip install 'packshot[embed]'"
        )
    folder = cache.model if cache.model.name else default_folder()
    if (folder / "manifest.json").is_file():
        return None
    return (
        f"semantic_cache: no embedding model in {folder}: identical requests are answered from the "
        "cache, similar ones are not; `packshot cache model` makes it, `semantic: false` is silent"
    )


def _route(plan: Plan, entry: RouteEntry) -> Route:
    names = [entry.primary, *entry.fallbacks]
    if not entry.fallbacks:
        names += plan.fallbacks.get(entry.primary, ())
    targets = tuple(plan.target(name) for name in names)
    return Route(entry.id, targets, entry.balance == "fastest", entry.hedge_after_ms / 1000.0)


def _fallbacks(settings: GatewaySettings) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for entry in settings.fallbacks:
        if entry.primary in found:
            raise InvalidRequest(f"two fallbacks have the primary {entry.primary!r}: join them")
        found[entry.primary] = entry.others
    return found


def _provider(name: str, entry: ProviderEntry, old: Provider | None) -> Provider:
    if not name.isascii() or "/" in name or not name:
        raise InvalidRequest(f"a provider's name is ASCII without a slash, got {name!r}")
    kind = entry.kind or (name if name in ROWS or not entry.base_url else COMPATIBLE.name)
    with _told_at(f"providers.{name}"):
        row = row_of(
            kind,
            entry.base_url or None,
            name=name,
            api_version=entry.api_version,
            allow_http=entry.network.allow_http,
        )
    at = row.address
    ca = str(entry.network.ca) if entry.network.ca.name else ""
    if ca and not entry.network.ca.is_file():
        raise InvalidRequest(f"providers.{name}.network.ca: there is no file {ca}")
    times = entry.network.timeouts
    keys = Keys([_key(name, row, at, each) for at, each in enumerate(entry.keys)] or _keyless(row))
    origin = Origin(at.scheme, at.host, at.port, ca)
    provider = Provider(
        name,
        row,
        entry,
        origin,
        keys.remember(old.keys if old else None),
        Timeouts(times.connect_s, times.first_byte_s, times.idle_s),
        old.budget if old else RetryBudget(),
        name if entry.base_url else kind,
        {each: found for each in SURFACES if (found := exchange_of(each, row)) is not None},
    )
    if old is not None and old.origin == origin and old.entry.network == entry.network:
        provider.upstream = old.upstream
    return provider


def _key(provider: str, row: Row, at: int, entry: KeyEntry) -> Key:
    name = entry.name or f"key-{at + 1}"
    return Key(provider, name, _lines(row, entry.value), entry.weight, entry.models)


def _keyless(row: Row) -> list[Key]:
    return [Key(row.name, "none", _lines(row, ""))] if row.keyless else []


def _lines(row: Row, key: str) -> bytes:
    """Return the header lines of every call with a key."""
    always = f"content-type: {row.content_type}\r\nuser-agent: packshot\r\n"
    return row.header_lines(key) + always.encode("ascii")
