"""Product photographs and masks of a batch: each is read and checked once, before any cost."""

from __future__ import annotations

import hashlib
from pathlib import Path

from packshot.core.errors import OutputError
from packshot.studio.batch.state import RunState
from packshot.studio.objects import is_address, read_object
from packshot.studio.photo import MAX_BYTES, load_mask, load_photo

__all__ = ["Photos", "name_of", "read_place"]


class Photos:
    """What the state knows of photographs.

    A file that has the length and the time of its last reading is not read again; an object of a
    bucket is read once for all.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._last: tuple[str, str] = ("", "")

    def digest(self, photo: str, mask: str = "") -> str:
        """Return the SHA-256 of a photograph, or of its mask where one is given, checked.

        Raises:
            BadPhoto: it is none that can be used.
            OutputError: it cannot be read.
        """
        place = mask or photo
        mark = _mark(place)
        key = f"{mask}\0{photo}\0{_mark(photo)}" if mask else photo
        known = self._last[1] if self._last[0] == key else self._state.digest_of(key, mark)
        if not known:
            data = read_place(place)
            loaded = load_photo(data if not mask else read_place(photo), name_of(photo))
            if mask:
                load_mask(data, loaded, name_of(mask))
            known = hashlib.sha256(data).hexdigest()
            self._state.keep_digest(key, mark, known)
        self._last = (key, known)
        return known

    def changed(self) -> bool:
        """Tell whether a file that was read is not what it was."""
        for key, mark in self._state.files():
            mask, _, photo = key.partition("\0")
            place = mask if photo else key
            try:
                if _mark(place) != mark:
                    return True
            except OutputError:
                return True
        return False


def read_place(place: str) -> bytes:
    """Return the bytes of a file or an object; `OutputError` where it cannot be read."""
    if is_address(place):
        return read_object(place, MAX_BYTES)
    path = Path(place)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OutputError(f"cannot read {place}: {error.strerror or error}") from error


def _mark(place: str) -> str:
    if is_address(place):
        return "object"
    try:
        found = Path(place).stat()
    except OSError as error:
        raise OutputError(f"cannot read {place}: {error.strerror or error}") from error
    return f"{found.st_size}:{found.st_mtime_ns}"


def name_of(place: str) -> str:
    """Return what messages call a file or an object."""
    return place.rpartition("/")[2]
