"""Virtual keys: who calls, and what they may do.

A virtual key's secret is 256 random bits, shown once and kept nowhere: what is stored, and looked
up, is its HMAC-SHA-256 with a pepper that lies apart from it (a file of 0600, or the environment).
Keys that are written in packshot.yaml and keys that were issued (`packshot.gateway.keystore`) are
one set: a key of the file without a ``value`` gets its secret from ``packshot keys create``, and
what it may do from the file.

Where there is no key at all, callers on this machine need none: the gateway is as open as the
providers' keys in its environment are.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.config import Secret
from packshot.core.errors import (
    Forbidden,
    InvalidRequest,
    OutputError,
    RateLimited,
    Saturated,
    Unauthorized,
)
from packshot.state.limits import Ask, MemoryLimits, Rule

__all__ = [
    "Access",
    "AccessEntry",
    "BudgetEntry",
    "Hasher",
    "Issued",
    "LimitEntry",
    "VirtualKey",
    "VirtualKeyEntry",
    "is_secret",
    "load_pepper",
    "micros_of",
    "new_secret",
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

FAILURES = Rule(20, 60.0)
"""Failed log-ins of one address, after which it hears 429. A good key is let through all the same:
nobody can lock out those who share an address with them, and 256 bits are not guessed."""

FAILURE_ADDRESSES = 4096
LOOPBACK = frozenset(("127.0.0.1", "::1", "::ffff:127.0.0.1", ""))
"""Callers on this machine; "" is a local socket."""

MOST_EUR = Decimal(10**9)
"""Above it an amount in nano-EUR nears what the store's integers hold."""

DECISIONS = 1024
"""What a key may, remembered: names come from callers, so no more than this."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


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
    """What a virtual key may spend: ``eur`` per calendar period."""

    eur: Decimal
    per: Literal["hour", "day", "month", "ever"] = "month"

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
            _network(network)
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
class AccessEntry:
    """Who may call the gateway.

    ``pepper`` is what secrets are hashed with, the same on all replicas; without it, the file
    ``pepper_file`` (made where it is missing). ``admin_secret`` opens the admin API.
    """

    virtual_keys: tuple[VirtualKeyEntry, ...] = ()
    pepper: Secret = NO_SECRET
    pepper_file: Path = Path()
    admin_secret: Secret = NO_SECRET

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

    def permits_key(self, provider: str, name: str) -> bool:
        """Tell whether a provider's named key may make this key's calls."""
        return not self.keys or not {f"{provider}/{name}", f"{provider}/*"}.isdisjoint(self.keys)

    def may_use(self, provider: str, model: str, route: str = "") -> bool:
        """Tell whether a call may go to a target: one of ``route``'s, or else named by itself."""
        if self.keys and not any(each.startswith(f"{provider}/") for each in self.keys):
            return False
        return self.permits_route(route) if route else self.permits_target(provider, model)

    def may_see(self, name: str) -> bool:
        """Tell whether a route or "provider/model" belongs in this key's list of models."""
        provider, slash, model = name.partition("/")
        return self.may_use(provider, model) if slash else self.permits_route(name)

    def names_of(self, provider: str) -> Collection[str]:
        """Return the names of a provider's keys that may make the calls; empty: all of them.

        A provider of which `may_use` says no has none.
        """
        if not self.keys or f"{provider}/*" in self.keys:
            return ()
        start = f"{provider}/"
        return [each.removeprefix(start) for each in self.keys if each.startswith(start)]

    def from_address(self, address: str) -> bool:
        """Tell whether the key may be used from an IP address."""
        if not self.allow_ips:
            return True
        found = self._known.get(f"ip:{address}")
        if found is None:
            try:
                ip = ipaddress.ip_address(address)
            except ValueError:
                return False
            ip = getattr(ip, "ipv4_mapped", None) or ip
            found = any(ip in each for each in self.allow_ips)
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


NOBODY = VirtualKey("anonymous")
"""Who calls from this machine where there is no virtual key at all."""


@dataclass(slots=True, eq=False)
class Issued:
    """The keys of the key store, by digest, as a thread keeps them up to date.

    After ``stale_at`` (`time.monotonic`) nobody knows which of them were revoked.
    """

    keys: Mapping[bytes, VirtualKey] = field(default_factory=dict[bytes, VirtualKey])
    stale_at: float = inf


class Hasher:
    """HMAC-SHA-256 with the pepper, the key's half of it done once."""

    def __init__(self, pepper: bytes) -> None:
        self._begun = hmac.new(pepper, None, "sha256")

    def digest(self, secret: bytes) -> bytes:
        """Return the 32 bytes that a secret is kept and found by."""
        copy = self._begun.copy()
        copy.update(secret)
        return copy.digest()


class Access:
    """Tells who calls. ``issued`` are the store's keys; ``loopback_open`` lets callers on this
    machine in without a key where there is none at all (not behind a proxy: there all are local).
    """

    def __init__(
        self,
        hasher: Hasher,
        entries: Iterable[VirtualKeyEntry] = (),
        issued: Issued | None = None,
        *,
        loopback_open: bool = False,
        clock: Clock = wall_us,
    ) -> None:
        entries = tuple(entries)
        self._digest = hasher.digest
        self._configured = {entry.id: virtual_key_of(entry) for entry in entries}
        digests = [(hasher.digest(e.value.encode()), e) for e in entries if e.value]
        self._keys = {digest: virtual_key_of(entry, digest) for digest, entry in digests}
        self._issued = issued or Issued()
        self._loopback_open = loopback_open
        self._clock = clock
        self._failures = MemoryLimits(max_keys=FAILURE_ADDRESSES)

    def authenticate(self, headers: Mapping[bytes, bytes], client_ip: str) -> VirtualKey:
        """Return whose secret came as ``Authorization: Bearer``, ``x-api-key`` or ``api-key``.

        Raises:
            Unauthorized: no secret, or none that is known, or that of an expired key.
            Forbidden: the key may not be used from this address.
            RateLimited: too many failures from this address.
            Saturated: the key store was away for too long to know whether the key still holds.
        """
        secret = _secret_in(headers)
        digest = self._digest(secret) if len(secret) <= LONGEST_SECRET else b""
        key = self._keys.get(digest)
        if key is None:
            key = self._issued.keys.get(digest)
            if key is None:
                return self._stranger(secret, client_ip)
            if monotonic() > self._issued.stale_at:
                raise Saturated("the key store cannot be read, so no issued key is taken", 5.0)
        if not hmac.compare_digest(key.digest, digest):
            return self._stranger(secret, client_ip)
        key = self._configured.get(key.id, key)
        if key.expires_at and self._clock() >= key.expires_at:
            raise Unauthorized(f"the virtual key {key.id!r} has expired; ask for a new one")
        if key.allow_ips and not key.from_address(client_ip):
            raise Forbidden(f"the virtual key {key.id!r} may not be used from this address")
        return key

    def all_keys(self) -> list[VirtualKey]:
        """Return all virtual keys, those of the file first: for caps, limits and lists."""
        issued = [key for key in self._issued.keys.values() if key.id not in self._configured]
        return [*self._configured.values(), *issued]

    def _stranger(self, secret: bytes, client_ip: str) -> VirtualKey:
        """Let somebody in whose secret nobody knows, where nobody has one; else refuse."""
        nobody_has_one = not self._configured and not self._issued.keys
        if nobody_has_one and self._loopback_open and client_ip in LOOPBACK:
            return NOBODY
        refusal = self._failures.take_now([Ask(_neighbourhood(client_ip), FAILURES)])
        if refusal is not None:
            raise RateLimited("too many calls with no good key came from this address", 60.0)
        if not secret:
            raise Unauthorized(
                "no virtual key: send it as Authorization: Bearer pk-…, or as x-api-key"
            )
        raise Unauthorized("this virtual key is not known; it may have been revoked")


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
        tuple(_network(each) for each in entry.allow_ips),
        micros_of(entry.expires) if entry.expires else 0,
        tuple(sorted(f"{name}={value}" for name, value in entry.tags.items())),
        entry.cache_group,
        entry.content_log,
        entry.max_cost_eur,
        digest,
    )


# ---------------------------------------------------------------- secrets
def new_secret() -> str:
    """Return a new secret: "pk-" and 256 random bits in 43 characters."""
    return "pk-" + secrets.token_urlsafe(32)


def is_secret(value: bytes) -> bool:
    """Tell whether a secret can be sent in a header, and is long enough not to be guessed."""
    printable = all(33 <= each <= 126 for each in value)
    return printable and SHORTEST_SECRET <= len(value) <= LONGEST_SECRET


def load_pepper(entry: AccessEntry, default: Path) -> bytes:
    """Return the pepper: the configured one, or that of the file, made where it is missing.

    Raises:
        OutputError: the file cannot be read or made, or others than its owner may read it.
    """
    if entry.pepper:
        return entry.pepper.encode()
    path = entry.pepper_file if entry.pepper_file != Path() else default
    try:
        if not path.exists():
            _make_pepper(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pepper = file.read(LONGEST_SECRET).strip()
    except OSError as error:
        raise OutputError(f"cannot use {path} for the pepper: {error.strerror}") from error
    if mode & 0o077:
        raise OutputError(f"{path} can be read by others; run: chmod 600 {path}")
    if len(pepper) < SHORTEST_SECRET:
        raise OutputError(
            f"{path} has {len(pepper)} bytes, expected {SHORTEST_SECRET} or more: restore it from a"
            " backup; with another pepper no issued key works any more"
        )
    return pepper


def _make_pepper(path: Path) -> None:
    """Write a new pepper; of several processes that do so at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, secrets.token_hex(32).encode())
        os.fsync(file)
        os.close(file)
        if not path.exists():
            os.link(made, path)  # fails where another was faster; never replaces one
    except FileExistsError:
        return
    finally:
        made.unlink()


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
def _secret_in(headers: Mapping[bytes, bytes]) -> bytes:
    value = headers.get(b"authorization", b"")
    if value[:7].lower() == b"bearer ":
        return value[7:]
    return headers.get(b"x-api-key") or headers.get(b"api-key") or b""


def _neighbourhood(address: str) -> str:
    """Return whose failures are counted together: an address, or a /64 of IPv6, one subscriber."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else address


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidRequest(
            f"allow_ips are addresses or networks like 10.0.0.0/8 or ::1, got {text[:80]!r}"
        ) from error


def _check_amount(name: str, eur: Decimal) -> None:
    if not eur.is_finite() or not 0 <= eur <= MOST_EUR:
        raise InvalidRequest(f"{name} is 0 to {MOST_EUR} euro, got {eur}")


def _check_patterns(name: str, patterns: Sequence[str]) -> None:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"{name} has at most {MAX_PATTERNS} entries, got {len(patterns)}")
    for each in patterns:
        if not each or len(each) > 200 or not each.isprintable():
            raise InvalidRequest(f"{name} are 1 to 200 printable characters, got {each[:80]!r}")
