"""Uploads beside the rendering: a thread that stores files while the next picture is made.

A file's key follows from its bytes, so `Uploader.put` can say at once where it will lie. It is
there once `Uploader.done` has said so, and not before: until then it is in this process only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from types import TracebackType
from typing import Self

from packshot.studio.objects import key_of
from packshot.studio.recipes.step import Kept, Store

__all__ = ["DEPTH", "THREADS", "Uploader"]

DEPTH = 8
"""Files that wait or are under way; `put` then blocks. It bounds the memory: a file each."""

THREADS = 2
"""Files that go up at the same time."""


class Uploader:
    """A `Store` in front of another. Thread-safe; leave its block, or `close` it, to be done."""

    def __init__(self, store: Store, *, depth: int = DEPTH, threads: int = THREADS) -> None:
        self._store = store
        self._room = threading.BoundedSemaphore(depth)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="upload")
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Future[Kept], int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish what was handed over; after an error or Ctrl-C, only what is under way."""
        if error is None:
            self.close()
        else:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, data: bytes, name: str, /, *, then: Callable[[], None] | None = None) -> Kept:
        """Hand a file over, waiting where there are too many, and say where it is going to lie.

        ``then`` is called when it has ended, well or not, in the thread that stored it: `done` then
        answers at once. The same content twice is one upload.
        """
        digest = sha256(data).hexdigest()
        key = key_of(digest, name)
        self._room.acquire()
        with self._lock:
            future, askers = self._waiting.get(key, (None, 0))
            if future is None or future.done():
                future = self._pool.submit(self._store.put, data, name)
                future.add_done_callback(lambda _: self._room.release())
            else:
                self._room.release()
            self._waiting[key] = (future, askers + 1)
        if then is not None:
            future.add_done_callback(lambda _: then())
        return Kept(key, digest, len(data), new=False)

    def done(self, kept: Kept) -> Kept:
        """Wait until a file that was handed over is stored, and return what the store said.

        To be called once for each `put`.

        Raises:
            OutputError: it could not be stored. It may be handed over again.
        """
        with self._lock:
            future, askers = self._waiting.pop(kept.key)
            if askers > 1:
                self._waiting[kept.key] = (future, askers - 1)
        return future.result()

    def is_done(self, kept: Kept) -> bool:
        """Tell whether `done` would answer, or raise, at once."""
        with self._lock:
            return self._waiting[kept.key][0].done()

    def close(self) -> None:
        """Wait for all that was handed over, and end the threads.

        Raises:
            OutputError: of the first file that could not be stored and that nobody asked for.
        """
        self._pool.shutdown(wait=True)
        with self._lock:
            left = tuple(self._waiting.values())
            self._waiting.clear()
        for future, _ in left:
            future.result()
