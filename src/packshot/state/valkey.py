"""Rate limits that replicas share: one Lua script per decision in Valkey or Redis, at its clock.

Valkey is soft state. It has 45 ms to answer; after five calls in a row without an answer nobody
asks it any more, and a task in the background looks every second whether it is back. Meanwhile,
and for the length of the window that follows, each process admits no more than its own share of
each limit: the limit over the number of processes. What single calls without an answer took is told
to Valkey with the next one that it answers. No request fails because Valkey does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import cast

from packshot.state.limits import EASE_S, MAX_KEYS, SLOTS, Ask, MemoryLimits, Refusal, Room, Rule
from packshot.state.resp import Client, ReplyError, address_of, encoded

__all__ = ["ANSWER_S", "FAILURES", "PROBE_S", "ValkeyLimits"]

ANSWER_S = 0.045
"""Seconds for an answer, connecting included: no call is to wait more than 50 ms (R12)."""

FAILURES = 5
"""In a row, after which nobody waits for an answer any more (RELIABILITY R12)."""

PROBE_S = 1.0
"""Seconds between two looks whether it is back."""

PREFIX = "{packshot}:limit:"
"""The braces put all keys on one node of a cluster: a script may touch no other."""

COUNT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kind, age, n = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local answer, windows, refused, wait = {}, {}, 0, 0

for i, key in ipairs(KEYS) do
  local width = tonumber(ARGV[3 * i + 3]) / n
  local slot = math.floor(now / width)
  local flat = redis.call('HGETALL', key)
  local parts, total = {}, 0
  for j = 1, #flat, 2 do
    local at, amount = tonumber(flat[j]), tonumber(flat[j + 1])
    if at < slot - n then
      redis.call('HDEL', key, flat[j])
    elseif at > slot then -- the clock went back: as if it was taken now
      redis.call('HDEL', key, flat[j])
      redis.call('HINCRBY', key, slot, amount)
      table.insert(parts, {slot, amount})
      total = total + amount
    else
      table.insert(parts, {at, amount})
      total = total + amount
    end
  end
  table.sort(parts, function(a, b) return a[1] < b[1] end)
  windows[i] = {key = key, width = width, slot = slot, parts = parts, total = total}
  local amount, limit = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  if kind == 'take' and refused == 0 and total + amount > limit then
    refused, wait = i, -1
    local excess = total + amount - limit
    if amount <= limit then
      for _, part in ipairs(parts) do
        excess = excess - part[2]
        if excess <= 0 then
          wait = math.max((part[1] + n + 1) * width - now, 0)
          break
        end
      end
    end
  end
end

for i, window in ipairs(windows) do
  local amount, from = tonumber(ARGV[3 * i + 1]), window.slot
  if kind == 'back' and amount > 0 then
    from = math.floor((now - age) / window.width)
    for k = #window.parts, 1, -1 do
      local part = window.parts[k]
      if part[1] <= from and amount > 0 then
        local less = math.min(amount, part[2])
        redis.call('HINCRBY', window.key, part[1], -less)
        amount, window.total = amount - less, window.total - less
      end
    end
  elseif refused == 0 and amount ~= 0 then
    amount = math.abs(amount)
    redis.call('HINCRBY', window.key, window.slot, amount)
    redis.call('PEXPIRE', window.key, math.ceil((n + 2) * window.width / 1000))
    window.total = window.total + amount
    table.insert(window.parts, {window.slot, amount})
  end
  local last = window.parts[#window.parts]
  local reset = 0
  if window.total > 0 then reset = (last[1] + n + 1) * window.width - now end
  table.insert(answer, window.total)
  table.insert(answer, math.floor(reset))
end
table.insert(answer, refused)
table.insert(answer, math.floor(wait))
return answer
"""
"""Keys: one hash per window, slot -> amount. Arguments: "take" or "back", age in µs, slots, then
for each key amount, limit and µs. Returns total and µs to reset for each, then which was refused
(from 1; 0: none) and µs to wait (-1: for ever)."""


class ValkeyLimits:
    """`Limits` (see there) of all processes that name the same server, with a local fall-back.

    ``replicas`` is how many processes share the limits: each worker of each replica counts.
    ``fallbacks`` counts the calls that were decided here alone, and ``is_open`` says that all are:
    alarms hang on both.

    Raises:
        InvalidRequest: the URL is none of ``valkey://``, ``redis://``, ``rediss://``, ``unix://``.
    """

    def __init__(
        self, url: str, replicas: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fallbacks = 0
        self.is_open = False
        self._processes = max(replicas, 1)
        self._clock = clock
        self._local = MemoryLimits(clock)
        self._shares: dict[Rule, Rule] = {}
        self._rooms: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._failures = 0
        self._longest = 0.0
        self._own_until = -math.inf
        self._owed: list[Ask] = []
        self._probe: asyncio.Task[None] | None = None
        self._client = Client(address_of(url))
        self._hash = sha1(COUNT.encode(), usedforsecurity=False).hexdigest()  # Valkey names it so

    async def take(self, asks: Sequence[Ask]) -> Refusal | None:
        """Take all, or none, in 50 ms at the most."""
        answer = await self._ask("take", asks, 0.0)
        if answer is None:
            refusal = self._local.take_now(self._share_of(asks))
            if refusal is None and not self.is_open:
                self._owed += (Ask(ask.key, ask.rule, -ask.amount) for ask in asks)
            return refusal
        if self._owed:
            owed, self._owed = self._owed, []
            await self._ask("back", owed, 0.0)
        which, wait = answer[-2], answer[-1]
        if which:
            ask = asks[which - 1]
            room = self._room(ask)
            wait_s = math.inf if wait < 0 else wait / 1e6 + EASE_S
            return Refusal(ask, wait_s, room.remaining, room.reset_s)
        if self._clock() < self._own_until:
            # Valkey does not know what was taken without it; the shares together are the limit.
            refusal = self._local.take_now(self._share_of(asks))
            if refusal is not None:
                await self._ask("back", asks, 0.0)
            return refusal
        self._local.add(asks)
        return None

    async def give_back(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        """Correct what was taken ``age_s`` seconds ago; where Valkey is away, here alone."""
        self._local.give_back_now(asks, age_s)
        await self._ask("back", asks, age_s)

    def peek(self, asks: Sequence[Ask]) -> list[Room]:
        """Return what was left at this process's last calls for the keys."""
        return [self._room(ask) for ask in asks]

    def _room(self, ask: Ask) -> Room:
        rule = ask.rule
        if self.is_open or ask.key not in self._rooms:
            of = Ask(ask.key, self._shared(rule) if self.is_open else rule)
            return self._local.peek([of])[0]
        total, until = self._rooms[ask.key]
        reset = until - self._clock()
        if reset <= 0:
            return Room(rule.limit, rule.limit, 0.0)
        return Room(rule.limit, max(rule.limit - total, 0), reset)

    async def aclose(self) -> None:
        """End the connections and the look-out."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, kind: str, asks: Sequence[Ask], age_s: float) -> list[int] | None:
        """Return the script's answer, or None where there was none in time."""
        if self.is_open:
            self.fallbacks += 1
            return None
        words: list[str | int] = [len(asks), *(PREFIX + ask.key for ask in asks)]
        words += (kind, int(age_s * 1e6), SLOTS)
        for ask in asks:
            words += (ask.amount, ask.rule.limit, int(ask.rule.per_s * 1e6))
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._run(words)
        except (ReplyError, OSError):  # a TimeoutError is an OSError
            self._failed(asks)
            return None
        self._failures = 0
        now = self._clock()
        for place, ask in enumerate(asks):
            self._rooms[ask.key] = (answer[2 * place], now + answer[2 * place + 1] / 1e6)
        while len(self._rooms) > MAX_KEYS:
            self._rooms.popitem(last=False)
        return answer

    async def _run(self, words: Sequence[str | int]) -> list[int]:
        """Run the script by its name; send it where Valkey does not know it (any more)."""
        try:
            answer = await self._client.call(encoded(["EVALSHA", self._hash, *words]))
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            answer = await self._client.call(encoded(["EVAL", COUNT, *words]))
        return cast("list[int]", answer)

    def _failed(self, asks: Sequence[Ask]) -> None:
        self.fallbacks += 1
        self._failures += 1
        longest = max((ask.rule.per_s for ask in asks), default=0.0)
        self._longest = max(self._longest, longest)
        if self._failures >= FAILURES and not self.is_open:
            self.is_open = True
            self._owed = []  # the shares hold instead, until a window after it is back
            self._client.drop()
            self._probe = asyncio.get_running_loop().create_task(self._look_out())

    async def _look_out(self) -> None:
        """Ask until it answers: no caller waits for that."""
        while self.is_open:
            await asyncio.sleep(PROBE_S)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._client.call(encoded(["PING"]))
            except (ReplyError, OSError):
                self._client.drop()
                continue
            self._own_until = self._clock() + self._longest
            self._failures = 0
            self.is_open = False

    def _share_of(self, asks: Sequence[Ask]) -> list[Ask]:
        return [Ask(ask.key, self._shared(ask.rule), ask.amount) for ask in asks]

    def _shared(self, rule: Rule) -> Rule:
        """Return this process's share of a rule: at least 1, so that it is no outage for anybody.

        A limit below the number of processes can so be exceeded while Valkey is away.
        """
        share = self._shares.get(rule)
        if share is None:
            if len(self._shares) >= MAX_KEYS:
                self._shares.clear()
            part = max(rule.limit // self._processes, min(rule.limit, 1))
            self._shares[rule] = share = Rule(part, rule.per_s)
        return share
