"""Renders book themselves: each stage of each picture is one attempt in the ledger.

A picture's render id is made before the render, and money is held for every stage of it, so that a
full disk or an exhausted cap refuses the render before it starts. Afterwards each stage is posted
with the time it took; a render that fails or is cancelled posts the time that was really used, as
waste. Only denoising is dispatched before, for what the device then does: where the process is
killed, it is booked until the last sign of life, and what was not begun is free.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import msgspec

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.errors import LedgerError, OutputError
from packshot.core.ids import new_id
from packshot.core.money import Nanos
from packshot.core.types import STAGES, Stage, Usage
from packshot.ledger.records import Dimensions, Outcome, Settled
from packshot.studio.accounts import Charge, Hold, Ledger, Prices, reason_of
from packshot.studio.render import total
from packshot.studio.session import DeviceSession

__all__ = ["LIMIT_S", "Bill", "Bookkeeper", "shares"]

LIMIT_S: dict[Stage, float] = {
    "caption": 10.0,
    "encode": 60.0,
    "denoise": 3600.0,
    "decode": 600.0,
    "finish": 60.0,
    "store": 60.0,
}
"""Seconds of a CPU that are held for each stage of one picture: SDXL at 1024 pixels takes a sixth
of it on two cores. A GPU, ten times as fast at the least, holds a tenth. Time beyond is booked all
the same."""

ON_DEVICE: frozenset[Stage] = frozenset(("encode", "denoise", "decode"))
"""Stages that run where the networks are; the others run on this machine's CPU."""

EXPIRES_S = 24 * 3600
"""A hold outlives every render; what a crash leaves is settled by the drain, long before."""


@dataclass(slots=True)
class Bill:
    """What the pictures cost: nano-EUR by stage, of what is priced, and what is not priced.

    ``renders`` are the ids, one per picture. ``unpriced`` are the device kinds without a price;
    ``rates`` nano-EUR per hour of those with one. ``problem`` says why a stage was not booked.
    """

    renders: tuple[str, ...] = ()
    stages: dict[Stage, Nanos] = field(default_factory=dict[Stage, Nanos])
    unpriced_stages: set[Stage] = field(default_factory=set[Stage])
    unpriced: set[str] = field(default_factory=set[str])
    rates: dict[str, Nanos] = field(default_factory=dict[str, Nanos])
    problem: str = ""

    @property
    def amount(self) -> Nanos:
        """The sum of what is priced, in nano-EUR."""
        return sum(self.stages.values())

    def add_call(self, name: str, amount: Nanos, *, priced: bool, stage: Stage = "caption") -> None:
        """Add what a call of ``name`` ("provider/model") cost, which the gateway has booked."""
        self.stages[stage] = self.stages.get(stage, 0) + amount
        if not priced:
            self.unpriced_stages.add(stage)
            self.unpriced.add(name)

    def add(self, stage: Stage, settled: Settled) -> None:
        """Add what one stage of one picture cost."""
        self.stages[stage] = self.stages.get(stage, 0) + settled.amount
        if not settled.priced:
            self.unpriced_stages.add(stage)
            self.unpriced.add(settled.dimensions.device)


class Bookkeeper:
    """Books the renders of one command.

    ``device`` is the kind that the networks run on ("cpu", "h100"). `bill` holds what has been
    booked, of a render that failed too. With a ``session`` the time of its device is divided among
    all that use it, and ``device`` is the session's. ``recipe`` and ``batch`` are what the renders
    are booked on. ``stages`` are those that are booked here, where others are elsewhere: a batch
    stores one picture while it makes the next.
    """

    def __init__(  # noqa: PLR0913 - the last two by keyword, for a batch alone
        self,
        ledger: Ledger,
        book: Prices,
        recipe: str,
        device: str,
        clock: Clock = wall_us,
        session: DeviceSession | None = None,
        *,
        batch: str = "",
        stages: Sequence[Stage] = STAGES,
    ) -> None:
        self.batch = batch
        self.stages = tuple(stages)
        self.session = session
        self.ledger = ledger
        self.book = book
        self.recipe = recipe
        self._device = device
        self.clock = clock
        self.waits = False
        self.bill = Bill()

    @property
    def device(self) -> str:
        """The kind that the networks run on."""
        return (self.session.device if self.session else "") or self._device

    def beside(self, stages: Sequence[Stage]) -> Bookkeeper:
        """Return who books ``stages`` alone, on the same bill, of a render made elsewhere.

        The time that is waited for it there is nobody's here.
        """
        other = Bookkeeper(
            self.ledger,
            self.book,
            self.recipe,
            "cpu",
            self.clock,
            batch=self.batch,
            stages=stages,
        )
        other.bill, other.waits = self.bill, True
        return other

    @contextmanager
    def booked(
        self,
        models: Sequence[str],
        meter: list[Usage],
        delivered: Sized,
        renders: Sequence[str] = (),
        *,
        tags: Sequence[str] = (),
    ) -> Generator[None]:
        """Book what happens inside; ``models`` names the model of each picture.

            ``meter`` is what the stages consumed, to which the block adds; ``delivered`` grows with
            the pictures that are done. ``renders`` are the pictures' ids; without, they are made.
            ``tags`` are those of every row, "name=value", sorted; they may be added within.

        Raises:
                BudgetExceeded, Unpriced, LedgerUnavailable: before the block, which does not run.
        """
        start, before = perf_counter(), _seconds(meter)
        use = self.session.begin() if self.session else 0
        try:
            self.bill.renders = tuple(renders) or tuple(new_id() for _ in models)
            held = tuple(tags)
            work = self._hold(models, held)
        except BaseException:
            self._fitted(use, [])
            raise

        def settle(used: Sequence[Usage], done: int, reason: str) -> None:
            if (found := tuple(tags)) != held:
                self._tag(work, found)
            self._settle(work, used, done, reason)

        try:
            yield
        except BaseException as error:
            passed = 0.0 if self.waits else perf_counter() - start
            lost = passed - (_seconds(meter) - before)
            used = self._fitted(use, [*meter, self._unfinished(error, lost)])
            try:
                settle(used, len(delivered), reason_of(error))
            except LedgerError as second:
                error.add_note(f"what this render used is not booked: {second}")
            raise
        try:
            settle(self._fitted(use, meter), len(models), "")
        except LedgerError as error:  # the pictures are there: that is what was asked for
            self.bill.problem = str(error)

    def _fitted(self, use: int, meter: Sequence[Usage]) -> tuple[Usage, ...]:
        """Return the use of each stage, of the device's time no more than this use of it had.

        The caption is older than the use, as the brief is read before the model is loaded.
        """
        parts = list(total(meter))
        if self.session is None:
            return tuple(parts)
        device = self.device
        places = [
            place
            for place, part in enumerate(parts)
            if part.device == device and part.stage != "caption"
        ]
        micros = [round(parts[place].seconds * SECOND_US) for place in places]
        fitted = self.session.end(use, micros)
        for place, part in zip(places, fitted, strict=True):
            parts[place] = msgspec.structs.replace(parts[place], seconds=part / SECOND_US)
        return tuple(parts)

    def _hold(self, models: Sequence[str], tags: tuple[str, ...]) -> list[dict[Stage, Hold]]:
        """Hold money for every stage of every picture, or for none of them."""
        bounds = {stage: self._bound(stage) for stage in self.stages}
        work: list[dict[Stage, Hold]] = []
        try:
            for render, model in zip(self.bill.renders, models, strict=True):
                work.append({})
                for stage in self.stages:
                    dimensions = Dimensions(
                        render=render,
                        recipe=self.recipe,
                        batch=self.batch,
                        stage=stage,
                        model=model,
                        device=self._device_of(stage),
                        tags=tags,
                    )
                    work[-1][stage] = self.ledger.hold(
                        dimensions,
                        bounds[stage].amount,
                        priced=bounds[stage].priced,
                        dispatched=stage == "denoise",
                        expires_in_s=EXPIRES_S,
                        limit_us=round(self._limit(stage) * SECOND_US),
                    )
        except LedgerError:
            for holds in work:
                for hold in holds.values():
                    self.ledger.void(hold, "not started")
            raise
        return work

    def _bound(self, stage: Stage) -> Charge:
        device, seconds = self._device_of(stage), self._limit(stage)
        hour = self.book.charge(Usage(stage, 3600.0, device), "", "", self.clock())
        if hour.priced:
            self.bill.rates[device] = hour.amount
        return self.book.charge(Usage(stage, seconds, device), "", "", self.clock())

    def _limit(self, stage: Stage) -> float:
        return LIMIT_S[stage] / (1 if self._device_of(stage) == "cpu" else 10)

    def _device_of(self, stage: Stage) -> str:
        return self.device if stage in ON_DEVICE else "cpu"

    def _unfinished(self, error: BaseException, seconds: float) -> Usage:
        """Return the time that the stage which failed has used; only storing has errors of files.

        The engine does not say how far it came: what it used before counts as denoising, too.
        """
        stage: Stage = "store" if isinstance(error, OutputError) else "denoise"
        if stage not in self.stages:
            stage = "denoise" if "denoise" in self.stages else self.stages[0]
        return Usage(stage, max(0.0, seconds), self._device_of(stage))

    def _tag(self, work: Sequence[dict[Stage, Hold]], tags: tuple[str, ...]) -> None:
        for holds in work:
            for hold in holds.values():
                self.ledger.tag(hold, tags)

    def _settle(
        self,
        work: Sequence[dict[Stage, Hold]],
        used: Sequence[Usage],
        delivered: int,
        reason: str,
    ) -> None:
        """Post every stage of every picture; those from ``delivered`` on are waste."""
        parts = {part.stage: shares(part, len(work)) for part in used}
        for number, holds in enumerate(work):
            outcome: Outcome = "succeeded" if number < delivered else "failed_billed"
            for stage, hold in holds.items():
                if stage not in parts:
                    self.ledger.void(hold, reason)
                    continue
                if stage != "denoise":
                    self.ledger.dispatch(hold)
                why = "" if outcome == "succeeded" else reason
                self.bill.add(stage, self.ledger.post(hold, parts[stage][number], outcome, why))


def shares(part: Usage, pictures: int) -> list[Usage]:
    """Return the part of each picture of a batch: whole microseconds, whose sum is the batch's."""

    def share(amount: int, number: int) -> int:
        return amount * (number + 1) // pictures - amount * number // pictures

    micros = round(part.seconds * 1_000_000)
    return [
        msgspec.structs.replace(
            part,
            seconds=share(micros, number) / 1_000_000,
            steps=share(part.steps, number),
            pixels=share(part.pixels, number),
            stored_bytes=share(part.stored_bytes, number),
            requests=share(part.requests, number),
        )
        for number in range(pictures)
    ]


def _seconds(meter: Sequence[Usage]) -> float:
    return sum(part.seconds for part in meter)
