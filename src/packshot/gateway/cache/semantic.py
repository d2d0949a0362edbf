"""The semantic tier: which kept answer serves a request that asks the same in other words.

::

    partition ─► read ─► embed ─► nearest within the partition ─► guards, the nearest first

A partition is all of a request but the words of its last message, and whose it is (see
`packshot.gateway.cache.request.spoken`): requests of two partitions are never compared. Reading,
searching and comparing take up to some milliseconds, and happen in one thread beside the event
loop, which alone touches the index; embeddings are the embedder's business.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import NoEmbedding, Saturated
from packshot.gateway.cache.cache import Rules
from packshot.gateway.cache.embed import Embedder
from packshot.gateway.cache.entry import Entry, Purge, Scent
from packshot.gateway.cache.guards import compare
from packshot.gateway.cache.request import CachedRequest, spoken
from packshot.gateway.cache.similarity import VectorIndex
from packshot.gateway.cache.slots import SLOT_TYPES, Reading, read
from packshot.gateway.cache.store import Near, Neighbours
from packshot.gateway.cache.templates import TemplateMiner

__all__ = ["Semantic"]

CANDIDATES = 4
"""Nearest entries that the guards look at."""

LONGEST_S = 0.25
"""A call does not wait longer than this for what may be found; it goes upstream."""

READINGS = 4096
"""Texts that are kept taken apart."""

NOTHING: tuple[str, float, Scent | None] = ("", 0.0, None)
Vector = NDArray[np.float32]
read_kept = lru_cache(READINGS)(read)


@dataclass(slots=True)
class _Partition:
    index: VectorIndex
    texts: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    """Exact key and text, by number."""
    miner: TemplateMiner = field(default_factory=TemplateMiner)

    def reading(self, text: str) -> Reading:
        return replace(read_kept(text), filled=self.miner.filled(text))


class Semantic:
    """A `SemanticTier` over ``embedder`` that knows up to ``most`` entries; ``tell`` hears of what
    went wrong in its thread.

    Entries whose vectors are another embedder's are not found here. Where none of its own serves,
    ``far`` is asked, a store that searches among those of all replicas.
    """

    def __init__(
        self,
        embedder: Embedder,
        most: int,
        tell: Callable[[BaseException], None],
        clock: Clock = wall_us,
        far: Neighbours | None = None,
        longest_s: float = LONGEST_S,
    ) -> None:
        self.embedder = embedder
        self._far = far
        self._longest_s = longest_s
        self._most = most
        self._tell = tell
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "similar")
        self._partitions: dict[str, _Partition] = {}
        self._known: OrderedDict[str, tuple[int, Entry]] = OrderedDict()
        """By exact key: the number in its partition, and the entry without its body."""
        self._made = 0
        # The lists of words take a tenth of a second to load: not in a call.
        compare(read("a red mug"), read("a mug, red"), SLOT_TYPES)

    def __len__(self) -> int:
        return len(self._known)

    async def find(
        self, request: CachedRequest, rules: Rules, threshold: float
    ) -> tuple[str, float, Scent | None]:
        """As `SemanticTier.find`."""
        said = spoken(request)
        if said is None:
            return NOTHING
        partition, text = said
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with asyncio.timeout(self._longest_s):
                gist = await run(self._thread, lambda: read_kept(text).gist)
                vector: Vector = (await self.embedder.embed([gist or text]))[0]
                must_match = rules.must_match or SLOT_TYPES
                search = partial(self._search, partition, text, vector, threshold, must_match)
                key, similarity = await run(self._thread, search)
                packed = vector.astype(np.float16).tobytes()
                scent = Scent(partition, text, packed, self.embedder.name)
                if not key and self._far is not None:
                    near = await self._far.nearest(scent, CANDIDATES, threshold)
                    choose = partial(self._choose, scent, near, must_match)
                    key, similarity = await run(self._thread, choose) if near else ("", 0.0)
        except (TimeoutError, Saturated, NoEmbedding):
            return NOTHING
        return key, similarity, scent

    def learn(self, key: str, entry: Entry) -> None:
        """Find this entry from now on."""
        scent = entry.scent
        if scent is not None and scent.embedder == self.embedder.name:
            kept = msgspec.structs.replace(entry, body=b"")
            self._do(partial(self._learn, key, kept, scent))

    def drop(self, what: Purge) -> None:
        """Find no more what ``what`` takes; nothing of its text stays."""
        self._do(partial(self._drop, what))

    async def learned(self) -> None:
        """Return when all that it was told so far is found."""
        await asyncio.get_running_loop().run_in_executor(self._thread, int)

    async def aclose(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._thread.shutdown)
        close = getattr(self.embedder, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
        aclose = getattr(self.embedder, "aclose", None)
        if aclose is not None:
            await aclose()

    def _do(self, work: Callable[[], None]) -> None:
        self._thread.submit(work).add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._tell(error)

    # ------------------------------------------------------------ in the thread
    def _search(
        self,
        name: str,
        text: str,
        vector: Vector,
        threshold: float,
        must_match: tuple[str, ...],
    ) -> tuple[str, float]:
        partition = self._partitions.get(name)
        if partition is None:
            return "", 0.0
        asked = partition.reading(text)
        for match in partition.index.nearest(vector, CANDIDATES, threshold):
            key, other = partition.texts[match.key]
            if compare(asked, partition.reading(other), must_match).agree:
                if self._known[key][1].until > self._clock():
                    return key, min(match.similarity, 1.0)
                self._forget(key)
        return "", 0.0

    def _choose(
        self, scent: Scent, near: Sequence[Near], must_match: tuple[str, ...]
    ) -> tuple[str, float]:
        """Return the nearest of ``near`` that the guards let pass."""
        partition = self._partitions.get(scent.partition)
        reading = read_kept if partition is None else partition.reading
        asked = reading(scent.text)
        for key, text, similarity in near:
            if compare(asked, reading(text), must_match).agree:
                return key, min(similarity, 1.0)
        return "", 0.0

    def _learn(self, key: str, entry: Entry, scent: Scent) -> None:
        if key in self._known and self._known[key][1] == entry:
            return  # it was kept here, and is news of the store's
        self._forget(key)
        vector = np.frombuffer(scent.vector, np.float16).astype(np.float32)
        if vector.shape != (self.embedder.dimension,):
            return
        partition = self._partitions.get(scent.partition)
        if partition is None:
            partition = _Partition(VectorIndex(self.embedder.dimension))
            self._partitions[scent.partition] = partition
        self._made += 1
        partition.index.add(self._made, vector / np.float32(np.linalg.norm(vector)))
        partition.texts[self._made] = (key, scent.text)
        partition.miner.learn(scent.text)
        self._known[key] = (self._made, entry)
        while len(self._known) > self._most:
            self._forget(next(iter(self._known)))

    def _drop(self, what: Purge) -> None:
        gone = [key for key, (_, entry) in self._known.items() if what.takes(key, entry)]
        for key in gone:
            self._forget(key)
        if what.by != "key":
            read_kept.cache_clear()

    def _forget(self, key: str) -> None:
        number, entry = self._known.pop(key, (0, None))
        if entry is None or entry.scent is None:
            return
        partition = self._partitions[entry.scent.partition]
        partition.index.remove(number)
        del partition.texts[number]
        if not partition.texts:
            del self._partitions[entry.scent.partition]
