"""Works of a batch that a hosted provider makes, since no worker can be started here.

The line of a batch is as long as the batch, so its wait says nothing: only dead devices send works
away (`packshot.studio.overflow`). Meanwhile a worker is tried again every now and then, and the
works return to it when it has loaded its model and the stay is over.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from packshot.core.money import Nanos
from packshot.core.types import RenderRequest, Usage
from packshot.studio.overflow import Gauge, Limits, Overflow, Why

if TYPE_CHECKING:
    from packshot.engine.results import OnStep, RenderResult
    from packshot.studio.batch.frames import Do
    from packshot.studio.batch.items import Item
    from packshot.studio.batch.state import Made
    from packshot.studio.batch.worker import Performer
    from packshot.studio.hosted import HostedProvider
    from packshot.studio.render import Renderer

__all__ = ["Elsewhere", "OnCall"]

RETRY_S = 30.0
"""Between two tries to start a worker while works are made elsewhere; or the stay, if longer."""

OnCall = Callable[[str, Nanos, bool], None]


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


class Elsewhere:
    """Decides for each work of a run, and has those made that are not made here.

    It is the `Renderer` of its own performer, so that each of a recipe's renders is asked for on
    the id of the work in hand. For one thread.

    Args:
        limits: when to return.
        provider: makes the hosted provider, which is told who hears of its calls.
        performer: makes what runs the recipe with a renderer that it is given.
        clock: returns seconds.
    """

    device_kind = "hosted"

    def __init__(
        self,
        limits: Limits,
        provider: Callable[[OnCall], HostedProvider],
        performer: Callable[[Renderer], Performer],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._gauge = Gauge()
        self._overflow = Overflow(limits, self._gauge, clock)
        self._provider = provider(self._note)
        self._make = performer
        self._clock = clock
        self._retry_s = max(RETRY_S, limits.dwell_s)
        self._tried = -self._retry_s
        self._performer: Performer | None = None
        self._render = ""
        self._why: Why = ""
        self.calls: list[tuple[str, Nanos, bool]] = []
        """What the last work was asked of: "provider/model", nano-EUR, whether that is known."""

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
        """Return why the next work is to be made elsewhere; "" where it is not."""
        return self._overflow.where()

    def make(self, do: Do, why: Why, meter: list[Usage], tags: list[str]) -> Made:
        """Have a work made; ``meter`` gets what it used here, also where it comes to nothing, and
        ``tags`` those of its rows in the ledger.

        Raises:
            ContentFiltered: the provider refused; nobody else is asked.
            HostedFailed: it made no picture.
            PackshotError: as the recipe's steps do.
        """
        self.calls.clear()
        self._render, self._why = do.render, why
        if self._performer is None:
            self._performer = self._make(self)
        job = _Job(do)
        try:
            return self._performer(job)
        finally:
            meter += job.usage
            tags += job.tags

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> RenderResult:
        """Return the pictures of the work in hand; see `Renderer`."""
        renders = [self._render] * len(request.seeds)
        return self._provider.renderer(renders, self._why).render(request, on_step=on_step)

    def close(self) -> None:
        """Close the connections; before the ledger."""
        self._provider.close()

    def _note(self, name: str, cost: Nanos, priced: bool) -> None:  # noqa: FBT001 - as it is called
        self.calls.append((name, cost, priced))
