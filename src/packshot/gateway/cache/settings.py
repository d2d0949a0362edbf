"""The section ``semantic_cache`` of packshot.yaml, with every limit that the cache has."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from packshot.core.errors import InvalidRequest

__all__ = [
    "AuditEntry",
    "EmbeddingsEntry",
    "JudgeEntry",
    "Kind",
    "RouteCacheEntry",
    "SemanticCacheEntry",
    "SlotType",
    "threshold_of",
]

Kind: TypeAlias = Literal["multi_turn", "tools", "temperature", "links"]
"""Requests that are cached only where asked for: with earlier answers in them, with tools, hotter
than ``max_temperature``, with pictures or files that are named and not sent."""

SlotType: TypeAlias = Literal[
    "quote",
    "number",
    "size",
    "sku",
    "colour",
    "material",
    "product",
    "place",
    "language",
    "negation",
    "relation",
    "word",
    "order",
    "parameter",
]
"""`packshot.gateway.cache.slots.SLOT_TYPES`, which is not loaded for a cache of exact answers."""

GUARDED, LOOSE = 0.80, 0.94
"""The cosine that is asked for where nobody says: behind all guards, and where ``must_match`` lets
slots differ, so that the similarity has to do what the guards do not (decision 0013).
"""

LONGEST_TTL_S = 400 * 24 * 3600
LONGEST_VECTOR = 4096
LONGEST_DEADLINE_MS = 5000


@dataclass(frozen=True, slots=True)
class RouteCacheEntry:
    """What is different for one route; None: as for all.

    ``must_match`` are the slot types that must agree, ``also`` the kinds that are cached there.
    """

    enabled: bool = True
    semantic: bool | None = None
    similarity_threshold: float | None = None
    ttl_seconds: int | None = None
    must_match: tuple[SlotType, ...] | None = None
    also: tuple[Kind, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        check_threshold(self.similarity_threshold)
        check_ttl(self.ttl_seconds)


@dataclass(frozen=True, slots=True)
class JudgeEntry:
    """A language model that judges checked hits: the ``route`` of this gateway that is asked, ""
    for none; booked on ``account``, as if that were a virtual key.
    """

    route: str = ""
    account: str = "cache-audit"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not self.account:
            raise InvalidRequest("account is the name that verdicts are booked on, got none")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """The checks of semantic hits: a ``share`` of them is asked of the provider all the same.

    ``eur_per_day`` is what that may cost, per worker. A route whose rate of false hits is above
    ``limit``, with a chance of error of at most ``alpha``, loses its semantic tier. Two answers are
    taken for the same from ``same_above`` on, as a cosine. ``keep`` checks are kept. ``judge`` may
    be asked for a verdict, within the same money.
    """

    share: float = 0.02
    eur_per_day: Decimal = Decimal(1)
    limit: float = 0.001
    alpha: float = 0.01
    same_above: float = 0.5
    keep: int = 1000
    judge: JudgeEntry = field(default_factory=JudgeEntry)

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 <= self.share <= 1:
            raise InvalidRequest(f"share is 0 to 1, got {self.share:g}")
        for name in ("limit", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is between 0 and 1, got {getattr(self, name):g}")
        if not 0 <= self.eur_per_day <= 10_000:
            raise InvalidRequest(f"eur_per_day is 0 to 10000, got {self.eur_per_day}")
        if not 1 <= self.keep <= 100_000:
            raise InvalidRequest(f"keep is 1 to 100000, got {self.keep}")


@dataclass(frozen=True, slots=True)
class EmbeddingsEntry:
    """Who makes the vectors of similar requests, in place of the model on this machine.

    One of ``route`` (its id) and ``model`` ("provider/model"). ``dimension`` is the length of its
    vectors; 0 where `packshot.gateway.cache.embedding_models` knows it. A call without a vector
    after ``deadline_ms`` goes on without. Embeddings are booked on the virtual key ``account``,
    which is no caller's: caps of that name hold them.
    """

    route: str = ""
    model: str = ""
    dimension: int = 0
    deadline_ms: int = 250
    account: str = "cache"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.route and self.model:
            raise InvalidRequest("got route and model; expected one of the two")
        if self.model and "/" not in self.model:
            raise InvalidRequest(f"model is provider/model, got {self.model!r}")
        if not 0 <= self.dimension <= LONGEST_VECTOR:
            raise InvalidRequest(f"dimension is 1 to {LONGEST_VECTOR}, got {self.dimension}")
        if not 1 <= self.deadline_ms <= LONGEST_DEADLINE_MS:
            raise InvalidRequest(
                f"deadline_ms is 1 to {LONGEST_DEADLINE_MS}, got {self.deadline_ms}"
            )
        if not (self.dimension == 0 or self.asked):
            raise InvalidRequest("dimension without a route or a model: whose vectors?")

    @property
    def asked(self) -> str:
        """Return what is asked for embeddings, as a caller would name it; "" for nobody."""
        return self.route or self.model


@dataclass(frozen=True, slots=True)
class SemanticCacheEntry:
    """The response cache: exact answers, and with ``semantic`` those of similar requests.

    ``similarity_threshold`` None is that of `threshold_of`. ``store`` is where answers are kept
    beside the worker's memory: "" is a file in the state folder, "memory" nothing, the URL of a
    server (``valkey://``, ``postgresql://``) what replicas share. ``model`` is the folder of
    the embedding model; "" where ``packshot cache model`` makes it. ``max_entry_kb`` bounds one
    answer, ``max_vectors`` the answers that the semantic tier knows, per worker.
    """

    enabled: bool = False
    similarity_threshold: float | None = None
    ttl_seconds: int = 604_800
    semantic: bool = True
    must_match: tuple[SlotType, ...] = ()
    also: tuple[Kind, ...] = ()
    max_temperature: float = 1.0
    store: str = field(default="", repr=False)
    memory_mb: int = 64
    file_mb: int = 1024
    max_entry_kb: int = 256
    max_vectors: int = 50_000
    model: Path = Path()
    routes: dict[str, RouteCacheEntry] = field(default_factory=dict[str, RouteCacheEntry])
    audit: AuditEntry = field(default_factory=AuditEntry)
    embeddings: EmbeddingsEntry = field(default_factory=EmbeddingsEntry)

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        check_threshold(self.similarity_threshold)
        check_ttl(self.ttl_seconds)
        if not 0 <= self.max_temperature <= 2:
            raise InvalidRequest(f"max_temperature is 0 to 2, got {self.max_temperature:g}")
        for name, most in (("memory_mb", 1 << 20), ("file_mb", 1 << 24), ("max_entry_kb", 1 << 16)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidRequest(f"{name} is 1 to {most}, got {getattr(self, name)}")
        if not 0 <= self.max_vectors <= 10_000_000:
            raise InvalidRequest(f"max_vectors is 0 to 10000000, got {self.max_vectors}")
        if self.embeddings.asked and self.model.name:
            raise InvalidRequest("got model and embeddings; expected one embedding model")
        if self.store not in {"", "memory"} and "://" not in self.store:
            raise InvalidRequest(
                'store is "", "memory", or the URL of a server: valkey://host or'
                " postgresql://user@host/database"
            )


def threshold_of(entry: SemanticCacheEntry, route: str) -> float:
    """Return the cosine from which on two requests of a route may share an answer."""
    own = entry.routes.get(route, RouteCacheEntry())
    must_match = entry.must_match if own.must_match is None else own.must_match
    loose = must_match and not set(get_args(SlotType)) <= set(must_match)
    return own.similarity_threshold or entry.similarity_threshold or (LOOSE if loose else GUARDED)


def check_threshold(value: float | None) -> None:
    """Raise `InvalidRequest` for a cosine that no threshold can be."""
    if value is not None and not 0 < value <= 1:
        raise InvalidRequest(f"similarity_threshold is above 0, at most 1, got {value}")


def check_ttl(value: int | None) -> None:
    """Raise `InvalidRequest` for a time that nothing is kept for."""
    if value is not None and not 0 < value <= LONGEST_TTL_S:
        raise InvalidRequest(f"ttl_seconds must be above 0, at most {LONGEST_TTL_S}, got {value}")
