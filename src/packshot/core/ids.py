"""Ids that the caller makes before the call, ordered by time: UUIDv7 (RFC 9562 §5.7)."""

from __future__ import annotations

import os
import time

__all__ = ["new_id"]


def new_id() -> str:
    """Return a new UUIDv7 as 32 hex digits; ids of one process sort by their millisecond."""
    random = int.from_bytes(os.urandom(10))
    stamp = time.time_ns() // 1_000_000
    value = (stamp & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & ((1 << 62) - 1)
    return f"{value:032x}"
