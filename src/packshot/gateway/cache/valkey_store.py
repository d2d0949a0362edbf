"""Answers that replicas share, in Valkey or Redis; without it each has its own memory, as before.

A lookup has 5 ms for an answer. After one without, nobody asks for a second: a server that is down
or slow costs no call more than that, and no call an error. One script does each change, so that
what is counted is what is there.

Each replica searches among vectors of its own. It follows those of the others: entries have numbers
in the order in which they came, and it asks for what is above the last number that it has heard of.
So it has them all, one look (a second) later at the most; what went meanwhile it never hears of.
Purges are numbered likewise. Numbers are the server's µs, or the last one and 1: a server that lost
its memory goes on above those that it gave before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha1
from typing import TypeAlias, cast

import msgspec

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import StateUnavailable
from packshot.gateway.cache.asking import Asking, Together
from packshot.gateway.cache.entry import Entry, Purge, decoded, encoded
from packshot.gateway.cache.store import FORGOTTEN, Mark, News, sets_of, worth_of
from packshot.state.blobs import Held, check_limit
from packshot.state.resp import Client, ReplyError, address_of
from packshot.state.resp import encoded as command

__all__ = ["ANSWER_S", "ValkeyStore"]

ANSWER_S = 0.005
"""Seconds for an answer to a call that is waiting, connecting included."""

PATIENT_S = 2.0
"""The same where no call waits."""

FAILURES = (ReplyError, OSError)
"""A TimeoutError is an OSError."""

AT_ONCE = 500
"""Entries that one script throws away, so that others come to their turn."""

NEWS_AT_ONCE = 200
"""Entries of one answer of `ValkeyStore.news`, of some kB each."""

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
  redis.call('ZREM', p .. 'new', key)
  redis.call('DEL', p .. 'e:' .. key)
  redis.call('DECRBY', p .. 'size', about[1])
  return 1
end
local function number(name)
  local time = redis.call('TIME')
  local last = tonumber(redis.call('GET', p .. name) or 0)
  local next = string.format('%.0f', math.max(time[1] * 1000000 + time[2], last + 1))
  redis.call('SET', p .. name, next)
  return next
end
"""
"""An entry is ``e:KEY`` with ``head`` and ``body``; ``of`` has [size, worth, sets…] of each;
``rank``, ``end`` and ``new`` order them, the last those that are found for similar requests."""

GET = """
local floor = tonumber(redis.call('GET', p .. 'floor') or 0)
local rows = {}
for _, key in ipairs(ARGV) do
  local found = redis.call('HMGET', p .. 'e:' .. key, 'head', 'body')
  if found[1] then
    local about = cjson.decode(redis.call('HGET', p .. 'of', key) or '[0,0]')
    redis.call('ZADD', p .. 'rank', 'XX', floor + about[2], key)
    table.insert(rows, {key, found[1], found[2]})
  end
end
return rows
"""

PUT = """
local key, head, body, raw, ends, ms, most, scented, heard = unpack(ARGV)
local about = cjson.decode(raw)
drop(key)
if about[1] > tonumber(most) then return 0 end
if tonumber(heard) >= 0 then
  local is = {['all:'] = true, ['key:' .. key] = true}
  for i = 3, #about do is[about[i]] = true end
  for _, row in ipairs(redis.call('ZRANGEBYSCORE', p .. 'purges', '(' .. heard, '+inf')) do
    local what = cjson.decode(row:sub(row:find(' ') + 1))
    if is[what[1] .. ':' .. what[2]] then return 0 end
  end
end
while tonumber(redis.call('GET', p .. 'size') or 0) + about[1] > tonumber(most) do
  local least = redis.call('ZRANGE', p .. 'rank', 0, 0, 'WITHSCORES')
  if #least == 0 then break end
  redis.call('SET', p .. 'floor', least[2])
  drop(least[1])
end
redis.call('HSET', p .. 'e:' .. key, 'head', head, 'body', body)
redis.call('PEXPIRE', p .. 'e:' .. key, ms)
redis.call('HSET', p .. 'of', key, raw)
local floor = tonumber(redis.call('GET', p .. 'floor') or 0)
redis.call('ZADD', p .. 'rank', floor + about[2], key)
redis.call('ZADD', p .. 'end', ends, key)
if scented == '1' then redis.call('ZADD', p .. 'new', number('kept'), key) end
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
local made = number('purged')
redis.call('ZADD', p .. 'purges', made, made .. ' ' .. ARGV[1])
local past = redis.call('ZRANGE', p .. 'purges', 0, -tonumber(ARGV[2]) - 1, 'WITHSCORES')
if #past > 0 then
  redis.call('SET', p .. 'forgot', string.format('%.0f', past[#past]))
  redis.call('ZREMRANGEBYRANK', p .. 'purges', 0, -tonumber(ARGV[2]) - 1)
end
return made
"""

HELD = """
return {redis.call('HLEN', p .. 'of'), tonumber(redis.call('GET', p .. 'size') or 0)}
"""

NEWS = """
local mark, purge, count, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local purged = redis.call('GET', p .. 'purged') or purge
if tonumber(purge) < tonumber(redis.call('GET', p .. 'forgot') or 0) then
  return {'0', {}, purged, {'all'}}
end
local from = '(' .. mark
if mark == '0' then -- there is room for so many: the last ones
  local first = redis.call('ZRANGE', p .. 'new', -most, -most, 'WITHSCORES')
  if #first > 0 then from = string.format('%.0f', first[2]) end
end
local rows = redis.call('ZRANGEBYSCORE', p .. 'new', from, '+inf', 'WITHSCORES', 'LIMIT', 0, count)
local entries = {}
for i = 1, #rows, 2 do
  mark = string.format('%.0f', rows[i + 1])
  local head = redis.call('HGET', p .. 'e:' .. rows[i], 'head')
  if head then table.insert(entries, {rows[i], head}) end
end
return {mark, entries, purged, redis.call('ZRANGEBYSCORE', p .. 'purges', '(' .. purge, '+inf')}
"""

Word: TypeAlias = str | int


class ValkeyStore:
    """A `Store` of ``max_bytes`` at the server ``url``; ``clock`` is in µs. Of entries that are
    there before it starts, it hears of the last ``most_news``.

    Raises:
        InvalidRequest: the URL is none of ``valkey://``, ``redis://``, ``rediss://``, ``unix://``.
    """

    def __init__(
        self, url: str, max_bytes: int, clock: Clock = wall_us, most_news: int = 50_000
    ) -> None:
        self.max_bytes = check_limit(max_bytes)
        self._asking = Asking(clock, FAILURES)
        self._clock = clock
        self._most_news = max(most_news, 1)
        self._heard = -1
        """Up to which purge the replica has heard; later ones may mean what it puts."""
        self._together = Together(self._get)
        self._client = Client(address_of(url))

    @property
    def problem(self) -> str:
        """As `Store.problem`."""
        return self._asking.problem

    async def get(self, key: str) -> Entry | None:
        """As `Store.get`, in 5 ms at the most."""
        return await self._together.get(key)

    async def _get(self, keys: Sequence[str]) -> dict[str, Entry]:
        rows = cast("list[list[bytes]] | None", await self._quiet(GET, keys, ANSWER_S))
        now, found = self._clock(), dict[str, Entry]()
        for key, head, body in rows or ():
            entry = decoded(head)
            if entry is not None and entry.until > now:
                found[key.decode()] = msgspec.structs.replace(entry, body=body)
        return found

    async def put(self, key: str, entry: Entry) -> None:
        """As `Store.put`."""
        left_ms = (entry.until - self._clock()) // 1000
        if left_ms <= 0:
            await self._quiet(DROP, ["key", key, 1], PATIENT_S)
            return
        about = json.dumps([entry.size, worth_of(entry), "all:", *sets_of(entry)])
        head = encoded(msgspec.structs.replace(entry, body=b""))
        words = [key, head, entry.body, about, entry.until, left_ms, self.max_bytes]
        await self._quiet(PUT, [*words, int(entry.scent is not None), self._heard], PATIENT_S)

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
        except FAILURES as error:
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
        """As `Store.news`; entries come without their bodies."""
        words = [*mark, NEWS_AT_ONCE, self._most_news]
        found = await self._quiet(NEWS, words, PATIENT_S)
        if found is None:
            return News(mark, (), ())
        kept, rows, purged, notes = cast(
            "tuple[bytes, list[tuple[bytes, bytes]], bytes, list[bytes]]", found
        )
        entries = [(k.decode(), entry) for k, raw in rows if (entry := decoded(raw)) is not None]
        self._heard = int(purged)
        purges = [Purge(*json.loads(note.partition(b" ")[2])) for note in notes if note != b"all"]
        heard = FORGOTTEN if notes == [b"all"] else purges
        return News((int(kept), self._heard), entries, heard)

    async def aclose(self) -> None:
        """End the connection."""
        await self._client.aclose()

    async def _quiet(
        self, script: str, words: Sequence[Word | bytes], limit_s: float
    ) -> object | None:
        """Return a script's answer, None where there is none in time."""
        return await self._asking.quiet(lambda: self._run(script, words, limit_s))

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
