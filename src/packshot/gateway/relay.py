"""A streamed answer on its way to the caller: event by event, at the caller's own pace.

What a caller has seen is never taken back: a stream that breaks ends in an error event, and never
in what looks like its proper end (DESIGN §4, invariant 5).
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, TypeAlias

from packshot.core.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from packshot.gateway.answers import Headers, of_failure
from packshot.gateway.dispatch import Stream
from packshot.gateway.job import Job
from packshot.gateway.wire.cycle import Cycle
from packshot.providers.base import Failure
from packshot.providers.failures import Answer, error_event

__all__ = ["Drains", "Send", "relay"]

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
"""ASGI's ``send``: it waits while the caller reads more slowly than we write."""

OWN_TROUBLE = Answer(
    500,
    "api_error",
    "the gateway failed; its log has more under the request's id",
    "internal_error",
)

MAX_DRAINS = 256
"""Streams without a caller that are read on at the same time to learn their cost."""


class Drains:
    """Streams whose caller is gone, read to their end so that their cost is known exactly.

    ``settle`` corrects what a job took of its limits, once that is known.
    """

    def __init__(self, settle: Callable[[Job], Awaitable[None] | None]) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._jobs: set[Job] = set()
        self._settle = settle

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, stream: Stream) -> bool:
        """Read a stream on in the background; false where too many are."""
        if len(self._tasks) >= MAX_DRAINS:
            return False
        self._jobs.add(stream.attempt.job)
        task = asyncio.get_running_loop().create_task(self._drain(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _drain(self, stream: Stream) -> None:
        job = stream.attempt.job
        try:
            await _drain(stream)
            if (waits := self._settle(job)) is not None:
                await waits
        finally:
            self._jobs.discard(job)

    async def close(self) -> None:
        """Wait for those that are under way; each has its own limit of time."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))


async def relay(
    stream: Stream, headers: Headers, send: Send, drains: Drains, cycle: Cycle | None = None
) -> int:
    """Send a stream to its caller and settle its attempt; return 200, or 502 for a broken one.

    ``cycle`` is the short way for its events, where nothing else takes what ``send`` is given.
    """
    job, reply = stream.attempt.job, stream.reply
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        job.first_byte_s = perf_counter() - job.began
        failure = await _pump(stream, send, cycle)
        if failure is None:
            # Settled before the caller sees the end, as with an answer that is not streamed.
            stream.attempt.succeed(stream.relay.usage)
            await stream.attempt.money.flush()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await _finish(stream)
            return 200
        reply.abort()
        stream.attempt.fail(failure, sent=True, began=True)
        event = error_event(job.surface, of_failure(failure).answer)
        await send({"type": "http.response.body", "body": event, "more_body": False})
    except CancelledError:
        _hung_up(stream, drains)
        raise
    except BaseException:
        reply.abort()
        stream.attempt.abandon("an error of the gateway's own", sent=True)
        if job.first_byte_s:
            with suppress(Exception):  # where the response is over there is nothing to be said
                event = error_event(job.surface, OWN_TROUBLE)
                await send({"type": "http.response.body", "body": event, "more_body": False})
        raise
    return 502


async def _pump(stream: Stream, send: Send, cycle: Cycle | None) -> Failure | None:
    """Pass events on until the stream's end; return why it has none."""
    job, reply, events = stream.attempt.job, stream.reply, stream.relay
    out, stream.first = stream.first, b""
    chunk, feed = reply.chunk, events.feed
    provider = stream.attempt.target.provider.name
    try:
        while True:
            if out:
                job.streamed += len(out)
                if cycle is None or cycle.link.write_paused:
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                else:
                    cycle.write(out)
            if events.failure is not None:
                return events.failure
            if events.done:
                return None
            waits = perf_counter()
            data = await chunk()
            job.upstream_s += perf_counter() - waits
            if not data:
                return Failure("garbage", 200, f"{provider} ended the stream before its end")
            out = feed(data)
            data = b""  # a reader that stands still holds one copy, not two
    except UpstreamTimeout:
        return Failure("timeout", 200, f"{provider} fell silent in the middle of the stream")
    except UpstreamError:
        return Failure("garbage", 200, f"{provider} broke off in the middle of the stream")


async def _finish(stream: Stream) -> None:
    """Read what follows the last event, so that the connection can be used again."""
    # The answer was whole: where its tail is not, only the connection is lost.
    with suppress(UpstreamError):
        while await stream.reply.chunk():
            pass
    stream.reply.abort()


def _hung_up(stream: Stream, drains: Drains) -> None:
    attempt = stream.attempt
    if attempt.ended:
        stream.reply.abort()
    elif stream.relay.done:
        stream.reply.abort()
        attempt.succeed(stream.relay.usage)
    elif not (attempt.target.provider.drains and drains.take(stream)):
        stream.reply.abort()
        attempt.abandon("the caller hung up", sent=True)


async def _drain(stream: Stream) -> None:
    events, attempt = stream.relay, stream.attempt
    try:
        async with asyncio.timeout(attempt.target.provider.entry.network.drain_s):
            while not events.done:
                data = await stream.reply.chunk()
                if not data:
                    raise UpstreamBroken("no end", sent=True, began=True)
                events.feed(data)
    except (UpstreamError, TimeoutError, CancelledError):
        attempt.abandon("the caller hung up", sent=True)
    else:
        if events.usage is None:
            attempt.abandon("the caller hung up", sent=True)
        else:
            attempt.waste(events.usage, "the caller hung up")
    finally:
        stream.reply.abort()
        attempt.abandon("an error of the gateway's own", sent=True)
