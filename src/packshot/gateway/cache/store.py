"""Where answers are kept: the contract, and a worker's own memory.

Every store has a limit in bytes. Beyond it goes what is worth least: a hit of an entry saves its
cost and takes its bytes, so entries are ranked by cost per byte on top of the rank of what went
last, which ages those that nobody asks for (Greedy-Dual-Size: Cao and Irani, "Cost-aware WWW proxy
caching algorithms", USITS 1997).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.entry import BESIDE, Entry, Purge, Scent
from packshot.state.blobs import Held

__all__ = [
    "FORGOTTEN",
    "Mark",
    "MemoryStore",
    "Near",
    "Neighbours",
    "News",
    "Store",
    "rank",
    "sets_of",
    "worth_of",
]

Mark: TypeAlias = tuple[int, int]
"""Up to where one has heard of a store's entries, and of what was purged."""


FORGOTTEN = (Purge("all"),)
"""What one hears who was away for so long that the purges since are remembered no more. The mark
that comes with it is that of the beginning: what is there now is learned again."""


class News(NamedTuple):
    """What others put into a store, of entries with a scent, and what they purged.

    An entry may come without its body. Purges are to be followed before entries are learned.
    """

    mark: Mark
    entries: Sequence[tuple[str, Entry]]
    purges: Sequence[Purge]


class Store(Protocol):
    """Keeps entries under exact keys. None of it raises for a store that cannot be reached: that
    costs a hit, and ``problem`` says why ("" while all is well).
    """

    @property
    def problem(self) -> str: ...

    async def get(self, key: str) -> Entry | None:
        """Return what was last put under ``key``, None if it is gone or its time is over."""
        ...

    async def put(self, key: str, entry: Entry) -> None:
        """Keep an entry; one larger than the whole store is not kept."""
        ...

    async def purge(self, what: Purge) -> int:
        """Throw away what ``what`` takes, and return how many that was.

        Raises:
            StateUnavailable: the store cannot be reached: what was to go is still there.
        """
        ...

    async def sweep(self) -> int:
        """Throw away what is past its time, and return how many that was."""
        ...

    async def held(self) -> Held:
        """Return how many entries there are, and of how many bytes."""
        ...

    async def news(self, mark: Mark) -> News:
        """Return what came since ``mark``; (0, 0) is the beginning.

        It may be a part: until the mark stays as it is, there is more.
        """
        ...

    async def aclose(self) -> None:
        """Let go of it."""
        ...


class Near(NamedTuple):
    """An entry near another: its exact key, its text, and the cosine."""

    key: str
    text: str
    similarity: float


class Neighbours(Protocol):
    """A store that searches its vectors itself, those of all who share it."""

    async def nearest(self, scent: Scent, count: int, at_least: float) -> Sequence[Near]:
        """Return up to ``count`` entries of the scent's partition and model, the nearest first, of
        the cosine ``at_least`` or more. None where it cannot be reached, as `Store.get`.
        """
        ...


def rank(entry: Entry, floor: float) -> float:
    """Return an entry's place among those that go; the lowest goes first, and is the next floor."""
    return floor + worth_of(entry)


def worth_of(entry: Entry) -> float:
    """Return an entry's worth, which is above 0: of two that cost nothing the larger goes first."""
    return max(entry.worth, 1.0 / entry.size)


def sets_of(entry: Entry) -> list[str]:
    """Return the names by which an entry is purged with others: ``by:value`` of such a `Purge`."""
    return [f"scope:{entry.scope}", f"route:{entry.route}", *(f"tag:{tag}" for tag in entry.tags)]


class MemoryStore:
    """Entries of at most ``max_bytes`` in this process, for one thread; ``clock`` is in µs."""

    def __init__(self, max_bytes: int, clock: Clock = wall_us) -> None:
        if max_bytes <= BESIDE:
            raise InvalidRequest(f"a store of {max_bytes} bytes holds nothing; give it a megabyte")
        self.problem = ""
        self.max_bytes = max_bytes
        self.size = 0
        self._clock = clock
        self._kept: dict[str, Entry] = {}
        self._ranks: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Each entry once, at its rank or a lower one that it has outgrown."""
        self._floor = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def look(self, key: str) -> Entry | None:
        """As `Store.get`, at once."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry.until <= self._clock():
            self._drop(key)
            return None
        self._ranks[key] = rank(entry, self._floor)
        return entry

    def keep(self, key: str, entry: Entry) -> None:
        """As `Store.put`, at once."""
        self._drop(key)
        if entry.size > self.max_bytes or entry.until <= self._clock():
            return
        while self.size + entry.size > self.max_bytes:
            self._evict()
        self._kept[key] = entry
        self.size += entry.size
        self._ranks[key] = rank(entry, self._floor)
        heapq.heappush(self._heap, (self._ranks[key], key))
        if len(self._heap) > 2 * len(self._kept) + 64:  # of entries that were replaced or dropped
            self._heap = [(self._ranks[each], each) for each in self._kept]
            heapq.heapify(self._heap)

    def drop(self, what: Purge) -> int:
        """As `Store.purge`, at once."""
        if what.by == "key":
            return int(self._drop(what.value))
        gone = [key for key, entry in self._kept.items() if what.takes(key, entry)]
        return sum(self._drop(key) for key in gone)

    async def get(self, key: str) -> Entry | None:
        """As `Store.get`."""
        return self.look(key)

    async def put(self, key: str, entry: Entry) -> None:
        """As `Store.put`."""
        self.keep(key, entry)

    async def purge(self, what: Purge) -> int:
        """As `Store.purge`."""
        return self.drop(what)

    async def sweep(self) -> int:
        """As `Store.sweep`."""
        now = self._clock()
        gone = [key for key, entry in self._kept.items() if entry.until <= now]
        return sum(self._drop(key) for key in gone)

    async def held(self) -> Held:
        """As `Store.held`."""
        return Held(len(self._kept), self.size)

    async def news(self, mark: Mark) -> News:
        """There are no others."""
        return News(mark, (), ())

    async def aclose(self) -> None:
        """There is nothing to let go of."""

    def _evict(self) -> None:
        while True:
            at, key = heapq.heappop(self._heap)
            now = self._ranks.get(key)
            if now is None:
                continue
            if now > at:
                heapq.heappush(self._heap, (now, key))
                continue
            self._floor = at
            self._drop(key)
            return

    def _drop(self, key: str) -> bool:
        entry = self._kept.pop(key, None)
        if entry is None:
            return False
        del self._ranks[key]
        self.size -= entry.size
        return True
