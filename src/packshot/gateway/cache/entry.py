"""A kept answer: its body, what it cost, and by what it is found and thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

__all__ = ["BESIDE", "Entry", "Purge", "Scent", "decoded", "encoded"]

BESIDE = 512
"""Bytes that an entry is counted for beside its own."""

By: TypeAlias = Literal["all", "key", "tag", "route", "scope"]


class Scent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """By what an entry is found for a similar request: its partition and text, and the text's
    vector (fp16, of the model ``embedder``).
    """

    partition: str
    text: str
    vector: bytes
    embedder: str


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``body`` is the answer of a call that is not streamed; times are µs since 1970; ``cost`` is
    nano-EUR. ``target`` is who answered ("provider/model"), ``tags`` are "name=value".
    """

    body: bytes
    scope: str
    route: str
    target: str
    made_at: int
    until: int
    cost: int
    tags: tuple[str, ...] = ()
    scent: Scent | None = None

    @property
    def size(self) -> int:
        """Return the bytes that it is counted for."""
        scent = self.scent
        more = 0 if scent is None else len(scent.text) + len(scent.vector)
        return len(self.body) + more + BESIDE

    @property
    def worth(self) -> float:
        """Return nano-EUR that a hit saves, per byte: what is worth least goes first."""
        return self.cost / self.size


@dataclass(frozen=True, slots=True)
class Purge:
    """What is to be thrown away: all, or what has this key, tag ("name=value"), route or scope
    ("key:ID" of a virtual key, "group:NAME").
    """

    by: By
    value: str = ""

    def takes(self, key: str, entry: Entry) -> bool:
        """Tell whether an entry is to go."""
        match self.by:
            case "all":
                return True
            case "key":
                return key == self.value
            case "tag":
                return self.value in entry.tags
            case "route":
                return entry.route == self.value
            case "scope":
                return entry.scope == self.value


encoded = msgspec.msgpack.Encoder().encode
DECODER = msgspec.msgpack.Decoder(Entry)


def decoded(data: bytes) -> Entry | None:
    """Return an entry as it was encoded, None for what is none (of another version, or damaged)."""
    try:
        return DECODER.decode(data)
    except msgspec.MsgspecError:
        return None
