"""A disk whose power can be cut: what was synced stays, of the rest anything may be there or not.

`PowerDisk` passes every call on to real files, so that a drain can read them meanwhile, and keeps
beside them what a disk may hold of each: per 512-byte sector or 4-KiB page any state since the last
sync, any length since then, and of each name that was made, replaced or removed the old or the new.
`PowerDisk.after` writes one such outcome to a new folder, to be looked at after the restart.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

from packshot.ledger.journal import RealFiles


class PowerCut(OSError):
    """What a call returns to a program that is not there any more."""


@dataclass(slots=True, eq=False)
class Inode:
    """A file: its content, and each content that it had since it was synced, the synced first."""

    now: bytearray = field(default_factory=bytearray)
    since: list[bytes] = field(default_factory=lambda: [b""])

    def torn(self, rng: random.Random) -> bytes:
        """Return what the disk may have of it."""
        if len(self.since) == 1:
            return self.since[0]
        size = len(rng.choice(self.since))
        unit = rng.choice((512, 4096))
        parts: list[bytes] = []
        for at in range(0, size, unit):
            part = rng.choice(self.since)[at : at + unit]
            parts.append(part.ljust(min(unit, size - at), b"\0")[: size - at])
        return b"".join(parts)


class PowerDisk(RealFiles):
    """The files below ``root``; the power goes at call number ``cut_at`` (0: never)."""

    def __init__(self, root: Path, cut_at: int = 0) -> None:
        self.root = root
        self.cut_at = cut_at
        self.calls = 0
        self._lock = threading.RLock()
        self._open: dict[int, Inode] = {}
        self._names: dict[Path, Inode | None] = {}
        self._on_disk: dict[Path, list[Inode | None]] = {}
        self._folders: dict[Path, bool] = {}

    def make_folder(self, path: Path) -> None:  # type: ignore[override]
        """Create folders; the name of each is on the disk once its parent is synced."""
        with self._lock:
            for folder in (*reversed(path.parents), path):
                if folder != self.root and self.root not in folder.parents:
                    continue
                if not folder.is_dir():
                    self._count()
                    folder.mkdir()
                self._folders.setdefault(folder, folder == self.root)
                if folder != self.root:
                    self.sync_folder(folder.parent)

    def create(self, path: Path) -> int:  # type: ignore[override]
        with self._lock:
            self._count()
            descriptor = RealFiles.create(path)
            inode = Inode()
            self._open[descriptor] = inode
            self._rename(path, inode)
            return descriptor

    def replace(self, source: Path, target: Path) -> None:  # type: ignore[override]
        with self._lock:
            self._count()
            RealFiles.replace(source, target)
            self._rename(target, self._names[source])  # each name by itself may be old or new
            self._rename(source, None)

    def write(self, descriptor: int, data: bytes, /) -> int:  # type: ignore[override]
        with self._lock:
            inode = self._open[descriptor]
            inode.now += data
            inode.since.append(bytes(inode.now))
            self._count()  # behind: a write that nobody hears of may be on the disk all the same
            return os.write(descriptor, data)

    def truncate(self, descriptor: int, size: int, /) -> None:  # type: ignore[override]
        with self._lock:
            inode = self._open[descriptor]
            del inode.now[size:]
            inode.since.append(bytes(inode.now))
            self._count()
            os.ftruncate(descriptor, size)

    def sync(self, descriptor: int, /) -> None:  # type: ignore[override]
        with self._lock:
            self._count()
            inode = self._open[descriptor]
            inode.since = [bytes(inode.now)]

    def sync_folder(self, path: Path) -> None:  # type: ignore[override]
        with self._lock:
            self._count()
            self._look()
            for name, inode in self._names.items():
                if name.parent == path:
                    self._on_disk[name] = [inode]
            for folder in self._folders:
                if folder.parent == path:
                    self._folders[folder] = True

    def close(self, descriptor: int, /) -> None:  # type: ignore[override]
        os.close(descriptor)

    def after(self, target: Path, rng: random.Random) -> None:
        """Write what the disk may hold after the cut to ``target``."""
        with self._lock:
            self._look()
            lost = {path for path, kept in self._folders.items() if not kept and rng.random() < 0.5}
            target.mkdir()
            for name in sorted(self._names):
                inode = rng.choice(self._on_disk[name])
                if inode is None or lost.intersection(name.parents):
                    continue
                place = target / name.relative_to(self.root)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(inode.torn(rng))

    def _rename(self, name: Path, inode: Inode | None) -> None:
        self._on_disk.setdefault(name, [None]).append(inode)
        self._names[name] = inode

    def _look(self) -> None:
        """Take note of files that others made (locks) or removed (what the drain has read)."""
        for path in self.root.rglob("*"):
            if path.is_file() and self._names.get(path) is None:
                self._rename(path, Inode(since=[path.read_bytes()]))
        for name, inode in list(self._names.items()):
            if inode is not None and not name.exists():
                self._rename(name, None)

    def _count(self) -> None:
        self.calls += 1
        if self.cut_at and self.calls >= self.cut_at:
            raise PowerCut("the power is gone")
