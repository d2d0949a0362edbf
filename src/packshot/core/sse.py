"""Server-sent events (HTML standard, §9.2): cut from bytes as they come, read, and written.

A stream is bytes all the way: `Splitter` only finds where whole events end, so that a stream that
passes unchanged is never decoded; `parse` reads whole events where somebody needs what they say.
"""

from __future__ import annotations

import msgspec

from packshot.core.errors import UpstreamBroken

__all__ = ["LONGEST_EVENT", "Event", "Splitter", "encode", "parse"]

LONGEST_EVENT = 1 << 20
"""Bytes of an event that has not ended. The longest that chat APIs send are some kilobytes."""

MARK = b"\xef\xbb\xbf"
"""A byte order mark, which the standard lets a stream begin with."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A server-sent event: its name ("" where it has none) and its data."""

    name: str
    data: bytes


class Splitter:
    """Takes a stream's bytes in any pieces, and returns them in whole events.

    ``limit`` is how many bytes may wait for the end of their event.
    """

    __slots__ = ("limit", "rest")

    def __init__(self, limit: int = LONGEST_EVENT) -> None:
        self.limit = limit
        self.rest = bytearray()
        """What has come of the next event; at the end of a stream, an event that was cut off."""

    def feed(self, data: bytes) -> bytes:
        """Return what came so far up to the last event that has ended, and keep what follows it.

        A line may end in LF, CR or both. Where a piece ends between the CR and the LF of a blank
        line, the event is over, and the LF goes out before the next one, where it means nothing.

        Raises:
            UpstreamBroken: the event that has not ended is longer than the limit.
        """
        rest = self.rest
        if not rest:
            if data.endswith(b"\n\n"):
                return data
            cut = _last_end(data, 0)
            rest += data[cut:]
            whole = data[:cut]
        else:
            # Only an end that reaches into the new bytes can be new: a slow drip stays linear.
            start = len(rest) - 1
            rest += data
            cut = _last_end(rest, start)
            whole = bytes(rest[:cut])
            del rest[:cut]
        if len(rest) > self.limit:
            raise UpstreamBroken(
                f"a server-sent event of more than {self.limit} bytes has no end; "
                "is this an event stream?",
                sent=True,
                began=True,
            )
        return whole


def _last_end(data: bytes | bytearray, start: int) -> int:
    """Return where the last blank line from ``start`` on ends, 0 if there is none."""
    cut = data.rfind(b"\n\n", start)
    if data.find(b"\r", start) >= 0:
        cut = max(cut, data.rfind(b"\n\r", start), data.rfind(b"\r\r", start))
        if cut >= 0 and data[cut + 1] == 13 and data[cut + 2 : cut + 3] == b"\n":
            return cut + 3
    return cut + 2 if cut >= 0 else 0


def parse(events: bytes) -> list[Event]:
    """Read whole events, as `Splitter.feed` returns them; an event without an end is left out.

    Comments, ids and retry times are dropped, and so are events without data.
    """
    if b"\r" in events:
        events = events.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    blocks = events.removeprefix(MARK).split(b"\n\n")
    del blocks[-1]
    found: list[Event] = []
    for block in blocks:
        if block.startswith(b"data: ") and b"\n" not in block:
            found.append(Event("", block[6:]))
        elif (event := _read(block)) is not None:
            found.append(event)
    return found


def _read(block: bytes) -> Event | None:
    """Read the lines of one event."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return Event(name.decode("utf-8", "replace"), b"\n".join(data)) if data else None


def encode(data: bytes, name: str = "") -> bytes:
    """Return an event as it goes over the wire; each line of the data becomes a line of its own.

    Raises:
        ValueError: the name holds a line break.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    if not name:
        return b"data: %b\n\n" % data
    if "\n" in name or "\r" in name:
        raise ValueError(f"the name of an event is one line, not {name!r}")
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
