"""Device time: whose it is at each instant, so that renders plus idle make the wall time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.ledger.records import Dimensions
from packshot.ledger.signs import BEAT_US

__all__ = ["BESIDE", "Timeline", "apportion", "beside", "divide", "fit", "used_until"]

BESIDE = frozenset(("load", "idle"))
"""What a device does beside renders: accounts of their own, that no cap limits and no render has.
A cap refuses calls; time passes all the same."""


def beside(held: Dimensions) -> Dimensions:
    """Return the dimensions of what accrued, of those that were held: it belongs to no stage."""
    return msgspec.structs.replace(held, stage="")


def apportion(
    spans: Sequence[tuple[int, int]], start: int, end: int
) -> tuple[tuple[int, ...], int]:
    """Return each span's share of one device's time from ``start`` to ``end``, and the idle rest.

    At each instant the device's time is divided equally among the spans that are active. All in
    microseconds; the shares and the idle time sum to ``end - start`` exactly. What a division
    leaves over goes, microsecond by microsecond, to the active spans that come first.

    Raises:
        InvalidRequest: the period or a span ends before it begins.
    """
    if end < start or any(b < a for a, b in spans):
        raise InvalidRequest(f"a span must not end before it begins: {start} to {end}, {spans}")
    shares = [0] * len(spans)
    events: list[tuple[int, bool, int]] = []
    for k, (a, b) in enumerate(spans):
        first, last = max(a, start), min(b, end)
        if first < last:
            events += [(first, True, k), (last, False, k)]
    active: set[int] = set()
    idle, now = 0, start
    for at, begins, k in sorted(events):
        length = at - now
        if active and length:
            for name, part in zip(sorted(active), divide(length, len(active)), strict=True):
                shares[name] += part
        else:
            idle += length
        now = at
        active.add(k) if begins else active.discard(k)
    return tuple(shares), idle + end - now


def divide(total: int, parts: int) -> tuple[int, ...]:
    """Divide microseconds (or nano-EUR), such as a batch's span over its pictures; sums exactly.

    Raises:
        InvalidRequest: there is no part to give to.
    """
    if parts < 1:
        raise InvalidRequest(f"expected 1 part or more, got {parts}")
    each, rest = divmod(total, parts)
    return tuple(each + (k < rest) for k in range(parts))


def fit(parts: Sequence[int], whole: int) -> tuple[tuple[int, ...], int]:
    """Return parts that fit into a whole, and what they leave of it; all in microseconds.

    Parts that are too long together, since others used the device as well, shrink alike.
    """
    total = sum(parts)
    if total <= whole:
        return tuple(parts), whole - total
    done, before, fitted = 0, 0, list[int]()
    for part in parts:
        done += part
        now = done * whole // total
        fitted.append(now - before)
        before = now
    return tuple(fitted), 0


class Timeline:
    """The time of one device from ``start`` on, given away as it passes.

    What `apportion` says of spans that are all known, this says while they come: shares that were
    taken, the idle time that was taken, and what is still to be taken sum to the time that passed.
    A time before the last one that was told counts as that one. All in microseconds.
    """

    def __init__(self, start: int) -> None:
        self._now = start
        self._idle = 0
        self._names = 0
        self._shares: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether a span is open."""
        return bool(self._shares)

    def begin(self, at: int) -> int:
        """Begin a span, and return its name for `end`."""
        self._advance(at)
        self._names += 1
        self._shares[self._names] = 0
        return self._names

    def end(self, name: int, at: int) -> int:
        """End a span, and return its share of the device's time."""
        self._advance(at)
        return self._shares.pop(name)

    def take_idle(self, at: int) -> int:
        """Return the idle time since it was last taken."""
        self._advance(at)
        idle, self._idle = self._idle, 0
        return idle

    def give_back(self, micros: int) -> None:
        """Count a part of what was taken as idle: it was not used, or not booked."""
        self._idle += micros

    def _advance(self, at: int) -> None:
        length, self._now = max(0, at - self._now), max(at, self._now)
        if not self._shares:
            self._idle += length
        elif length:
            for name, part in zip(self._shares, divide(length, len(self._shares)), strict=True):
                self._shares[name] += part


def used_until(spans: Mapping[str, tuple[str, int]], last: int) -> dict[str, int]:
    """Return the microseconds that each of a dead worker's open attempts has used of its device.

    ``spans`` are the kind of device and the `tick_us` of the dispatch, ``last`` the last sign of
    life: a beat later, at the latest, there would have been another. Attempts on one device at once
    share its time.
    """
    by_device: dict[str, list[str]] = defaultdict(list)
    for name, (device, _) in spans.items():
        by_device[device].append(name)
    used: dict[str, int] = {}
    for names in by_device.values():
        starts = [spans[name][1] for name in names]
        end = max(last, *starts) + BEAT_US
        shares, _ = apportion([(start, end) for start in starts], min(starts), end)
        used.update(zip(names, shares, strict=True))
    return used
