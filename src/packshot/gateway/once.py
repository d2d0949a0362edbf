"""Idempotency keys: the first answer to a key is replayed, another body under it is refused.

The answers live in the ledger's database, so the calls to it are made in a thread. A streamed call
takes no idempotency key: what was delivered of it cannot be known.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from packshot.core.errors import InvalidRequest, LedgerUnavailable, PackshotError
from packshot.gateway.dispatch import Answer, Dispatcher
from packshot.gateway.job import Job
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.waits import Waits
from packshot.ledger.ledger import Ledger

__all__ = ["Once"]

MAX_KEY = 255
"""Characters of a key, as Stripe has it."""


class Once:
    """Answers calls that carry an idempotency key."""

    def __init__(
        self, ledger: Ledger, dispatcher: Dispatcher, telemetry: Telemetry, waits: Waits
    ) -> None:
        self._ledger = ledger
        self._waits = waits
        self._dispatcher = dispatcher
        self._telemetry = telemetry

    async def answer(self, job: Job, header: bytes, body: bytes) -> Answer:
        """Return the first answer to this key; it is made now if this call is the first.

        Raises:
            IdempotencyError: the key came with another body, or its first call is under way.
            InvalidRequest: the key is too long, or the call is streamed.
        """
        if len(header) > MAX_KEY or not header.isascii():
            raise InvalidRequest(f"an idempotency key has at most {MAX_KEY} ASCII characters")
        if job.stream:
            raise InvalidRequest("a streamed call takes no idempotency key: leave out one of them")
        key, scope = header.decode(), f"{job.owner.id}/{job.surface}"
        before = await self._first(key, body, scope)
        if before is not None:
            job.replayed = True
            return Answer(before)
        try:
            got = await self._dispatcher.answer(job)
        except BaseException:
            # A failed call is worth repeating. Not awaited where we were cancelled ourselves.
            with suppress(LedgerUnavailable):  # then it is refused for a while
                await self._waits.run(partial(self._forget, key, scope))
            raise
        if not isinstance(got, Answer):
            raise TypeError("a call that is not streamed is answered whole")
        try:
            await self._waits.run(partial(self._ledger.remember, key, got.body, scope))
        except PackshotError as error:
            # It is made and paid for. The key is refused for a while, rather than spent on twice.
            self._telemetry.error(job, error)
        return got

    async def _first(self, key: str, body: bytes, scope: str) -> bytes | None:
        """Return the first answer to a key, None where this call is the first: it is noted."""
        # Where nobody waits for it, the thread goes on, and may note a call that is not made.
        return await self._waits.run(
            partial(self._ledger.once, key, body, scope), partial(self._let_go, key, scope)
        )

    def _let_go(self, key: str, scope: str, asked: asyncio.Future[bytes | None]) -> None:
        if asked.cancelled() or asked.exception() is not None or asked.result() is not None:
            return
        asyncio.get_running_loop().run_in_executor(None, self._forget, key, scope)

    def _forget(self, key: str, scope: str) -> None:
        try:
            self._ledger.forget(key, scope)
        except PackshotError as error:
            self._telemetry.error(None, error)
