"""When a key is left alone: the circuit breaker of one (provider, key, model), and its cooldown.

The figures are Envoy's defaults for outlier detection (envoy/config/cluster/v3/
outlier_detection.proto); its hosts are a provider's keys. Four things differ. Envoy never ejects
more than a tenth of its hosts, since it has nowhere else to go; a target here has other keys, and
others behind it, so all may be out. It looks at shares once a window; here each failure does. It
ejects whoever succeeds less than the others, by one call of a hundred where those are equal; here
it must be a tenth of all calls. And what comes back is tried with one call before the others
follow, a minute after the last try at the latest: a provider that is back is used again within
60 s, however long it was away.

A rate limit is no illness: it cools the key, and neither trips nor closes the breaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

__all__ = ["Breaker"]

CONSECUTIVE = 5
"""Failures in a row that open the breaker (``consecutive_5xx``)."""

WINDOW_S = 10.0
"""Length of a window of the share of failures (``interval``)."""

SHARE = 0.85
"""Share of failures in a window that opens it (``failure_percentage_threshold``)."""

SHARE_OF = 50
"""Calls that a window must have for that (``failure_percentage_request_volume``)."""

PEERS = 5
"""Keys that have had enough calls before one can stand out (``success_rate_minimum_hosts``)."""

PEERS_OF = 100
"""Calls of the last windows that are enough (``success_rate_request_volume``)."""

SIGMAS = 1.9
"""Standard deviations under the mean that make it stand out (``success_rate_stdev_factor``)."""

GAP = 0.1
"""What it is under the mean at least: of equals the deviation is nothing."""

EJECT_S = 30.0
"""How long it stays open the first time (``base_ejection_time``); twice that the second time …"""

EJECT_MAX_S = 60.0
"""… and at most this, counted from the beginning of the call that failed (``max_ejection_time`` is
300 s, for hosts that have others beside them)."""

PROBE_S = 60.0
"""A probe that has not ended after this is taken to be lost: the next call is one, too."""


@dataclass(slots=True)
class Breaker:
    """Times are seconds of a monotonic clock, handed in.

    Call `begin` for each attempt, and then one of `success`, `failure` and `neutral`.
    """

    open_until: float = 0.0
    times: int = 0
    """How often it opened of late; a healthy window takes one off."""
    in_a_row: int = 0
    good: int = 0
    bad: int = 0
    window: float = 0.0
    probe: float = 0.0
    """When the one call was let through that decides; 0 while there is none."""
    opened: float = 0.0
    """When it opened last: what began before then says nothing new."""

    def allows(self, now: float) -> bool:
        """Tell whether a call may be made."""
        if not self.open_until:
            return True
        return now >= self.open_until and (not self.probe or now - self.probe > PROBE_S)

    def begin(self, now: float) -> None:
        """Note that a call is made: after an ejection it is the probe."""
        if self.open_until:
            self.probe = now

    def success(self, now: float, began: float | None = None) -> None:
        """Note an answer, whatever it says of the caller's request.

        ``began`` is as in `failure`: the answer to a call from before the ejection does not end it.
        """
        if self.open_until:
            if began is not None and began < self.opened:
                return
            self.open_until = self.probe = 0.0
        self.in_a_row = 0
        if now - self.window < WINDOW_S:
            self.good += 1
        else:
            self._count(now, good=True)

    def failure(
        self, now: float, began: float | None = None, peers: Iterable[Breaker] = ()
    ) -> bool:
        """Note trouble on the provider's side; return true where that opens the breaker.

        ``began`` is what `begin` was told for the call: one from before the ejection, which ends
        while the breaker is open, is neither a probe nor a reason to wait longer. ``peers`` are the
        breakers of all keys that might have made the call, this one too.
        """
        self.in_a_row += 1
        self._count(now, good=False)
        if self.open_until and began is not None and began < self.opened:
            return False
        probing = bool(self.probe)
        if self.open_until and not probing and now < self.open_until:
            return False
        total = self.good + self.bad
        bad_share = total >= SHARE_OF and self.bad >= SHARE * total
        ill = probing or self.in_a_row >= CONSECUTIVE or bad_share
        if not (ill or self._stands_out(peers, now)):
            return False
        self.times += 1
        since = self.probe if probing else now
        self.open_until = max(now, since + min(EJECT_S * self.times, EJECT_MAX_S))
        self.opened = now
        self.probe = 0.0
        self.in_a_row = self.good = self.bad = 0
        return True

    def neutral(self, began: float | None = None) -> None:
        """Note a call that says nothing about health: a rate limit, a caller that hung up."""
        if began is None or began >= self.opened:
            self.probe = 0.0

    def _stands_out(self, peers: Iterable[Breaker], now: float) -> bool:
        """Tell whether this succeeds less often than its peers do (Envoy's success rate)."""
        total = self.good + self.bad
        if total < PEERS_OF or self.bad < GAP * total:
            return False
        rates = [
            each.good / (each.good + each.bad)
            for each in peers
            if each.good + each.bad >= PEERS_OF and now - each.window < 2 * WINDOW_S
        ]
        if len(rates) < PEERS:
            return False
        return self.good / total < fmean(rates) - max(GAP, SIGMAS * pstdev(rates))

    def _count(self, now: float, *, good: bool) -> None:
        if now - self.window >= WINDOW_S:
            if self.times and not self.open_until and not self.bad:
                self.times -= 1
            self.window, self.good, self.bad = now, 0, 0
        if good:
            self.good += 1
        else:
            self.bad += 1
