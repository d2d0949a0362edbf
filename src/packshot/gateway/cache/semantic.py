"""The semantic tier: which kept answer serves a request that asks the same in other words.

::

    partition ─► read ─► entries that say the same ─► guards
                    └──► embed ─► nearest within the partition ─► guards, the nearest first

A partition is all of a request but the words of its last message, and whose it is (see
`packshot.gateway.cache.request.spoken`): requests of two partitions are never compared.

Most requests that share an answer have the same slots, in another order: what is embedded of them
is the same text (`Reading.gist`), so their cosine is 1, and no vector is needed to find them.

All of it happens in one thread beside the event loop, which alone touches the index: reading and
comparing, and where the model is in this process, embedding and searching in the same turn, since
each turn waits for a busy loop twice. What is to be learned waits while anybody asks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import NoEmbedding, Saturated
from packshot.gateway.cache.cache import Rules
from packshot.gateway.cache.embed import MOST_WAITING, Embedder, Vectors
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

MOST_TURNS = 8
"""Entries that are learned before a lookup that comes after them, about a millisecond each: what
was just kept is found, and the thousands that a store tells of at the start hold up nobody.
"""

LEAST_WORKS = 1000
"""Entries that may wait to be learned where fewer may be known; further ones are not learned."""

READINGS = 4096
"""Texts that are kept taken apart, each for its partition: whether another caller's partition had
the same text read is nothing that a caller may time."""

NOTHING: tuple[str, float, Scent | None] = ("", 0.0, None)
Vector = NDArray[np.float32]


@lru_cache(READINGS)
def read_kept(partition: str, text: str) -> Reading:
    """Return a text, read."""
    del partition
    return read(text)


@dataclass(frozen=True, slots=True)
class _Ask:
    """What is looked for."""

    partition: str
    text: str
    threshold: float
    must_match: tuple[str, ...]


@dataclass(slots=True)
class _Partition:
    name: str
    index: VectorIndex
    texts: dict[int, tuple[str, str, str]] = field(default_factory=dict[int, tuple[str, str, str]])
    """Exact key, text and gist, by number."""
    alike: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Numbers by what was embedded, the newest last."""
    miner: TemplateMiner = field(default_factory=TemplateMiner)

    def reading(self, text: str) -> Reading:
        return replace(read_kept(self.name, text), filled=self.miner.filled(text))


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
        self._asking = 0
        self._works: deque[Callable[[], object]] = deque()
        """What is to be learned and dropped."""
        self._turns = 0
        self._lock = Lock()
        self._closed = False
        encode = getattr(embedder, "encode", None)
        self._encode: Callable[[Sequence[str]], Vectors] | None = encode
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
        if self._asking >= MOST_WAITING:
            return NOTHING
        ask = _Ask(*said, threshold, rules.must_match or SLOT_TYPES)
        self._asking += 1
        try:
            async with asyncio.timeout(self._longest_s):
                return await self._find(ask)
        except (TimeoutError, Saturated, NoEmbedding):
            return NOTHING
        except Exception as error:  # noqa: BLE001 - a tier in trouble costs a hit, and no call
            self._tell(error)
            return NOTHING
        finally:
            self._asking -= 1

    async def _find(self, ask: _Ask) -> tuple[str, float, Scent | None]:
        run = asyncio.get_running_loop().run_in_executor
        key, similarity, found = await run(self._thread, self._look, ask)
        if isinstance(found, str):
            vector: Vector = (await self.embedder.embed([found]))[0]
            key, similarity, found = await run(self._thread, self._search, ask, vector)
        scent = Scent(ask.partition, ask.text, found, self.embedder.name)
        if not key and self._far is not None:
            near = await self._far.nearest(scent, CANDIDATES, ask.threshold)
            choose = partial(self._choose, scent, near, ask.must_match)
            key, similarity = await run(self._thread, choose) if near else ("", 0.0)
        return key, similarity, scent

    def learn(self, key: str, entry: Entry) -> None:
        """Find this entry from now on."""
        scent = entry.scent
        full = len(self._works) >= max(self._most, LEAST_WORKS)
        if scent is not None and scent.embedder == self.embedder.name and not full:
            kept = msgspec.structs.replace(entry, body=b"")
            self._do(partial(self._learn, key, kept, scent))

    def drop(self, what: Purge) -> None:
        """Find no more what ``what`` takes; nothing of its text stays."""
        self._do(partial(self._drop, what))

    async def learned(self) -> None:
        """Return when all that it was told so far is found."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        self._do(partial(loop.call_soon_threadsafe, done.set))
        await done.wait()

    async def aclose(self) -> None:
        """End the threads; what is not learned yet is not learned."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)
        close = getattr(self.embedder, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
        aclose = getattr(self.embedder, "aclose", None)
        if aclose is not None:
            await aclose()

    def _do(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._works.append(work)
            if self._turns == MOST_TURNS:
                return  # one of those before it makes its turn
            self._turns += 1
        self._turn()

    def _turn(self) -> None:
        self._thread.submit(self._work).add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._tell(error)

    # ------------------------------------------------------------ in the thread
    def _look(self, ask: _Ask) -> tuple[str, float, bytes | str]:
        """Return key and cosine of what serves, and the request's vector (fp16); instead of a
        vector the text to embed, where the model is not here.
        """
        reading = read_kept(ask.partition, ask.text)
        key = self._alike(ask, reading.gist)
        if key:
            scent = self._known[key][1].scent
            return key, 1.0, b"" if scent is None else scent.vector
        gist = reading.gist or ask.text
        if self._encode is None:
            return "", 0.0, gist
        return self._search(ask, self._encode([gist])[0])

    def _alike(self, ask: _Ask, gist: str) -> str:
        """Return the key of an entry of which the same was embedded, "" where none serves."""
        partition = self._partitions.get(ask.partition)
        numbers = [] if partition is None or not gist else partition.alike.get(gist, [])
        for number in numbers[: -CANDIDATES - 1 : -1]:
            if partition is not None and (key := self._served(partition, ask, number)):
                return key
        return ""

    def _served(self, partition: _Partition, ask: _Ask, number: int) -> str:
        """Return an entry's key where its answer serves, else ""."""
        key, other, _ = partition.texts[number]
        asked = partition.reading(ask.text)
        if not compare(asked, partition.reading(other), ask.must_match).agree:
            return ""
        if self._known[key][1].until > self._clock():
            return key
        self._forget(key)
        return ""

    def _search(self, ask: _Ask, vector: Vector) -> tuple[str, float, bytes]:
        packed = vector.astype(np.float16).tobytes()
        partition = self._partitions.get(ask.partition)
        if partition is not None:
            for match in partition.index.nearest(vector, CANDIDATES, ask.threshold):
                if key := self._served(partition, ask, match.key):
                    return key, min(match.similarity, 1.0), packed
        return "", 0.0, packed

    def _choose(
        self, scent: Scent, near: Sequence[Near], must_match: tuple[str, ...]
    ) -> tuple[str, float]:
        """Return the nearest of ``near`` that the guards let pass."""
        partition = self._partitions.get(scent.partition)
        here = partial(read_kept, scent.partition)
        reading = here if partition is None else partition.reading
        asked = reading(scent.text)
        for key, text, similarity in near:
            if compare(asked, reading(text), must_match).agree:
                return key, min(similarity, 1.0)
        return "", 0.0

    def _work(self) -> None:
        """Do the next of the works; lookups that came meanwhile go before those without a turn."""
        try:
            self._works.popleft()()
        finally:
            with self._lock:
                more = len(self._works) >= self._turns and not self._closed
                self._turns -= not more
            if more:
                self._turn()

    def _learn(self, key: str, entry: Entry, scent: Scent) -> None:
        if key in self._known and self._known[key][1] == entry:
            return  # it was kept here, and is news of the store's
        self._forget(key)
        vector = np.frombuffer(scent.vector, np.float16).astype(np.float32)
        if vector.shape != (self.embedder.dimension,):
            return
        partition = self._partitions.get(scent.partition)
        if partition is None:
            partition = _Partition(scent.partition, VectorIndex(self.embedder.dimension))
            self._partitions[scent.partition] = partition
        self._made += 1
        partition.index.add(self._made, vector / np.float32(np.linalg.norm(vector)))
        gist = read_kept(scent.partition, scent.text).gist
        partition.texts[self._made] = (key, scent.text, gist)
        partition.alike.setdefault(gist, []).append(self._made)
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
        _, _, gist = partition.texts.pop(number)
        partition.alike[gist].remove(number)
        if not partition.alike[gist]:
            del partition.alike[gist]
        if not partition.texts:
            del self._partitions[entry.scent.partition]
