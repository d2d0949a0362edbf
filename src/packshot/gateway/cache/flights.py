"""Of identical requests under way at the same time, one is made; the others wait for its answer.

Where that answer is none to share (a refusal, a stream that broke), those who wait go on in the
order in which they came: one in its place and one more beside it, so twice as many after each
round, up to `MOST_SEATS` at once. One of them may bring what serves all the rest. So the provider
gets no burst of what just failed, and a line of 200 is through after eight rounds or so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple, TypeAlias

from packshot.gateway.cache.entry import Entry
from packshot.providers.base import Failure

__all__ = ["MOST_SEATS", "Flights", "Hit", "Seat"]

MOST_SEATS = 32
"""Identical requests that are made at the same time, once their answers proved none to share."""


class Hit(NamedTuple):
    """A kept answer, found under ``key``; ``similarity`` is a cosine, None for an exact hit."""

    key: str
    entry: Entry
    similarity: float | None = None


@dataclass(slots=True, eq=False)
class Seat:
    """A call that its holder makes, and lands whatever happens. ``owner`` is its virtual key's id.

    It lands with a hit for all who wait, with ``failure``, which those of its owner hear, or
    ``abandoned``: its caller hung up. With none of these, its answer is none to share.
    """

    key: str
    owner: str
    hit: Hit | None = None
    failure: Failure | None = None
    abandoned: bool = False
    landed: bool = False

    @property
    def says_nothing(self) -> bool:
        """True where its caller hung up, or had no time left: the next may fare better."""
        return self.abandoned or (self.failure is not None and self.failure.code == "deadline")


Told: TypeAlias = Hit | Failure | Seat
Waiter: TypeAlias = tuple[str, asyncio.Future[Told]]


@dataclass(slots=True, eq=False)
class _Flight:
    """All who ask the same: ``busy`` of ``seats`` are making the call, the rest wait in line."""

    seats: int = 1
    busy: int = 0
    line: deque[Waiter] = field(default_factory=deque[Waiter])


class Flights:
    """The flights of one worker, by exact key; there are no more than calls in flight."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def board(self, key: str, owner: str, deadline: float) -> Told:
        """Return a seat, or, having waited for another's call, its hit or its failure.

        Raises:
            TimeoutError: ``deadline`` (`time.monotonic`) passed before that.
        """
        flight = self._flights.setdefault(key, _Flight())
        if flight.busy < flight.seats:
            flight.busy += 1
            return Seat(key, owner)
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        flight.line.append((owner, told))
        try:
            async with asyncio.timeout(max(0.0, deadline - monotonic())):
                return await told
        except BaseException:
            # The turn came in the very moment in which this caller went away: the next one's.
            if told.done() and not told.cancelled() and isinstance(seat := told.result(), Seat):
                seat.abandoned = True
                self.land(seat)
            raise

    def land(self, seat: Seat) -> None:
        """Give up a seat: tell those who wait, and let the next go. Twice is once."""
        if seat.landed:
            return
        seat.landed = True
        flight = self._flights[seat.key]
        flight.busy -= 1
        if seat.hit is not None:
            _tell(flight, seat.hit, None)
        elif not seat.says_nothing:
            flight.seats = min(flight.seats + 1, MOST_SEATS)
            if seat.failure is not None:
                _tell(flight, seat.failure, seat.owner)
        while flight.line and flight.busy < flight.seats:
            owner, told = flight.line.popleft()
            if not told.done():
                flight.busy += 1
                told.set_result(Seat(seat.key, owner))
        if not flight.busy:
            del self._flights[seat.key]


def _tell(flight: _Flight, what: Hit | Failure, only: str | None) -> None:
    """Tell those in line, or ``only`` an owner's, what came; they leave it."""
    stay: deque[Waiter] = deque()
    for owner, told in flight.line:
        if only is not None and owner != only:
            stay.append((owner, told))
        elif not told.done():
            told.set_result(what)
    flight.line = stay
