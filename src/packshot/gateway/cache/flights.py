"""Of identical requests under way at the same time, one is made; the others wait for its answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from packshot.gateway.cache.entry import Entry
from packshot.providers.base import Failure

__all__ = ["Flight", "Flights", "Hit"]


class Hit(NamedTuple):
    """A kept answer, found under ``key``; ``similarity`` is a cosine, None for an exact hit."""

    key: str
    entry: Entry
    similarity: float | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """A call under way for all that ask the same. ``owner`` is the id of its virtual key.

    It lands with a hit, with ``failure`` (what its caller hears), with neither where its answer
    is none to keep, or it is ``abandoned``: its caller hung up, and another has to make the call.
    """

    owner: str
    hit: Hit | None = None
    failure: Failure | None = None
    abandoned: bool = False
    waiting: int = 0
    landed: asyncio.Event = field(default_factory=asyncio.Event)


class Flights:
    """The flights of one worker, by exact key; there are no more than calls in flight."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: str) -> Flight | None:
        """Return the flight of this key."""
        return self._flights.get(key)

    def begin(self, key: str, owner: str) -> Flight:
        """Begin a flight: the caller makes the call, and lands it whatever happens."""
        flight = self._flights[key] = Flight(owner)
        return flight

    def land(self, key: str, flight: Flight) -> None:
        """End a flight, and tell all who wait."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.landed.set()
