"""Text embeddings of a provider, asked for through this gateway, in this process.

::

    embed ─► gather for 2 ms ─► one call for all ─► Dispatcher (keys, retries, fallbacks, money)

A call goes to the dispatcher as it is, past the response cache: no embeddings call is ever looked
up itself. It is booked on an account of the house, whose name is configured, and tagged
``cache=embeddings``. Nothing of it reaches a caller: where there is no vector in time, there is no
similar answer, and the counter `packshot.gateway.names.CACHE_EMBEDDINGS` says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter

import msgspec
import numpy as np

from packshot.core.errors import InvalidRequest, NoEmbedding, PackshotError, Saturated
from packshot.gateway.access import VirtualKey
from packshot.gateway.cache.embed import MOST_WAITING, Vectors
from packshot.gateway.cache.embedding_models import AskedModel, asked_model
from packshot.gateway.cache.settings import EmbeddingsEntry
from packshot.gateway.dispatch import Answer, Dispatcher, Refused
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.plan import Plan
from packshot.gateway.telemetry import Telemetry

__all__ = ["AT_ONCE", "BATCH", "RouteEmbedder", "vectors_of"]

DOOR = "/v1/embeddings"
TAG = "cache=embeddings"
"""By which the cost of embeddings is found in the ledger."""

GATHER_S = 0.002
"""How long a text waits for others that go with it: little beside a provider's answer."""

BATCH = 64
"""Texts of one call at most."""

AT_ONCE = 4
"""Calls under way at the same time; texts that come meanwhile wait, and go together."""

LONGEST_TEXT = 8_000
"""Characters of a text that are embedded: no model of today takes fewer than 2,000 tokens."""

TRIES = 3
"""Calls in a row without vectors after which none is made for `REST_S`."""

REST_S = 5.0
"""So long a provider that does not answer holds up nobody's call."""


class _Row(msgspec.Struct):
    embedding: list[float]
    index: int


class _Rows(msgspec.Struct):
    data: list[_Row]


READ = msgspec.json.Decoder(_Rows).decode


class RouteEmbedder:
    """An `Embedder` that asks a route of ``plan``, which is the gateway's current one.

    Raises:
        InvalidRequest: as `asked_model`.
    """

    def __init__(
        self,
        entry: EmbeddingsEntry,
        plan: Callable[[], Plan],
        dispatcher: Dispatcher,
        telemetry: Telemetry,
    ) -> None:
        self.model: AskedModel = asked_model(entry, plan())
        self.deadline_s = entry.deadline_ms / 1000.0
        self._entry = entry
        self._plan = plan
        self._seen: Plan = plan()
        self._changed = ""
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._owner = VirtualKey(entry.account)
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._gathering = False
        self._failed = 0
        self._rests_until = 0.0
        self._told = ""

    @property
    def name(self) -> str:
        """The name of the model, and how long its vectors are."""
        return self.model.name

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self.model.dimension

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return a row for each text.

        Raises:
            NoEmbedding: there is none, or not in time.
            Saturated: too many texts wait.
        """
        if monotonic() < self._rests_until:
            self._telemetry.embedded("resting", len(texts))
            raise NoEmbedding("the embeddings route has not answered of late; it is asked again")
        if len(self._waiting) + len(texts) > MOST_WAITING:
            self._telemetry.embedded("full", len(texts))
            raise Saturated(
                f"{len(self._waiting)} texts wait for the embeddings route, at most {MOST_WAITING} "
                "may; try again in a moment"
            )
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Vectors]] = [loop.create_future() for _ in texts]
        self._waiting += zip((text[:LONGEST_TEXT] for text in texts), futures, strict=True)
        if not self._gathering:
            self._gathering = True
            loop.call_later(GATHER_S, self._gathered)
        try:
            async with asyncio.timeout(self.deadline_s):
                rows = [await future for future in futures]
        except TimeoutError as error:
            self._telemetry.embedded("late", len(texts))
            raise NoEmbedding(f"no embedding within {self.deadline_s:g} s") from error
        finally:
            for future in futures:  # whoever went away is not worked for, nor told of what failed
                if not future.cancel() and not future.cancelled():
                    future.exception()
        self._telemetry.embedded("made", len(texts))
        return np.stack(rows)

    async def aclose(self) -> None:
        """Cancel the calls under way; they settle themselves."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _gathered(self) -> None:
        self._gathering = False
        self._send()

    def _send(self) -> None:
        """Send what waits, as far as there may be more calls."""
        self._waiting = [each for each in self._waiting if not each[1].done()]
        while self._waiting and len(self._calls) < AT_ONCE:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            call = asyncio.get_running_loop().create_task(self._call(batch))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._send()

    async def _call(self, batch: Sequence[tuple[str, asyncio.Future[Vectors]]]) -> None:
        """Ask for the vectors of a batch, and hand them out; nothing is raised."""
        texts = list(dict.fromkeys(text for text, _ in batch))
        try:
            rows = dict(zip(texts, await self._ask(texts), strict=True))
        except Exception as error:  # noqa: BLE001 - a caller without a vector goes upstream
            self._note(error)
            late = isinstance(error, Refused) and error.failure.kind == "timeout"
            why = NoEmbedding(f"the embeddings route gave no vectors: {error}")
            for _, future in batch:
                if not future.done():
                    self._telemetry.embedded("late" if late else "failed", 1)
                    future.set_exception(why)
            return
        self._failed, self._told = 0, ""
        for text, future in batch:
            if not future.done():
                future.set_result(rows[text])

    async def _ask(self, texts: Sequence[str]) -> Vectors:
        plan = self._plan()
        self._follow(plan)
        asked: dict[str, object] = {"model": self._entry.asked, "input": texts}
        if self.model.dimensions:
            asked["dimensions"] = self.model.dimensions
        body = msgspec.json.encode(asked)
        job = make_job(DOORS[DOOR], plan, self._owner, {}, body, perf_counter())
        job.tags = (TAG,)
        job.deadline = monotonic() + self.deadline_s
        got = await self._dispatcher.answer(job)
        if not isinstance(got, Answer) or got.status != 200:
            raise NoEmbedding("the embeddings route did not answer with embeddings")
        return vectors_of(got.body, len(texts), self.dimension)

    def _follow(self, plan: Plan) -> None:
        """Refuse a plan, read anew, whose route is of another model: vectors are never mixed."""
        if plan is not self._seen:
            self._seen, self._changed = plan, ""
            try:
                model = asked_model(self._entry, plan)
            except InvalidRequest as error:
                self._changed = str(error)
            else:
                if model != self.model:
                    self._changed = (
                        f"semantic_cache.embeddings: {self._entry.asked!r} is of {model.name} "
                        f"now, and the index of {self.name}: restart the gateway, which begins "
                        "another index"
                    )
        if self._changed:
            raise InvalidRequest(self._changed)

    def _note(self, error: Exception) -> None:
        """Rest after some failures, and say in the log what is wrong, once until it is well."""
        self._failed += 1
        if self._failed >= TRIES:
            self._rests_until = monotonic() + REST_S
        known = isinstance(error, (PackshotError, Refused))
        if not known or (isinstance(error, (InvalidRequest, NoEmbedding)) and not self._told):
            self._told = str(error)
            self._telemetry.error(None, error)


def vectors_of(body: bytes, count: int, dimension: int) -> Vectors:
    """Return the vectors of an answer of OpenAI's shape in the order of its texts, of length 1.

    Raises:
        NoEmbedding: they are not ``count``, not of ``dimension`` numbers, or no directions.
    """
    try:
        data = READ(body).data
    except msgspec.MsgspecError as error:
        raise NoEmbedding(f"the answer is no list of embeddings: {error}") from error
    if sorted(row.index for row in data) != list(range(count)):
        raise NoEmbedding(f"expected an embedding of each of {count} texts, got {len(data)}")
    lengths = {len(row.embedding) for row in data}
    if lengths != {dimension}:
        raise NoEmbedding(
            f"embeddings have {sorted(lengths)} numbers, expected {dimension}: set "
            "semantic_cache.embeddings.dimension to what the model makes"
        )
    ordered = [row.embedding for row in sorted(data, key=lambda row: row.index)]
    rows = np.array(ordered, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise NoEmbedding("an embedding is all zeros, or not finite")
    rows /= np.abs(rows).max(axis=1, keepdims=True)  # squares of tiny numbers have few digits
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
