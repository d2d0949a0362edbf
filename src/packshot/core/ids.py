"""Ids that the caller makes before the call, ordered by time: UUIDv7 (RFC 9562 §5.7)."""

from __future__ import annotations

import os
import time

__all__ = ["new_id"]

BATCH = 256
"""Random tails drawn with one call of the system's generator."""

FIXED = int("70008000000000000000" * BATCH, 16)
RANDOM = int("0fff3fffffffffffffff" * BATCH, 16)
"""Version 7 and variant 0b10 in each tail of a batch, and the bits that are drawn."""

tails: list[str] = []
"""What follows the time: version, 12 random bits, variant, 62 random bits, as 20 hex digits."""

# A child must not hand out the tails that its parent will hand out too.
os.register_at_fork(after_in_child=tails.clear)


heads: dict[int, str] = {}
"""The millisecond of the last id, as 12 hex digits."""


def new_id() -> str:
    """Return a new UUIDv7 as 32 hex digits; ids of one process sort by their millisecond."""
    try:
        tail = tails.pop()
    except IndexError:
        tail = _refill()
    now = time.time_ns() // 1_000_000
    head = heads.get(now)
    if head is None:
        head = f"{now:012x}"
        heads.clear()
        heads[now] = head
    return head + tail


def _refill() -> str:
    """Draw a batch of tails and return one of them, which no other thread can have taken."""
    digits = (int.from_bytes(os.urandom(10 * BATCH)) & RANDOM | FIXED).to_bytes(10 * BATCH).hex()
    fresh = [digits[at : at + 20] for at in range(0, len(digits), 20)]
    tails.extend(fresh[1:])
    return fresh[0]
