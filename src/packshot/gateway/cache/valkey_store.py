"""Answers that replicas share, in Valkey or Redis; without it each has its own memory, as before.

A lookup has 5 ms for an answer. After one without, nobody asks for a second: a server that is down
or slow costs no call more than that, and no call an error. One script does each change, so that
what is counted is what is there. Similar requests are found by the replica that kept the answer
(vectors stay in the workers); what any replica purged, all hear of.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha1
from typing import TypeAlias, cast

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import StateUnavailable
from packshot.gateway.cache.entry import Entry, Purge, decoded, encoded
from packshot.gateway.cache.store import Mark, News
from packshot.state.blobs import Held, check_limit
from packshot.state.resp import Client, ReplyError, address_of
from packshot.state.resp import encoded as command

__all__ = ["ANSWER_S", "ValkeyStore"]

ANSWER_S = 0.005
"""Seconds for an answer to a call that is waiting, connecting included."""

PATIENT_S = 2.0
"""The same where no call waits."""

RETRY_US = SECOND_US
AT_ONCE = 500
"""Entries that one script throws away, so that others come to their turn."""

LONGEST_LOG = 10_000
"""Purges that are remembered for replicas that have not heard of them."""

PREFIX = "{packshot}:answer:"
"""The braces put all keys on one node of a cluster: a script may touch no other."""

COMMON = """
local p = KEYS[1]
local function drop(key)
  local raw = redis.call('HGET', p .. 'of', key)
  if not raw then return 0 end
  local about = cjson.decode(raw)
  for i = 3, #about do redis.call('SREM', p .. 'by:' .. about[i], key) end
  redis.call('HDEL', p .. 'of', key)
  redis.call('ZREM', p .. 'rank', key)
  redis.call('ZREM', p .. 'end', key)
  redis.call('DEL', p .. 'v:' .. key)
  redis.call('DECRBY', p .. 'size', about[1])
  return 1
end
"""
"""An entry is ``v:KEY``; ``of`` has [size, worth, sets…] of each; ``rank``, ``end`` order them."""

GET = """
local value = redis.call('GET', p .. 'v:' .. ARGV[1])
if not value then return false end
local about = cjson.decode(redis.call('HGET', p .. 'of', ARGV[1]) or '[0,0]')
local floor = tonumber(redis.call('GET', p .. 'floor') or 0)
redis.call('ZADD', p .. 'rank', 'XX', floor + about[2], ARGV[1])
return value
"""

PUT = """
local key, value, raw, ends, ms, most = unpack(ARGV)
local about = cjson.decode(raw)
drop(key)
if about[1] > tonumber(most) then return 0 end
while tonumber(redis.call('GET', p .. 'size') or 0) + about[1] > tonumber(most) do
  local least = redis.call('ZRANGE', p .. 'rank', 0, 0, 'WITHSCORES')
  redis.call('SET', p .. 'floor', least[2])
  drop(least[1])
end
redis.call('SET', p .. 'v:' .. key, value, 'PX', ms)
redis.call('HSET', p .. 'of', key, raw)
local floor = tonumber(redis.call('GET', p .. 'floor') or 0)
redis.call('ZADD', p .. 'rank', floor + about[2], key)
redis.call('ZADD', p .. 'end', ends, key)
for i = 3, #about do redis.call('SADD', p .. 'by:' .. about[i], key) end
redis.call('INCRBY', p .. 'size', about[1])
return 1
"""

DROP = """
local by, value, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local keys = {value}
if by == 'end' then
  keys = redis.call('ZRANGEBYSCORE', p .. 'end', '-inf', value, 'LIMIT', 0, count)
elseif by ~= 'key' then
  keys = redis.call('SRANDMEMBER', p .. 'by:' .. value, count)
end
local gone = 0
for _, key in ipairs(keys) do gone = gone + drop(key) end
return gone
"""

NOTE = """
local number = redis.call('INCR', p .. 'purged')
redis.call('ZADD', p .. 'purges', number, number .. ' ' .. ARGV[1])
redis.call('ZREMRANGEBYSCORE', p .. 'purges', '-inf', number - tonumber(ARGV[2]))
return number
"""

HELD = """
return {redis.call('HLEN', p .. 'of'), tonumber(redis.call('GET', p .. 'size') or 0)}
"""

NEWS = """
local rows = redis.call('ZRANGEBYSCORE', p .. 'purges', '(' .. ARGV[1], '+inf')
return {redis.call('GET', p .. 'purged') or '0', rows}
"""

Word: TypeAlias = str | int


class ValkeyStore:
    """A `Store` of ``max_bytes`` at the server ``url``; ``clock`` is in µs.

    Raises:
        InvalidRequest: the URL is none of ``valkey://``, ``redis://``, ``rediss://``, ``unix://``.
    """

    def __init__(self, url: str, max_bytes: int, clock: Clock = wall_us) -> None:
        self.max_bytes = check_limit(max_bytes)
        self.problem = ""
        self._clock = clock
        self._away_until = 0
        self._client = Client(address_of(url))

    async def get(self, key: str) -> Entry | None:
        """As `Store.get`, in 5 ms at the most."""
        found = await self._quiet(GET, [key], ANSWER_S)
        entry = decoded(found) if isinstance(found, bytes) else None
        return None if entry is None or entry.until <= self._clock() else entry

    async def put(self, key: str, entry: Entry) -> None:
        """As `Store.put`."""
        left_ms = (entry.until - self._clock()) // 1000
        if left_ms <= 0:
            await self._quiet(DROP, ["key", key, 1], PATIENT_S)
            return
        worth = max(entry.worth, 1.0 / entry.size)
        sets = ["all:", f"scope:{entry.scope}", f"route:{entry.route}"]
        about = json.dumps([entry.size, worth, *sets, *(f"tag:{tag}" for tag in entry.tags)])
        words = [key, encoded(entry), about, entry.until, left_ms, self.max_bytes]
        await self._quiet(PUT, words, PATIENT_S)

    async def purge(self, what: Purge) -> int:
        """As `Store.purge`."""
        value = what.value if what.by == "key" else f"{what.by}:{what.value}"
        gone = 0
        try:
            while True:
                some = await self._run(DROP, [what.by, value, AT_ONCE], PATIENT_S)
                gone += cast("int", some)
                if not some or what.by == "key":
                    break
            note = json.dumps([what.by, what.value])
            await self._run(NOTE, [note, LONGEST_LOG], PATIENT_S)
        except (ReplyError, OSError) as error:  # a TimeoutError is an OSError
            raise StateUnavailable(
                f"the store of answers cannot be reached: {error}; what was to go may be there yet"
            ) from error
        return gone

    async def sweep(self) -> int:
        """As `Store.sweep`."""
        words = ["end", self._clock(), AT_ONCE]
        return cast("int", await self._quiet(DROP, words, PATIENT_S) or 0)

    async def held(self) -> Held:
        """As `Store.held`."""
        found = cast("list[int] | None", await self._quiet(HELD, [], PATIENT_S))
        return Held(*found) if found else Held(0, 0)

    async def news(self, mark: Mark) -> News:
        """As `Store.news`: what was purged. A replica that starts has nothing to let go of."""
        found = await self._quiet(NEWS, [mark[1]], PATIENT_S)
        if found is None:
            return News(mark, (), ())
        last, rows = cast("tuple[bytes, list[bytes]]", found)
        purges = [Purge(*json.loads(row.partition(b" ")[2])) for row in rows]
        return News((0, int(last)), (), purges)

    async def aclose(self) -> None:
        """End the connection."""
        await self._client.aclose()

    async def _quiet(
        self, script: str, words: Sequence[Word | bytes], limit_s: float
    ) -> object | None:
        """Return a script's answer, None where there is none in time."""
        if self._clock() < self._away_until:
            return None
        try:
            found = await self._run(script, words, limit_s)
        except (ReplyError, OSError) as error:
            self.problem = f"the store of answers does not answer: {str(error) or 'in time'}"
            self._away_until = self._clock() + RETRY_US
            return None
        self.problem = ""
        return found

    async def _run(self, script: str, words: Sequence[Word | bytes], limit_s: float) -> object:
        """Run a script by its name; send it where the server does not know it (yet)."""
        code = COMMON + script
        name = sha1(code.encode(), usedforsecurity=False).hexdigest()  # Valkey names it so
        more = [1, PREFIX, *cast("Sequence[Word]", words)]
        async with asyncio.timeout(limit_s):
            try:
                return await self._client.call(command(["EVALSHA", name, *more]))
            except ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                return await self._client.call(command(["EVAL", code, *more]))
