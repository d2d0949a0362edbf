"""The gateway's sections of packshot.yaml, as they are typed; `plan` makes of them what is used.

``providers``, ``routes`` (``mcp`` means the same), ``fallbacks``, ``server`` and ``telemetry`` are
read here, ``access`` in `packshot.gateway.access`. Every limit that the gateway has stands here
with its default and its unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from packshot.core.config import Document, Secret, read
from packshot.core.errors import InvalidRequest, OutputError
from packshot.gateway.access import AccessEntry
from packshot.gateway.addresses import network_of
from packshot.gateway.cache.settings import SemanticCacheEntry
from packshot.ledger.settings import CONFIG_NAME, SECTIONS, state_folder

__all__ = [
    "FallbackEntry",
    "GatewaySettings",
    "KeyEntry",
    "ModelEntry",
    "NetworkEntry",
    "ProviderEntry",
    "RetryEntry",
    "RouteEntry",
    "SemanticCacheEntry",
    "ServerEntry",
    "TelemetryEntry",
    "TimeoutEntry",
    "load_gateway",
]

T = TypeVar("T")

NO_SECRET = Secret()

SHORTEST_CONTENT_KEY = 32
"""Characters of the secret that seals the content log."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A provider's credential; ``value`` must come from the environment or a file.

    ``weight`` is its share of the calls, relative to the others'. ``models`` are those that it may
    be used for, with ``*``; empty for all.
    """

    value: Secret
    name: str = ""
    weight: float = 1.0
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could never be used."""
        if self.weight < 0:
            raise InvalidRequest(f"weight must be 0 or more, got {self.weight}")
        if not self.value.strip() or any(c in self.value for c in "\r\n\0 \t"):
            raise InvalidRequest(
                "value is empty, or holds a space or a line's end: is the variable set?"
            )
        if not self.value.isascii():
            raise InvalidRequest("value holds a character that no HTTP header can")


@dataclass(frozen=True, slots=True)
class RetryEntry:
    """Retries of one target: how many, and the wait before the first and at most, in ms.

    The wait doubles, and is drawn from 0 to that (full jitter).
    """

    max_retries: int = 2
    backoff_initial_ms: float = 250
    backoff_max_ms: float = 8_000

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 <= self.max_retries <= 10:
            raise InvalidRequest(f"max_retries is 0 to 10, got {self.max_retries}")
        if not 0 <= self.backoff_initial_ms <= self.backoff_max_ms <= 60_000:
            raise InvalidRequest(
                "expected 0 <= backoff_initial_ms <= backoff_max_ms <= 60000, got "
                f"{self.backoff_initial_ms:g} and {self.backoff_max_ms:g}"
            )


@dataclass(frozen=True, slots=True)
class TimeoutEntry:
    """How long silence is borne, in seconds, and how long a whole call may take."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        for name in ("connect_s", "first_byte_s", "idle_s", "total_s"):
            if not 0 < getattr(self, name) <= 3600:
                raise InvalidRequest(f"{name} is above 0, at most 3600, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """How a provider is reached. ``ca`` is a file of certificates instead of the system's.

    ``on_hangup`` says what is done with a stream whose caller is gone: "cancel" closes it and books
    the whole bound, "drain" reads on for at most ``drain_s`` to learn what it cost; "" leaves it to
    what is known of the provider. ``proxy`` is an HTTP proxy's URL. ``allow_http`` lets a public
    host be called without encryption.
    """

    retry: RetryEntry = field(default_factory=RetryEntry)
    timeouts: TimeoutEntry = field(default_factory=TimeoutEntry)
    max_connections: int = 512
    ca: Path = Path()
    proxy: str = field(default="", repr=False)
    allow_http: bool = False
    on_hangup: Literal["", "cancel", "drain"] = ""
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.proxy:
            try:
                parts = urlsplit(self.proxy)
                sound = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
            except ValueError:
                sound = False
            if not sound:  # it may hold a password: it is not repeated
                raise InvalidRequest("proxy is the URL of an HTTP proxy, like http://proxy:3128")
        if self.max_connections < 1:
            raise InvalidRequest(f"max_connections is 1 or more, got {self.max_connections}")
        if not 0 <= self.drain_s <= 3600:
            raise InvalidRequest(f"drain_s is 0 to 3600, got {self.drain_s}")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What is known of one of a provider's models.

    ``context_tokens`` is its window (0: unknown), ``max_output_tokens`` what is put in where the
    caller names no limit and one is needed, ``lacks`` what it cannot do ("tools", "vision").
    """

    context_tokens: int = 0
    max_output_tokens: int = 0
    lacks: tuple[Literal["tools", "vision", "json", "prefill", "audio"], ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A provider: its credentials, and where and how it is reached.

    ``kind`` is one of those that packshot knows (`packshot.providers.rows`), "openai" for every
    server that speaks its API; "" takes the provider's own name. ``base_url`` replaces the kind's.
    """

    keys: tuple[KeyEntry, ...] = ()
    kind: str = ""
    base_url: str = ""
    api_version: str = ""
    network: NetworkEntry = field(default_factory=NetworkEntry)
    models: dict[str, ModelEntry] = field(default_factory=dict[str, ModelEntry])


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A named list of targets ("provider/model"), tried in order.

        ``balance`` "order" begins with the primary; "fastest" with the one that answers soonest of
    those that are well. ``hedge_after_ms`` sends a second call where the first has not begun to
        answer by then (0: never; it costs money twice).
    """

    id: str
    primary: str
    fallbacks: tuple[str, ...] = ()
    balance: Literal["order", "fastest"] = "order"
    hedge_after_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class FallbackEntry:
    """Targets for when ``primary`` is in trouble, in order; a repeat is one more try."""

    primary: str
    secondary: str = ""
    tertiary: str = ""
    targets: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The targets behind the primary."""
        return (*(t for t in (self.secondary, self.tertiary) if t), *self.targets)


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """The server and its limits.

    Bytes: ``max_body_bytes`` of a request, ``max_reply_bytes`` of an answer that is not streamed.
    ``max_bodies_bytes`` is what the bodies of all requests in flight may have together, per worker.
    ``max_in_flight`` calls and ``max_connections`` per worker, beyond which new ones are told to
    come back. ``max_wait_s`` is the longest wait before a retry, or for a key that cools down.
    ``ledger_wait_s`` is the longest that a call waits for the ledger or the key store.
    ``default_max_output_tokens`` is put into a call without a limit where money is capped.
    ``trusted_proxies`` are addresses and networks of proxies that tell in ``x-forwarded-for`` who
    calls. ``replicas`` is how many gateways share the limits, for when their shared store is away.
    ``limits`` is "memory" (one worker), "shared" (all workers of this machine) or a ``redis://``
    URL; "" takes what the number of workers needs.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8081
    workers: int = 1
    behind_proxy: bool = False
    trusted_proxies: tuple[str, ...] = ()
    max_body_bytes: int = 10 << 20
    max_reply_bytes: int = 64 << 20
    max_bodies_bytes: int = 512 << 20
    max_in_flight: int = 1000
    max_connections: int = 1000
    max_attempts: int = 8
    default_max_output_tokens: int = 4096
    max_wait_s: float = 20.0
    ledger_wait_s: float = 10.0
    replicas: int = 1
    limits: str = field(default="", repr=False)
    grace_s: float = 30.0
    state: Path = Path()
    idempotency: bool = True

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 1 <= self.workers <= 256:
            raise InvalidRequest(f"workers is 1 to 256, got {self.workers}")
        if not 0 <= self.port <= 65_535 or not 0 <= self.admin_port <= 65_535:
            raise InvalidRequest(f"a port is 0 to 65535, got {self.port} and {self.admin_port}")
        if min(self.max_body_bytes, self.max_reply_bytes, self.max_in_flight) < 1:
            raise InvalidRequest("max_body_bytes, max_reply_bytes, max_in_flight are 1 or more")
        if self.max_bodies_bytes < self.max_body_bytes:
            raise InvalidRequest(
                f"max_bodies_bytes ({self.max_bodies_bytes}) has room for one body of "
                f"max_body_bytes ({self.max_body_bytes}) at least"
            )
        if not 0 < self.ledger_wait_s <= 300:
            raise InvalidRequest(f"ledger_wait_s is above 0, at most 300, got {self.ledger_wait_s}")
        if not 1 <= self.max_attempts <= 32:
            raise InvalidRequest(f"max_attempts is 1 to 32, got {self.max_attempts}")
        for each in self.trusted_proxies:
            network_of(each, "trusted_proxies")

    @property
    def folder(self) -> Path:
        """Where the gateway keeps what is its own: the pepper, limits shared by workers."""
        return self.state if self.state.name else state_folder()


@dataclass(frozen=True, slots=True)
class TelemetryEntry:
    """What the gateway says of itself. ``otlp`` is the URL of a collector; "" sends no traces.

    ``content_log`` is the folder of the sealed content log; it is written only for virtual keys
    that ask for it, sealed by the key in ``content_key``, for ``content_days``.
    """

    log: Literal["json", "text", "off"] = "text"
    otlp: str = ""
    trace_share: float = 1.0
    content_log: Path = Path()
    content_key: Secret = NO_SECRET
    content_days: int = 30

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.otlp and not self.otlp.startswith(("http://", "https://")):
            raise InvalidRequest("otlp is the http(s) URL of a collector's /v1/traces")
        if not 0 <= self.trace_share <= 1:
            raise InvalidRequest(f"trace_share is 0 to 1, got {self.trace_share:g}")
        if self.content_key and len(self.content_key) < SHORTEST_CONTENT_KEY:
            raise InvalidRequest(
                f"content_key has {len(self.content_key)} characters, expected "
                f"{SHORTEST_CONTENT_KEY} or more; make one with: openssl rand -hex 32"
            )
        if self.content_days < 1:
            raise InvalidRequest(f"content_days is 1 or more, got {self.content_days}")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Everything that the file says about the gateway."""

    path: Path = Path(CONFIG_NAME)
    providers: dict[str, ProviderEntry] = field(default_factory=dict[str, ProviderEntry])
    routes: tuple[RouteEntry, ...] = ()
    fallbacks: tuple[FallbackEntry, ...] = ()
    access: AccessEntry = field(default_factory=AccessEntry)
    server: ServerEntry = field(default_factory=ServerEntry)
    telemetry: TelemetryEntry = field(default_factory=TelemetryEntry)
    semantic_cache: SemanticCacheEntry = field(default_factory=SemanticCacheEntry)

    @property
    def content_folder(self) -> Path:
        """Where the sealed content log lies."""
        named = self.telemetry.content_log
        return named if named.name else self.server.folder / "content"

    def __post_init__(self) -> None:
        """Refuse a content log that nothing could seal."""
        asking = [key.id for key in self.access.virtual_keys if key.content_log]
        if asking and not self.telemetry.content_key:
            raise InvalidRequest(
                f"the virtual key {asking[0]!r} has content_log: true, and telemetry.content_key "
                "is not set: it is a secret of 32 characters or more (env.NAME or file:PATH)"
            )


def load_gateway(path: Path) -> GatewaySettings:
    """Return the gateway's settings in the configuration file ``path``.

    Raises:
        OutputError: the file, or one that it names, cannot be read.
        InvalidRequest: the file has a mistake; the message has its line.
    """
    if not path.exists():
        raise OutputError(
            f"there is no {path}: name the configuration file, or write one; "
            "examples/gateway.yaml and docs/gateway.md show where to begin"
        )
    document = read(path, SECTIONS)
    return GatewaySettings(
        path,
        document.section("providers", dict[str, ProviderEntry]) or {},
        (*_rows(document, "routes", RouteEntry), *_rows(document, "mcp", RouteEntry)),
        tuple(_rows(document, "fallbacks", FallbackEntry)),
        document.section("access", AccessEntry) or AccessEntry(),
        document.section("server", ServerEntry) or ServerEntry(),
        document.section("telemetry", TelemetryEntry) or TelemetryEntry(),
        document.section("semantic_cache", SemanticCacheEntry) or SemanticCacheEntry(),
    )


def _rows(document: Document, name: str, kind: type[T]) -> tuple[T, ...]:
    return document.section(name, tuple[kind, ...]) or ()
