"""Device time: whose it is at each instant, so that renders plus idle make the wall time."""

from __future__ import annotations

from collections.abc import Sequence

from packshot.core.errors import InvalidRequest

__all__ = ["apportion", "divide"]


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
