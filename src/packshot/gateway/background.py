"""Calls of a client from code that is not asynchronous, and from several threads at once.

One event loop in a thread of its own keeps the connections, and what is known of the keys, between
calls. Where a caller is interrupted (Ctrl-C), its calls are cancelled and settle themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from packshot.gateway.client import Client, Executor
from packshot.gateway.pictures import Picture, PictureAsk

__all__ = ["Background"]

T = TypeVar("T")

END_S = 10.0
"""How long `Background.close` waits for calls to settle."""


class Background:
    """A client in an event loop of its own. `close` it before its ledger is closed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(Executor())
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls", daemon=True)
        self._thread.start()

    def pictures(self, asks: Sequence[PictureAsk]) -> list[Picture]:
        """Return what came of the asks, made side by side."""

        async def all_of() -> list[Picture]:
            return list(await asyncio.gather(*map(self._client.picture, asks)))

        return self._run(all_of())

    def close(self) -> None:
        """Cancel what is under way, wait until it is settled, and close the connections."""
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(END_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(END_S)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _end(self) -> None:
        this = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not this]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()
