"""The tables' columns in their order, and how an attempt becomes a row with its hash.

A row's hash is SHA-256 over the hash before it and the msgpack array of its values, from ``seq`` to
``caps``: nobody can alter, drop or insert a row without changing every hash that follows.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec
from msgspec.structs import astuple

from packshot.core.clock import HOUR_US
from packshot.ledger.records import Avoided, Settled
from packshot.ledger.stores.database import Row, Table

__all__ = [
    "AVOIDED",
    "AVOIDED_KEY",
    "COLUMNS",
    "ENTRIES",
    "GENESIS",
    "JOURNALS",
    "TEXT",
    "avoided_of",
    "chained",
    "hash_of",
    "row_of",
]

GENESIS = bytes(32)
"""The hash before the first row's."""

COLUMNS: tuple[str, ...] = (
    *("seq", "worker", "epoch"),
    *("attempt", "number", "held_at", "dispatched_at", "settled_at", "outcome", "reason"),
    *("render", "recipe", "stage", "provider", "model", "route", "virtual_key", "team"),
    *("batch", "device", "tags"),
    *("seconds_us", "input_tokens", "cached_tokens", "written_tokens", "output_tokens"),
    *("images", "image_size", "image_quality", "stored_bytes", "requests", "held"),
    *("account", "amount", "payable", "depreciation", "storage"),
    *("priced", "currency", "original", "rate", "price", "corrects", "caps"),
)
"""The columns of ``entries`` that are hashed; ``hash`` follows them."""

TEXT = frozenset(
    {
        *(
            "worker",
            "attempt",
            "outcome",
            "reason",
            "render",
            "recipe",
            "stage",
            "provider",
            "model",
        ),
        *("route", "virtual_key", "team", "batch", "device", "tags", "image_size", "image_quality"),
        *("account", "currency", "original", "rate", "price", "corrects", "caps"),
    }
)

ENTRIES = Table("entries", (*COLUMNS, "hash"), TEXT, frozenset({"hash"}))
JOURNALS = Table(
    "journals",
    ("worker", "epoch", "seq", "number"),
    frozenset({"worker"}),
    on_conflict="ON CONFLICT (worker, epoch) DO UPDATE"
    " SET seq = excluded.seq, number = excluded.number",
)

AVOIDED_NAMES = (
    *("kind", "stage", "provider", "model", "route", "virtual_key", "team", "recipe", "batch"),
    "device",
)
AVOIDED_KEY = ("hour", *AVOIDED_NAMES)
AVOIDED = Table(
    "avoided",
    (*AVOIDED_KEY, "hits", "amount"),
    frozenset(AVOIDED_NAMES),
    on_conflict=f"ON CONFLICT ({', '.join(AVOIDED_KEY)}) DO UPDATE SET"
    " hits = avoided.hits + excluded.hits, amount = avoided.amount + excluded.amount",
)

encode = msgspec.msgpack.Encoder().encode


def row_of(seq: int, worker: str, epoch: int, event: Settled) -> Row:
    """Return the values of an attempt in the order of `COLUMNS`: places are those of `Settled`."""
    fields = astuple(event)
    dimensions = astuple(event.dimensions)
    tags = ",".join(dimensions[10])
    row = (
        seq,
        worker,
        epoch,
        *fields[:7],
        *dimensions[:10],
        tags,
        *fields[8:24],
        int(event.priced),
        *fields[25:30],
        ",".join(event.caps),
    )
    # PostgreSQL's text has no NUL; a caller's model name or a provider's message may have one.
    if "\0" in "".join((event.reason, tags, *dimensions[:10])):
        return tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row)
    return row


def avoided_of(event: Avoided) -> Row:
    """Return the key of an avoided cost in the order of `AVOIDED_KEY`."""
    of = event.dimensions
    names = (
        *(event.kind, of.stage, of.provider, of.model, of.route, of.virtual_key, of.team),
        *(of.recipe, of.batch, of.device),
    )
    return (event.at - event.at % HOUR_US, *(name.replace("\0", "\ufffd") for name in names))


def hash_of(before: bytes, row: Row) -> bytes:
    """Return the hash of a row (without its own) that follows the hash ``before``."""
    return sha256(before + encode(row)).digest()


def chained(before: bytes, row: Row) -> Row:
    """Return a row with its hash."""
    return (*row, sha256(before + encode(row)).digest())
