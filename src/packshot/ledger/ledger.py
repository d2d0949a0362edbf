"""The ledger as its callers know it: hold money before a call, post or void it afterwards.

::

    hold(dispatched=True) ──────────────► post | void
    hold(dispatched=False) ──► dispatch ──► post | void

Each step is one record in this worker's journal; nothing else happens on the way, unless a cap
needs a new slice. What is never settled, since the process died, the drain books as ``unknown``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from operator import attrgetter
from typing import Literal, Protocol

import msgspec

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import InvalidRequest, LedgerError, Unpriced
from packshot.core.ids import new_id
from packshot.core.money import Nanos, eur, nanos_of
from packshot.core.types import Usage
from packshot.ledger.avoided import AvoidedCosts
from packshot.ledger.caps import Cap, Caps, Shortage, Slice
from packshot.ledger.devices import BESIDE, beside
from packshot.ledger.homes import name_in
from packshot.ledger.idempotency import Answers
from packshot.ledger.journal import AnyJournal, Journal
from packshot.ledger.leases import Leases, leases_of, open_shared
from packshot.ledger.prices.book import Charge
from packshot.ledger.records import Dimensions, Dispatched, Held, Outcome, Settled
from packshot.ledger.settings import Settings
from packshot.ledger.signs import tick_us

__all__ = ["Charge", "Hold", "Ledger", "MustWait", "Policy", "Prices", "caps_of", "open_ledger"]

BILLED = frozenset(("succeeded", "failed_billed", "unknown"))
"""The outcomes of a post; ``failed_free`` is what a void books."""

ABOVE = "above its hold"
"""The reason of an entry whose bound was none: it is booked in full all the same."""


PERIOD_OF = attrgetter("period")
UNCAPPED: tuple[tuple[Slice, ...], tuple[str, ...]] = (), ()
"""The slices and periods of what no cap applies to."""


class MustWait(Exception):
    """The hold has to wait for the disk or a database, and the caller cannot."""


class Prices(Protocol):
    """What is asked of a price book."""

    def charge(self, usage: Usage, provider: str, model: str, at: int, /) -> Charge:
        """Return what a usage costs at an instant, in microseconds since 1970."""
        ...


class Hold(msgspec.Struct, eq=False, gc=False):
    """Money held for one attempt. Hand it to `Ledger.post` or `Ledger.void`, once."""

    held: Held
    slices: tuple[Slice, ...]
    priced: bool
    dispatched_at: int
    until: float
    """`time.monotonic` at which it expires: a step of the wall clock expires nothing."""
    amount: Nanos
    """The upper bound that is held, in nano-EUR."""

    @property
    def attempt(self) -> str:
        """The attempt's id, to be sent upstream where a provider takes one."""
        return self.held.attempt


@dataclass(frozen=True, slots=True)
class Policy:
    """How careful a ledger is.

    ``durable``: wait for the disk (``power``) or for PostgreSQL's commit (``store``) before a
    dispatch or a settlement is acknowledged.
    ``timezone`` is that of the caps' calendar. ``unpriced`` says whether a call without a known
    price is taken where no cap decides.
    """

    durable: bool = False
    timezone: str = "UTC"
    unpriced: Literal["allow", "refuse"] = "allow"


DEFAULT = Policy()


class Ledger:
    """One worker's ledger; safe to use from any thread.

    Args:
        journal: this worker's, in this life.
        book: the prices.
        caps: the limits; they need ``leases``, the table that all workers share.
        clock: the wall clock, in microseconds.
        policy: how careful it is.
        answers: what `once` and `remember` keep answers in.
    """

    def __init__(
        self,
        journal: AnyJournal,
        book: Prices,
        caps: Sequence[Cap] = (),
        leases: Leases | None = None,
        clock: Clock = wall_us,
        *,
        policy: Policy = DEFAULT,
        answers: Answers | None = None,
    ) -> None:
        if caps and leases is None:
            raise InvalidRequest("caps need a lease table: hand in leases, or no caps")
        self._journal = journal
        self.avoided = AvoidedCosts(journal, clock)
        self._book = book
        self._clock = clock
        self.durable = policy.durable
        """Whether a settlement is acknowledged only once it is on the disk, or in the database."""
        self._unpriced = policy.unpriced
        self._leases = leases
        self._caps = (
            None
            if leases is None
            else Caps(caps, leases, journal.worker, journal.epoch, policy.timezone)
        )
        self._capped = bool(caps)
        self._answers = answers
        self._lock = threading.RLock()
        self._open: dict[str, Hold] = {}

    def hold(  # noqa: PLR0913 - options of one act, all by keyword
        self,
        dimensions: Dimensions,
        amount: Nanos | None,
        *,
        priced: bool = True,
        key: str = "",
        dispatched: bool = True,
        expires_in_s: int = 600,
        limit_us: int = 0,
        wait: bool = True,
    ) -> Hold:
        """Hold an upper bound of what an attempt may cost, in nano-EUR, before it is made.

        ``amount`` is None where no bound is known; ``priced`` is false where no price is, and then
        nothing is held. With ``dispatched`` the call may go out on return. ``limit_us`` is the time
        of our own device that ``amount`` is the price of: should this process be killed, no more
        is booked than the time until its last sign of life. "load" and "idle" are in no cap.
        ``wait`` false is for an event loop: `MustWait` is raised, and nothing is held, where the
        disk or the table of leases has to be waited for; call again in a thread then.

        Raises:
            BudgetExceeded, Unbounded, Unpriced: a cap refuses; nothing is held.
            MustWait: see above.
            LedgerUnavailable: the journal takes nothing. Do not make the call.
        """
        bound = amount or 0
        if bound < 0:
            raise InvalidRequest(f"a hold is 0 or more nano-EUR, got {amount}")
        if not priced and self._unpriced == "refuse":
            raise Unpriced(
                f"no price is known for {dimensions.provider}/{dimensions.model}"
                f"{dimensions.device}: add one (packshot prices add), or set unpriced: allow"
            )
        if self.durable and dispatched and not wait:
            raise MustWait
        at = self._clock()
        slices, periods = UNCAPPED
        caps = self._caps
        if self._capped and caps is not None and dimensions.stage not in BESIDE:
            with self._lock:
                got = caps.reserve(dimensions, amount, at, priced=priced)
            if not isinstance(got, tuple):
                got = self._ask(caps, got, dimensions, at, wait=wait)
            slices = got
            periods = (slices[0].period,) if len(slices) == 1 else tuple(map(PERIOD_OF, slices))
        held = Held(
            new_id(),
            at,
            bound,
            at + expires_in_s * SECOND_US,
            dimensions,
            periods,
            dispatched,
            sha256(key.encode()).hexdigest() if key else "",
            priced,
            limit_us,
            tick_us() if limit_us and dispatched else 0,
        )
        until = time.monotonic() + expires_in_s
        hold = Hold(held, slices, priced, at if dispatched else 0, until, bound)
        try:
            seq = self._journal.append(held)
            if self.durable and dispatched:
                self._journal.wait(seq)
        except BaseException:
            self._free(hold, 0)
            raise
        self._open[held.attempt] = hold
        return hold

    def _ask(
        self, caps: Caps, shortage: Shortage, dimensions: Dimensions, at: int, *, wait: bool
    ) -> tuple[Slice, ...]:
        """Hold an amount for which slices had too little: ask for more, without the lock."""
        if not wait:
            raise MustWait
        with caps.asking:
            while True:
                with self._lock:
                    # Who stood in line finds, mostly, that the one before brought enough for all.
                    got = caps.reserve(dimensions, shortage.amount, at)
                if isinstance(got, tuple):
                    return got
                grant = caps.ask(got)
                with self._lock:
                    caps.add(got, grant)

    def dispatch(self, hold: Hold) -> None:
        """Note that the first byte is about to go upstream.

        Raises:
            LedgerError: the hold is settled, expired or dispatched already.
            LedgerUnavailable: the note is not kept. Do not make the call.
        """
        with self._lock:
            self._own(hold)
            if hold.dispatched_at:
                raise LedgerError(f"attempt {hold.attempt} is dispatched already; hold another")
            at = self._clock()
            since = tick_us() if hold.held.limit_us else 0
            seq = self._journal.append(Dispatched(hold.attempt, at, since))
            hold.dispatched_at = at
        if self.durable:
            try:
                self._journal.wait(seq)
            except BaseException:
                hold.dispatched_at = 0  # not made: it may be dispatched again, or voided
                raise

    def tag(self, hold: Hold, tags: tuple[str, ...]) -> None:
        """Give the row of a hold its tags ("name=value", sorted), found only after it was held.

        They are in the row that ends it, unless this process dies before that.

        Raises:
            LedgerError: the hold is settled or expired.
        """
        with self._lock:
            self._own(hold)
            of = msgspec.structs.replace(hold.held.dimensions, tags=tags)
            hold.held = msgspec.structs.replace(hold.held, dimensions=of)

    def post(
        self,
        hold: Hold,
        usage: Usage | None,
        outcome: Outcome = "succeeded",
        reason: str = "",
        *,
        wait: bool = True,
    ) -> Settled:
        """Settle an attempt by what it used; without a usage, by all that was held.

        With ``wait`` false nothing is acknowledged until `flush` has returned.

        Prices are those of the dispatch. An attempt that was billed and not delivered is waste, and
        needs a reason. The load and idle time of a device accrue: that is their only outcome.

        Raises:
            LedgerError: the hold is settled already, or was never dispatched.
            LedgerUnavailable: it is not in the journal, and the hold can be posted again; or the
                disk failed under it (`Policy.durable`), and this worker takes no more.
        """
        held = hold.held
        of = held.dimensions
        accrues = of.stage in BESIDE
        if outcome != "accrual" if accrues else outcome not in BILLED:
            raise InvalidRequest(
                f"a post is succeeded, failed_billed or unknown, got {outcome!r}; what cost "
                "nothing is voided"
            )
        if outcome in {"failed_billed", "unknown"} and not reason:
            raise InvalidRequest(f"{outcome} needs a reason: why is there no picture for it?")
        if not hold.dispatched_at:
            raise LedgerError(f"attempt {hold.attempt} was not dispatched: dispatch it, or void it")
        if usage is None:
            charge: Charge = _whole(hold)
        else:
            charge = self._book.charge(usage, of.provider, of.model, hold.dispatched_at)
        if charge.amount > held.amount and hold.priced and not accrues:
            reason = f"{reason}; {ABOVE}" if reason else ABOVE
        return self._settle(hold, usage, charge, outcome, reason, wait=wait)

    def void(self, hold: Hold, reason: str, *, wait: bool = True) -> Settled:
        """Settle an attempt that cost nothing: not made, or known to be free.

        Raises:
            LedgerError: the hold is settled already.
            LedgerUnavailable: it is not in the journal; the hold stands.
        """
        return self._settle(hold, None, _FREE, "failed_free", reason, wait=wait)

    def correct(self, correction: Settled) -> Settled:
        """Append a correcting entry (`packshot.ledger.corrections`); it gets its number here."""
        with self._lock:
            settled = self._journal.settle(
                lambda number: msgspec.structs.replace(correction, number=number)
            )
            if self._caps is not None:
                for period in settled.caps:
                    self._caps.charge(period, settled.amount)
            seq = self._journal.seq
        if self.durable:
            self._journal.wait(seq)
        return settled

    def replace_caps(self, caps: Sequence[Cap]) -> None:
        """Admit calls against these caps from now on: a configuration was loaded anew.

        Raises:
            InvalidRequest: two are on the same, or this ledger was opened without a lease table.
        """
        if self._caps is None:
            if caps:
                raise InvalidRequest("caps need a lease table: open the ledger with one")
            return
        with self._lock:
            self._caps.replace(caps)
            self._capped = bool(caps)

    def capped(self, team: str, virtual_key: str, batch: str) -> bool:
        """Tell whether a cap applies to what is booked on these."""
        return self._caps is not None and self._caps.applies(team, virtual_key, batch)

    def once(self, key: str, body: bytes, scope: str = "") -> bytes | None:
        """Return the first answer to this key, or None where this call is the first.

        ``scope`` is the virtual key or team that the key belongs to. After None the caller makes
        the call, and then `remember` or `forget`.

        Raises:
            IdempotencyError: the key came with another body, or its first call is not done.
        """
        return self._keeper().once(key, body, scope, self._clock())

    def remember(self, key: str, answer: bytes, scope: str = "") -> None:
        """Keep the answer to a key, to be replayed."""
        self._keeper().remember(key, answer, scope, self._clock())

    def forget(self, key: str, scope: str = "") -> None:
        """Let a key be used again: its call failed, and is worth repeating."""
        self._keeper().forget(key, scope)

    def tick(self) -> None:
        """Settle what has expired, give back idle slices of caps, and note what was avoided; call
        it every second or so.

        An expired attempt that was dispatched is booked as ``unknown``, at all that was held.
        """
        now = time.monotonic()
        for hold in list(self._open.values()):
            with self._lock:  # or another thread may post it in between
                if hold.until > now or self._open.get(hold.attempt) is not hold:
                    continue
                if hold.dispatched_at:
                    self._settle(hold, None, _whole(hold), "unknown", "expired")
                else:
                    self._settle(hold, None, _FREE, "failed_free", "expired")
        if self._caps is not None:
            with self._lock:
                periods = self._caps.periods()
            wanted = self._caps.wanted(periods)
            with self._lock:
                idle = self._caps.idle(self._clock(), wanted)
            self._give_back(idle)
        self.avoided.flush()

    def flush(self) -> None:
        """Return when everything so far is as durable as was promised.

        Raises:
            LedgerUnavailable: it never will be.
        """
        if self.durable:
            self._journal.wait(self._journal.seq)

    @property
    def open_holds(self) -> Mapping[str, Hold]:
        """The holds that are neither posted nor voided, by attempt."""
        return self._open

    def close(self) -> None:
        """Give back slices, and end the journal; open holds are left to the drain."""
        try:
            self.avoided.flush()
            if self._caps is not None:
                with self._lock:
                    free = self._caps.everything()
                self._give_back(free)
        finally:
            self._journal.close()
            for shared in (self._leases, self._answers):
                if shared is not None:
                    shared.close()

    def _give_back(self, amounts: Mapping[str, Nanos]) -> None:
        """Return what was taken out of slices to the table; what it does not take is kept."""
        if self._caps is None:
            return
        try:
            self._caps.give_back(amounts)
        except BaseException:
            with self._lock:
                self._caps.restore(amounts)
            raise

    def _settle(
        self,
        hold: Hold,
        usage: Usage | None,
        charge: Charge,
        outcome: Outcome,
        reason: str,
        *,
        wait: bool = True,
    ) -> Settled:
        """Write the one record that ends a hold. A record that is not written ends nothing."""
        attempt = hold.held.attempt
        with self._lock:
            if self._open.get(attempt) is not hold:
                self._own(hold)
            end = outcome, reason, self._clock()
            settled = self._journal.settle(partial(_record, hold, usage, charge, end))
            del self._open[attempt]
            if hold.slices and self._caps is not None:
                self._caps.settle(hold.slices, hold.held.amount, settled.amount)
        if self.durable and wait:
            self._journal.wait(self._journal.seq)
        return settled

    def _own(self, hold: Hold) -> None:
        if self._open.get(hold.attempt) is not hold:
            raise LedgerError(
                f"attempt {hold.attempt} is not open here: it was posted, voided or has expired. "
                "A settled attempt is changed by a correction only"
            )

    def _free(self, hold: Hold, spent: Nanos) -> None:
        if hold.slices and self._caps is not None:
            with self._lock:
                self._caps.settle(hold.slices, hold.held.amount, spent)

    def _keeper(self) -> Answers:
        if self._answers is None:
            raise InvalidRequest("idempotency keys need a store of answers: hand in answers")
        return self._answers


_FREE = Charge(0, "payable")


def _whole(hold: Hold) -> Charge:
    """Return the charge of an attempt whose usage nobody knows: all that was held for it."""
    amount = hold.held.amount
    own = not hold.held.dimensions.provider
    return Charge(
        amount,
        "depreciation" if own else "payable",
        hold.priced,
        original=f"{eur(amount):f}",
        price="upper bound of its hold",
    )


def _record(
    hold: Hold, usage: Usage | None, charge: Charge, end: tuple[Outcome, str, int], number: int
) -> Settled:
    """Return the settled record: positional, in `Settled`'s order, since every call makes one."""
    outcome, reason, at = end
    held = hold.held
    of = held.dimensions
    used = _NOTHING if usage is None else usage
    amount, credit = charge.amount, charge.credit
    wasted = outcome == "unknown" or outcome == "failed_billed"  # noqa: PLR1714 - on every call
    return Settled(
        held.attempt,
        number,
        held.at,
        hold.dispatched_at,
        at,
        outcome,
        reason,
        beside(of) if outcome == "accrual" else of,
        round(used.seconds * 1_000_000) if used.seconds else 0,
        used.input_tokens,
        used.cached_tokens,
        used.written_tokens,
        used.output_tokens,
        used.images,
        used.image_size,
        used.image_quality,
        used.stored_bytes,
        used.requests,
        held.amount,
        "waste" if wasted else of.stage,
        amount,
        amount if credit == "payable" else 0,
        amount if credit == "depreciation" else 0,
        amount if credit == "storage" else 0,
        charge.priced,
        charge.currency,
        charge.original,
        charge.rate,
        charge.price,
        "",
        held.caps,
    )


_NOTHING = Usage("store")


def open_ledger(
    settings: Settings,
    book: Prices,
    worker: str,
    *,
    caps: Sequence[Cap] | None = None,
    idempotency: bool = False,
) -> Ledger:
    """Open this process's ledger; ``worker`` is its name among the journals ("gateway-0").

    ``caps`` replace those of the settings, and may be replaced later; None keeps the settings' own.

    Raises:
        LedgerUnavailable: journal or leases cannot be opened, or another process has the name.
    """
    given = caps_of(settings) if caps is None else caps
    policy = Policy(settings.durability != "process", settings.timezone, settings.unpriced)
    journal = _journal(settings, worker)
    try:
        leases = leases_of(settings, anyway=caps is not None)
        answers = None
        if idempotency:
            answers = Answers(leases.database if leases else open_shared(settings.store))
        return Ledger(journal, book, given, leases, policy=policy, answers=answers)
    except BaseException:
        journal.close()
        raise


def caps_of(settings: Settings) -> list[Cap]:
    """Return the caps of the configuration's ledger section."""
    return [
        Cap(row.scope, row.name, nanos_of(row.eur), row.per, row.unpriced) for row in settings.caps
    ]


def _journal(settings: Settings, worker: str) -> AnyJournal:
    if settings.durability != "store":
        name = name_in(settings, worker)
        return Journal(settings.journal, name, durability=settings.durability)
    from packshot.ledger.notes import Notes
    from packshot.ledger.store_journal import StoreJournal
    from packshot.ledger.stores import open_store

    database = open_store(settings.store).database
    try:
        return StoreJournal(Notes(database), worker, database=database)
    except BaseException:
        database.close()
        raise
