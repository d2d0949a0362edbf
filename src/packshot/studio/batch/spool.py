"""Finished pictures in the run's folder, between the worker that made them and the store."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from pathlib import Path

from packshot.core.errors import OutputError
from packshot.studio.batch.state import Made
from packshot.studio.recipes.step import Kept

__all__ = ["Spool"]

FOLDER = "made"


class Spool:
    """A `packshot.studio.recipes.step.Store` in the run's folder: a file there is whole."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER

    def put(self, data: bytes, name: str, /) -> Kept:
        """Keep ``data`` under its SHA-256; what a power cut spoils, `read` does not return."""
        digest = sha256(data).hexdigest()
        key = f"{digest}{Path(name).suffix}"
        path = self._folder / key
        trial = self._folder / f".{key}.{os.getpid()}.{threading.get_ident()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trial.write_bytes(data)
            trial.replace(path)
        except OSError as error:
            trial.unlink(missing_ok=True)
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return Kept(key, digest, len(data))

    def read(self, made: Made) -> bytes | None:
        """Return a picture's file, or None where it is not there, or is not what was made."""
        try:
            data = (self._folder / made.file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {error.filename}: {error.strerror}") from error
        return data if sha256(data).hexdigest() == made.sha256 else None

    def drop(self, made: Made) -> None:
        """Remove a picture that is in the store."""
        (self._folder / made.file).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what workers that died in the middle of writing left."""
        for path in self._folder.glob(".*"):
            path.unlink(missing_ok=True)
