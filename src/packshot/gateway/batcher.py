"""A bounded queue with a thread behind it: what is slow is done there, in batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Batcher"]

T = TypeVar("T")


class Batcher(Generic[T]):
    """Hands what is put in to ``handle``, in its own thread, every ``every_s`` seconds.

    ``limit`` is how many may wait: what comes beyond is dropped and counted, as is a batch that
    ``handle`` fails on. Nobody who puts something in ever waits.
    """

    def __init__(
        self, name: str, handle: Callable[[list[T]], None], limit: int, every_s: float = 0.1
    ) -> None:
        self.dropped = 0
        self._handle = handle
        self._limit = limit
        self._every_s = every_s
        self._queue: deque[T] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"packshot-{name}", daemon=True)

    def put(self, item: T) -> bool:
        """Take something; false where too much waits."""
        if len(self._queue) >= self._limit:
            self.dropped += 1
            return False
        self._queue.append(item)
        return True

    def start(self) -> None:
        """Start the thread: in the process that will use it, so after every fork."""
        self._thread.start()

    def stop(self) -> None:
        """Return when everything that waits was handled."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self._drain()

    def _run(self) -> None:
        while not self._ending.wait(self._every_s):
            self._drain()

    def _drain(self) -> None:
        queue = self._queue
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), 1000))]
            try:
                self._handle(batch)
            except Exception:  # noqa: BLE001 - telemetry: it is counted, shown, and stops nobody
                self.dropped += len(batch)
