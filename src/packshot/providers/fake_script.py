"""What the fake provider may be told to do wrong, and what it writes down of each request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from packshot.core.types import Usage

__all__ = [
    "FINE",
    "NEVER",
    "Bill",
    "Delay",
    "End",
    "Ending",
    "ErrorCode",
    "Fault",
    "Rule",
    "Settings",
    "Truth",
    "billed_of",
    "limited",
]

NEVER = 1e9
"""Seconds that do not pass: the fake waits until the client hangs up."""

Delay: TypeAlias = Literal["none", "seconds", "date", "ms", "gemini", "replicate", "absurd"]
"""How a 429 says when to come back: ``Retry-After`` in seconds or as a date, ``retry-after-ms``,
Gemini's RetryInfo in the body, Replicate's sentence in the body, or a delay of 10⁹ s."""

Ending: TypeAlias = Literal[
    "whole",
    "close",  # the connection is closed at `at`, without the end of the body
    "reset",  # the same with a TCP RST
    "stall",  # nothing more comes, and the connection stays open
    "torn",  # closed in the middle of the event `at`
    "no_end",  # the body ends properly, but without [DONE] or message_stop
    "error_event",  # an error instead of the event `at`, under the status 200
    "bad_json",  # the event `at` is half a JSON object
    "bad_chunk",  # what should be the size of a chunk is no number
]

Bill: TypeAlias = Literal["", "all", "sent", "nothing"]
"""What is billed: the whole answer, what came in and was sent so far, or nothing.
"" is the fake's rule: `Settings.hangup`, `Settings.cut`, and nothing where there was an error."""

ErrorCode: TypeAlias = Literal["", "quota", "context", "filter", "auth", "not_found"]
"""What an error says beyond its status."""

Says: TypeAlias = Literal["true", "absent", "double", "zero", "negative", "impossible"]
"""What the answer says of its usage, against what is billed. ``impossible``: more tokens read from
the cache than went in."""

End: TypeAlias = Literal["open", "done", "hung_up", "cut", "refused"]
"""How a request ended. ``refused`` is a whole answer with an error status."""


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """How one answer differs from a good one; the default is a good one.

    Times are seconds: before the status line, from there to the first event, and between events.
    ``at`` is the event (from 0) at which ``ending`` happens; -1 is before the status line. An
    answer that is not streamed has eight pieces in place of events, so ``at`` 8 is behind the last.
    For it, ``no_end`` is a body whose last chunk is missing, and ``error_event`` an error under
    the status 200.
    """

    status: int = 200
    code: ErrorCode = ""
    delay: Delay = "none"
    delay_s: float = 1.0
    head_after_s: float = 0.0
    first_after_s: float = 0.0
    every_s: float = 0.0
    ending: Ending = "whole"
    at: int = 0
    billed: Bill = ""
    usage: Says = "true"
    should_retry: Literal["", "true", "false"] = ""
    """What the answer's ``x-should-retry`` says."""
    says: str = ""
    """The text of the answer, instead of an invented one."""


FINE = Fault()


def limited(delay: Delay = "seconds", delay_s: float = 1.0) -> Fault:
    """Return the fault of a key that is rate limited: a 429 with its delay in this form."""
    return Fault(status=429, delay=delay, delay_s=delay_s)


class Rule(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A fault for the requests of one key, of one model, or both; "" is any.

    The first ``skip`` requests that match pass, and after ``times`` faults (0: no end) so do all.
    With ``down_s``, the fault comes and goes: after ``up_s`` good seconds, ``down_s`` bad ones,
    counted from when the rule was given.
    """

    fault: Fault
    key: str = ""
    model: str = ""
    skip: int = 0
    times: int = 0
    up_s: float = 0.0
    down_s: float = 0.0
    seen: int = 0
    since: float = 0.0

    def applies(self, key: str, model: str, now: float) -> bool:
        """Count a request, and tell whether the fault is for it."""
        if (self.key and self.key != key) or (self.model and self.model != model):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times and self.seen > self.skip + self.times):
            return False
        if not self.down_s:
            return True
        return (now - self.since) % (self.up_s + self.down_s) >= self.up_s


@dataclass(frozen=True, slots=True)
class Settings:
    """What a fake is like on a good day.

    ``keys`` are the valid ones, each with a fault of its own or None; without any, every key is
    valid. ``models`` are the known ones; without any, every name is. ``usual`` is what happens
    where nothing else is said: a pace, for instance. ``reply_bytes`` makes answers at least that
    long. ``hangup`` is what is billed when the client hangs up, ``cut`` when the fake itself
    breaks off. ``cache`` false invents no tokens that came from a prompt cache. ``dimensions`` are
    those of an embedding, where the request names none. ``bodies`` keeps what was received.
    ``static`` answers every request with one of a few answers built before, reads nothing and
    checks nothing: for benchmarks. Its streams have ``static_events`` events. ``pending`` looks at
    a picture that is made meanwhile come too early.
    """

    keys: dict[str, Fault | None] = field(default_factory=dict[str, Fault | None])
    models: tuple[str, ...] = ()
    usual: Fault = FINE
    reply_bytes: int = 0
    hangup: Bill = "all"
    cut: Bill = "sent"
    cache: bool = True
    dimensions: int = 8
    bodies: bool = True
    static: bool = False
    static_events: int = 64
    pending: int = 1


class Truth(msgspec.Struct, omit_defaults=True):
    """What happened to one request, as the provider knows it.

    ``at`` is the fake's clock when the request was whole, ``until`` when its answer ended.
    ``status`` is 0 where no status line was sent. ``events`` counts those (or the pieces of a body)
    that were handed to the kernel, of ``events_of``. ``said`` is what the whole answer uses,
    ``billed`` what the account pays; None is nothing. ``attempt`` and ``idempotency`` are the
    request's own headers. ``text`` is all that the whole answer says, or a tool's arguments.
    """

    number: int
    at: float
    path: str
    key: str = ""
    model: str = ""
    stream: bool = False
    attempt: str = ""
    idempotency: str = ""
    fault: Fault = FINE
    status: int = 0
    events: int = 0
    events_of: int = 0
    end: End = "open"
    until: float = 0.0
    said: Usage | None = None
    billed: Usage | None = None
    headers: dict[str, str] = {}
    body: bytes = b""
    text: str = ""


def billed_of(how: Bill, usage: Usage, sent_tokens: int) -> Usage | None:
    """Return what is billed of an answer of which ``sent_tokens`` went out; None is nothing."""
    if how == "all":
        return usage
    if how == "sent":
        return msgspec.structs.replace(usage, output_tokens=min(sent_tokens, usage.output_tokens))
    return None
