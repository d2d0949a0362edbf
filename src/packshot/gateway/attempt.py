"""One call of one target with one key: its hold, its place in flight, and its one end."""

from __future__ import annotations

from time import monotonic

from packshot.core.types import Usage
from packshot.gateway.health import Breaker
from packshot.gateway.job import Job
from packshot.gateway.keys import Key
from packshot.gateway.money import Money
from packshot.gateway.plan import Target
from packshot.gateway.telemetry import Telemetry
from packshot.ledger.ledger import Hold
from packshot.providers.base import Failure

__all__ = ["LATE", "Attempt", "hold_at_once", "hold_for", "may_be_billed"]

LATE = "the deadline passed while the ledger was asked"

FAIR_S = 1.0
"""Silence that ends with the call's own deadline says something of the provider from here on …"""

FAIR_TIMES = 2.0
"""… and from so many times what the target took of late until its answer began."""

NEAR_S = 0.01
"""A timer may fire this much before the deadline that it was set to."""

BILLED_STATUS = frozenset({502, 504})
"""Answers of a proxy before the provider: the call behind it may have been made, and be billed."""


def may_be_billed(failure: Failure, *, sent: bool) -> bool:
    """Tell whether a failed attempt may cost money: then it is booked as unknown, at its bound.

    Providers do not bill for an error of their own. Silence and a broken connection after the
    request went out say nothing, nor does a proxy's 502 or 504.
    """
    if failure.status:
        return failure.status in BILLED_STATUS or failure.status < 300
    return sent


def hold_at_once(
    money: Money, job: Job, target: Target, key: Key, limit: int | None
) -> Hold | None:
    """Hold what an attempt may cost where that needs no waiting, as nearly always; None where
    `hold_for` is to be asked, and nothing is held.

    Raises:
        BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: do not make the call.
    """
    breaker = key.breakers.get(target.model)
    if breaker is not None and breaker.open_until:
        return None
    return money.hold_at_once(job, target, key.name, limit)


async def hold_for(
    money: Money, job: Job, target: Target, key: Key, limit: int | None
) -> Hold | None:
    """Hold what an attempt may cost; None where the deadline passed meanwhile, and nothing is held.

    It may wait for a disk or a database: where the attempt is the one that decides on a key's
    return, nobody else makes one in that time.

    Raises:
        BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: do not make the call.
    """
    began = monotonic()
    breaker = key.breakers.get(target.model) or key.breaker(target.model)
    if breaker.open_until:
        breaker.begin(began)
    try:
        hold = await money.hold(job, target, key.name, limit)
    except BaseException:
        breaker.neutral(began)
        raise
    if monotonic() < job.deadline:
        return hold
    breaker.neutral(began)
    money.void(hold, LATE)
    return None


class Attempt:
    """Begun when its hold stands; ended exactly once, by whichever of its methods comes first."""

    __slots__ = ("began", "breaker", "ended", "hold", "job", "key", "money", "target", "telemetry")

    def __init__(
        self,
        job: Job,
        target: Target,
        key: Key,
        hold: Hold | None,
        money: Money,
        telemetry: Telemetry,
    ) -> None:
        self.job = job
        self.target = target
        self.key = key
        self.hold = hold
        self.money = money
        self.telemetry = telemetry
        self.ended = False
        self.began = monotonic()
        self.breaker: Breaker = key.breakers.get(target.model) or key.breaker(target.model)
        if hold is not None:
            job.held += hold.amount
        elif self.breaker.open_until:  # else `hold_for` has told it
            self.breaker.begin(self.began)
        key.in_flight += 1
        target.in_flight += 1
        job.attempts += 1
        job.target = target
        job.key = key.name

    def lead(self) -> None:
        """Be the one that the caller is told of: of two at once, the later one stood there."""
        self.job.target, self.job.key = self.target, self.key.name

    def succeed(self, usage: Usage | None) -> None:
        """End it by what it used; by its whole hold where the provider did not say."""
        if self._leave():
            job, key, hold = self.job, self.key, self.hold
            self.breaker.success(monotonic(), self.began)
            if key.cooled or key.out:
                key.succeeded()
            if hold is not None:
                reason = "" if usage is not None else "the provider reported no usage"
                self.money.post(job, hold, usage, "succeeded", reason)
            self.telemetry.attempt(job, self.target, key, "succeeded", self.began)

    def waste(self, usage: Usage, reason: str) -> None:
        """End what was billed and reached nobody."""
        if self._leave():
            self.breaker.success(monotonic(), self.began)
            if self.hold is not None:
                self.money.post(self.job, self.hold, usage, "failed_billed", reason)
            self._tell("failed_billed")

    def fail(self, failure: Failure, *, sent: bool, began: bool = False) -> None:
        """End it in trouble; what may have been billed is booked at its bound.

        ``began``: the answer had begun, so that the provider was at work, whatever it says now.
        """
        if not self._leave():
            return
        self.job.failure = failure
        if failure.kind == "timeout" and monotonic() >= self.job.deadline - NEAR_S:
            self._note_deadline(sent=sent, began=began)
        else:
            self._note_health(failure)
        if self.hold is not None:
            if began or may_be_billed(failure, sent=sent):
                self.money.post(self.job, self.hold, None, "unknown", failure.kind)
            else:
                self.money.void(self.hold, failure.kind)
        self._tell(failure.kind)

    def abandon(self, reason: str, *, sent: bool) -> None:
        """End it for the caller's sake: it hung up, or another attempt was faster."""
        if not self._leave():
            return
        self.breaker.neutral(self.began)
        if self.hold is not None:
            if sent:
                self.money.post(self.job, self.hold, None, "unknown", reason)
            else:
                self.money.void(self.hold, reason)
        self._tell("abandoned")

    def _tell(self, outcome: str) -> None:
        self.telemetry.attempt(self.job, self.target, self.key, outcome, self.began)

    def _leave(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        if self.hold is not None:
            self.job.held -= self.hold.amount
        self.key.in_flight -= 1
        self.target.in_flight -= 1
        return True

    def _note_deadline(self, *, sent: bool, began: bool) -> None:
        """Note a call that its own deadline ended, not a limit of the operator's.

        Envoy counts it as a timeout of the host until the answer's head is there, and as a success
        from then on. Here a caller may be so impatient that it would take a key from all others:
        silence counts where it was long for this target, else the next call decides.
        """
        now = monotonic()
        fair_s = max(FAIR_S, FAIR_TIMES * self.target.latency_s)
        if began:
            self.breaker.success(now, self.began)
        elif not sent or now - self.began < fair_s:
            self.breaker.neutral(self.began)
        else:
            self._note_trouble(now)

    def _note_health(self, failure: Failure) -> None:
        now = monotonic()
        match failure.kind:
            case "rate_limit":
                self.key.cool(now, failure.retry_after_s)
                self.breaker.neutral(self.began)
            case "quota" | "auth":
                if not self.key.out or now >= self.key.ready_at:
                    self.telemetry.taken_out(self.key, failure)
                self.key.take_out(now, failure.kind)
                self.breaker.neutral(self.began)
            case "overloaded" | "server" | "timeout" | "network" | "garbage":
                self._note_trouble(now)
            case "context" | "refusal" | "bad_request" | "not_found":
                self.breaker.success(now, self.began)

    def _note_trouble(self, now: float) -> None:
        peers = self.target.provider.keys.breakers(self.target.model)
        if self.breaker.failure(now, self.began, peers):
            self.telemetry.opened(self.target, self.key)
