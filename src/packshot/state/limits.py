"""Rate limits: how much of something a key may take in any stretch of time, and the one in memory.

A limit of 300 a minute means: in *any* 60 seconds, wherever they begin, at most 300. A token bucket
cannot promise that (a full bucket and a minute of refill are 600), a bucket small enough to promise
it refuses bursts that are well within the limit. So amounts are counted in 60 slots per window, and
a request is admitted where the slot of now and the 60 before it have room. The oldest slot counts
whole until it has left the window whole: never one too many; a caller that always takes all there
is gets 60/61 of the limit.

Three implementations, one meaning: `MemoryLimits` (one process), `shared.SharedLimits` (the workers
of a machine), `valkey.ValkeyLimits` (replicas).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil, inf
from typing import Protocol, runtime_checkable

import msgspec

from packshot.core.errors import InvalidRequest

__all__ = [
    "EASE_S",
    "MAX_KEYS",
    "SLOTS",
    "Ask",
    "Limits",
    "LocalLimits",
    "MemoryLimits",
    "Refusal",
    "Room",
    "Rule",
    "left_of",
    "wait_s",
]

SLOTS = 60
"""Slots of a window: those of a minute are seconds. More would waste less of a limit than 1/61."""

MAX_KEYS = 65_536
"""Windows in memory, some 1 kB each while in use. A gateway has two or three per virtual key."""

EASE_S = 0.001
"""Added to waits, so that whoever comes back at the named time is never early by a rounding."""


class Rule(msgspec.Struct, frozen=True, gc=False):
    """``limit`` (0 or more) in any ``per_s`` seconds (above 0)."""

    limit: int
    per_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what could not be counted."""
        if self.limit < 0 or not 0 < self.per_s < inf:
            raise InvalidRequest(
                f"a rate limit is 0 or more per a number of seconds above 0, got {self.limit}"
                f" per {self.per_s}"
            )


class Ask(msgspec.Struct, frozen=True, gc=False):
    """``amount`` (0 or more) of what ``rule`` limits, for ``key`` ("research/requests")."""

    key: str
    rule: Rule
    amount: int = 1


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The first ask that had no room; nothing was taken for any of them.

    ``retry_after_s`` is when it will have room if nobody else takes it, and infinite where it asks
    for more than the limit. ``remaining`` and ``reset_s`` are those of `Room`.
    """

    ask: Ask
    retry_after_s: float
    remaining: int
    reset_s: float


class Room(msgspec.Struct, frozen=True, gc=False):
    """What is left now, and the seconds until all of the limit is there again."""

    limit: int
    remaining: int
    reset_s: float


class Limits(Protocol):
    """Counts what keys take. All three are for one thread: that of the event loop.

    The asks of one call have different keys.
    """

    async def take(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all of ``asks``, or none and say which had no room."""
        ...

    async def give_back(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct what was taken ``age_s`` seconds ago by ``amount`` less; below 0, by more.

        More is taken whether there is room or not: it was used. Less counts for nothing where the
        original has left the window, else it would be given back twice.
        """
        ...

    def peek(self, asks: Sequence[Ask]) -> Sequence[Room]:
        """Return what is left for each ask's key and rule, as far as this process knows."""
        ...

    async def aclose(self) -> None:
        """Let go of files and connections."""
        ...


@runtime_checkable
class LocalLimits(Limits, Protocol):
    """Limits that nobody has to wait for: the same without a coroutine."""

    def take_now(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all of ``asks``, or none and say which had no room."""
        ...

    def give_back_now(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct what was taken; see `Limits.give_back`."""
        ...


def left_of(rooms: Iterable[Room]) -> tuple[int, ...]:
    """Return of each what remains, and the milliseconds until all of it is there again."""
    return tuple(number for room in rooms for number in (room.remaining, ceil(room.reset_s * 1000)))


def wait_s(parts: Iterable[tuple[int, int]], excess: int, now: float, width: float) -> float:
    """Return the seconds until ``excess`` of ``parts`` has left the window.

    ``parts`` are (slot, amount), oldest first; ``width`` is that of a slot in seconds.
    """
    for slot, amount in parts:
        excess -= amount
        if excess <= 0:
            return max((slot + SLOTS + 1) * width - now, 0.0) + EASE_S
    return inf


class _Window:
    """What one key took: [slot, amount] for each slot in which it did, and their sum."""

    __slots__ = ("last", "leaves", "newest", "parts", "per_s", "total", "until", "width")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self.width = per_s / SLOTS
        self.newest = -1
        self.until = 0.0
        """When the newest slot ends …"""
        self.leaves = 0.0
        """… and when, surely, it has left the window."""
        self.total = 0
        self.last = [-1, 0]
        self.parts: deque[list[int]] = deque()

    def advance(self, now: float) -> None:
        """Begin the slot of now, where it has not begun, and drop what has left the window."""
        slot = int(now / self.width)
        self.until = (slot + 1) * self.width
        self.leaves = self.until + self.per_s + EASE_S
        if slot == self.newest:
            return
        parts = self.parts
        while parts and parts[0][0] < slot - SLOTS:
            self.total -= parts.popleft()[1]
        self.last = [slot, 0]
        self.newest = slot
        parts.append(self.last)

    def give_back(self, amount: int, slot: int) -> None:
        """Take ``amount`` out again, from ``slot`` or what came before it, never from later ones.

        What came later stays longer in the window, and was not given back.
        """
        for part in reversed(self.parts):
            if part[0] <= slot:
                less = min(amount, part[1])
                part[1] -= less
                self.total -= less
                amount -= less
                if not amount:
                    return

    def wait_s(self, excess: int, now: float) -> float:
        """Return the seconds until ``excess`` has left the window."""
        return wait_s(((slot, amount) for slot, amount in self.parts), excess, now, self.width)

    def reset_s(self, now: float) -> float:
        """Return the seconds until nothing is in the window."""
        for slot, amount in reversed(self.parts):
            if amount:
                return max((slot + SLOTS + 1) * self.width - now, 0.0) + EASE_S
        return 0.0


class MemoryLimits:
    """`Limits` of one process.

    ``clock`` returns seconds and never goes back. The number of keys is bounded: each new one looks
    at the two oldest and drops them where nothing is in their window; above ``max_keys`` also where
    something is (``evicted`` counts those: a limit too generous, once, for a key long unused).
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS
    ) -> None:
        self.evicted = 0
        self._clock = clock
        self._max_keys = max_keys
        self._windows: dict[str, _Window] = {}

    async def aclose(self) -> None:
        """Nothing to let go of."""

    async def take(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all, or none."""
        return self.take_now(asks)

    def take_now(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all, or none, without a coroutine."""
        now = self._clock()
        windows = self._windows
        for ask in asks:
            rule = ask.rule
            window = windows.get(ask.key)
            if window is None or window.per_s != rule.per_s:
                window = self._open(ask.key, rule, now)
            if now >= window.until:
                window.advance(now)
            amount = ask.amount
            total = window.total + amount
            if total > rule.limit:
                return self._refuse(asks, ask, window, now)
            window.total = total
            window.last[1] += amount
        return None

    def add(self, asks: Sequence[Ask]) -> None:
        """Take all, whether there is room or not: somebody else admitted them."""
        now = self._clock()
        for ask in asks:
            window = self._now(ask.key, ask.rule, now)
            window.total += ask.amount
            window.last[1] += ask.amount

    async def give_back(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct what was taken ``age_s`` seconds ago."""
        self.give_back_now(asks, age_s)

    def give_back_now(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct it, without a coroutine."""
        now = self._clock()
        for ask in asks:
            window, amount = self._windows.get(ask.key), ask.amount
            if window is None or now >= window.until or window.per_s != ask.rule.per_s:
                window = self._now(ask.key, ask.rule, now)
            last, at = window.last, now - age_s
            if amount < 0 or (at >= window.until - window.width and amount <= last[1]):
                window.total -= amount
                last[1] -= amount
            else:
                window.give_back(amount, int(at / window.width))

    def peek(self, asks: Sequence[Ask]) -> list[Room]:
        """Return what is left of each limit."""
        now = self._clock()
        rooms: list[Room] = []
        for ask in asks:
            rule = ask.rule
            limit, window = rule.limit, self._windows.get(ask.key)
            if window is None or window.per_s != rule.per_s:
                rooms.append(Room(limit, limit, 0.0))
                continue
            if now >= window.until:
                window.advance(now)
            left = limit - window.total
            # Asked for after each call, when the newest slot has that call in it: it leaves last.
            gone = window.leaves - now
            if not window.last[1]:
                gone = window.reset_s(now)
            rooms.append(Room(limit, max(0, left), gone))
        return rooms

    def left(self, asks: Sequence[Ask]) -> tuple[int, ...]:
        """Return what `left_of` does of `peek`, in one pass: it is asked for after each call."""
        now, windows = self._clock(), self._windows
        found: tuple[int, ...] = ()
        for ask in asks:
            window = windows.get(ask.key)
            # After a call the newest slot has that call in it: it leaves last.
            if window is None or now >= window.until or not window.last[1]:
                return left_of(self.peek(asks))
            left = ask.rule.limit - window.total
            gone = ceil((window.leaves - now) * 1000)
            found += (max(0, left), gone)
        return found

    def _now(self, key: str, rule: Rule, now: float) -> _Window:
        """Return a key's window as it is now."""
        window = self._windows.get(key)
        if window is None or window.per_s != rule.per_s:
            window = self._open(key, rule, now)
        if now >= window.until:
            window.advance(now)
        return window

    def _open(self, key: str, rule: Rule, now: float) -> _Window:
        """Make a window, in the place of two that nobody uses."""
        windows = self._windows
        windows.pop(key, None)  # of another length: the rule has changed
        for _ in range(min(2, len(windows))):
            oldest = next(iter(windows))
            window = windows.pop(oldest)
            if window.newest >= int(now / window.width) - SLOTS:
                if len(windows) >= self._max_keys - 1:
                    self.evicted += 1
                    break
                windows[oldest] = window  # in use: to the end of the line
        made = windows[key] = _Window(rule.per_s)
        return made

    def _refuse(self, asks: Sequence[Ask], ask: Ask, window: _Window, now: float) -> Refusal:
        """Undo what was taken for the asks before ``ask``, and say when it will have room."""
        for taken in asks:
            if taken is ask:
                break
            if before := self._windows.get(taken.key):
                before.total -= taken.amount
                before.last[1] -= taken.amount
        limit = ask.rule.limit
        excess = window.total + ask.amount - limit
        wait = inf if ask.amount > limit else window.wait_s(excess, now)
        return Refusal(ask, wait, max(limit - window.total, 0), window.reset_s(now))
