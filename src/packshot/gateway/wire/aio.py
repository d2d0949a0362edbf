"""The same connections on aiohttp: for HTTP proxies, and as what `pool` is compared with.

It costs five times what `pool` costs, takes a reset for the end of a body that has no other, and
refuses an answer together with the junk behind it. aiohttp is imported where it is used and nowhere
else, since a gateway without a proxy does not need it.
"""

from __future__ import annotations

import asyncio
import time
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING

from packshot.core.errors import (
    InvalidRequest,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from packshot.gateway.wire.link import SAFE, StaleLink
from packshot.gateway.wire.pool import PoolLimits, peer_name, reason, tls_context
from packshot.gateway.wire.upstream import Call, Origin

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

__all__ = ["AioAnswer", "AioPool"]


class _Progress:
    """How far a call came: set by aiohttp's trace hooks, which run inside the call's task."""

    __slots__ = ("call", "clock", "reused", "sent")

    def __init__(self, call: Call, clock: asyncio.Timeout) -> None:
        self.call = call
        self.clock = clock
        self.reused = False
        self.sent = False

    def within(self, seconds: float) -> None:
        """Have the current phase end in time, and the whole call with its deadline."""
        left = min(seconds, self.call.deadline - time.monotonic())
        self.clock.reschedule(asyncio.get_running_loop().time() + left)


class AioAnswer:
    """The answer to one call: `Reply` of the contract."""

    def __init__(self, pool: AioPool, call: Call, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.raw_headers}
        self._pool = pool
        self._call = call
        self._response = response
        self._ended = False

    async def read(self, limit: int) -> bytes:
        """Return the whole body; see `Reply.read`."""
        parts: list[bytes] = []
        size = 0
        try:
            while part := await self.chunk():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise UpstreamBroken(  # noqa: TRY301 - what closes the connection is one place
                        f"the answer is longer than the {limit} bytes that are allowed for it",
                        sent=True,
                        began=True,
                    )
        except BaseException:
            self.abort()
            raise
        return b"".join(parts)

    async def chunk(self) -> bytes:
        """Return the next bytes of the body; see `Reply.chunk`."""
        import aiohttp

        if self._ended:
            return b""
        left = self._call.deadline - time.monotonic()
        idle = self._call.timeouts.idle_s
        try:
            async with asyncio.timeout(min(idle, left)):
                part = await self._response.content.readany()
        except TimeoutError:
            self.abort()
            text = (
                f"the answer stood still for {idle:g} s"
                if idle < left
                else "the call's deadline passed before the end of the answer"
            )
            raise UpstreamTimeout(f"{self._pool.peer}: {text}", sent=True, began=True) from None
        except (aiohttp.ClientError, OSError) as error:
            self.abort()
            raise UpstreamBroken(
                f"{self._pool.peer} closed the connection in the middle of its answer",
                sent=True,
                began=True,
            ) from error
        if not part:
            self._ended = True
            self._response.release()
        return part

    def abort(self) -> None:
        """Close the connection, unless the body has ended; see `Reply.abort`."""
        self._response.close()


class AioPool:
    """Connections to ``origin`` by way of aiohttp, and of ``proxy`` (``http://host:port``) if any.

    Raises:
        InvalidRequest: aiohttp is not installed.
    """

    def __init__(self, origin: Origin, limits: PoolLimits | None = None, proxy: str = "") -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise InvalidRequest(
                "an upstream behind an HTTP proxy needs aiohttp, which is not installed. "
                'Install it: pip install "aiohttp>=3.14.2"'
            ) from error
        self._aiohttp = aiohttp
        self.limits = limits or PoolLimits()
        self.peer = peer_name(origin)
        self._base = f"{origin.scheme}://{self.peer}"
        self._proxy = proxy or None
        self._tls = tls_context(origin) if origin.scheme == "https" else None
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._in_flight = 0

    async def send(self, call: Call, /) -> AioAnswer:
        """Send a call and return its answer once the head is there; see `Upstream.send`."""
        allowed = self.limits.connections + self.limits.waiting
        if self._in_flight >= allowed:
            raise UpstreamUnreachable(f"{self.peer}: saturated: {allowed} calls", sent=False)
        self._in_flight += 1
        try:
            try:
                return await self._send(call, fresh=False)
            except StaleLink:
                return await self._send(call, fresh=True)
        finally:
            self._in_flight -= 1

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        # aiohttp's connections are closed by callbacks that the loop has yet to run.
        await asyncio.sleep(0)

    async def _send(self, call: Call, *, fresh: bool) -> AioAnswer:
        """Send a call; raise `StaleLink` if its kept connection was dead."""
        aiohttp = self._aiohttp
        clock = asyncio.timeout(call.deadline - time.monotonic())
        progress = _Progress(call, clock)
        try:
            async with clock:
                response = await self._session(fresh=fresh).request(
                    call.method.decode(),
                    self._url(call.target),
                    data=BytesIO(call.body) if call.body else None,
                    headers=_pairs(call),
                    proxy=self._proxy,
                    allow_redirects=False,
                    trace_request_ctx=progress,
                )
        except TimeoutError:
            phase = "no answer in time" if progress.sent else "no connection in time"
            raise UpstreamTimeout(f"{self.peer}: {phase}", sent=progress.sent) from None
        except aiohttp.ClientConnectorError as error:
            text = f"{self.peer}: {reason(error.os_error)}"
            raise UpstreamUnreachable(text, sent=False) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError) as error:
            if progress.reused and call.method in SAFE:  # of others nobody knows what arrived
                raise StaleLink from error
            raise self._broken("closed the connection without an answer") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise self._broken("did not answer in HTTP/1.1 as expected", began=True) from error
        return AioAnswer(self, call, response)

    def _broken(self, text: str, *, began: bool = False) -> UpstreamError:
        return UpstreamBroken(f"{self.peer} {text}", sent=True, began=began)

    def _url(self, target: bytes) -> URL:
        from yarl import URL

        return URL(self._base + target.decode("ascii"), encoded=True)

    def _session(self, *, fresh: bool) -> aiohttp.ClientSession:
        """Return the session that keeps connections, or the one that never does."""
        if fresh not in self._sessions:
            self._sessions[fresh] = self._open_session(fresh=fresh)
        return self._sessions[fresh]

    def _open_session(self, *, fresh: bool) -> aiohttp.ClientSession:
        aiohttp = self._aiohttp
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(_connecting)
        trace.on_connection_reuseconn.append(_reused)
        trace.on_request_headers_sent.append(_sent)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.limits.connections,
                ttl_dns_cache=60,
                ssl=self._tls or True,
                force_close=fresh,
                keepalive_timeout=None if fresh else self.limits.keep_s,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trace_configs=[trace],
            max_line_size=self.limits.link.head,
            max_field_size=self.limits.link.head,
            read_bufsize=self.limits.link.unread // 2,
        )


def _pairs(call: Call) -> list[tuple[str, str]]:
    """Return the header lines of a call one by one."""
    lines = call.headers.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    return [(name, value.strip()) for name, _, value in pairs]


async def _connecting(_session: object, context: SimpleNamespace, _params: object) -> None:
    progress = context.trace_request_ctx
    progress.within(progress.call.timeouts.connect_s)


async def _reused(_session: object, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.reused = True


async def _sent(_session: object, context: SimpleNamespace, _params: object) -> None:
    progress = context.trace_request_ctx
    progress.sent = True
    progress.within(progress.call.timeouts.first_byte_s)
