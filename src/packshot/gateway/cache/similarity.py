"""The nearest vectors of a partition.

Up to `EXACT_UP_TO` entries one matrix product is as fast as anything, and exact. Beyond that
usearch's graph (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search",
2018) with int8 vectors proposes candidates, and their similarities are computed from the kept
vectors, so a reported similarity is the same in both. What the graph forgets is a miss, no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.embed import Vectors

__all__ = ["EXACT_UP_TO", "Match", "VectorIndex"]

EXACT_UP_TO = 10_000
"""Entries of a partition up to which all are scanned (0.2 ms on one core at 384 numbers each)."""
FIRST_ROOM = 256
FED_AT_ONCE = 3
EXTRA_CANDIDATES = 16
"""What the graph is asked for beyond the wanted number, since its own distances are rounded."""


@dataclass(frozen=True, slots=True)
class Match:
    """An entry near a vector: its key, and the cosine, -1 to 1."""

    key: int
    similarity: float


class VectorIndex:
    """Vectors of one partition, by key. One thread at a time.

    ``dimension`` is the length of the vectors, each of length 1 in the Euclidean sense; what it
    holds in memory is 4 bytes a number and, beyond `EXACT_UP_TO`, about 1.5 more.
    """

    def __init__(self, dimension: int, exact_up_to: int = EXACT_UP_TO) -> None:
        self.dimension = dimension
        self._exact_up_to = exact_up_to
        self._rows: Vectors = np.zeros((0, dimension), np.float32)
        self._keys: NDArray[np.int64] = np.zeros(0, np.int64)
        self._at: dict[int, int] = {}
        self._graph: Any = None
        self._unfed: set[int] = set()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._at)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is an entry of that key."""
        return key in self._at

    def add(self, key: int, vector: NDArray[np.float32]) -> None:
        """Add an entry, or put another vector in its place."""
        if vector.shape != (self.dimension,):
            raise InvalidRequest(
                f"a vector of shape {vector.shape} for an index of {self.dimension} numbers: it is "
                "of another embedding model; start a new index for it"
            )
        self.remove(key)
        count = len(self._at)
        if count == len(self._rows):
            room = max(FIRST_ROOM, count + count // 2)
            self._rows = np.resize(self._rows, (room, self.dimension))
            self._keys = np.resize(self._keys, room)
        self._rows[count], self._keys[count], self._at[key] = vector, key, count
        if self._graph is not None:
            self._graph.add(key, vector, threads=1)
            self._feed()
        elif count + 1 > self._exact_up_to // 2 and (graph := _graph(self.dimension)) is not None:
            self._graph, self._unfed = graph, set(self._at)

    def _feed(self) -> None:
        """Give the graph a few of the entries that were there before it.

        All of them at once would take seconds at 10,000. Begun at half of `EXACT_UP_TO`, it is
        complete long before it is used.
        """
        for key in [self._unfed.pop() for _ in range(min(FED_AT_ONCE, len(self._unfed)))]:
            self._graph.add(key, self._rows[self._at[key]], threads=1)

    def remove(self, key: int) -> None:
        """Forget an entry; an unknown key is fine."""
        at = self._at.pop(key, None)
        if at is None:
            return
        last = len(self._at)
        if at != last:  # the last one moves into the gap
            self._rows[at], self._keys[at] = self._rows[last], self._keys[last]
            self._at[int(self._keys[at])] = at
        if key in self._unfed:
            self._unfed.remove(key)
        elif self._graph is not None:
            self._graph.remove(key)

    def nearest(self, vector: NDArray[np.float32], count: int, at_least: float) -> list[Match]:
        """Return up to ``count`` entries of similarity ``at_least`` or more, the nearest first."""
        if not self._at:
            return []
        graph: Any = self._graph
        if graph is None or self._unfed or len(self._at) <= self._exact_up_to:
            places = np.arange(len(self._at))
            rows = self._rows[: len(self._at)]
        else:
            keys = graph.search(vector, count + EXTRA_CANDIDATES, threads=1).keys
            places = np.array([self._at[int(key)] for key in keys if int(key) in self._at], np.intp)
            rows = self._rows[places]
        similarities = rows @ vector
        best = np.argsort(-similarities, kind="stable")[:count]
        return [
            Match(int(self._keys[places[at]]), float(similarities[at]))
            for at in best
            if similarities[at] >= at_least
        ]


def _graph(dimension: int) -> Any:  # noqa: ANN401 - usearch brings no types
    """Return an empty graph, or None without usearch: all are scanned then, at 45 µs per 1,000."""
    try:
        from usearch.index import Index
    except ImportError:
        return None
    return Index(ndim=dimension, metric="cos", dtype="i8")
