"""A ledger in a folder, filled by hand: what the tests of metrics and dashboards look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.ledger.records import Avoided, Dimensions, Settled, Stamped
from packshot.ledger.stores import open_store
from packshot.ledger.stores.base import Store

NOW = 1_795_608_000 * SECOND_US
"""2026-11-25 12:00 UTC."""


class World:
    """A store, SQLite unless told, to which `book` appends, at `now` unless told."""

    def __init__(self, folder: Path, now: int = NOW, store: Store | None = None) -> None:
        self.path = folder / "ledger.db"
        self.store = store or open_store(str(self.path))
        self.now = now
        self.seq = self.saved = 0

    def settled(self, amount: int = 1000, **given: Any) -> Settled:
        """Return an attempt with every field that is not given filled in."""
        self.seq += 1
        own = {
            name: given.pop(name) for name in list(given) if name in Dimensions.__struct_fields__
        }
        dimensions = Dimensions(**{"stage": "denoise", "team": "red", **own})
        at = given.pop("at", self.now)
        fields = {
            "attempt": f"a{self.seq}",
            "number": self.seq,
            "held_at": at - SECOND_US,
            "dispatched_at": at - SECOND_US,
            "settled_at": at,
            "outcome": "succeeded",
            "reason": "",
            "account": dimensions.stage,
            "amount": amount,
            "payable": amount,
            "seconds_us": SECOND_US // 2,
        }
        return Settled(dimensions=dimensions, **{**fields, **given})

    def book(self, amount: int = 1000, **given: Any) -> Settled:
        """Store an attempt."""
        event = self.settled(amount, **given)
        self.store.append([Stamped("w", 1, self.seq, event)])
        return event

    def avoid(self, amount: int, kind: str = "exact", **of: Any) -> None:
        """Store a cost that was avoided."""
        self.saved += 1
        dimensions = Dimensions(**{"stage": "chat", "team": "red", **of})
        self.store.append(
            [Stamped("saver", 1, self.saved, Avoided(self.now, kind, dimensions, 1, amount))]
        )

    def render(self, name: str, *, at: int | None = None, delivered: bool = True) -> None:
        """Store a render of three attempts that cost 2 + 7 + 1 µEUR; one without a picture two."""
        at = self.now if at is None else at
        common = {"render": name, "recipe": "packshot", "at": at}
        self.book(2000, stage="caption", provider="openai", model="gpt-4o-mini", **common)
        self.book(7000, stage="denoise", device="cpu", **common)
        if delivered:
            self.book(1000, stage="store", **common)


def busy(world: World, renders: int = 5) -> None:
    """Fill a world with something of everything that a dashboard shows."""
    world.render("r0", at=world.now - 2 * HOUR_US, delivered=False)
    for i in range(renders):
        world.render(f"{world.seq}-{i}")
    waste = {"account": "waste", "outcome": "failed_billed", "reason": "timeout"}
    world.book(500, provider="stability", model="sd3.5-large", render="r0", **waste)
    world.book(0, provider="fal", model="unheard-of", priced=False)
    world.book(300, stage="chat", provider="openai", model="gpt-4o-mini", virtual_key="vk-red")
    world.avoid(300, provider="openai", model="gpt-4o-mini", virtual_key="vk-red")
    first = world.book(900, stage="images", provider="openai", model="gpt-image-1", team="blue")
    for amount in (-900, 950):
        world.book(
            amount,
            stage="images",
            provider="openai",
            model="gpt-image-1",
            team="blue",
            outcome="correction",
            corrects=first.attempt,
        )
    world.book(40, stage="", account="storage", outcome="accrual", provider="s3", team="")
