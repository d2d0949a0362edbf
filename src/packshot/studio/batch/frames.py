"""What a run and its worker say to each other: frames of msgpack over a pair of sockets.

::

    run      Start ──► Go ──► Do ──► Do … ──► Bye
    worker   Device ─► Ready ─► Free ─► Done | Failed …        and Beat, at all times

A frame is its length, 4 bytes, and one tagged array. A `Do` has a token of its own, which its
answer repeats: what answers another token comes too late, and is not taken. After `Free` the next
`Do` may come before the answer.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from struct import Struct
from typing import Any, TypeAlias

import msgspec

from packshot.core.types import Usage
from packshot.studio.batch.items import Item
from packshot.studio.batch.state import Made

__all__ = [
    "Beat",
    "Bye",
    "Channel",
    "Closed",
    "Device",
    "Do",
    "Done",
    "Failed",
    "Free",
    "FromWorker",
    "Go",
    "Ready",
    "Start",
    "ToWorker",
]

LENGTH = Struct("<I")
MAX_FRAME = 16 << 20
"""Bytes; pictures go through the run's folder, not through here."""


class Start(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``factory`` ("package.module:function") makes what does the work, of these ``settings``.

    ``folder`` is the run's; ``limit_s`` how long it may take until `Ready`.
    """

    factory: str
    settings: dict[str, Any]
    folder: str
    limit_s: float


class Go(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The device may be used: its time is booked from here on."""


class Do(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Make ``item``, under the id ``render``. ``limit_s``: a worker that needs longer ends itself.

    ``caption`` is one that was written before, as the factory's product understands it.
    """

    token: str
    item: Item
    render: str
    limit_s: float
    caption: bytes = b""


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """There is nothing more to do."""


class Device(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The kind of the device that will be used ("cpu", "h100"); nothing is loaded there yet."""

    kind: str


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The model is loaded."""


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The process is alive; ``count`` grows with every step that is done."""

    count: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The picture is in the run's folder. ``usage`` is what it took, stage by stage."""

    token: str
    made: Made
    usage: tuple[Usage, ...]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """There is no picture. ``kind`` is the error's class, ``usage`` what was used until then, and
    ``tags`` those of its rows in the ledger, as far as they were found.

    ``final``: another attempt would come to the same. ``broken``: the process can no longer be
    trusted, and ends.
    """

    token: str
    kind: str
    message: str
    final: bool
    broken: bool
    usage: tuple[Usage, ...] = ()
    tags: tuple[str, ...] = ()


class Free(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """The device is free: what is left to do of the item needs it no more."""

    token: str


ToWorker: TypeAlias = Start | Go | Do | Bye
FromWorker: TypeAlias = Device | Ready | Beat | Free | Done | Failed
Frame: TypeAlias = ToWorker | FromWorker

DECODER = msgspec.msgpack.Decoder(Frame)


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end of the pair. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._kept = bytearray()

    def send(self, frame: Frame) -> None:
        """Send a frame; `Closed` where nobody reads any more."""
        content = msgspec.msgpack.encode(frame)
        if len(content) > MAX_FRAME:
            raise ValueError(f"a frame of {len(content)} bytes, at most {MAX_FRAME} are sent")
        try:
            with self._lock:
                self._end.sendall(LENGTH.pack(len(content)) + content)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """Return the next frame, or None where none came in time; `Closed` at the end."""
        while (frame := self._take()) is None:
            try:
                ready, _, _ = select.select([self._end], [], [], timeout_s)
                if not ready:
                    return None
                part = self._end.recv(1 << 16)
            except (OSError, ValueError) as error:  # the second: it was closed by another thread
                raise Closed(str(error)) from error
            if not part:
                raise Closed("the other side ended")
            self._kept += part
        return frame

    def _take(self) -> Frame | None:
        if len(self._kept) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._kept)
        if length > MAX_FRAME:
            raise Closed(f"a frame of {length} bytes came, at most {MAX_FRAME} are taken")
        end = LENGTH.size + length
        if len(self._kept) < end:
            return None
        content = bytes(self._kept[LENGTH.size : end])
        del self._kept[:end]
        try:
            return DECODER.decode(content)
        except msgspec.MsgspecError as error:
            raise Closed(f"what came is no frame: {error}") from error

    def close(self) -> None:
        """Close this end; who waits for a frame here hears of it."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()
