"""The records of the ledger, as the journal keeps them and the store's rows have them.

An attempt is one billable call, or one stage on our own device. Its life is three events::

    Held ──► Dispatched ──► Settled        (Settled alone is a row of the store)

`Avoided` belongs to no attempt: it says what was not spent (`packshot.ledger.avoided`).

Each is a msgpack array, so fields are only ever appended, never moved. Times are microseconds since
1970-01-01 UTC, amounts nano-EUR. The garbage collector need not follow them (``gc=False``): they
refer to numbers, text and each other, never in a circle, and a drain holds very many.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from packshot.core.errors import LedgerCorrupt
from packshot.core.money import Nanos

__all__ = [
    "Avoided",
    "Dimensions",
    "Dispatched",
    "Event",
    "Held",
    "Outcome",
    "Settled",
    "Stamped",
]

Outcome: TypeAlias = Literal[
    "succeeded", "failed_free", "failed_billed", "unknown", "correction", "accrual"
]
"""How an attempt ended. ``failed_free`` is a void: it cost nothing. ``unknown`` is booked like
``failed_billed`` until the provider's invoice says otherwise. The last two are no attempts: a
reversing or repricing entry, and what accrues with time (idle devices, stored bytes)."""


class Dimensions(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """By what a cost can be asked for; "" where a dimension does not apply.

    ``stage`` is a stage of a render (DESIGN §3), or "chat", "embeddings", "images" for a call of
    the gateway that belongs to none, or "load", "idle" in the hold of a device's
    time beside the renders, whose entry has none.
    ``tags`` are "name=value", sorted.
    """

    render: str = ""
    recipe: str = ""
    stage: str = ""
    provider: str = ""
    model: str = ""
    route: str = ""
    virtual_key: str = ""
    team: str = ""
    batch: str = ""
    device: str = ""
    tags: tuple[str, ...] = ()


class Held(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Money reserved: an upper bound of what the attempt may cost, until ``expires``.

    ``caps`` names the cap periods that carry the hold ("team:research@2026-11"). ``dispatched`` is
    true where the call goes out at once: one record says both, and `Dispatched` does not follow.
    """

    attempt: str
    at: int
    amount: Nanos
    expires: int
    dimensions: Dimensions
    caps: tuple[str, ...] = ()
    dispatched: bool = False
    key: str = ""
    """Hash of the caller's idempotency key, or ""."""
    priced: bool = True
    """False where no price is known: ``amount`` is 0 then, and says nothing."""
    limit_us: int = 0
    """On our own device: the microseconds of it that cost ``amount``. 0 for a provider's call."""
    since: int = 0
    """`packshot.ledger.signs.tick_us` of the dispatch, in a hold that is sent at once."""


class Dispatched(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The first byte is about to go upstream: from here on the attempt may cost money."""

    attempt: str
    at: int
    since: int = 0
    """`packshot.ledger.signs.tick_us` of it."""


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """How an attempt ended and what it cost: all that a row of the store holds.

    ``amount`` is debited to ``account`` (the stage; "waste" if billed and not delivered; "load",
    "idle"; "storage") and equals the sum of the credits ``payable`` (owed to the provider),
    ``depreciation`` (own devices) and ``storage``. It is 0 with ``priced`` false where no price is
    known. ``original`` is the exact amount in ``currency`` as decimal text, ``rate`` EUR per unit
    of it; ``price`` names the price rows used, with their dates. ``corrects`` is the attempt whose
    row this one reverses or reprices. ``number`` counts the settled records of one journal from 1
    without gaps.
    """

    attempt: str
    number: int
    held_at: int
    dispatched_at: int
    settled_at: int
    outcome: Outcome
    reason: str
    dimensions: Dimensions
    seconds_us: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    image_size: str = ""
    image_quality: str = ""
    stored_bytes: int = 0
    requests: int = 0
    held: Nanos = 0
    account: str = ""
    amount: Nanos = 0
    payable: Nanos = 0
    depreciation: Nanos = 0
    storage: Nanos = 0
    priced: bool = True
    currency: str = "EUR"
    original: str = "0"
    rate: str = "1"
    price: str = ""
    corrects: str = ""
    caps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Hold the entry to its balance."""
        if self.amount != self.payable + self.depreciation + self.storage:
            raise LedgerCorrupt(f"the legs of attempt {self.attempt} do not balance: {self}")


class Avoided(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """What ``hits`` answers would have cost together that were served again, first at ``at``.

    ``kind`` is how that was avoided. ``dimensions`` name neither a render nor tags.
    """

    at: int
    kind: str
    dimensions: Dimensions
    hits: int
    amount: Nanos

    def __post_init__(self) -> None:
        """Hold it to what it is: it never takes a cost back."""
        if self.amount < 0 or self.hits < 1:
            raise LedgerCorrupt(f"an avoided cost counts upwards: {self}")


Event: TypeAlias = Held | Dispatched | Settled | Avoided


class Stamped(msgspec.Struct, frozen=True, gc=False):
    """An event with its place in the journals: file of ``worker``, life ``epoch`` of it, sequence
    ``seq`` from 1 within the epoch, without gaps.
    """

    worker: str
    epoch: int
    seq: int
    event: Event
