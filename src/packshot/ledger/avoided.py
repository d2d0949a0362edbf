"""Costs that were avoided: what answers had cost that were served again and not paid for again.

They are no entries: nothing is owed, nothing was spent, no cap, report or invoice counts them. They
are sums by hour and dimension beside the entries (table ``avoided``), each 0 or more. Who avoids a
cost notes it in memory, which takes no write; `AvoidedCosts.flush` (once a second by `Ledger.tick`,
and at the end) appends what gathered to the worker's journal, one record per group. From there the
drain brings it into the store exactly once, as it does with entries. A worker that is killed loses
what it noted since its last flush.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos
from packshot.ledger.records import Avoided, Dimensions

__all__ = ["MOST_GROUPS", "AvoidedCosts", "Group"]

MOST_GROUPS = 4096
"""Groups that wait in memory for the journal. Beyond, what comes is counted with no dimension but
its kind: the sum stays exact."""


class Group(NamedTuple):
    """By what an avoided cost can be asked for. ``kind`` is how it was avoided ("exact",
    "semantic"); the rest are those of `Dimensions` that name no single render.
    """

    kind: str
    stage: str = ""
    provider: str = ""
    model: str = ""
    route: str = ""
    virtual_key: str = ""
    team: str = ""
    recipe: str = ""
    batch: str = ""
    device: str = ""

    @property
    def dimensions(self) -> Dimensions:
        """Return the same for the journal."""
        _, stage, provider, model, route, virtual_key, team, recipe, batch, device = self
        return Dimensions(
            "", recipe, stage, provider, model, route, virtual_key, team, batch, device
        )


class Appends(Protocol):
    """What is asked of a journal."""

    def append(self, event: Avoided, /) -> int:
        """Append an event and return its sequence."""
        ...


class AvoidedCosts:
    """What one worker avoided since the last flush; safe to use from any thread."""

    def __init__(self, journal: Appends, clock: Clock = wall_us) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: dict[Group, list[int]] = {}
        """By group: when it was first noted, how often, and nano-EUR."""

    def note(self, group: Group, amount: Nanos, hits: int = 1) -> None:
        """Count ``hits`` answers that would have cost ``amount`` nano-EUR together, 0 or more."""
        if amount < 0 or hits < 1:
            raise InvalidRequest(f"{hits} hits cannot avoid {amount} nano-EUR: both count upwards")
        with self._lock:
            sums = self._sums.get(group)
            if sums is None:
                if len(self._sums) >= MOST_GROUPS:
                    group = Group(group.kind)
                sums = self._sums.setdefault(group, [self._clock(), 0, 0])
            sums[1] += hits
            sums[2] += amount

    def flush(self) -> None:
        """Append what gathered to the journal.

        Raises:
            LedgerUnavailable: the journal takes nothing; what it did not take is kept for the next
                flush.
        """
        with self._lock:
            groups = list(self._sums)
        for group in groups:
            with self._lock:
                sums = self._sums.pop(group, None)
            if sums is None:  # another thread was faster
                continue
            at, hits, amount = sums
            try:
                self._journal.append(Avoided(at, group.kind, group.dimensions, hits, amount))
            except BaseException:
                self._put_back(group, at, hits, amount)
                raise

    def _put_back(self, group: Group, at: int, hits: int, amount: Nanos) -> None:
        with self._lock:
            sums = self._sums.setdefault(group, [at, 0, 0])
            sums[0] = min(sums[0], at)
            sums[1] += hits
            sums[2] += amount
