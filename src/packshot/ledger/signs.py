"""Signs of life: until when a worker was seen alive, so that its death is not billed for longer.

Beside its journal a worker keeps ``EPOCH.alive``, 16 bytes that its sync thread writes anew every
`BEAT_US`. Its clock only goes on, and is the machine's, so that a step of the wall clock makes no
time of a device; both times that are compared were written by one process, in one boot.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from struct import Struct

__all__ = ["BEAT_US", "Sign", "last_sign", "sign_path", "tick_us"]

BEAT_US = 50_000
"""Microseconds between two signs of life; what was used is known to this."""

CONTENT = Struct("<Q8s")
MAGIC = b"packshot"


def tick_us() -> int:
    """Return microseconds of a clock that never steps; it starts anew with the machine."""
    return time.monotonic_ns() // 1000


def sign_path(folder: Path, epoch: int) -> Path:
    """Return where a worker, whose journal is in ``folder``, keeps its sign of life."""
    return folder / f"{epoch:010d}.alive"


class Sign:
    """A worker's sign of life, from now on; `OSError` where the file cannot be made."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self._path = sign_path(folder, epoch)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(self._file, CONTENT.pack(tick_us(), MAGIC), 0)

    def beat(self) -> None:
        """Write that the worker is alive. Where that fails the file goes: no sign is no lie."""
        if self._file < 0:
            return
        try:
            os.pwrite(self._file, CONTENT.pack(tick_us(), MAGIC), 0)
        except OSError:
            self._path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Leave the last sign where it is."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def last_sign(folder: Path, epoch: int) -> int | None:
    """Return the `tick_us` of a worker's last sign of life, None where there is none to be read."""
    try:
        content = sign_path(folder, epoch).read_bytes()
    except OSError:
        return None
    if len(content) != CONTENT.size:
        return None
    at, magic = CONTENT.unpack(content)
    return at if magic == MAGIC else None
