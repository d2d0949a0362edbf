"""Rate limits that the workers of one machine share, exactly: a file in memory, and a lock.

The file is an array of fixed records, one per key. Whoever counts holds the file's lock, a
microsecond at a time; the kernel frees it when a process dies. A process that is killed while it
writes leaves its record marked, and the next one makes the sum anew from the slots: each of them is
one aligned 64-bit word, which is written whole or not at all. A process that is stopped while it
holds the lock stops nobody for more than 0.1 s: the others count by themselves until it goes on.

The clock is `time.monotonic`, which all processes of a machine have in common until it reboots.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import inf
from mmap import mmap
from pathlib import Path

from packshot.core.errors import OutputError
from packshot.state.limits import SLOTS, Ask, MemoryLimits, Refusal, Room, Rule, wait_s

__all__ = ["RECORDS", "SharedLimits"]

RECORDS = 16_384
"""Keys that are counted at once. The file has 9 MB, of which the used pages are in memory."""

PROBES = 16
"""Places where a key's record may lie. All taken: the one unused for longest is given up."""

RETRY_S = 1.0
"""Seconds after which a lock that did not come is tried again."""

SPINS = 20
"""Tries for the lock that only let another process run, before those that sleep."""

NAPS = 400
PAUSE_S = 0.0002
"""Together 0.1 s: the lock is held for microseconds, or by a process that was stopped. Tries are
counted, not time: on a busy machine the holder may wait for a core as long as this process does."""

MAGIC = 0x7061636B_6C696D31
HEADER = 8
"""Words of 8 bytes: magic, number of records, boot; the rest are spare."""

KEY_HIGH, KEY_LOW, MARK, NEWEST, TOTAL, PER_NS, RING = range(7)
RING_SIZE = SLOTS + 1
RECORD = 72
"""Words: the seven above, a ring of slots, and padding to whole cache lines of 64 bytes."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

opened: weakref.WeakSet[SharedLimits] = weakref.WeakSet()


class SharedLimits:
    """`Limits` (see there) of all processes that open the same ``path``; one thread in each.

    ``path`` belongs on a file system in memory (``/dev/shm``): nothing in it outlives a reboot.

    ``evicted`` counts keys given up for others, ``alone`` the calls that this process decided by
    itself, with all of the limit, since another held the lock for too long.

    Raises:
        OutputError: the file cannot be made or written, or is something else.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, records: int = RECORDS
    ) -> None:
        self.path = path
        self.evicted = 0
        self.alone = 0
        self._clock = clock
        self._alone = MemoryLimits(clock)
        self._retry_at = -inf
        self._records = records
        self._places: dict[str, tuple[int, int, int]] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._map = self._mapped()
        except OSError as error:
            raise OutputError(f"cannot use {path} for shared limits: {error.strerror}") from error
        self._words = memoryview(self._map).cast("q")
        opened.add(self)

    async def aclose(self) -> None:
        """Let go of the file."""
        self.close()

    def close(self) -> None:
        """Leave the file; others go on."""
        opened.discard(self)
        self._words.release()
        self._map.close()
        os.close(self._file)

    async def take(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all, or none."""
        return self.take_now(asks)

    def take_now(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all, or none, without a coroutine."""
        if not self._lock():
            return self._alone.take_now(asks)
        words = self._words
        try:
            now = self._clock()
            at = [self._window(ask.key, ask.rule, now) for ask in asks]
            for ask, record in zip(asks, at, strict=True):
                if words[record + TOTAL] + ask.amount > ask.rule.limit:
                    return self._refusal(ask, record, now)
            for ask, record in zip(asks, at, strict=True):
                self._add(record, ask.amount)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return None

    async def give_back(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct what was taken ``age_s`` seconds ago."""
        self.give_back_now(asks, age_s)

    def give_back_now(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct it, without a coroutine."""
        if not self._lock():
            self._alone.give_back_now(asks, age_s)
            return
        try:
            now = self._clock()
            for ask in asks:
                record = self._window(ask.key, ask.rule, now)
                if ask.amount < 0:
                    self._add(record, -ask.amount)
                else:
                    self._remove(record, ask.amount, int((now - age_s) * SLOTS / ask.rule.per_s))
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def peek(self, asks: Sequence[Ask]) -> list[Room]:
        """Return what is left of each limit."""
        if not self._lock():
            return self._alone.peek(asks)
        try:
            now = self._clock()
            rooms: list[Room] = []
            for ask in asks:
                record, limit = self._window(ask.key, ask.rule, now), ask.rule.limit
                left = max(limit - self._words[record + TOTAL], 0)
                rooms.append(Room(limit, left, self._reset_s(record, now)))
            return rooms
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def reopen(self) -> None:
        """Get a lock of this process's own: a child that was forked shares its parent's."""
        inherited, self._file = self._file, os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.close(inherited)

    def _lock(self) -> bool:
        """Take the lock; False where it did not come in time."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._lock_later()
        return True

    def _lock_later(self) -> bool:
        now = time.monotonic()
        for tries in range(SPINS + NAPS if now >= self._retry_at else 0):
            if tries < SPINS:
                os.sched_yield()
            else:
                time.sleep(PAUSE_S)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        if now >= self._retry_at:
            self._retry_at = time.monotonic() + RETRY_S
        self.alone += 1
        return False

    def _mapped(self) -> mmap:
        """Map the file, and make it where it is new, of another size, or of before a reboot."""
        size = (HEADER + self._records * RECORD) * 8
        head = [MAGIC, self._records, _boot()]
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            found = os.fstat(self._file).st_size
            if found != size:
                if found and os.pread(self._file, 8, 0) != MAGIC.to_bytes(8, "little"):
                    raise OutputError(f"{self.path} is no file of limits; expected none, or ours")
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, size)
            mapped = mmap(self._file, size)
            with memoryview(mapped).cast("q") as words:
                if list(words[:3]) != head:
                    mapped[:] = bytes(size)
                    words[1], words[2] = head[1:]
                    words[0] = MAGIC  # last: half a header is no header
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return mapped

    def _window(self, key: str, rule: Rule, now: float) -> int:
        """Return the place of a key's record, whole and as it is now."""
        words = self._words
        known = self._places.get(key)
        if known is None:
            if len(self._places) >= self._records:
                self._places.clear()
            digest = blake2b(key.encode(), digest_size=16).digest()
            high = int.from_bytes(digest[:8], "little", signed=True)
            low = int.from_bytes(digest[8:], "little", signed=True)
            self._places[key] = known = (self._find(high, low, now), high, low)
        record, high, low = known
        if words[record] != high or words[record + KEY_LOW] != low:
            record = self._find(high, low, now)
            self._places[key] = (record, high, low)
        per_ns = int(rule.per_s * 1e9)
        if words[record + PER_NS] != per_ns:
            self._clear(record)
            words[record + PER_NS] = per_ns
        if words[record + MARK]:
            words[record + TOTAL] = sum(words[record + RING : record + RING + RING_SIZE])
            words[record + MARK] = 0
        slot = int(now * SLOTS / rule.per_s)
        if words[record + NEWEST] != slot:
            self._advance(record, slot)
        return record

    def _advance(self, record: int, slot: int) -> None:
        """Begin a slot: those whose places it and the skipped ones take have left the window."""
        words = self._words
        newest = words[record + NEWEST]
        words[record + MARK] = 1
        total = words[record + TOTAL]
        for passed in range(max(newest + 1, slot - SLOTS), slot + 1):
            place = record + RING + passed % RING_SIZE
            total -= words[place]
            words[place] = 0
        words[record + TOTAL] = total
        words[record + NEWEST] = slot
        words[record + MARK] = 0

    def _add(self, record: int, amount: int) -> None:
        words = self._words
        words[record + MARK] = 1
        words[record + RING + words[record + NEWEST] % RING_SIZE] += amount
        words[record + TOTAL] += amount
        words[record + MARK] = 0

    def _remove(self, record: int, amount: int, slot: int) -> None:
        """Take ``amount`` out of ``slot`` or of what came before it, never of later ones."""
        words = self._words
        newest = words[record + NEWEST]
        words[record + MARK] = 1
        for at in range(min(slot, newest), newest - RING_SIZE, -1):
            place = record + RING + at % RING_SIZE
            less = min(amount, words[place])
            words[place] -= less
            words[record + TOTAL] -= less
            amount -= less
            if not amount:
                break
        words[record + MARK] = 0

    def _refusal(self, ask: Ask, record: int, now: float) -> Refusal:
        total, limit = self._words[record + TOTAL], ask.rule.limit
        wait = inf if ask.amount > limit else self._wait_s(record, total + ask.amount - limit, now)
        return Refusal(ask, wait, max(limit - total, 0), self._reset_s(record, now))

    def _reset_s(self, record: int, now: float) -> float:
        total = self._words[record + TOTAL]
        return self._wait_s(record, total, now) if total else 0.0

    def _wait_s(self, record: int, excess: int, now: float) -> float:
        words = self._words
        newest = words[record + NEWEST]
        slots = range(newest - SLOTS, newest + 1)
        parts = ((slot, words[record + RING + slot % RING_SIZE]) for slot in slots)
        return wait_s(parts, excess, now, words[record + PER_NS] / 1e9 / SLOTS)

    def _find(self, high: int, low: int, now: float) -> int:
        """Return the record of a key: its own, or else a free one that becomes it."""
        words = self._words
        first = high % self._records
        places = [HEADER + (first + k) % self._records * RECORD for k in range(PROBES)]
        for record in places:
            if words[record] == high and words[record + KEY_LOW] == low:
                return record
        ends = {record: self._end_s(record) for record in places}
        record = min(places, key=ends.__getitem__)  # the first of those never used, if any is
        self.evicted += ends[record] > now
        self._clear(record)
        words[record], words[record + KEY_LOW] = high, low
        return record

    def _end_s(self, record: int) -> float:
        """Return when nothing is in a record's window any more."""
        width = self._words[record + PER_NS] / 1e9 / SLOTS
        return (self._words[record + NEWEST] + SLOTS + 1) * width

    def _clear(self, record: int) -> None:
        """Forget what a record counted; its key stays."""
        for word in range(record + MARK, record + RECORD):
            self._words[word] = 0


def _boot() -> int:
    """Return what tells this boot of the machine from others, or 0 where nothing does."""
    try:
        text = BOOT_ID.read_text()
    except OSError:
        return 0
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _reopen_all() -> None:
    for each in list(opened):
        each.reopen()


os.register_at_fork(after_in_child=_reopen_all)
