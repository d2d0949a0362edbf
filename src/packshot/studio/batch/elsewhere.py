"""Works of a batch that a hosted provider makes: all while no worker can be started here, and some
beside a worker that is well.

Beside it go works whose deadline would pass here; and, where the operator says so
(`studio.overflow.batch`), whatever stands first in line while the line is longer than
``when_wait_exceeds_s``, until it is ``back_below_s``. Of itself the wait sends nothing away: the
line of a batch is as long as the batch. Where nobody there takes them, they stay here for a while.

While no worker can be started, one is tried every now and then, and the works return to it when it
has loaded its model and the stay is over (`packshot.studio.overflow`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from packshot.core.money import Nanos
from packshot.core.types import RenderRequest, Usage
from packshot.studio.overflow import Gauge, Limits, Overflow, Why, late

if TYPE_CHECKING:
    from packshot.engine.results import OnStep, RenderResult
    from packshot.studio.batch.frames import Do
    from packshot.studio.batch.items import Item
    from packshot.studio.batch.line import Line
    from packshot.studio.batch.state import Made, Todo
    from packshot.studio.batch.worker import Performer
    from packshot.studio.hosted import HostedProvider
    from packshot.studio.render import Renderer

__all__ = ["Beside", "Elsewhere", "OnCall", "expected_out"]

RETRY_S = 30.0
"""Between two tries to start a worker while works are made elsewhere, and before works go there
again after nobody took one; or the stay, if longer."""

AT_ONCE = 4
"""Works that are made elsewhere at the same time, beside the worker."""

OnCall = Callable[[str, Nanos, bool], None]


@dataclass(frozen=True, slots=True)
class Beside:
    """How works are made elsewhere beside a worker that is well.

    ``seconds`` is what one is expected to take here before any was made; 0 where nobody knows, and
    then none goes before the first is. ``whole`` has the length of the line count, too. ``began``
    is when deadlines count from, on the clock; None: when the run begins. ``price`` is the most
    that one costs there, in nano-EUR: none goes that what was agreed for the run does not cover.
    """

    seconds: float = 0.0
    whole: bool = False
    began: float | None = None
    price: Nanos = 0


def expected_out(
    dues: Sequence[float], left: int, seconds: float, wait_s: tuple[float, float] | None
) -> int:
    """Return how many of ``left`` works go beside the worker at most, if each takes ``seconds``.

    ``dues`` are the deadlines of those that have one, the first first. ``wait_s`` are the waits
    above which works go, and down to which; None: the length of the line does not count.
    """
    due = sum(1 for _ in late([(None, due) for due in dues], 0.0, seconds))
    if wait_s is None or left * seconds <= wait_s[0]:
        return due
    return max(due, left - int(wait_s[1] / seconds))


class _Job:
    """An item in the making (`packshot.studio.batch.worker.Job`); nobody waits for its beats."""

    def __init__(self, do: Do) -> None:
        self.item: Item = do.item
        self.render = do.render
        self.caption = do.caption
        self.usage: list[Usage] = []
        self.tags: list[str] = []

    def step(self) -> None:
        """Tell nobody."""


class _Seat(threading.local):
    """One thread's: the `Renderer` of its performer, so that each of a recipe's renders is asked
    for on the id of the work in hand.
    """

    device_kind = "hosted"

    def __init__(self, provider: HostedProvider, make: Callable[[Renderer], Performer]) -> None:
        self._provider = provider
        self._make = make
        self._performer: Performer | None = None
        self._render = ""
        self._why: Why = ""
        self.calls: list[tuple[str, Nanos, bool]] = []

    def perform(self, job: _Job, why: Why) -> Made:
        """Run the recipe."""
        self.calls.clear()
        self._render, self._why = job.render, why
        if self._performer is None:
            self._performer = self._make(self)
        return self._performer(job)

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> RenderResult:
        """Return the pictures of the work in hand; see `Renderer`."""
        renders = [self._render] * len(request.seeds)
        return self._provider.renderer(renders, self._why).render(request, on_step=on_step)


class Elsewhere:
    """Decides for each work of a run, and has those made that are not made here.

    Safe to use from any thread, but that one alone has the worker.

    Args:
        limits: when to go, and when to return.
        provider: makes the hosted provider, which is told who hears of its calls.
        performer: makes what runs the recipe with a renderer that it is given.
        clock: returns seconds.
        beside: what goes beside a worker that is well; None: nothing.
    """

    def __init__(
        self,
        limits: Limits,
        provider: Callable[[OnCall], HostedProvider],
        performer: Callable[[Renderer], Performer],
        clock: Callable[[], float] = monotonic,
        beside: Beside | None = None,
    ) -> None:
        self.beside = beside
        self._gauge = Gauge(beside.seconds if beside else 0.0)
        # That the line is long is no reason to leave a worker idle: for that one, devices alone.
        alone = replace(limits, when_wait_exceeds_s=inf, back_below_s=inf)
        self._device = Overflow(alone, self._gauge, clock)
        self._line = Overflow(limits, self._gauge, clock)
        self._provider = provider(self._note)
        self._seat = _Seat(self._provider, performer)
        self._clock = clock
        self._retry_s = max(RETRY_S, limits.dwell_s)
        self._tried = -self._retry_s
        self._began = 0.0
        self._since: float | None = None
        self._rests_until = -inf
        self._picking = threading.Lock()

    # -------------------------------------------------------------------------- devices

    def may_load(self) -> bool:
        """Tell whether a worker is to be started now."""
        return self._gauge.load().alive or self._clock() - self._tried >= self._retry_s

    def loaded(self, *, alive: bool) -> None:
        """Hear whether a worker could be started."""
        self._tried = self._clock()
        if alive:
            self._gauge.recovered()
        else:
            self._gauge.died()

    def why(self) -> Why:
        """Return why the next work is to be made elsewhere for want of a worker; "" where not."""
        return self._device.where()

    # -------------------------------------------------------------------------- the line

    def begin(self, works: int) -> None:
        """Hear that a run begins, of so many works that wait."""
        began = self.beside.began if self.beside else None
        self._began = self._clock() if began is None else began
        self._gauge.entered(works)

    @contextmanager
    def here(self) -> Generator[Callable[[], None]]:
        """Measure how long a work has the device that is made here, if it is; it yields what is to
        be called where the device is free before the work is done.
        """
        since = self._since = self._clock()
        until: list[float] = []

        def free() -> None:
            until.append(self._clock())
            self._since = None

        try:
            yield free
            end = until[0] if until else self._clock()
            self._gauge.left(1, max(0.0, end - since))
        finally:
            if not until:
                self._since = None

    def gone(self) -> None:
        """Hear that a work left the line otherwise: made for want of a worker, or quarantined."""
        self._gauge.left()

    def returned(self) -> None:
        """Hear that a work which was picked came to nothing, and is in the line again."""
        self._gauge.entered()

    def rest(self) -> None:
        """Hear that nobody there took a work: none goes there for a while."""
        self._rests_until = self._clock() + self._retry_s

    def wants(self, todo: Todo) -> bool:
        """Tell whether a work whose turn has come is late here, and left to those beside."""
        if self.beside is None or self._at_rest():
            return False
        seconds = self._gauge.load().seconds
        line = [(todo, todo.due)]
        return bool(seconds) and any(late(line, self._clock() - self._began, seconds))

    def pick(self, line: Line) -> tuple[Todo, Why] | None:
        """Take the next work that is to go beside the worker from the line; None: none is."""
        if self.beside is None or self._at_rest():
            return None
        with self._picking:
            picked = self._late_in(line) or self._next_in(line, whole=self.beside.whole)
            if picked is not None:
                self._gauge.left()
        return picked

    def _late_in(self, line: Line) -> tuple[Todo, Why] | None:
        seconds = self._gauge.load().seconds
        dated = line.dated() if seconds else []
        now, since = self._clock(), self._since
        busy_s = 0.0 if since is None else max(0.0, seconds - (now - since))
        for work in late(dated, now - self._began, seconds, busy_s):
            todo = line.take(work)
            if todo is not None:
                return todo, "deadline"
        return None

    def _next_in(self, line: Line, *, whole: bool) -> tuple[Todo, Why] | None:
        todo = line.first() if whole and self._line.where() else None
        return None if todo is None else (todo, "wait")

    def _at_rest(self) -> bool:
        """Tell whether nothing goes beside: nobody took the last one, or there is no worker."""
        return self._clock() < self._rests_until or not self._gauge.load().alive

    # -------------------------------------------------------------------------- making

    @property
    def calls(self) -> list[tuple[str, Nanos, bool]]:
        """What this thread's last work was asked of: "provider/model", nano-EUR, whether that is
        known.
        """
        return self._seat.calls

    def make(self, do: Do, why: Why, meter: list[Usage], tags: list[str]) -> Made:
        """Have a work made; ``meter`` gets what it used here, also where it comes to nothing, and
        ``tags`` those of its rows in the ledger.

        Raises:
            ContentFiltered: the provider refused; nobody else is asked.
            HostedFailed: it made no picture.
            PackshotError: as the recipe's steps do.
        """
        job = _Job(do)
        try:
            return self._seat.perform(job, why)
        finally:
            meter += job.usage
            tags += job.tags

    def close(self) -> None:
        """Close the connections; before the ledger."""
        self._provider.close()

    def _note(self, name: str, cost: Nanos, priced: bool) -> None:  # noqa: FBT001 - as it is called
        self._seat.calls.append((name, cost, priced))
