"""A virtual key: as it is typed in packshot.yaml, and as it is asked what it may do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from packshot.core.clock import SECOND_US
from packshot.core.config import Secret
from packshot.core.errors import Forbidden, InvalidRequest
from packshot.gateway.addresses import Network, network_of, within

__all__ = [
    "LONGEST_SECRET",
    "SHORTEST_SECRET",
    "AccessEntry",
    "BudgetEntry",
    "DefaultsEntry",
    "LimitEntry",
    "VirtualKey",
    "VirtualKeyEntry",
    "is_secret",
    "micros_of",
    "virtual_key_of",
]

NO_SECRET = Secret()

SHORTEST_SECRET = 32
"""Characters of a secret that the operator chose: less could be guessed."""

LONGEST_SECRET = 512
"""Characters of what callers send: more is refused unread."""

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Ids and teams: they stand in logs, metrics and file names."""

MAX_PATTERNS = 256
"""Entries in each list of a virtual key."""

MOST_EUR = Decimal(10**9)
"""Above it an amount in nano-EUR nears what the store's integers hold."""

DECISIONS = 1024
"""What a key may, remembered: names come from callers, so no more than this."""


# ---------------------------------------------------------------- as typed in packshot.yaml
@dataclass(frozen=True, slots=True)
class LimitEntry:
    """What a virtual key may take in any minute; None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 53:
                raise InvalidRequest(f"{name} is 0 or more, got {value}")


@dataclass(frozen=True, slots=True)
class BudgetEntry:
    """What a virtual key may spend: ``eur`` per calendar period.

    ``unpriced`` "allow" lets calls pass whose price nobody knows, which no budget then bounds: for
    a key that calls models of one's own.
    """

    eur: Decimal
    per: Literal["hour", "day", "month", "ever"] = "month"
    unpriced: Literal["refuse", "allow"] = "refuse"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        _check_amount("eur", self.eur)


NO_LIMITS = LimitEntry()


@dataclass(frozen=True, slots=True)
class VirtualKeyEntry:
    """A caller's credential.

    ``models`` are routes and "provider/model" that it may ask for, ``routes`` routes alone, with
    ``*``; both empty: all. A route that it may ask for brings its own targets. ``keys`` are the
    named provider keys that make its calls ("openai/research", "anthropic/*"); empty: all, else no
    provider beside those. ``allow_ips`` are addresses or networks. ``expires`` is a day (UTC, its
    beginning) or an instant, in ISO 8601. ``max_cost_eur`` is the most that one call may cost.
    ``cache_group``: keys of one group share cached answers. ``content_log`` keeps what is asked and
    answered. ``value`` is the secret, of 32 characters or more; without one, ``packshot keys
    create`` issues it.
    """

    id: str
    team: str = ""
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    limits: LimitEntry = NO_LIMITS
    budget: BudgetEntry | None = None
    allow_ips: tuple[str, ...] = ()
    expires: str = ""
    tags: dict[str, str] = field(default_factory=dict[str, str])
    cache_group: str = ""
    content_log: bool = False
    max_cost_eur: Decimal | None = None
    value: Secret = NO_SECRET

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        for what, name in (("id", self.id), ("team", self.team), ("cache_group", self.cache_group)):
            if not IDENTIFIER.fullmatch(name) and (name or what == "id"):
                raise InvalidRequest(
                    f"{what} is 1 to 64 letters, digits, '.', '_', '-', and begins with a letter or"
                    f" a digit, got {name[:80]!r}"
                )
        for name in ("models", "routes", "keys", "allow_ips"):
            _check_patterns(name, getattr(self, name))
        if any("/" not in name for name in self.keys):
            raise InvalidRequest('keys are "provider/name", as in "openai/research"')
        for network in self.allow_ips:
            network_of(network, "allow_ips")
        if self.expires:
            micros_of(self.expires)
        if self.max_cost_eur is not None:
            _check_amount("max_cost_eur", self.max_cost_eur)
        tags = [f"{name}={value}" for name, value in self.tags.items()]
        if len(tags) > 16 or any(len(t) > 200 or "," in t or not t.isprintable() for t in tags):
            raise InvalidRequest("tags are at most 16 of printable text, without commas")
        if self.value and not is_secret(self.value.encode("utf-8", "replace")):
            raise InvalidRequest(
                f"value is {SHORTEST_SECRET} to {LONGEST_SECRET} printable ASCII characters without"
                " spaces: is the variable the right one? `packshot keys create` makes a good one"
            )


@dataclass(frozen=True, slots=True)
class DefaultsEntry:
    """What a virtual key gets that is issued without a budget, or without limits; None: none.

    So what a stolen or forgotten key can cost has a bound.
    """

    budget: BudgetEntry | None = field(default_factory=lambda: BudgetEntry(Decimal(10), "month"))
    limits: LimitEntry = LimitEntry(300, 500_000)


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """Who may call the gateway.

    ``pepper`` is what secrets are hashed with, the same on all replicas; without it, the file
    ``pepper_file`` (made where it is missing). ``admin_secret`` opens the admin API. ``defaults``
    are for keys that are issued, not for those that stand in the file.
    """

    virtual_keys: tuple[VirtualKeyEntry, ...] = ()
    pepper: Secret = NO_SECRET
    pepper_file: Path = Path()
    admin_secret: Secret = NO_SECRET
    defaults: DefaultsEntry = field(default_factory=DefaultsEntry)

    def __post_init__(self) -> None:
        """Refuse two keys of one name, and secrets that could be guessed."""
        seen: set[str] = set()
        for each in self.virtual_keys:
            if each.id in seen:
                raise InvalidRequest(f"two virtual keys have the id {each.id!r}")
            seen.add(each.id)
        for name in ("pepper", "admin_secret"):
            value: Secret = getattr(self, name)
            if value and not is_secret(value.encode("utf-8", "replace")):
                raise InvalidRequest(
                    f"{name} is {SHORTEST_SECRET} or more printable ASCII characters, no spaces"
                )


# ---------------------------------------------------------------- as it is used
@dataclass(frozen=True, slots=True, eq=False)
class VirtualKey:
    """Who calls, and what they may do. ``expires_at`` is in microseconds since 1970; 0: never.

    ``tags`` are "name=value", sorted. What is in `VirtualKeyEntry` is described there.
    """

    id: str
    team: str = ""
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    limits: LimitEntry = NO_LIMITS
    budget: BudgetEntry | None = None
    allow_ips: tuple[Network, ...] = ()
    expires_at: int = 0
    tags: tuple[str, ...] = ()
    cache_group: str = ""
    content_log: bool = False
    max_cost_eur: Decimal | None = None
    digest: bytes = field(default=b"", repr=False)
    """What its secret is found by; empty where the key store has it."""
    _known: dict[str, bool] = field(default_factory=dict[str, bool], repr=False)

    def permit(self, route: str, targets: Iterable[tuple[str, str]] = ()) -> None:
        """Let a call pass that names ``route``, or, where that is "", a target of its own.

        Raises:
            Forbidden: the key may not ask for it.
        """
        if not (self.models or self.routes or self.keys):
            return
        if route:
            if not self.permits_route(route):
                raise Forbidden(f"the virtual key {self.id!r} may not use the route {route!r}")
            return
        for provider, model in targets:
            if not self.may_use(provider, model):
                raise Forbidden(
                    f"the virtual key {self.id!r} may not use {provider}/{model[:100]}: it is not"
                    " among its models, or its keys name none of that provider"
                )

    def permits_route(self, route: str) -> bool:
        """Tell whether the key may ask for a route."""
        if not self.models and not self.routes:
            return True
        return self._matches("route:", route, (*self.models, *self.routes))

    def permits_target(self, provider: str, model: str) -> bool:
        """Tell whether the key may ask for a model by name."""
        if not self.models:
            return not self.routes
        return self._matches("target:", f"{provider}/{model}", self.models)

    def may_use(self, provider: str, model: str, route: str = "") -> bool:
        """Tell whether a call may go to a target: one of ``route``'s, or else named by itself."""
        if self.keys and not any(each.startswith(f"{provider}/") for each in self.keys):
            return False
        return self.permits_route(route) if route else self.permits_target(provider, model)

    def permits_raw(self, provider: str) -> bool:
        """Tell whether a provider may be called raw, where no model bounds what is asked for."""
        if self.keys and not any(each.startswith(f"{provider}/") for each in self.keys):
            return False
        if not self.models:
            return not self.routes
        return not {f"{provider}/*", "*", "*/*"}.isdisjoint(self.models)

    def may_see(self, name: str) -> bool:
        """Tell whether a route or "provider/model" belongs in this key's list of models."""
        provider, slash, model = name.partition("/")
        return self.may_use(provider, model) if slash else self.permits_route(name)

    def names_of(self, provider: str) -> Collection[str] | None:
        """Return the names of a provider's keys that may make the calls; None: all of them."""
        if not self.keys or f"{provider}/*" in self.keys:
            return None
        start = f"{provider}/"
        return [each.removeprefix(start) for each in self.keys if each.startswith(start)]

    def from_address(self, address: str) -> bool:
        """Tell whether the key may be used from an IP address."""
        if not self.allow_ips:
            return True
        found = self._known.get(f"ip:{address}")
        if found is None:
            found = within(address, self.allow_ips)
            self._remember(f"ip:{address}", found=found)
        return found

    def _matches(self, kind: str, name: str, patterns: Sequence[str]) -> bool:
        found = self._known.get(kind + name)
        if found is None:
            found = any(fnmatchcase(name, pattern) for pattern in patterns)
            self._remember(kind + name, found=found)
        return found

    def _remember(self, what: str, *, found: bool) -> None:
        if len(self._known) < DECISIONS:
            self._known[what] = found


def virtual_key_of(entry: VirtualKeyEntry, digest: bytes = b"") -> VirtualKey:
    """Return what an entry says, without its secret."""
    return VirtualKey(
        entry.id,
        entry.team,
        entry.models,
        entry.routes,
        entry.keys,
        entry.limits,
        entry.budget,
        tuple(network_of(each, "allow_ips") for each in entry.allow_ips),
        micros_of(entry.expires) if entry.expires else 0,
        tuple(sorted(f"{name}={value}" for name, value in entry.tags.items())),
        entry.cache_group,
        entry.content_log,
        entry.max_cost_eur,
        digest,
    )


def is_secret(value: bytes) -> bool:
    """Tell whether a secret can be sent in a header, and is long enough not to be guessed."""
    printable = all(33 <= each <= 126 for each in value)
    return printable and SHORTEST_SECRET <= len(value) <= LONGEST_SECRET


def micros_of(text: str) -> int:
    """Return a day or instant of ISO 8601 in microseconds since 1970; without a zone it is UTC.

    Raises:
        InvalidRequest: it is neither.
    """
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return int(at.timestamp() * SECOND_US)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"expected a day or an instant like 2027-01-31 or 2027-01-31T12:00+01:00, got {text!r}"
        ) from error


# ---------------------------------------------------------------- parts
def _check_amount(name: str, eur: Decimal) -> None:
    if not eur.is_finite() or not 0 <= eur <= MOST_EUR:
        raise InvalidRequest(f"{name} is 0 to {MOST_EUR} euro, got {eur}")


def _check_patterns(name: str, patterns: Sequence[str]) -> None:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"{name} has at most {MAX_PATTERNS} entries, got {len(patterns)}")
    for each in patterns:
        if not each or len(each) > 200 or not each.isprintable():
            raise InvalidRequest(f"{name} are 1 to 200 printable characters, got {each[:80]!r}")
