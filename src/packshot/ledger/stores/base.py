"""What the ledger asks of a store, and the tables that both stores have.

``entries``: one row per settled attempt, in the order of its arrival, never updated: ``seq`` (from
1, gap-free), ``worker``, ``epoch``, every field of `Settled` under its own name with the dimensions
spread out (``tags`` joined by commas, ``caps`` too), and ``hash`` (32 bytes: SHA-256 over the hash
before it and the row's canonical bytes). Unique: ``attempt``; (``worker``, ``epoch``, ``number``).

``journals``: (``worker``, ``epoch``) -> ``seq`` and ``number`` up to which a journal is in the
store, moved in the same transaction as its rows: that is how each is stored exactly once.

``avoided``: what was not spent (`packshot.ledger.avoided`), summed by hour, kind, stage, provider,
model, route, virtual_key, team, recipe, batch and device: ``hits`` and ``amount``. No entry stands
behind it, and none of the other tables has it.

``rollups``: sums of entries by hour (``hour``: ``settled_at`` in microseconds floored to the hour)
and outcome, account, stage, provider, model, route, virtual_key, team, recipe, batch, device and
``bucket`` (of the amount, `bucket_of`): ``attempts``, ``seconds_us``, ``input_tokens``,
``output_tokens``, ``images``, ``stored_bytes``, ``amount``, ``unpriced``. ``days``: of these the
sums by day (``day``), account, outcome and bucket alone, which stay few. ``renders``: per render
its ``recipe``, ``team``, ``batch``, ``first_at``, ``last_at``, ``amount``, ``waste``,
``seconds_us``, ``delivered`` (0 or 1). These three are derived, and can be rebuilt and checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any, Protocol

from packshot.core.money import Nanos
from packshot.ledger.records import Stamped

__all__ = ["Finding", "Store", "amount_of", "bucket_of"]

BUCKET_GROWTH = 1.04
"""Ratio of neighbouring buckets: percentiles are within 2 % (DDSketch, VLDB 2019)."""

LOG_GROWTH = log(BUCKET_GROWTH)


def bucket_of(amount: Nanos) -> int:
    """Return the bucket of an amount: 0 for nothing or less, else ceil(log of it) plus 1."""
    return 0 if amount <= 0 else ceil(log(amount) / LOG_GROWTH) + 1


def amount_of(bucket: int) -> Nanos:
    """Return the amount that stands for a bucket: within 2 % of every amount in it."""
    if bucket <= 0:
        return 0
    return round(2 * BUCKET_GROWTH ** (bucket - 1) / (1 + BUCKET_GROWTH))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `Store.verify` found wrong: which check, where, and what it means."""

    check: str
    where: str
    message: str


class Store(Protocol):
    """A ledger's store. One process appends (the drain); any number may read.

    Every method raises `LedgerUnavailable` where the database cannot be reached, read or written,
    and `LedgerCorrupt` where its schema is newer than this packshot.
    """

    dialect: str
    """"sqlite" or "postgresql", for the few places where their SQL differs."""

    def append(self, rows: Sequence[Stamped]) -> int:
        """Store settled attempts and avoided costs in one transaction; return how many attempts
        were new.

        Rows at or below the stored (worker, epoch) mark are skipped, so that a batch can be sent
        again after a crash or a lost answer. Durable on return.
        """
        ...

    def marks(self) -> dict[tuple[str, int], int]:
        """Return the sequence up to which each (worker, epoch) is stored."""
        ...

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a reading statement with ``?`` placeholders, in either store."""
        ...

    def verify(self) -> list[Finding]:
        """Check sums, hashes, gaps, and rollups against entries; nothing found is an empty list."""
        ...

    def rebuild(self) -> None:
        """Make the derived tables anew from the entries."""
        ...

    def close(self) -> None:
        """Release the connection."""
        ...
