r"""The content log: what callers sent and got, for virtual keys that ask for it; sealed, and gone
after its days.

Each worker writes one file a day (UTC), only ever at its end::

    "packshot content 1\n", 16 bytes of salt
    per record: 4 bytes of length (big endian), 12 of nonce, the rest sealed with AES-256-GCM

The key of a file is HKDF-SHA256 of the configured one with the file's salt. A record is bound to
its place by its number: none can be moved, repeated or taken out unnoticed, but at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from packshot.core.errors import InvalidRequest, OutputError
from packshot.gateway.batcher import Batcher
from packshot.ledger.private import make_private_folder

__all__ = ["Content", "ContentLog", "read_contents"]

MAGIC = b"packshot content 1\n"
SALT = 16
NONCE = 12
TAG = 16
MAX_WAITING = 256 << 20
"""Bytes of contents that may wait for the disk."""

MAX_RECORD = 1 << 30
NAME = re.compile(r"(\d{4}-\d\d-\d\d)\.[A-Za-z0-9_-]+\.sealed")


class Content(msgspec.Struct):
    """A request and what came of it. ``at`` is seconds since 1970; a stream's answer is its events
    as the caller got them, as far as it did.
    """

    at: float
    id: str
    virtual_key: str
    team: str
    surface: str
    route: str
    provider: str
    model: str
    status: int
    request: bytes
    response: bytes


class ContentLog:
    """Writes contents from a thread.

    Args:
        folder: where the files lie; made with mode 0700.
        key: the secret that seals them, 32 characters or more.
        days: files older than this are deleted, at the start and with each new day.
        worker: part of the files' names.
        today: the date; for tests.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        days: int,
        worker: str,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        try:
            make_private_folder(folder)
        except OSError as error:
            raise OutputError(f"{folder}: {error}: the content log is kept there") from error
        self._folder, self._key, self._days = folder, key.encode(), days
        self._worker, self._today = worker, today
        self._file = -1
        self._cipher = AESGCM(bytes(32))
        self._number = 0
        self._day = ""
        self._waiting = 0
        self._lost = 0
        self._batcher: Batcher[Content] = Batcher("content", self._write, 100_000)

    @property
    def dropped(self) -> int:
        """Contents that could not be written."""
        return self._lost + self._batcher.dropped

    def start(self) -> None:
        """Delete what is too old, and start the thread."""
        self.expire()
        self._batcher.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._batcher.stop()
        if self._file >= 0:
            os.close(self._file)
            self._file, self._day = -1, ""

    def put(self, content: Content) -> None:
        """Take a content; beyond what may wait it is dropped and counted."""
        size = len(content.request) + len(content.response)
        if self._waiting + size > MAX_WAITING:
            self._lost += 1
        elif self._batcher.put(content):
            self._waiting += size

    def expire(self) -> None:
        """Delete every file of a day that is over for longer than the days that are kept."""
        first = f"{self._today() - timedelta(days=self._days):%Y-%m-%d}"
        for path in self._folder.iterdir():
            found = NAME.fullmatch(path.name)
            if found is not None and found[1] < first:
                path.unlink(missing_ok=True)

    def _write(self, batch: list[Content]) -> None:
        self._waiting -= sum(len(each.request) + len(each.response) for each in batch)
        day = f"{self._today():%Y-%m-%d}"
        if day != self._day:
            self._open(day)
        for each in batch:
            nonce = os.urandom(NONCE)
            place = self._number.to_bytes(8, "big")
            sealed = self._cipher.encrypt(nonce, msgspec.msgpack.encode(each), place)
            data = (NONCE + len(sealed)).to_bytes(4, "big") + nonce + sealed
            _write_all(self._file, data)
            self._number += 1

    def _open(self, day: str) -> None:
        """Open the day's file; what a crash left half at its end is cut off."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.expire()
        path = self._folder / f"{day}.{self._worker}.sealed"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        size = os.fstat(file).st_size
        number, end = 0, 0
        head = os.pread(file, len(MAGIC) + SALT, 0)
        if len(head) == len(MAGIC) + SALT:
            end = len(head)
            while (length := os.pread(file, 4, end)) and len(length) == 4:
                after = end + 4 + int.from_bytes(length, "big")
                if after > size:
                    break
                number, end = number + 1, after
            salt = head[len(MAGIC) :]
            os.ftruncate(file, end)
        else:
            salt = os.urandom(SALT)
            os.ftruncate(file, 0)
            _write_all(file, MAGIC + salt)
        self._file, self._day, self._number = file, day, number
        self._cipher = _cipher(self._key, salt)


def read_contents(folder: Path, key: str, day: str = "") -> Iterator[Content]:
    """Yield the contents of all files, or of one ``day`` (2026-11-25), in order of file and record.

    A record that a crash left half at a file's end is passed over.

    Raises:
        OutputError: there is no such file or folder.
        InvalidRequest: the key is not the one that sealed them, or a file was changed.
    """
    try:
        paths = sorted(each for each in folder.iterdir() if NAME.fullmatch(each.name))
    except OSError as error:
        raise OutputError(f"{folder}: {error}: there is no content log") from error
    paths = [path for path in paths if not day or path.name.startswith(f"{day}.")]
    if day and not paths:
        raise OutputError(f"{folder} has no contents of {day}")
    for path in paths:
        yield from _read(path, key.encode())


def _read(path: Path, key: bytes) -> Iterator[Content]:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidRequest(f"{path} is no content log")
        cipher = _cipher(key, file.read(SALT))
        number = 0
        while len(length := file.read(4)) == 4:
            size = int.from_bytes(length, "big")
            if not NONCE + TAG <= size <= MAX_RECORD:
                raise InvalidRequest(f"{path}: record {number} was changed")
            data = file.read(size)
            if len(data) < size:
                return
            try:
                opened = cipher.decrypt(data[:NONCE], data[NONCE:], number.to_bytes(8, "big"))
            except InvalidTag as error:
                raise InvalidRequest(
                    f"{path}: record {number} was sealed by another key, or changed"
                ) from error
            yield msgspec.msgpack.decode(opened, type=Content)
            number += 1


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt, b"packshot content log 1").derive(key))


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
