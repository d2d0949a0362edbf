"""Small things that all exchanges do to events and raw JSON."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import msgspec

from packshot.core.errors import UpstreamBroken
from packshot.core.sse import Splitter, parse
from packshot.core.types import Usage
from packshot.providers.base import Failure, Fields

__all__ = ["EventRelay", "broken", "data_of", "events_of", "for_model", "is_json"]

BLANK = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
"""The end of an event: two line ends, of which CR LF is one."""

NAMED = re.compile(rb"event: \w+\ndata: ([^\r\n]+)\n\n")


def events_of(block: bytes) -> list[bytes]:
    """Cut whole events apart, each as it came; together they are the block."""
    if b"\r" not in block:
        parts = block.split(b"\n\n")
        rest = parts.pop()
        return [part + b"\n\n" for part in parts] + ([rest] if rest else [])
    events: list[bytes] = []
    start = 0
    for end in BLANK.finditer(block):
        events.append(block[start : end.end()])
        start = end.end()
    if start < len(block):
        events.append(block[start:])
    return events


def data_of(event: bytes) -> bytes | None:
    """Return the data of one event, None for a comment or anything else without data."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    named = NAMED.fullmatch(event)
    if named is not None:
        return named[1]
    found = parse(event)
    return found[0].data if found else None


def is_json(raw: msgspec.Raw | bytes | None, *words: bytes) -> bool:
    """Tell whether a raw value is missing, or one of these words."""
    return raw is None or bytes(raw) in words


def for_model(fields: Fields, model: str) -> Fields:
    """Return a request's fields with the target's name of the model."""
    out = fields.copy()
    out["model"] = msgspec.Raw(msgspec.json.encode(model))
    return out


def broken(what: str) -> UpstreamBroken:
    """Return the error for an answer that is not what its API promises."""
    return UpstreamBroken(f"the provider sent {what}", sent=True, began=True)


class EventRelay(ABC):
    """A `Relay` that hands on whole events as they came; what is read of one, `_pass` says.

    From an error on nothing is handed on, nor after the end.
    """

    __slots__ = ("done", "failure", "splitter", "usage")

    usage: Usage | None
    done: bool
    failure: Failure | None

    def __init__(self) -> None:
        self.usage = None
        self.done = False
        self.failure = None
        self.splitter = Splitter()

    def feed(self, data: bytes, /) -> bytes:
        """Take bytes, return whole events; see `Relay.feed`."""
        if self.done or self.failure is not None:
            return b""
        return self._through(self.splitter.feed(data))

    def _through(self, block: bytes) -> bytes:
        """Go through whole events, and return those that go to the caller."""
        kept: list[bytes] = []
        for event in events_of(block):
            if self._pass(event):
                kept.append(event)
            if self.done or self.failure is not None:
                break
        return b"".join(kept)

    @abstractmethod
    def _pass(self, event: bytes) -> bool:
        """Read one event, and tell whether it goes to the caller."""
