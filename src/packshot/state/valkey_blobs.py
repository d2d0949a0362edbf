"""The shelf of several machines: bytes in Valkey or Redis that all of them share.

It blocks, like the other shelves, for `ANSWER_S` at the most, and is meant to stand behind one in
memory (`packshot.state.blobs.TieredBlobs`), which goes on alone where the server is away. One
script does each change, so that what is counted is what is there. Times are the asking machine's:
two clocks that differ make a value live longer or shorter by as much.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import cast

import hiredis

from packshot.core.errors import StateUnavailable
from packshot.state.blobs import OVERHEAD, Found, Held, check_key, check_limit, check_put
from packshot.state.resp import Address, ReplyError, address_of, encoded

__all__ = ["ANSWER_S", "ValkeyBlobs"]

ANSWER_S = 0.5
"""Seconds for an answer, connecting included: a value is some 100 kB."""

SWEPT_AT_ONCE = 500
"""Values that one script throws away, so that others come to their turn."""

PIECE = 1 << 16

COMMON = """
local p = KEYS[1]
local function drop(key)
  local size = redis.call('HGET', p .. 'sizes', key)
  if not size then return 0 end
  redis.call('HDEL', p .. 'sizes', key)
  redis.call('ZREM', p .. 'used', key)
  redis.call('ZREM', p .. 'end', key)
  redis.call('DEL', p .. 'v:' .. key)
  redis.call('DECRBY', p .. 'size', size)
  return 1
end
"""

GET = """
local key, now = ARGV[1], ARGV[2]
local ends = redis.call('ZSCORE', p .. 'end', key)
if not ends or tonumber(ends) <= tonumber(now) then return false end
local value = redis.call('GET', p .. 'v:' .. key)
if not value then return false end
redis.call('ZADD', p .. 'used', now, key)
return {value, ends}
"""

PUT = """
local key, value, size, now, ends, ms, most = unpack(ARGV)
drop(key)
if tonumber(size) > tonumber(most) then return 0 end
while tonumber(redis.call('GET', p .. 'size') or 0) + tonumber(size) > tonumber(most) do
  drop(redis.call('ZRANGE', p .. 'used', 0, 0)[1])
end
redis.call('SET', p .. 'v:' .. key, value, 'PX', ms)
redis.call('HSET', p .. 'sizes', key, size)
redis.call('ZADD', p .. 'used', now, key)
redis.call('ZADD', p .. 'end', ends, key)
redis.call('INCRBY', p .. 'size', size)
return 1
"""

DELETE = "return drop(ARGV[1])"

SWEEP = """
local keys = redis.call('ZRANGEBYSCORE', p .. 'end', '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, key in ipairs(keys) do drop(key) end
return #keys
"""

HELD = """
return {redis.call('HLEN', p .. 'sizes'), tonumber(redis.call('GET', p .. 'size') or 0)}
"""


COUNT = """
for at = 1, #ARGV, 2 do redis.call('HINCRBY', p .. 'counts', ARGV[at], ARGV[at + 1]) end
return 1
"""

COUNTS = "return redis.call('HGETALL', p .. 'counts')"


class ValkeyBlobs:
    """A shelf of ``max_bytes`` at the server ``url``, apart from those of other ``name``s.

    ``clock`` is the wall's, in seconds. Nothing is connected before the first call.

    Raises:
        InvalidRequest: the URL is none of ``valkey://``, ``redis://``, ``rediss://``, ``unix://``.
    """

    def __init__(
        self,
        url: str,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
        name: str = "blobs",
    ) -> None:
        self.max_bytes = check_limit(max_bytes)
        self._clock = clock
        self._prefix = f"{{packshot}}:{name}:"  # the braces put all keys on one node of a cluster
        self._address = address_of(url)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def get(self, key: str) -> Found | None:
        """As `Blobs.get`."""
        check_key(key)
        now = self._clock()
        found = self._run(GET, [key, repr(now)])
        if found is None:
            return None
        value, ends = cast("list[bytes]", found)
        return Found(value, float(ends) - now)

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As `Blobs.put`."""
        check_put(key, ttl_s)
        now = self._clock()
        size, ms = len(value) + OVERHEAD, max(1, round(ttl_s * 1000))
        words = [key, value, size, repr(now), repr(now + ttl_s), ms, self.max_bytes]
        self._run(PUT, words)

    def delete(self, key: str) -> None:
        """As `Blobs.delete`."""
        check_key(key)
        self._run(DELETE, [key])

    def sweep(self) -> int:
        """As `Blobs.sweep`."""
        swept = 0
        while True:
            gone = cast("int", self._run(SWEEP, [repr(self._clock()), SWEPT_AT_ONCE]))
            swept += gone
            if gone < SWEPT_AT_ONCE:
                return swept

    def held(self) -> Held:
        """As `Blobs.held`."""
        return Held(*cast("list[int]", self._run(HELD, [])))

    def count(self, counts: Mapping[str, int]) -> None:
        """As `Counting.count`."""
        self._run(COUNT, [word for pair in counts.items() for word in pair])

    def counts(self) -> dict[str, int]:
        """As `Counting.counts`."""
        words = cast("list[bytes]", self._run(COUNTS, []))
        return {
            name.decode(): int(number) for name, number in zip(words[::2], words[1::2], strict=True)
        }

    def close(self) -> None:
        """End the connection; a later call makes a new one."""
        with self._lock:
            self._drop()

    def _run(self, script: str, words: Sequence[str | int | bytes]) -> object:
        """Run a script by its name; send it where the server does not know it (yet)."""
        code = COMMON + script
        name = sha1(code.encode(), usedforsecurity=False).hexdigest()  # Valkey names it so
        more = [1, self._prefix, *cast("Sequence[str | int]", words)]
        with self._lock:
            try:
                try:
                    return self._call(["EVALSHA", name, *more])
                except ReplyError as error:
                    if not str(error).startswith("NOSCRIPT"):
                        raise
                    return self._call(["EVAL", code, *more])
            except (OSError, ReplyError, hiredis.ProtocolError) as error:
                self._drop()
                raise StateUnavailable(
                    f"the shared shelf does not answer: {str(error) or 'in time'}"
                ) from error

    def _call(self, words: Sequence[str | int]) -> object:
        until = time.monotonic() + ANSWER_S
        if self._socket is None:
            self._connect(until)
        return self._asked(words, until)

    def _asked(self, words: Sequence[str | int], until: float) -> object:
        if self._socket is None:
            raise ConnectionError("there is no connection")
        self._wait(until)
        self._socket.sendall(encoded(words))
        while (answer := self._reader.gets()) is False:
            self._wait(until)
            data = self._socket.recv(PIECE)
            if not data:
                raise ConnectionError("the connection was closed")
            self._reader.feed(data)
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    def _wait(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._socket is not None:
            self._socket.settimeout(left)

    def _connect(self, until: float) -> None:
        to = self._address
        self._reader = hiredis.Reader()
        self._socket = _opened(to, max(0.01, until - time.monotonic()))
        if to.password:
            login = [to.user, to.password] if to.user else [to.password]
            self._asked(["AUTH", *login], until)
        if to.database:
            self._asked(["SELECT", to.database], until)

    def _drop(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None


def _opened(to: Address, limit_s: float) -> socket.socket:
    if to.path:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(limit_s)
        try:
            made.connect(to.path)
        except BaseException:
            made.close()
            raise
        return made
    plain = socket.create_connection((to.host, to.port), limit_s)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not to.secure:
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=to.host)
