"""A thumbnail on disk that shows the picture while it is being made."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from packshot.studio.store import Target, format_of, write_picture

if TYPE_CHECKING:
    from packshot.engine.results import OnStep, Progress

__all__ = ["PREVIEW_SIDE", "watch_into"]

PREVIEW_SIDE = 256
"""Pixels of the thumbnail's longer side at most."""

PREVIEW_SECONDS = 0.4
"""Least time between two thumbnails, so that watching costs a render little."""


def watch_into(path: Path) -> OnStep:
    """Return a watcher that keeps ``path`` showing the newest estimate; each write is atomic.

    Raises:
        InvalidRequest: the extension is none that can be written.
    """
    format_of(path)
    written = float("-inf")

    def watch(progress: Progress) -> None:
        nonlocal written
        last = progress.step == progress.steps
        if last or monotonic() - written >= PREVIEW_SECONDS:
            _write(path, progress)
            written = monotonic()

    return watch


def _write(path: Path, progress: Progress) -> None:
    from PIL.Image import fromarray

    thumbnail = fromarray(progress.preview())
    thumbnail.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    write_picture(thumbnail, Target(path, overwrite=True))
