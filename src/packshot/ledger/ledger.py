"""The ledger's front: hold money, then post what it cost or void it; each exactly once.

``hold`` notes an upper bound in the journal (and takes it from the caps) before anything is spent;
``post`` prices what was used and notes the entry; the drain brings entries into the store. What a
process that dies leaves open, the drain settles.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import InvalidRequest, LedgerError, LedgerUnavailable, Unpriced
from packshot.core.ids import new_id
from packshot.core.money import Nanos, nanos_of
from packshot.core.types import Usage
from packshot.ledger.caps import Cap, CapPeriod, Caps
from packshot.ledger.journal import Journal
from packshot.ledger.leases import Leases, SqliteLeases, Want
from packshot.ledger.prices.book import PriceBook, book_of
from packshot.ledger.records import Dimensions, Dispatched, Held, Outcome, Settled
from packshot.ledger.settings import Settings

__all__ = ["Charge", "Hold", "Ledger", "Prices", "leases_of", "open_ledger"]

HOLD_S = 600
"""Seconds after which an open hold is reported as forgotten."""

SLOTS = 256
"""How many processes of one name may write journals in one folder at once."""


class Charge(Protocol):
    """What a price book says of a usage."""

    @property
    def amount(self) -> Nanos: ...
    @property
    def credit(self) -> Literal["payable", "depreciation", "storage"]: ...
    @property
    def priced(self) -> bool: ...
    @property
    def currency(self) -> str: ...
    @property
    def original(self) -> str: ...
    @property
    def rate(self) -> str: ...
    @property
    def price(self) -> str: ...


class Prices(Protocol):
    """What the ledger asks of a price book."""

    def charge(self, usage: Usage, provider: str, model: str, at: int, /) -> Charge:
        """Price a usage at an instant."""
        ...


@dataclass(slots=True)
class Hold:
    """An open attempt. ``open`` is false once it was posted or voided."""

    attempt: str
    at: int
    amount: Nanos
    dimensions: Dimensions
    caps: tuple[str, ...]
    dispatched_at: int
    open: bool = True


class Ledger:
    """One process's ledger; safe to use from any thread.

    Args:
        journal: where events are noted first.
        book: what things cost.
        caps, leases: limits, and how they are shared; without caps there need be no leases.
        unpriced: "refuse" to refuse every hold whose cost is not known.
        wait: whether a dispatched hold returns only when it is on the disk (durability "power").
    """

    def __init__(
        self,
        journal: Journal,
        book: Prices,
        caps: Caps | None = None,
        leases: Leases | None = None,
        clock: Clock = wall_us,
        *,
        unpriced: Literal["allow", "refuse"] = "allow",
        wait: bool = False,
    ) -> None:
        if caps and leases is None:
            raise InvalidRequest("caps need leases, or every process would spend each of them")
        self.journal, self.book, self.clock = journal, book, clock
        self._caps, self._leases = caps or Caps(), leases
        self._unpriced, self._wait = unpriced, wait
        self._free: dict[str, Nanos] = {}
        self._lock = threading.Lock()

    def hold(
        self,
        dimensions: Dimensions,
        amount: Nanos | None,
        /,
        *,
        dispatched: bool = True,
        expires_in_s: int = HOLD_S,
    ) -> Hold:
        """Reserve ``amount``, an upper bound in nano-EUR; None where no price is known.

        With ``dispatched`` the call may go out when this returns; else `dispatch` comes first.

        Raises:
            BudgetExceeded, Unpriced: nothing is held.
            LedgerUnavailable: the journal takes no record; nothing is held.
        """
        at = self.clock()
        periods = self._caps.periods(dimensions, at)
        if amount is None:
            self._allow_unpriced(dimensions, periods)
            amount = 0
        if amount < 0:
            raise InvalidRequest(f"a hold must not be negative, got {amount} nano-EUR")
        keys = tuple(period.key for period in periods)
        self._reserve(periods, amount)
        attempt = new_id()
        expires = at + expires_in_s * SECOND_US
        event = Held(attempt, at, amount, expires, dimensions, keys, dispatched)
        try:
            seq = self.journal.append(event)
            if dispatched and self._wait:
                self.journal.wait(seq)
        except LedgerError:
            self._return(keys, amount)
            raise
        return Hold(attempt, at, amount, dimensions, keys, at if dispatched else 0)

    def dispatch(self, hold: Hold) -> None:
        """Note that the first byte goes upstream now."""
        if not hold.open or hold.dispatched_at:
            raise InvalidRequest(f"attempt {hold.attempt} is dispatched or settled already")
        at = self.clock()
        seq = self.journal.append(Dispatched(hold.attempt, at))
        if self._wait:
            self.journal.wait(seq)
        hold.dispatched_at = at

    def post(
        self, hold: Hold, usage: Usage, outcome: Outcome = "succeeded", reason: str = "", /
    ) -> Settled:
        """Settle a hold with what was used; what was billed and not delivered is waste.

        More than was held is booked in full and says so in its reason.
        """
        dimensions, now = hold.dimensions, self.clock()
        charge = self.book.charge(usage, dimensions.provider, dimensions.model, now)
        amount = charge.amount
        if amount > hold.amount and hold.caps:
            reason = f"{reason}; above its hold" if reason else "above its hold"

        def make(number: int) -> Settled:
            return Settled(
                hold.attempt,
                number,
                hold.at,
                hold.dispatched_at,
                now,
                outcome,
                reason,
                dimensions,
                round(usage.seconds * 1_000_000),
                usage.input_tokens,
                usage.cached_tokens,
                usage.written_tokens,
                usage.output_tokens,
                usage.images,
                usage.image_size,
                usage.image_quality,
                usage.stored_bytes,
                usage.requests,
                hold.amount,
                dimensions.stage if outcome == "succeeded" else "waste",
                amount,
                amount if charge.credit == "payable" else 0,
                amount if charge.credit == "depreciation" else 0,
                amount if charge.credit == "storage" else 0,
                charge.priced,
                charge.currency,
                charge.original,
                charge.rate,
                charge.price,
                "",
                hold.caps,
            )

        return self._end(hold, make, amount)

    def void(self, hold: Hold, reason: str, /) -> Settled:
        """Settle a hold that cost nothing: not sent, refused, or failed without a bill."""

        def make(number: int) -> Settled:
            return Settled(
                attempt=hold.attempt,
                number=number,
                held_at=hold.at,
                dispatched_at=hold.dispatched_at,
                settled_at=self.clock(),
                outcome="failed_free",
                reason=reason,
                dimensions=hold.dimensions,
                held=hold.amount,
                account=hold.dimensions.stage,
                caps=hold.caps,
            )

        return self._end(hold, make, 0)

    def tick(self) -> None:
        """Give back leased money that no hold uses; to be called now and then, and at the end."""
        if self._leases is None:
            return
        with self._lock:
            spare = {key: amount for key, amount in self._free.items() if amount > 0}
            if spare:
                self._leases.give_back(self.journal.worker, self.journal.epoch, spare)
                for key in spare:
                    del self._free[key]

    def close(self) -> None:
        """Give back what is not used and end the journal."""
        try:
            self.tick()
        finally:
            self.journal.close()

    def _end(self, hold: Hold, make: MakeSettled, amount: Nanos) -> Settled:
        with self._lock:
            if not hold.open:
                raise InvalidRequest(f"attempt {hold.attempt} is settled already")
            hold.open = False
        try:
            settled = self.journal.settle(make)
        except LedgerError:
            hold.open = True
            raise
        self._return(hold.caps, hold.amount - amount)
        return settled

    def _allow_unpriced(self, dimensions: Dimensions, periods: Sequence[CapPeriod]) -> None:
        refusing = [period.key for period in periods if period.cap.unpriced == "refuse"]
        if refusing or self._unpriced == "refuse":
            what = f"{dimensions.provider}/{dimensions.model}".strip("/") or dimensions.device
            by = f"cap {refusing[0]}" if refusing else "the ledger's settings"
            raise Unpriced(
                f"no price is known for {what}, and {by} refuse such calls; add one with "
                "`packshot prices add`"
            )

    def _reserve(self, periods: Sequence[CapPeriod], amount: Nanos) -> None:
        """Take ``amount`` from the free slices of all periods, leasing what is missing."""
        if not periods:
            return
        assert self._leases is not None  # noqa: S101 - the constructor saw to it
        with self._lock:
            wants = [
                Want(period.key, period.cap.limit, amount - self._free.get(period.key, 0))
                for period in periods
                if self._free.get(period.key, 0) < amount
            ]
            if wants:
                granted = self._leases.take(self.journal.worker, self.journal.epoch, wants)
                for key, slice_ in granted.items():
                    self._free[key] = self._free.get(key, 0) + slice_
            for period in periods:
                self._free[period.key] = self._free.get(period.key, 0) - amount

    def _return(self, keys: Sequence[str], amount: Nanos) -> None:
        if keys:
            with self._lock:
                for key in keys:
                    self._free[key] = self._free.get(key, 0) + amount


class MakeSettled(Protocol):
    """Makes the record once its number is known."""

    def __call__(self, number: int, /) -> Settled: ...


def leases_of(settings: Settings) -> SqliteLeases | None:
    """Return the leases of the settings' caps, or None where there are no caps."""
    if not settings.caps:
        return None
    return SqliteLeases(settings.journal / "caps.db")


def open_ledger(settings: Settings, worker: str = "local") -> Ledger:
    """Open the ledger of this process; several processes may use one name of a worker.

    Raises:
        LedgerUnavailable: the journal's folder cannot be written.
        InvalidRequest: a price or a cap in the settings cannot be, or the mode of durability.
    """
    if settings.durability == "store":
        raise InvalidRequest(
            "ledger.durability store is not offered by this version; expected process or power"
        )
    caps = Caps(
        [Cap(c.scope, nanos_of(c.eur), c.name, c.per, c.unpriced) for c in settings.caps],
        settings.timezone,
    )
    book: PriceBook = book_of(settings)
    return Ledger(
        free_journal(settings.journal, worker, settings.durability),
        book,
        caps,
        leases_of(settings),
        unpriced=settings.unpriced,
        wait=settings.durability == "power",
    )


def free_journal(folder: Path, worker: str, durability: Literal["process", "power"]) -> Journal:
    """Open the first journal ``worker-0``, ``worker-1`` … that no living process has."""
    for slot in range(SLOTS):
        name = f"{worker}-{slot}"
        if not _is_taken(folder / name / "lock"):
            return Journal(folder, name, durability=durability)
    raise LedgerUnavailable(f"{SLOTS} processes write journals in {folder}; are they all alive?")


def _is_taken(lock: Path) -> bool:
    if not lock.exists():
        return False
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
