"""Virtual keys: who calls, and what they may do.

A virtual key's secret is 256 random bits, shown once and kept nowhere: what is stored, and looked
up, is its HMAC-SHA-256 with a pepper that lies apart from it (a file of 0600, or the environment).
Keys that are written in packshot.yaml and keys that were issued (`packshot.gateway.keystore`) are
one set: a key of the file without a ``value`` gets its secret from ``packshot keys create``, and
what it may do from the file.

Where there never was a key, callers on this machine need none: the gateway is as open as the
providers' keys in its environment are. When the last key is revoked it stays closed.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import Forbidden, OutputError, RateLimited, Saturated, Unauthorized
from packshot.gateway.virtual_key import (
    LONGEST_SECRET,
    SHORTEST_SECRET,
    AccessEntry,
    BudgetEntry,
    LimitEntry,
    VirtualKey,
    VirtualKeyEntry,
    virtual_key_of,
)
from packshot.ledger.private import make_private_folder
from packshot.state.limits import Ask, MemoryLimits, Rule

if TYPE_CHECKING:
    from packshot.gateway.settings import GatewaySettings
    from packshot.ledger.settings import Settings as LedgerSettings

__all__ = [
    "FAILURES",
    "Access",
    "AccessEntry",
    "BudgetEntry",
    "Hasher",
    "Issued",
    "LimitEntry",
    "VirtualKey",
    "VirtualKeyEntry",
    "load_admin_secret",
    "load_pepper",
    "neighbourhood",
    "new_secret",
    "open_access",
    "pepper_path",
]

FAILURES = Rule(20, 60.0)
"""Failed log-ins of one address, after which it hears 429. A good key is let through all the same:
nobody can lock out those who share an address with them, and 256 bits are not guessed."""

FAILURE_ADDRESSES = 4096

BLOCK = 64
"""Bytes that SHA-256 takes at a time."""

TOO_LONG = b"too long"
"""In place of the digest of what is too long for a secret."""

LOOPBACK = frozenset(("127.0.0.1", "::1", "::ffff:127.0.0.1", ""))
"""Callers on this machine; "" is a local socket."""

NOBODY = VirtualKey("anonymous")
"""Who calls from this machine where there is no virtual key at all."""


@dataclass(slots=True, eq=False)
class Issued:
    """The keys of the key store, by digest, as a thread keeps them up to date.

    After ``stale_at`` (`time.monotonic`) nobody knows which of them were revoked.
    """

    keys: Mapping[bytes, VirtualKey] = field(default_factory=dict[bytes, VirtualKey])
    coming: Mapping[bytes, VirtualKey] | None = None
    """What ``keys`` will be once everybody who was to hear of it has: budgets come first."""
    stale_at: float = inf
    ever: bool = False
    """Whether a key was issued at any time: the end of the last one lets nobody in."""


class Hasher:
    """HMAC-SHA-256 with the pepper (RFC 2104), the key's half of it done once.

    Two hashes whose beginnings are kept, as `hmac` would do it: OpenSSL's own takes 3.5 us where
    this takes 0.6, and it is done for every call.
    """

    def __init__(self, pepper: bytes) -> None:
        key = (pepper if len(pepper) <= BLOCK else sha256(pepper).digest()).ljust(BLOCK, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in key))

    def digest(self, secret: bytes) -> bytes:
        """Return the 32 bytes that a secret is kept and found by."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(secret)
        outer.update(inner.digest())
        return outer.digest()


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
        self._digest = hasher.digest
        self._issued = issued or Issued()
        self._loopback_open = loopback_open
        self._clock = clock
        self._failures = MemoryLimits(max_keys=FAILURE_ADDRESSES)
        self._configured: Mapping[str, VirtualKey] = {}
        self._keys: Mapping[bytes, VirtualKey] = {}
        self._listeners: list[Callable[[], None]] = []
        self._closing: list[Callable[[], None]] = []
        self._set(entries)

    def replace(self, entry: AccessEntry) -> None:
        """Take the keys of the file as they are now; another pepper needs a restart."""
        self._set(entry.virtual_keys)

    def _set(self, entries: Iterable[VirtualKeyEntry]) -> None:
        entries = tuple(entries)
        digests = [(self._digest(e.value.encode()), e) for e in entries if e.value]
        self._keys = {digest: virtual_key_of(entry, digest) for digest, entry in digests}
        self._configured = {entry.id: virtual_key_of(entry) for entry in entries}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, in a thread of its own, after issued keys have changed."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Tell the listeners."""
        for listener in self._listeners:
            listener()

    def closing(self, end: Callable[[], None]) -> None:
        """Have ``end`` called by `close`; the last one first."""
        self._closing.append(end)

    def close(self) -> None:
        """End what was opened by `open_access`."""
        while self._closing:
            self._closing.pop()()

    def authenticate(self, headers: Mapping[bytes, bytes], client_ip: str) -> VirtualKey:
        """Return whose secret came as ``Authorization: Bearer``, ``x-api-key`` or ``api-key``.

        Raises:
            Unauthorized: no secret, or none that is known, or that of an expired key.
            Forbidden: the key may not be used from this address.
            RateLimited: too many failures from this address.
            Saturated: the key store was away for too long to know whether the key still holds.
        """
        return self.holder(self.digest(headers), client_ip)

    def digest(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return what the secret in these headers is found by; "" where there is none.

        It depends on the headers alone, as long as the process runs.
        """
        secret = _secret_in(headers)
        if len(secret) > LONGEST_SECRET:
            return TOO_LONG
        return self._digest(secret) if secret else b""

    def holder(self, digest: bytes, client_ip: str) -> VirtualKey:
        """Return whose secret has this digest, as things are now; raises as `authenticate`."""
        key = self._keys.get(digest)
        if key is None:
            key = self._issued.keys.get(digest)
            if key is None:
                return self._stranger(digest, client_ip)
            if monotonic() > self._issued.stale_at:
                raise Saturated("the key store cannot be read, so no issued key is taken", 5.0)
        if not hmac.compare_digest(key.digest, digest):
            return self._stranger(digest, client_ip)
        key = self._configured.get(key.id, key)
        if key.expires_at and self._clock() >= key.expires_at:
            raise Unauthorized(f"the virtual key {key.id!r} has expired; ask for a new one")
        if key.allow_ips and not key.from_address(client_ip):
            raise Forbidden(f"the virtual key {key.id!r} may not be used from this address")
        return key

    def virtual_keys(self, entry: AccessEntry | None = None) -> list[VirtualKey]:
        """Return all virtual keys, those of the file first: for caps, limits and lists.

        With ``entry``, as they would be if that were the file's.
        """
        configured = self._configured
        if entry is not None:
            configured = {each.id: virtual_key_of(each) for each in entry.virtual_keys}
        known = self._issued.coming
        known = self._issued.keys if known is None else known
        issued = {key.id: key for key in known.values()}  # two secrets after a rotation
        return [
            *configured.values(),
            *(issued[i] for i in issued if i not in configured),
        ]

    def _stranger(self, digest: bytes, client_ip: str) -> VirtualKey:
        """Let somebody in whose secret nobody knows, where nobody has one; else refuse."""
        issued = self._issued
        nobody_has_one = not self._configured and not issued.keys and not issued.ever
        if nobody_has_one and self._loopback_open and client_ip in LOOPBACK:
            return NOBODY
        refusal = self._failures.take_now([Ask(neighbourhood(client_ip), FAILURES)])
        if refusal is not None:
            raise RateLimited("too many calls with no good key came from this address", 60.0)
        if not digest:
            raise Unauthorized(
                "no virtual key: send it as Authorization: Bearer pk-…, or as x-api-key"
            )
        raise Unauthorized("this virtual key is not known; it may have been revoked")


def open_access(settings: GatewaySettings, money: LedgerSettings) -> Access:
    """Return the access of a gateway, whose issued keys a thread keeps up to date until `close`.

    Raises:
        LedgerUnavailable: the key store cannot be read.
        OutputError: the pepper cannot be read or made.
        InvalidRequest: the pepper is not that of the keys in the store.
    """
    from packshot.gateway.keystore import KeyWatch, open_key_store

    entry, issued = settings.access, Issued()
    hasher = Hasher(load_pepper(entry, pepper_path(settings)))
    loopback_open = not settings.server.behind_proxy
    access = Access(hasher, entry.virtual_keys, issued, loopback_open=loopback_open)
    store = open_key_store(money.store, hasher)
    try:
        access.closing(KeyWatch(store, issued, access.changed).close)
    except BaseException:
        store.close()
        raise
    return access


def pepper_path(settings: GatewaySettings) -> Path:
    """Return where the pepper lies, where nothing else is configured."""
    return settings.server.folder / "pepper"


# ---------------------------------------------------------------- secrets
def new_secret() -> str:
    """Return a new secret: "pk-" and 256 random bits in 43 characters."""
    return "pk-" + secrets.token_urlsafe(32)


def load_pepper(entry: AccessEntry, default: Path) -> bytes:
    """Return the pepper: the configured one, or that of the file, made where it is missing.

    Raises:
        OutputError: the file cannot be read or made, or others than its owner may read it.
    """
    if entry.pepper:
        return entry.pepper.encode()
    path = entry.pepper_file if entry.pepper_file != Path() else default
    return _secret_file(path, "with another pepper no issued key works any more")


def load_admin_secret(entry: AccessEntry, path: Path) -> bytes:
    """Return the admin API's secret: the configured one, or that of the file ``path``, made where
    it is missing: there is no default that somebody could know.

    Raises:
        OutputError: as `load_pepper`.
    """
    return entry.admin_secret.encode() or _secret_file(path, "or remove it, and another is made")


def _secret_file(path: Path, otherwise: str) -> bytes:
    try:
        if not path.exists():
            _make_secret(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(LONGEST_SECRET).strip()
    except OSError as error:
        raise OutputError(f"cannot use {path} for a secret: {error.strerror}") from error
    if mode & 0o077:
        raise OutputError(f"{path} can be read by others; run: chmod 600 {path}")
    if len(secret) < SHORTEST_SECRET:
        raise OutputError(
            f"{path} has {len(secret)} bytes, expected {SHORTEST_SECRET} or more: restore it from a"
            f" backup; {otherwise}"
        )
    return secret


def _make_secret(path: Path) -> None:
    """Write 256 random bits; of several processes that do so at once, one wins."""
    make_private_folder(path.parent)
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


# ---------------------------------------------------------------- parts
def _secret_in(headers: Mapping[bytes, bytes]) -> bytes:
    value = headers.get(b"authorization", b"")
    if value[:7].lower() == b"bearer ":
        return value[7:]
    return headers.get(b"x-api-key") or headers.get(b"api-key") or b""


def neighbourhood(address: str) -> str:
    """Return whose failures are counted together: an address, or a /64 of IPv6, one subscriber."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else address
