"""Bytes that are kept for a while: the shelf of caches, in memory, in a file, or in both.

What is kept may be lost at any time and must never be wrong: a value is whole or absent, is never
returned after its time, and is found under a key that names everything it depends on (a hash, made
by whoever keeps it). Every shelf has a limit in bytes; beyond it goes first what was not used for
longest.

`MemoryBlobs` is one process's, `SqliteBlobs` (`packshot.state.sqlite_blobs`) a machine's,
`TieredBlobs` a small fast shelf before a large slow one. They may be called from any thread, and
block: on an event loop ask them through a thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable

from packshot.core.errors import InvalidRequest, StateUnavailable

__all__ = [
    "MAX_KEY",
    "MAX_TTL_S",
    "OVERHEAD",
    "Blobs",
    "Counting",
    "Found",
    "Held",
    "MemoryBlobs",
    "TieredBlobs",
]

MAX_KEY = 256
"""Characters of a key, 1 at the least: it is a hash, or a few words and a hash."""

MAX_TTL_S = 400 * 24 * 3600.0
"""A value is kept for this long at most; each use does not make it longer."""

OVERHEAD = 256
"""Bytes that each value is counted for beside its own, for its key and its place."""

RETRY_S = 60.0
"""A shelf that failed is asked again after this time."""


class Held(NamedTuple):
    """What a shelf holds now, values whose time is over among them: how many, of how many bytes."""

    values: int
    size: int


class Found(NamedTuple):
    """A value, and the seconds until its time is over."""

    value: bytes
    left_s: float


class Blobs(Protocol):
    """Keeps bytes under keys. All of it raises StateUnavailable where the shelf cannot be used."""

    def get(self, key: str) -> Found | None:
        """Return what was last put under ``key``, None if it is gone or its time is over."""
        ...

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep ``value`` for ``ttl_s`` seconds; one larger than the whole shelf is not kept.

        What stood under ``key`` before is gone in either case.
        """
        ...

    def delete(self, key: str) -> None:
        """Keep nothing under ``key``."""
        ...

    def sweep(self) -> int:
        """Throw away what is past its time, and return how many that was."""
        ...

    def held(self) -> Held:
        """Return what the shelf holds."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A shelf that several processes share and that counts for them all: numbers beside its values,
    which only grow and are never thrown away. Both raise StateUnavailable as a shelf does.
    """

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to numbers, 0 or more each."""
        ...

    def counts(self) -> dict[str, int]:
        """Return all numbers."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def check_limit(max_bytes: int) -> int:
    """Return a shelf's limit, or raise InvalidRequest for one that holds nothing."""
    if max_bytes <= OVERHEAD:
        raise InvalidRequest(f"a shelf of {max_bytes} bytes holds nothing; give it a megabyte")
    return max_bytes


def check_put(key: str, ttl_s: float) -> None:
    """Raise InvalidRequest for a key or a time that no shelf takes."""
    check_key(key)
    if not 0 < ttl_s <= MAX_TTL_S:
        raise InvalidRequest(
            f"a value is kept for more than 0 seconds, at most {MAX_TTL_S:.0f}; got {ttl_s:g}"
        )


def check_key(key: str) -> None:
    """Raise InvalidRequest for a key that is empty or too long."""
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidRequest(f"a key has 1 to {MAX_KEY} characters, got {len(key)}")


class _Kept(NamedTuple):
    value: bytes
    until: float


class MemoryBlobs:
    """A shelf of ``max_bytes`` in this process; ``clock`` counts seconds."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = check_limit(max_bytes)
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the least recently used comes first
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Found | None:
        """As `Blobs.get`."""
        check_key(key)
        with self._lock:
            kept, now = self._kept.get(key), self._clock()
            if kept is None or kept.until <= now:
                self._drop(key)
                return None
            self._kept.move_to_end(key)
            return Found(kept.value, kept.until - now)

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As `Blobs.put`."""
        check_put(key, ttl_s)
        with self._lock:
            self._drop(key)
            size = len(value) + OVERHEAD
            if size > self.max_bytes:
                return
            while self._size + size > self.max_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[key] = _Kept(value, self._clock() + ttl_s)
            self._size += size

    def delete(self, key: str) -> None:
        """As `Blobs.delete`."""
        check_key(key)
        with self._lock:
            self._drop(key)

    def sweep(self) -> int:
        """As `Blobs.sweep`."""
        with self._lock:
            now = self._clock()
            past = [key for key, kept in self._kept.items() if kept.until <= now]
            for key in past:
                self._drop(key)
            return len(past)

    def held(self) -> Held:
        """As `Blobs.held`."""
        with self._lock:
            return Held(len(self._kept), self._size)

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= len(kept.value) + OVERHEAD


class TieredBlobs:
    """``front``, and behind it ``back``, whose values come to the front when they are asked for.

    Where the back fails, the front goes on alone: ``problem`` then says why ("" while all is well),
    and the back is asked again after a minute. What another process deletes from the back may stay
    in front for the rest of its time.
    """

    def __init__(
        self, front: Blobs, back: Blobs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.front = front
        self.back = back
        self.problem = ""
        self._clock = clock
        self._away_until = -inf

    def get(self, key: str) -> Found | None:
        """As `Blobs.get`."""
        found = self.front.get(key)
        if found is not None or self._clock() < self._away_until:
            return found
        with self._trying():
            found = self.back.get(key)
        if found is not None and found.left_s > 0:
            self.front.put(key, found.value, found.left_s)
        return found

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As `Blobs.put`."""
        self.front.put(key, value, ttl_s)
        if self._clock() >= self._away_until:
            with self._trying():
                self.back.put(key, value, ttl_s)

    def delete(self, key: str) -> None:
        """As `Blobs.delete`; where the back cannot be reached that comes out, for it has it yet."""
        self.front.delete(key)
        self.back.delete(key)

    def sweep(self) -> int:
        """As `Blobs.sweep`; returns what went from the back."""
        self.front.sweep()
        return self.back.sweep()

    def held(self) -> Held:
        """As `Blobs.held`: what the back holds, which is all."""
        return self.back.held()

    @contextmanager
    def _trying(self) -> Generator[None]:
        """Ask the back; where it cannot be used, leave it alone for a while."""
        try:
            yield
        except StateUnavailable as error:
            self.problem = str(error)
            self._away_until = self._clock() + RETRY_S
        else:
            self.problem = ""
