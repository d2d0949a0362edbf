"""The `EmbeddingCache` of this machine: what texts came to, in memory and behind it in a file.

Encoding a text anew costs little on a GPU, and a tenth of a small model's picture on a CPU; a batch
has few captions and many pictures. What is kept is what the encoders made, to the bit, so that a
picture is the same with the cache and without.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.core.types import EmbeddingUse
from packshot.state.blobs import Blobs, MemoryBlobs, TieredBlobs
from packshot.state.sqlite_blobs import SqliteBlobs
from packshot.studio.record import code_mark

__all__ = [
    "EmbeddingSettings",
    "KeptEmbeddings",
    "cache_folder",
    "kept_embeddings",
    "open_embeddings",
]

DAY_S = 24 * 3600.0
MIB = 1024 * 1024
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

    def close(self) -> None:
        """Let go of the file."""
        if isinstance(self.blobs, TieredBlobs):
            close = getattr(self.blobs.back, "close", None)
            if close is not None:
                close()


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
        from packshot.state.valkey_blobs import ValkeyBlobs

        shared = ValkeyBlobs(settings.shared, settings.file_mb * MIB, name="embeddings")
        return KeptEmbeddings(TieredBlobs(memory, shared), ttl_s)
    path = Path(settings.file).expanduser() if settings.file else cache_folder() / "embeddings.db"
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


def cache_folder() -> Path:
    """Return the folder of what this user's packshot can make again: in $XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path there is to be ignored.
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "packshot"
