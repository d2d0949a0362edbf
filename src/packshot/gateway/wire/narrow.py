"""Small segments for a connection whose reader is slow: what is read ahead is held in memory."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["SEGMENT", "Narrow", "Reader"]

SEGMENT = 1 << 15
"""Bytes that are read at a time; the event loop reads all that has come, up to 256 KiB."""


class Reader(Protocol):
    """What takes the segments: a link."""

    def data_received(self, data: bytes | memoryview, /) -> None:
        """Take a segment."""
        ...

    def connection_lost(self, exc: Exception | None, /) -> None:
        """Hear that the connection is gone."""
        ...


class Narrow(asyncio.BufferedProtocol):
    """Reads for a link, in its place as the transport's protocol.

    It costs half a microsecond a segment, so a link begins without it. All share one buffer, of
    which nothing is kept: llhttp copies what it hands on.
    """

    _segment = memoryview(bytearray(SEGMENT))

    def __init__(self, link: Reader) -> None:
        self._link = link

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to."""
        del sizehint
        return self._segment

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read."""
        self._link.data_received(self._segment[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on that the connection is gone."""
        self._link.connection_lost(exc)
