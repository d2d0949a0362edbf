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

encode = msgspec.msgpack.Encoder().encode
pack = HEADER.pack
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
    payload = encode((seq, event))
    return pack(len(payload), crc32(payload)) + payload


def payload_at(data: bytes, offset: int) -> bytes:
    """Return the payload of the whole frame at ``offset``, or b"" if none is there."""
    start = offset + 8
    if len(data) < start:
        return b""
    length, crc = HEADER.unpack_from(data, offset)
    if length > MAX_PAYLOAD:
        return b""
    payload = data[start : start + length]
    return payload if len(payload) == length and crc32(payload) == crc else b""


def is_cut(data: bytes, offset: int) -> bool:
    """Return whether the bytes at ``offset``, no whole frame, may be the beginning of one."""
    start = offset + 8
    if len(data) < start:
        return True
    length, _ = HEADER.unpack_from(data, offset)
    return 0 < length <= MAX_PAYLOAD and len(data) < start + length


def next_frame(data: bytes, offset: int) -> int:
    """Return where the next whole frame at or after ``offset`` begins, or -1."""
    at = data.find(PAIR, offset + 8)
    while at >= 0:
        if payload_at(data, at - 8):
            return at - 8
        at = data.find(PAIR, at + 1)
    return -1


def scan(data: bytes, *, sealed: bool) -> Scan:
    """Decode the frames of ``data``, which begins at the start of one.

    ``sealed`` says that nothing will be written behind ``data``: then a cut frame in the middle is
    searched for whole ones behind it, too. Otherwise it is taken to be still under way.
    """
    found = Scan()
    offset, size = 0, len(data)
    while offset < size:
        payload = payload_at(data, offset)
        if not payload:
            found.stuck = sealed or not is_cut(data, offset)
            again = next_frame(data, offset + 1) if found.stuck else -1
            if again < 0:
                break
            found.damage.append(Damage(offset, again - offset, "these bytes are no record"))
            found.stuck = False
            offset = again
            continue
        end = offset + 8 + len(payload)
        try:
            found.events.append(DECODER.decode(payload))
        except (msgspec.DecodeError, LedgerCorrupt) as error:
            found.damage.append(Damage(offset, end - offset, str(error)))
        offset = end
    found.end = offset
    return found
