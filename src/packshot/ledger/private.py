"""Files and folders that their owner alone may read: what was spent, on what and by whom.

Only what is made here is closed to others; what an operator has opened stays open.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["make_private_file", "make_private_folder", "write_private"]

FILE, FOLDER = 0o600, 0o700


def make_private_folder(path: Path) -> None:
    """Make what is missing of a folder's path, each part for its owner alone; raise `OSError`."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=FOLDER, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Make an empty file unless there is one; raise `OSError`.

    One that is there is not opened: to close it would end the locks that this process has on it
    (POSIX), and SQLite's are of that kind.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE))
    except FileExistsError:
        return


def write_private(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a whole file, and with ``sync`` see it onto the disk; raise `OSError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, FILE), "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
