"""Who makes which work of a run, and whose turn it is at the device.

Nothing that waits is made by two at a time.

The worker takes the first in line, and the threads that have works made elsewhere, beside it, those
that would be late or wait too long (`packshot.studio.batch.elsewhere`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Self

from packshot.studio.batch.state import RunState, Todo

__all__ = ["Line", "Turn"]


class Line:
    """The works that wait, and which of them somebody has. Safe to use from any thread."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()
        self._passing: Iterator[Todo] = iter(())
        self._met = False
        self.empty = False
        """Nothing waited in the last pass of `following`."""

    def take(self, work: bytes) -> Todo | None:
        """Return a work that is to be made by whoever asks; None where somebody else has it, or
        has made it. `leave` it afterwards.
        """
        with self._lock:
            todo = None if work in self._taken else self._state.todo(work)
            if todo is not None:
                self._taken.add(work)
            return todo

    def leave(self, work: bytes) -> None:
        """Let go of a work, whatever came of it."""
        with self._lock:
            self._taken.discard(work)

    def dated(self) -> list[tuple[bytes, float]]:
        """Return what has a deadline and nobody has yet, with it; the first due first."""
        with self._lock:
            return [pair for pair in self._state.dated() if pair[0] not in self._taken]

    def first(self) -> Todo | None:
        """Take the first work that nobody has."""
        for todo in self._state.waiting("todo"):
            found = self.take(todo.work)
            if found is not None:
                return found
        return None

    def following(self, is_left: Callable[[Todo], bool]) -> Todo | None:
        """Take the next work that nobody has, nor ``is_left`` leaves to others; None where a whole
        pass meets none. One asks at a time.

        All who ask share a pass: what failed comes again after all the others.
        """
        for _ in range(2):  # what is left of a pass, and a whole one
            for todo in self._passing:
                self._met = True
                if not is_left(todo) and (found := self.take(todo.work)) is not None:
                    return found
            self.empty, self._met = not self._met, False
            self._passing = self._state.waiting("todo")
        return None


class Turn:
    """A thread's turn at the ``device``: waited for, and over when that is free, or it is left.

    ``whole`` has it last until it is left. ``heard`` is told that the device is free.
    """

    def __init__(self, device: threading.Lock | None = None) -> None:
        self._device = device or threading.Lock()
        self._has = False
        self.whole = False
        self.over = False
        self.heard: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._has = self._device.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def free(self) -> None:
        """Let the next turn begin: what is left to do needs no device."""
        self.heard()
        if not self.whole:
            self._end()

    def _end(self) -> None:
        self.over = True
        if self._has:
            self._has = False
            self._device.release()
