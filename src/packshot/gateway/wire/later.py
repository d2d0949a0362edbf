"""Answers that come later: a call is answered with an id at first, and the rest is fetched by it.

::

    POST /stable-image/edit/…   200 {"id": …}      paid for from here on, whoever fetches it
    GET  /results/ID            202                not yet
    GET  /results/ID            200 {…}            the answer

To the gateway it is one call of one attempt: it lasts until the answer is there, within the call's
own deadline and with its own key. What goes wrong on the way to a result is no reason to pay for
another one: it is looked for again, a few times.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

import msgspec

from packshot.core.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from packshot.gateway.wire.upstream import Call, Reply, Upstream

__all__ = ["Later"]

EVERY_S = 2.0
"""Between two looks. Stability bears 150 requests of an account in ten seconds."""

IN_VAIN = 5
"""Looks in a row that come to nothing, until the result is given up."""

MAX_ID_BYTES = 64 << 10
MAX_RESULT_BYTES = 64 << 20

NOT_YET = 202
AGAIN = frozenset({404, 408, 429})
"""What passes, as every error of the server's own does: a result may not be known at once."""

ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""It becomes part of a path, so it is nothing else."""


class _Begun(msgspec.Struct):
    id: str


BEGUN = msgspec.json.Decoder(_Begun)


@dataclass(slots=True)
class Fetched:
    """A result that has been read whole: a `Reply`."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    async def read(self, limit: int) -> bytes:
        """Return the body."""
        if len(self.body) > limit:
            raise _lost(f"a result of more than {limit} bytes")
        return self.body

    async def chunk(self) -> bytes:
        """Return the body, then its end."""
        body, self.body = self.body, b""
        return body

    def abort(self) -> None:
        """Do nothing: the connection went back to the pool."""


class Later:
    """The connections ``inner``, where calls at the targets ``paths`` are answered later.

    ``results`` is what stands before the id in a result's target.
    """

    def __init__(self, inner: Upstream, paths: frozenset[bytes], results: bytes) -> None:
        self.inner = inner
        self._paths = paths
        self._results = results

    async def send(self, call: Call) -> Reply:
        """See `Upstream.send`."""
        reply = await self.inner.send(call)
        if call.target not in self._paths or reply.status not in {200, NOT_YET}:
            return reply
        body = await reply.read(MAX_ID_BYTES)
        try:
            name = BEGUN.decode(body).id
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _lost("an answer without the id of its result") from error
        if not ID.fullmatch(name):
            raise _lost("an id that is none")
        look = Call(
            self._results + name.encode("ascii"),
            call.headers,
            b"",
            call.deadline,
            call.timeouts,
            b"GET",
        )
        return await self._fetch(look)

    async def close(self) -> None:
        """Close every connection."""
        await self.inner.close()

    async def _fetch(self, look: Call) -> Reply:
        in_vain = 0
        while in_vain < IN_VAIN:
            if monotonic() + EVERY_S >= look.deadline:
                raise UpstreamTimeout("the result did not come in time", sent=True, began=True)
            await asyncio.sleep(EVERY_S)
            try:
                reply = await self.inner.send(look)
                body = await reply.read(MAX_RESULT_BYTES)
            except UpstreamError:
                in_vain += 1
                continue
            if reply.status >= 500 or reply.status in AGAIN:
                in_vain += 1
            elif reply.status == NOT_YET:
                in_vain = 0
            else:
                return Fetched(reply.status, reply.headers, body)
        raise _lost(f"no result, in {IN_VAIN} looks one after the other")


def _lost(what: str) -> UpstreamBroken:
    """Return the error of an answer that was begun, and so may be billed."""
    return UpstreamBroken(f"the provider sent {what}", sent=True, began=True)
