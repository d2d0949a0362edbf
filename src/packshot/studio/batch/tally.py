"""How far a run has come: what its progress shows while it goes, and its report in the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic

from packshot.core.money import Nanos
from packshot.core.types import Stage
from packshot.studio.batch.state import Counts
from packshot.studio.booking import Bill

__all__ = ["Tally"]

SPAN_S = 60.0
"""Over so many seconds the speed is taken: it follows what happens, and does not jump."""

SAMPLES = 600
"""Points of time that are remembered of them."""


@dataclass(slots=True)
class Tally:
    """Of this run: works made, delivered, quarantined, attempts that failed, starts of workers.

    ``before`` is what the state had when the run began. ``stages`` are nano-EUR by stage,
    ``unpriced`` the devices without a price. ``problem`` is what could not be booked, ``waiting``
    why captions are waited for, ``captions`` what their calls have cost. Of those made,
    ``elsewhere`` were a hosted provider's; ``not_taken`` is why it made none at last.
    """

    before: Counts
    made: int = 0
    delivered: int = 0
    quarantined: int = 0
    failed_attempts: int = 0
    starts: int = 0
    stages: dict[Stage, Nanos] = field(default_factory=dict[Stage, Nanos])
    unpriced: set[str] = field(default_factory=set[str])
    problem: str = ""
    waiting: str = ""
    captions: Nanos = 0
    elsewhere: int = 0
    not_taken: str = ""
    begun: float = field(default_factory=monotonic)
    _seen: deque[tuple[float, int]] = field(
        default_factory=lambda: deque[tuple[float, int]](maxlen=SAMPLES)
    )

    def charge(self, bill: Bill) -> None:
        """Add a bill."""
        for stage, amount in bill.stages.items():
            self.stages[stage] = self.stages.get(stage, 0) + amount
        self.unpriced |= bill.unpriced

    @property
    def amount(self) -> Nanos:
        """What this run's pictures have cost so far, in nano-EUR."""
        return sum(self.stages.values()) + self.captions

    @property
    def done(self) -> int:
        """Works of the plan that are done with: delivered or quarantined, in all runs."""
        return self.before.delivered + self.before.quarantined + self.delivered + self.quarantined

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return monotonic() - self.begun

    def speed(self) -> float:
        """Return works per second that were done with lately; 0 before the first."""
        now, count = monotonic(), self.delivered + self.quarantined
        if not self._seen or now - self._seen[-1][0] >= SPAN_S / SAMPLES:
            self._seen.append((now, count))
        while len(self._seen) > 1 and now - self._seen[0][0] > SPAN_S:
            self._seen.popleft()
        then, earlier = self._seen[0]
        if count == earlier or now <= then:
            return count / self.seconds if count and self.seconds > 0 else 0.0
        return (count - earlier) / (now - then)

    def eta_s(self) -> float | None:
        """Return the seconds that what is left will take, None where nobody knows yet."""
        speed = self.speed()
        left = self.before.works - self.done
        return left / speed if speed else None
