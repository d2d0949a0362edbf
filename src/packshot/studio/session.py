"""A session of a device: from the loading of a model to the end of the command or worker.

All of its wall time is booked, once: as a stage of a render, as "load", or as "idle". So what the
ledger has of a session sums to the time that it took, to the microsecond, and a device that waits
is seen to cost money. At each instant one of them has a hold that is dispatched: should the process
be killed, the drain books that one until the last sign of life.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import LedgerError
from packshot.core.types import Usage
from packshot.ledger.devices import Timeline, fit
from packshot.ledger.records import Dimensions
from packshot.ledger.signs import tick_us
from packshot.studio.accounts import Hold, Ledger, Prices, reason_of

__all__ = ["ROLL_S", "DeviceSession"]

ROLL_S = 3600
"""Seconds after which `DeviceSession.tick` books the idle time of a device that goes on waiting."""

LIMIT_S = {"load": 600, "idle": 2 * ROLL_S}
"""Seconds that are held; of a killed worker no more is booked, of a live one all that passed."""

EXPIRES_S = 400 * 24 * 3600
"""Never, for a live worker: what a dead one leaves is settled by the drain, long before."""

Spare = Literal["load", "idle"]


class DeviceSession:
    """The time of one device. Safe to use from any thread; its renders may overlap.

    Args:
        ledger: where it is booked.
        book: the prices.
        recipe: whose session it is: "render", "sheet".
        clock: the wall clock, for the prices of the day.
        ticks: microseconds of a clock that never steps.
    """

    def __init__(
        self,
        ledger: Ledger,
        book: Prices,
        recipe: str,
        clock: Clock = wall_us,
        ticks: Callable[[], int] = tick_us,
    ) -> None:
        self.device = ""
        self._ledger = ledger
        self._book = book
        self._recipe = recipe
        self._clock = clock
        self._ticks = ticks
        self._lock = threading.RLock()
        self._timeline: Timeline | None = None
        self._hold: Hold | None = None
        self._held_at = 0
        self._closing = False

    @contextmanager
    def loading(self) -> Generator[Callable[[str], None]]:
        """Begin the session with a block that loads a model, and book its time as "load".

        It yields what is to be called with the kind of the device ("cpu", "h100") once that is
        known, before the weights are loaded. What came before, such as torch's import, counts too.

        Raises:
            Unpriced, LedgerUnavailable: from the call; the model is not to be loaded.
        """
        begun = self._ticks()
        timeline = Timeline(begun)
        span = timeline.begin(begun)

        def on_device(kind: str) -> None:
            self.device = kind
            self._hold = self._held("load")
            self._timeline = timeline

        try:
            yield on_device
        except BaseException as error:
            try:
                self._loaded(span, reason_of(error))
            except LedgerError as second:
                error.add_note(f"the time of loading is not booked: {second}")
            raise
        self._loaded(span, "")
        with self._lock:
            if self._timeline is not None:
                self._wait()

    def begin(self) -> int:
        """Begin to use the device, and return the name of this use for `end`; 0 of no session.

        Raises:
            LedgerUnavailable: the idle time until now cannot be booked; it is booked another time.
        """
        with self._lock:
            if self._timeline is None:
                return 0
            at = self._ticks()
            if not self._timeline.busy:
                self._book_idle(self._timeline, at)
            return self._timeline.begin(at)

    def end(self, name: int, used: Sequence[int]) -> tuple[int, ...]:
        """End a use of the device; return the device's time for each part of it.

        ``used`` are the microseconds that the parts were seen to take. They shrink where others
        used the device at the same time; what they leave of the use's own time is idle time.
        """
        with self._lock:
            if self._timeline is None or not name:
                return tuple(used)
            share = self._timeline.end(name, self._ticks())
            parts, rest = fit(used, share)
            self._timeline.give_back(rest)
            if not self._timeline.busy:
                self._rest()
            return parts

    def tick(self) -> None:
        """Book the idle time of the last hour; a worker that waits calls this now and then.

        Raises:
            LedgerUnavailable: it is not booked yet.
        """
        with self._lock:
            at = self._ticks()
            if self._timeline is None or self._timeline.busy:
                return
            if self._hold is None or at - self._held_at >= ROLL_S * SECOND_US:
                self._book_idle(self._timeline, at)
                self._wait()

    def close(self) -> None:
        """Book the idle time until now, and end the session; a second call does nothing.

        While the device is in use, it ends with the last use.

        Raises:
            LedgerUnavailable: that time is not booked.
        """
        with self._lock:
            self._closing = True
            if self._timeline is None or not self._timeline.busy:
                self._close()

    def _close(self) -> None:
        if self._timeline is not None:
            self._book_idle(self._timeline, self._ticks())
            self._timeline = None

    def _rest(self) -> None:
        """Wait for the next use, or end the session, as was asked for meanwhile."""
        if not self._closing:
            self._wait()
            return
        with suppress(LedgerError):  # what is booked of this use, next, will say it
            self._close()

    def _loaded(self, span: int, reason: str) -> None:
        with self._lock:
            hold, timeline = self._hold, self._timeline
            if hold is None or timeline is None:
                return
            self._hold = None
            self._post(hold, timeline.end(span, self._ticks()), reason)

    def _wait(self) -> None:
        """Hold idle time from now on; where that fails it is held when it is booked."""
        try:
            self._hold = self._held("idle")
        except LedgerError:
            self._hold = None

    def _book_idle(self, timeline: Timeline, at: int) -> None:
        idle = timeline.take_idle(at)
        try:
            hold = self._hold or self._held("idle")
            self._hold = hold
            self._post(hold, idle, "")
        except LedgerError:
            timeline.give_back(idle)
            raise
        self._hold = None

    def _held(self, what: Spare) -> Hold:
        limit = LIMIT_S[what]
        usage = Usage("denoise", limit, self.device)  # no stage has a price: devices have
        bound = self._book.charge(usage, "", "", self._clock())
        self._held_at = self._ticks()
        return self._ledger.hold(
            Dimensions(recipe=self._recipe, stage=what, device=self.device),
            bound.amount,
            priced=bound.priced,
            dispatched=True,
            expires_in_s=EXPIRES_S,
            limit_us=limit * SECOND_US,
        )

    def _post(self, hold: Hold, micros: int, reason: str) -> None:
        usage = Usage("denoise", micros / SECOND_US, self.device)
        self._ledger.post(hold, usage, "accrual", reason)
