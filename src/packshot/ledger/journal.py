"""The journal: where money is noted before anything is spent, by one ``write()`` per event.

``folder/WORKER/`` holds the journal of one worker: ``lock``, flocked for as long as the worker
lives (so that anybody can tell that it died); ``epoch``, the last life that was begun; and the
segments ``EPOCH-SEGMENT.journal``. A segment is only appended to; the drain deletes it.
``EPOCH.alive`` tells until when the worker was seen alive (`packshot.ledger.signs`).

What is written is in the kernel's hands and survives the death of the process. A thread syncs to
the disk in groups; `Journal.wait` returns when that has happened (docs/durability.md).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from packshot.core.errors import InvalidRequest, LedgerUnavailable
from packshot.ledger.frames import encode_frame, scan
from packshot.ledger.records import Event, Settled, Stamped
from packshot.ledger.signs import BEAT_US, Sign

__all__ = [
    "DEFAULT_SEGMENT_BYTES",
    "SYNC_EVERY_S",
    "AnyJournal",
    "Files",
    "Journal",
    "RealFiles",
    "read_journals",
]

DEFAULT_SEGMENT_BYTES = 64 << 20
SYNC_EVERY_S = BEAT_US / 1_000_000
"""Seconds between two group syncs while nobody waits for one, and between two signs of life."""

LOCK_PATIENCE_S = 2.0
"""The drain holds a worker's lock for microseconds, to see whether it is dead."""

CLOSED = "the journal is closed"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
SEGMENT = re.compile(r"(\d{10})-(\d{6})\.journal")


class AnyJournal(Protocol):
    """What the ledger asks of a journal: `Journal` in files, `StoreJournal` in PostgreSQL."""

    worker: str
    epoch: int

    @property
    def seq(self) -> int:
        """Sequence of the last event that was appended; 0 before the first."""
        ...

    def append(self, event: Event) -> int:
        """Append an event and return its sequence."""
        ...

    def settle(self, make: Callable[[int], Settled]) -> Settled:
        """Append what ``make`` makes of the next number, and return it."""
        ...

    def wait(self, seq: int) -> None:
        """Return when everything up to ``seq`` is where the durability wants it."""
        ...

    def close(self) -> None:
        """End this life."""
        ...


class Files(Protocol):
    """What the journal asks of the operating system; tests put a disk that fails in its place."""

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents where they are missing, with their names on the disk."""
        ...

    def create(self, path: Path) -> int:
        """Create a file for appending and return its descriptor."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Give a file another file's name; which of the two is there is never unclear."""
        ...

    def write(self, descriptor: int, data: bytes, /) -> int:
        """Append; return how many bytes were taken."""
        ...

    def truncate(self, descriptor: int, size: int, /) -> None:
        """Cut the file to ``size`` bytes."""
        ...

    def sync(self, descriptor: int, /) -> None:
        """Return when the file's content is on the disk."""
        ...

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on the disk."""
        ...

    def close(self, descriptor: int, /) -> None:
        """Close the descriptor."""
        ...


class RealFiles:
    """The operating system itself."""

    write = staticmethod(os.write)
    truncate = staticmethod(os.ftruncate)
    sync = staticmethod(os.fdatasync)
    close = staticmethod(os.close)

    def make_folder(self, path: Path) -> None:
        """Create what is missing of a folder's path, from the top down."""
        if not path.parent.is_dir():
            self.make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        self.sync_folder(path.parent)  # also where it is there: who made it may have died before

    @staticmethod
    def replace(source: Path, target: Path) -> None:
        """Rename."""
        source.replace(target)

    @staticmethod
    def create(path: Path) -> int:
        """Create a file that must not exist yet."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)

    @staticmethod
    def sync_folder(path: Path) -> None:
        """Sync a folder."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Journal:
    """The journal of one worker in one life (epoch). Safe to use from any thread.

    Args:
        folder: where the journals of all workers are; on a local disk.
        worker: this process's name in it, one that it gets again when it restarts ("gateway-0").
        durability: with "power" the sync thread syncs as soon as somebody waits, and else not;
            with "process" it syncs every `SYNC_EVERY_S` as well.
        segment_bytes: a segment that has grown past this is followed by a new one.
        files: the operating system.

    Raises:
        InvalidRequest: a name that is no file name.
        LedgerUnavailable: the folder cannot be written, or another process has this name.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        durability: Literal["process", "power"] = "process",
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        files: Files | None = None,
    ) -> None:
        """Begin a new life of ``worker``."""
        if not NAME.fullmatch(worker):
            raise InvalidRequest(f"a worker's name is {NAME.pattern}, got {worker!r}")
        self.worker = worker
        self._folder = folder / worker
        self._files = RealFiles() if files is None else files
        self._put = self._files.write
        self._segment_bytes = segment_bytes
        self._eager = durability == "process"
        self._lock = threading.Lock()
        self._synced_more = threading.Condition()
        self._syncing = threading.Lock()
        self._asked = threading.Event()
        self._broken = ""
        self._seq = self._number = self._synced = self._segment = self._size = 0
        self._retired: list[int] = []
        self._lock_file = -1
        try:
            self._files.make_folder(self._folder)
            self._lock_file = lock_worker(self._folder)
            self.epoch = next_epoch(self._folder, self._files)
            self._descriptor = self._create()
            self._sign = Sign(self._folder, self.epoch)
        except OSError as error:
            if self._lock_file >= 0:
                os.close(self._lock_file)  # or this process could not try again
            raise LedgerUnavailable(f"cannot write the journal in {folder}: {error}") from error
        self._thread = threading.Thread(target=self._sync_loop, name="journal", daemon=True)
        self._thread.start()

    @property
    def seq(self) -> int:
        """Sequence of the last event that was appended; 0 before the first."""
        return self._seq

    def append(self, event: Event) -> int:
        """Append an event and return its sequence, from 1 without gaps.

        Raises:
            LedgerUnavailable: it is not in the journal (disk full, I/O error, closed); nothing of
                it is left there. The next call tries again, unless a sync has failed.
        """
        with self._lock:
            return self._write(event)

    def settle(self, make: Callable[[int], Settled]) -> Settled:
        """Append what ``make`` makes of the next number, and return it; see `append`.

        The number is taken only where the record is written: numbers have no gaps.
        """
        with self._lock:
            settled = make(self._number + 1)
            self._write(settled)
            self._number += 1
            return settled

    def wait(self, seq: int) -> None:
        """Return when everything up to ``seq`` is on the disk.

        Raises:
            LedgerUnavailable: it never will be: the disk failed. Do not dispatch.
        """
        with self._synced_more:
            while self._synced < seq:
                if self._broken:
                    raise LedgerUnavailable(self._broken)
                self._asked.set()
                self._synced_more.wait(1.0)

    def close(self) -> None:
        """Sync what there is, and end this life: the lock is free afterwards."""
        with self._lock:
            if self._broken == CLOSED:
                return
        failed = self._broken or self._sync()
        with self._lock:
            self._broken = CLOSED
        self._asked.set()
        self._thread.join()
        self._sign.beat()
        self._sign.close()
        self._files.close(self._descriptor)
        os.close(self._lock_file)
        if failed:
            raise LedgerUnavailable(failed)

    def _create(self) -> int:
        path = self._folder / f"{self.epoch:010d}-{self._segment + 1:06d}.journal"
        descriptor = self._files.create(path)
        try:
            self._files.sync_folder(self._folder)
        except OSError as error:
            self._files.close(descriptor)
            self._broken = f"the journal's folder cannot be synced: {error}; restart this worker"
            raise
        self._segment += 1
        self._size = 0
        return descriptor

    def _write(self, event: Event) -> int:
        if self._broken:
            raise LedgerUnavailable(self._broken)
        seq = self._seq + 1
        frame = encode_frame(seq, event)
        try:
            if self._size >= self._segment_bytes:
                fresh = self._create()
                self._retired.append(self._descriptor)
                self._descriptor = fresh
            written = self._put(self._descriptor, frame)
        except OSError as error:
            self._cut()
            raise LedgerUnavailable(f"the journal cannot be written: {error}") from error
        if written != len(frame):
            self._cut()
            raise LedgerUnavailable("the journal took only a part of a record: is the disk full?")
        self._size += written
        self._seq = seq
        return seq

    def _cut(self) -> None:
        """Leave nothing of a failed write; where that fails, too, this life is over."""
        try:
            self._files.truncate(self._descriptor, self._size)
        except OSError as error:
            self._broken = f"the journal's end cannot be cut: {error}; restart this worker"

    def _sync(self) -> str:
        """Sync once; return what failed, after which nothing is taken any more, or ""."""
        with self._syncing:  # or one would call synced what another has only taken out to sync
            seq = self._sync_files()
        with self._synced_more:
            if not self._broken:
                self._synced = max(self._synced, seq)
            self._synced_more.notify_all()
        return self._broken

    def _sync_files(self) -> int:
        with self._lock:
            seq, current = self._seq, self._descriptor
            retired, self._retired = self._retired, []
        if seq > self._synced and not self._broken:
            try:
                for descriptor in [*retired, current]:
                    self._files.sync(descriptor)
                for descriptor in retired:
                    self._files.close(descriptor)
            except OSError as error:
                # Never again: the kernel may have dropped the pages and call the next sync good.
                self._broken = f"the journal cannot be synced: {error}; restart this worker"
        return seq

    def _sync_loop(self) -> None:
        while not self._broken:
            asked = self._asked.wait(SYNC_EVERY_S)
            self._asked.clear()
            self._sign.beat()
            if not self._broken and (asked or self._eager):
                self._sync()


def lock_worker(folder: Path) -> int:
    """Take the worker's lock and return its descriptor; raise `LedgerUnavailable` if it lives."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                os.close(descriptor)
                raise LedgerUnavailable(
                    f"another process is worker {folder.name!r}: give each its own name"
                ) from error
            time.sleep(0.01)
        else:
            return descriptor


def next_epoch(folder: Path, files: Files) -> int:
    """Count the worker's lives on, durably: above every life before, and the clock's seconds.

    The clock keeps a worker whose disk was lost above what a store has of its former self.
    """
    counter = folder / "epoch"
    last = int(counter.read_text()) if counter.exists() else 0
    epoch = max(last + 1, int(time.time()))
    fresh = folder / "epoch.new"
    fresh.unlink(missing_ok=True)  # of a life that ended as it began
    descriptor = files.create(fresh)
    try:
        number = str(epoch).encode()
        if files.write(descriptor, number) != len(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(fresh))
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.replace(fresh, counter)
    files.sync_folder(folder)
    return epoch


def read_journals(folder: Path) -> Iterator[Stamped]:
    """Yield what whole records the journals hold, by worker, life and sequence."""
    for path in sorted(folder.glob("*/*.journal")):
        name = SEGMENT.fullmatch(path.name)
        if name is None:
            continue
        for seq, event in scan(path.read_bytes(), sealed=False).events:
            yield Stamped(path.parent.name, int(name[1]), seq, event)
