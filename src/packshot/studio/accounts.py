"""What the studio asks of the ledger and its prices, so that tests can put stand-ins there."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from packshot.core.errors import Cancelled
from packshot.core.money import Nanos
from packshot.core.types import Usage
from packshot.ledger.records import Dimensions, Outcome, Settled

__all__ = ["Charge", "Hold", "Ledger", "Prices", "reason_of"]

Hold: TypeAlias = Any
"""What a ledger gives for a hold; it is only handed back."""


class Charge(Protocol):
    """What a price book says of a usage: nano-EUR, 0 where no price is known."""

    @property
    def amount(self) -> Nanos: ...
    @property
    def priced(self) -> bool: ...


class Prices(Protocol):
    """What is asked of a price book."""

    def charge(self, usage: Usage, provider: str, model: str, at: int, /) -> Charge:
        """Return what a usage costs at an instant, in microseconds since 1970."""
        ...


class Ledger(Protocol):
    """What is asked of a ledger; `packshot.ledger` has the real one."""

    def hold(
        self,
        dimensions: Dimensions,
        amount: Nanos,
        /,
        *,
        priced: bool,
        dispatched: bool,
        expires_in_s: int,
        limit_us: int,
    ) -> Hold:
        """Reserve an upper bound, the price of ``limit_us`` of a device, or raise LedgerError."""
        ...

    def dispatch(self, hold: Hold, /) -> None:
        """Note that what was held for begins."""
        ...

    def tag(self, hold: Hold, tags: tuple[str, ...], /) -> None:
        """Give the row of a hold its tags, found only after it was held."""
        ...

    def post(self, hold: Hold, usage: Usage, outcome: Outcome, reason: str, /) -> Settled:
        """Settle a hold with what was used."""
        ...

    def void(self, hold: Hold, reason: str, /) -> object:
        """Settle a hold that cost nothing."""
        ...


def reason_of(error: BaseException) -> str:
    """Return a reason out of few: what happened, without the text that differs each time."""
    if isinstance(error, (KeyboardInterrupt, Cancelled)):
        return "cancelled"
    return type(error).__name__
