"""The bytes of a journal: how one event is framed, and how frames are found again in a file.

A frame is ``u32 length, u32 crc32, payload``, little-endian; length and zlib's crc32 are those of
the payload, which is msgpack of ``[seq, event]``. A frame is written by one ``write()``, so that
what a killed process leaves behind is whole frames, and at most one cut one at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from zlib import crc32

import msgspec

from packshot.core.errors import LedgerCorrupt
from packshot.ledger.records import Event

__all__ = ["HEADER", "MAX_PAYLOAD", "Damage", "Scan", "encode_frame", "scan"]

HEADER = Struct("<II")
MAX_PAYLOAD = 1 << 20
"""Bytes; a longer length is damage. The largest real event has some kilobytes."""

PAIR = b"\x92"
"""How every payload begins: a msgpack array of two."""

ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(tuple[int, Event])


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no frame although frames follow, or a frame that nothing can read.

    ``offset`` and ``length`` are in bytes, relative to the data that was scanned.
    """

    offset: int
    length: int
    why: str


@dataclass(slots=True)
class Scan:
    """What `scan` found: ``events`` in order with their sequence; ``end``, the offset behind the
    last frame that was dealt with; ``damage``. ``stuck`` is true where the bytes at ``end`` are no
    frame, and none follows in the data.
    """

    events: list[tuple[int, Event]] = field(default_factory=list[tuple[int, Event]])
    end: int = 0
    damage: list[Damage] = field(default_factory=list[Damage])
    stuck: bool = False


def encode_frame(seq: int, event: Event) -> bytes:
    """Return the frame of ``event``."""
    payload = ENCODER.encode((seq, event))
    return HEADER.pack(len(payload), crc32(payload)) + payload


def frame_end(data: bytes, offset: int) -> int:
    """Return the end of the frame at ``offset``; 0 if it is cut off, -1 if it is no frame."""
    start = offset + 8
    if len(data) < start:
        return 0
    length, crc = HEADER.unpack_from(data, offset)
    if not 0 < length <= MAX_PAYLOAD:
        return -1
    end = start + length
    if len(data) < end:
        return 0
    return end if crc32(data[start:end]) == crc else -1


def next_frame(data: bytes, offset: int) -> int:
    """Return where the next whole frame at or after ``offset`` begins, or -1."""
    at = data.find(PAIR, offset + 8)
    while at >= 0:
        if frame_end(data, at - 8) > 0:
            return at - 8
        at = data.find(PAIR, at + 1)
    return -1


def scan(data: bytes, *, sealed: bool) -> Scan:
    """Decode the frames of ``data``, which begins at the start of one.

    ``sealed`` says that nothing will be written behind ``data``: then a cut frame in the middle is
    searched for whole ones behind it, too. Otherwise it is taken to be still under way.
    """
    found = Scan()
    offset = 0
    while offset < len(data):
        end = frame_end(data, offset)
        if end <= 0:
            found.stuck = sealed or end < 0
            again = next_frame(data, offset + 1) if found.stuck else -1
            if again < 0:
                break
            found.damage.append(Damage(offset, again - offset, "these bytes are no record"))
            found.stuck = False
            offset = again
            continue
        try:
            found.events.append(DECODER.decode(data[offset + 8 : end]))
        except (msgspec.DecodeError, LedgerCorrupt) as error:
            found.damage.append(Damage(offset, end - offset, str(error)))
        offset = end
    found.end = offset
    return found
