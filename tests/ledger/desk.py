"""A ledger with a price of one nano-EUR per output token, a clock to be set, and its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packshot.core.types import Usage
from packshot.ledger.caps import Cap
from packshot.ledger.idempotency import Answers
from packshot.ledger.journal import Journal, read_journals
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.ledger import Ledger, Policy
from packshot.ledger.records import Dimensions, Event
from tests.ledger.world import NOW

CHAT = Dimensions(stage="chat", provider="openai", model="gpt-4o-mini", team="red")


@dataclass(frozen=True)
class Tokens:
    """A charge."""

    amount: int
    credit: Any = "payable"
    priced: bool = True
    currency: str = "USD"
    original: str = "1"
    rate: str = "1"
    price: str = "tokens"


class Book:
    """One nano-EUR per output token; the model "mystery" has no price."""

    def charge(self, usage: Usage, provider: str, model: str, at: int, /) -> Tokens:
        if model == "mystery":
            return Tokens(0, priced=False)
        return Tokens(usage.output_tokens, "payable" if provider else "depreciation")


def used(tokens: int) -> Usage:
    return Usage("caption", output_tokens=tokens)


class Desk:
    """A worker: its `ledger`, the `leases` that it shares, and the `now` of its clock."""

    def __init__(
        self,
        folder: Path,
        caps: Sequence[Cap] = (),
        worker: str = "w",
        *,
        policy: Policy | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.folder = folder / "journal"
        self.now = NOW
        shared = open_shared(str(folder / "ledger.db"))
        self.leases = LeaseTable(shared)
        self.journal = journal or Journal(self.folder, worker)
        self.ledger = Ledger(
            self.journal,
            Book(),
            caps,
            self.leases,
            lambda: self.now,
            policy=policy or Policy(),
            answers=Answers(shared),
        )

    def events(self) -> list[Event]:
        return [stamped.event for stamped in read_journals(self.folder)]

    def period(self, name: str) -> tuple[int, int]:
        """Return what is spent and leased of a period, by the table."""
        with self.leases._database.transaction() as within:
            rows = within.query("SELECT spent, leased FROM cap_periods WHERE period = ?", (name,))
        return rows[0] if rows else (0, 0)
