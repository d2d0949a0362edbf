"""The `EmbeddingCache` of this machine: what texts came to, in memory and behind it in a file.

Encoding a text anew costs little on a GPU, and a tenth of a small model's picture on a CPU; a batch
has few captions and many pictures. What is kept is what the encoders made, to the bit, so that a
picture is the same with the cache and without.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.core.types import NOTHING_READ, EmbeddingUse
from packshot.ledger.names import Metric
from packshot.state.blobs import Blobs, Counting, MemoryBlobs, TieredBlobs
from packshot.state.sqlite_blobs import SqliteBlobs
from packshot.studio.record import code_mark

if TYPE_CHECKING:
    from packshot.state.valkey_blobs import ValkeyBlobs

__all__ = [
    "EmbeddingSettings",
    "KeptEmbeddings",
    "cache_folder",
    "embeddings_page",
    "kept_embeddings",
    "open_embeddings",
]

DAY_S = 24 * 3600.0
MIB = 1024 * 1024
TELL_S = 10.0
"""So often at the most a process adds to the counts that all share; and at its end."""

TEXTS = Metric(
    "packshot_embedding_texts_total",
    "counter",
    ("result",),
    "Texts that renders needed, by whether they had been encoded before (hit, miss).",
)
SAVED = Metric(
    "packshot_embedding_saved_seconds_total",
    "counter",
    (),
    "Seconds of encoding that hits saved.",
)
LOG = logging.getLogger(__name__)

LONGEST_DAYS, MOST_MB = 365.0, 1024 * 1024


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """``studio.embeddings`` of packshot.yaml.

    ``keep`` false reads every text anew. What is kept is so for ``days`` after it was made; the
    least recently used goes earlier, in memory beyond ``memory_mb``, in ``file`` beyond ``file_mb``
    (MiB). ``file`` "" is in the user's cache folder; ``file_mb`` 0 keeps nothing on disk.
    ``shared`` is the URL of a Valkey that machines share, which takes the file's place and limit.
    """

    keep: bool = True
    days: float = 30.0
    memory_mb: int = 256
    file: str = ""
    file_mb: int = 2048
    shared: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 < self.days <= LONGEST_DAYS:
            raise InvalidRequest(f"days is above 0, at most {LONGEST_DAYS:g}, got {self.days:g}")
        for name, low, got in (("memory_mb", 1, self.memory_mb), ("file_mb", 0, self.file_mb)):
            if not low <= got <= MOST_MB:
                raise InvalidRequest(f"{name} is {low} to {MOST_MB}, got {got}")


class KeptEmbeddings:
    """An `packshot.engine.embeddings.EmbeddingCache` on ``blobs``.

    ``total`` is what all renders since its making took from it: hits, misses, seconds saved; a
    report of many renders shows it. What another version of packshot made is not found.
    """

    def __init__(self, blobs: Blobs, ttl_s: float = 30 * DAY_S, problem: str = "") -> None:
        self.blobs = blobs
        self.ttl_s = ttl_s
        self.total = EmbeddingUse()
        self._problem = problem
        self._prefix = f"embedding/{code_mark().fingerprint}/"
        self._lock = threading.Lock()
        self._told = EmbeddingUse()
        self._told_at = 0.0

    @property
    def problem(self) -> str:
        """As `EmbeddingCache.problem`."""
        behind = self.blobs.problem if isinstance(self.blobs, TieredBlobs) else ""
        return self._problem or behind

    def get(self, key: str) -> bytes | None:
        """As `EmbeddingCache.get`."""
        found = self.blobs.get(self._prefix + key)
        return None if found is None else found.value

    def put(self, key: str, value: bytes) -> None:
        """As `EmbeddingCache.put`."""
        self.blobs.put(self._prefix + key, value, self.ttl_s)

    def count(self, use: EmbeddingUse) -> None:
        """As `EmbeddingCache.count`."""
        with self._lock:
            self.total += use
            due = monotonic() - self._told_at >= TELL_S
        if due:
            self._tell()

    def close(self) -> None:
        """Let go of the file."""
        self._tell()
        if isinstance(self.blobs, TieredBlobs):
            close = getattr(self.blobs.back, "close", None)
            if close is not None:
                close()

    def _tell(self) -> None:
        """Add to the shelf's counts what came since it was told last; what it misses is told next
        time.
        """
        back = self.blobs.back if isinstance(self.blobs, TieredBlobs) else None
        if not isinstance(back, Counting) or self.problem:
            return
        with self._lock:
            self._told_at = monotonic()
            use, told = self.total - self._told, self._told
            self._told = self.total
        if use == NOTHING_READ:
            return
        saved_us = max(0, round(use.saved_s * 1e6))
        try:
            back.count({"hit": use.hits, "miss": use.misses, "saved_us": saved_us})
        except StateUnavailable:
            with self._lock:
                self._told = told


def open_embeddings(settings: EmbeddingSettings) -> KeptEmbeddings | None:
    """Return the cache that ``settings`` describe, to be closed; None where nothing is to be kept.

    Where the file cannot be used the cache is in memory alone, and its ``problem`` says why.
    """
    if not settings.keep:
        return None
    ttl_s, memory = settings.days * DAY_S, MemoryBlobs(settings.memory_mb * MIB)
    if settings.file_mb == 0:
        return KeptEmbeddings(memory, ttl_s)
    if settings.shared:
        shared = _shared(settings)
        return KeptEmbeddings(TieredBlobs(memory, shared), ttl_s)
    path = _path_of(settings)
    try:
        file = SqliteBlobs(path, settings.file_mb * MIB)
        file.sweep()
    except StateUnavailable as error:
        return KeptEmbeddings(memory, ttl_s, str(error))
    return KeptEmbeddings(TieredBlobs(memory, file), ttl_s)


@contextmanager
def kept_embeddings(settings: EmbeddingSettings) -> Generator[KeptEmbeddings | None]:
    """Yield what `open_embeddings` returns, and close it in the end."""
    kept = open_embeddings(settings)
    try:
        yield kept
    finally:
        if kept is not None:
            kept.close()


def embeddings_page(settings: EmbeddingSettings) -> str:
    """Return for Prometheus what all processes that share the cache made of it; "" where none did,
    or their shelf cannot be asked.
    """
    from packshot.ledger.metrics import family

    shelf = _counting(settings)
    if shelf is None:
        return ""
    try:
        counts = shelf.counts()
    except StateUnavailable as error:
        LOG.warning("%s", error)
        return ""
    finally:
        shelf.close()
    if not counts:
        return ""
    saved = Decimal(counts.get("saved_us", 0)) / 1_000_000
    texts = {(result,): counts.get(result, 0) for result in ("hit", "miss")}
    return family(TEXTS, texts) + family(SAVED, {(): saved})


def _counting(settings: EmbeddingSettings) -> Counting | None:
    """Open the shelf that is shared, to be asked and closed; None where there is none yet."""
    if not settings.keep or settings.file_mb == 0:
        return None
    if settings.shared:
        return _shared(settings)
    path = _path_of(settings)
    try:
        return SqliteBlobs(path, settings.file_mb * MIB) if path.is_file() else None
    except StateUnavailable as error:
        LOG.warning("%s", error)
        return None


def _shared(settings: EmbeddingSettings) -> ValkeyBlobs:
    from packshot.state.valkey_blobs import ValkeyBlobs

    return ValkeyBlobs(settings.shared, settings.file_mb * MIB, name="embeddings")


def _path_of(settings: EmbeddingSettings) -> Path:
    return Path(settings.file).expanduser() if settings.file else cache_folder() / "embeddings.db"


def cache_folder() -> Path:
    """Return the folder of what this user's packshot can make again: in $XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path there is to be ignored.
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "packshot"
