"""How far the store is behind the journals, seen from outside and for little.

The drain notes in ``drain.cursor`` how far it has come in each segment. What lies behind that is
the backlog: its bytes are the sizes of files, its age that of the first settled record there. Of
each worker `SAMPLE` bytes are read at the most, however far behind the drain is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias

import msgspec

from packshot.core.clock import SECOND_US
from packshot.core.errors import LedgerUnavailable
from packshot.ledger.frames import scan
from packshot.ledger.private import write_private
from packshot.ledger.records import Settled

__all__ = ["SAMPLE", "Cursor", "Lag", "lag_of", "write_cursor"]

SAMPLE = 64 << 10
"""Bytes read of a worker's backlog: some 200 settled records."""

NAME = "drain.cursor"

Marks: TypeAlias = Mapping[tuple[str, int], int]


class Cursor(msgspec.Struct, frozen=True):
    """Where the drain is: bytes dealt with, by "worker/segment"; and the segments with damage."""

    offsets: dict[str, int] = {}
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the store is behind the journals: seconds (0 if it is not), and attempts.

    ``attempts`` is counted where the backlog is small, and estimated from its beginning where it is
    not. ``damaged`` is how many segments of journals hold bytes that are no record.
    """

    seconds: Decimal
    attempts: int
    damaged: int = 0


@dataclass(slots=True)
class _Backlog:
    """What is known of one worker's backlog."""

    oldest: int | None = None
    settled: int = 0
    read: int = 0
    size: int = 0
    damaged: set[str] = field(default_factory=set[str])

    @property
    def attempts(self) -> int:
        if not self.read or self.read >= self.size:
            return self.settled
        return round(self.settled * self.size / self.read)


def name_of(segment: Path) -> str:
    """Return what a cursor calls a segment."""
    return f"{segment.parent.name}/{segment.name}"


def write_cursor(folder: Path, offsets: Mapping[Path, int], damaged: Iterable[Path]) -> None:
    """Note where the drain is, in one go; lost with the power, it is made anew by the next step."""
    cursor = Cursor(
        {name_of(path): offset for path, offset in offsets.items()},
        tuple(sorted(map(name_of, damaged))),
    )
    fresh = folder / f"{NAME}.new"
    write_private(fresh, msgspec.json.encode(cursor))
    fresh.replace(folder / NAME)


def read_cursor(folder: Path) -> Cursor:
    """Return where the drain was when it last said so; nowhere, where it never did."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=Cursor)
    except (FileNotFoundError, msgspec.DecodeError):
        return Cursor()


def lag_of(folder: Path, marks: Marks, now: int) -> Lag:
    """Return how far a store is behind the journals in ``folder``; a hold is no backlog.

    ``marks`` is up to which sequence the store has each journal.

    Raises:
        LedgerUnavailable: the journals cannot be read.
    """
    if not folder.is_dir():  # nothing was ever booked
        return Lag(Decimal(0), 0)
    try:
        cursor = read_cursor(folder)
        damaged = {name_of(path.with_suffix(".journal")) for path in folder.glob("*/*.damaged")}
        damaged.update(cursor.damaged)
        found = [_backlog(path.parent, cursor, marks) for path in sorted(folder.glob("*/lock"))]
    except OSError as error:
        raise LedgerUnavailable(f"the journals in {folder} cannot be read: {error}") from error
    for each in found:
        damaged |= each.damaged
    oldest = min((each.oldest for each in found if each.oldest is not None), default=now)
    seconds = Decimal(max(0, now - oldest)) / SECOND_US
    return Lag(seconds, sum(each.attempts for each in found), len(damaged))


def _backlog(worker: Path, cursor: Cursor, marks: Marks) -> _Backlog:
    found = _Backlog()
    for segment in sorted(worker.glob("*.journal")):
        offset = cursor.offsets.get(name_of(segment), 0)
        try:
            with segment.open("rb") as file:
                size = file.seek(0, os.SEEK_END) - offset
                file.seek(offset)
                data = file.read(min(max(size, 0), SAMPLE - found.read))
        except FileNotFoundError:  # drained and deleted meanwhile
            continue
        found.size += max(size, 0)
        found.read += len(data)
        seen = scan(data, sealed=False)
        if seen.damage or seen.stuck:
            found.damaged.add(name_of(segment))
        epoch = int(segment.name.partition("-")[0])
        mark = marks.get((worker.name, epoch), 0)
        for seq, event in seen.events:
            if isinstance(event, Settled) and seq > mark:
                found.settled += 1
                if found.oldest is None:
                    found.oldest = event.settled_at
    return found
