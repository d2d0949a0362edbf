"""SQLite on a disk whose power can be cut: a file system of apsw's between it and real files.

Every write and truncation since a file's last sync is remembered. After the cut, each may be on the
disk or not, also a part of it, in any order; what was synced is there. A file's name is on the disk
once it was synced, as SQLite then syncs the folder, too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from packshot.ledger.leases_sqlite import LeaseFile
from packshot.ledger.stores.sqlite import SETTINGS, SqliteDatabase

SECTOR = 512


class PowerCut(Exception):
    """What a call returns to a program that is not there any more."""


class Content:
    """What the disk has of a file for certain, and what was asked of it since."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.named = False
        self.pending: list[tuple[int, bytes | None]] = []

    def sync(self) -> None:
        self.synced = self.whole(self.pending)
        self.pending.clear()
        self.named = True

    def whole(self, operations: Sequence[tuple[int, bytes | None]]) -> bytearray:
        content = bytearray(self.synced)
        for offset, data in operations:
            if data is None:
                del content[offset:]
                continue
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        return content

    def torn(self, rng: random.Random) -> bytes | None:
        if not self.named and rng.random() < 0.5:
            return None
        kept: list[tuple[int, bytes | None]] = []
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for offset, data in self.pending:
            if rng.random() >= share:
                if data is not None and rng.random() < 0.3:
                    kept.append((offset, data[: SECTOR * rng.randrange(1 + len(data) // SECTOR)]))
            else:
                kept.append((offset, data))
        if rng.random() < 0.3:
            rng.shuffle(kept)
        return bytes(self.whole(kept))


class PowerVfs(apsw.VFS):
    """The file system ``name``; the power goes at operation number ``cut_at``."""

    def __init__(self, name: str, cut_at: int) -> None:
        super().__init__(name, "")
        self.label = name
        self.cut_at = cut_at
        self.count = 0
        self.files: dict[str, Content] = {}

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return PowerFile(self, name, flags, self.files.setdefault(str(path), Content()))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.operation()
        super().xDelete(filename, syncdir)
        if syncdir:
            del self.files[filename]
        else:
            self.files[filename].named = False

    def operation(self) -> None:
        self.count += 1
        if self.count >= self.cut_at:
            raise PowerCut

    def after(self, folder: Path, rng: random.Random) -> None:
        """Write what the disk may hold to a new folder."""
        folder.mkdir()
        for path, content in self.files.items():
            data = content.torn(rng)
            if data is not None:
                (folder / Path(path).name).write_bytes(data)


class PowerFile(apsw.VFSFile):
    def __init__(self, vfs: PowerVfs, name: Any, flags: list[int], content: Content) -> None:
        super().__init__("", name, flags)
        self._vfs = vfs
        self._content = content

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._ask(offset, bytes(data))
        self._vfs.operation()
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._ask(newsize, None)
        self._vfs.operation()
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.operation()
        self._content.sync()

    def _ask(self, offset: int, data: bytes | None) -> None:
        # The last call before the cut may have reached the disk; those after it cannot.
        if self._vfs.count < self._vfs.cut_at:
            self._content.pending.append((offset, data))


class Apsw:
    """As much of `sqlite3.Connection` as the stores use, over apsw."""

    def __init__(self, path: Path, vfs: PowerVfs) -> None:
        self._connection = apsw.Connection(str(path), vfs=vfs.label)
        # One connection, no shared memory: what is tested is what reaches the disk.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> apsw.Cursor:
        return self._connection.execute(sql, tuple(parameters))

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> apsw.Cursor:
        return self._connection.executemany(sql, rows)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()


class _OnVfs(SqliteDatabase):
    """The store's own set-up of its connections, and then ``settings``, on such a disk."""

    connection: Apsw

    def __init__(
        self, path: Path, vfs: PowerVfs, settings: Sequence[str] = SETTINGS, *, then: str = ""
    ) -> None:
        self.connection = Apsw(path, vfs)
        for setting in settings:
            self.connection.execute(f"PRAGMA {setting}")
        super().__init__(path)
        if then:
            self.connection.execute(f"PRAGMA {then}")

    def _connect(self, mode: str) -> Any:
        return self.connection


class PowerStore(_OnVfs):
    """The store's database."""


class PowerLeases(_OnVfs, LeaseFile):
    """The file of the leases."""
