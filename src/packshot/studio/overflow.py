"""Where a render goes: to our own devices, or to a hosted provider where they are late or dead.

The decision is a function of the pool's load, a small state and a clock::

            wait > when_wait_exceeds_s, dwell over;  or no device alive (at once)
      home ────────────────────────────────────────────────────────────────► away
           ◄────────────────────────────────────────────────────────────────
            a device alive, wait <= back_below_s, dwell over

Two thresholds and a least stay (``dwell_s``) keep it from going back and forth: of a load that
swings around one threshold, nothing changes; of one that swings around both, at most one change in
each stay. A device that dies is left at once, for nothing can be rendered there. Beside that, one
render goes away alone where it would miss a deadline of its own.

The wait is what stands in line before a render, times the seconds that recent pictures took. Own
renders never pass through the gateway, nor does this file know it: `packshot.studio.hosted` does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import Literal, Protocol, TypeAlias, TypeVar

from packshot.core.errors import DeviceLost, DeviceMissing, HostedFailed

__all__ = [
    "HOME",
    "Gauge",
    "Limits",
    "Load",
    "Overflow",
    "Pool",
    "State",
    "Why",
    "device_is_dead",
    "late",
    "place",
    "step",
    "wait_s",
]

T = TypeVar("T")

Why: TypeAlias = Literal["", "device", "wait", "deadline"]
"""Why a render goes to the hosted provider: no device is alive, the line is too long, or it would
miss its own deadline. "" is that it stays."""

RECENT = 20
"""Pictures whose seconds are averaged: a minute or two of work, so that a new size is soon seen."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to go and when to return, in seconds; ``back_below_s`` is at most the first."""

    when_wait_exceeds_s: float = 20.0
    back_below_s: float = 10.0
    dwell_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the own pool has to do: whether a device is ``alive``, how many ``devices`` share the
    line, how many pictures are ``waiting`` in it (those in the making included), and the
    ``seconds`` that one takes on one device; 0 before the first is known.
    """

    alive: bool = True
    waiting: int = 0
    seconds: float = 0.0
    devices: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """Where renders go, why, and since when; before the first change, since ever."""

    away: Why = ""
    since: float = -inf


HOME = State()


class Pool(Protocol):
    """Who knows the own devices: a batch, a server of jobs. `Gauge` is one to be fed."""

    def load(self) -> Load:
        """Return the load at this moment; called for every render, from any thread."""
        ...

    def died(self) -> None:
        """Hear that a render failed since no device is alive."""
        ...


def wait_s(load: Load) -> float:
    """Return the predicted wait of a render that joins the line now."""
    return load.waiting * load.seconds / max(1, load.devices)


def step(state: State, load: Load, now: float, limits: Limits) -> State:
    """Return the state after a look at the load at ``now``, in seconds of a clock of one's own."""
    stayed = now - state.since >= limits.dwell_s
    wait = wait_s(load)
    if not load.alive:
        return replace(state, away="device") if state.away else State("device", now)
    if state.away:
        return State("", now) if stayed and wait <= limits.back_below_s else state
    return State("wait", now) if stayed and wait > limits.when_wait_exceeds_s else state


def place(state: State, load: Load, left_s: float | None) -> Why:
    """Return where a render goes that has ``left_s`` until its deadline, None without one."""
    if state.away or left_s is None:
        return state.away
    return "deadline" if wait_s(load) + load.seconds > left_s else ""


def late(
    line: Iterable[tuple[T, float]], now: float, seconds: float, busy_s: float = 0.0
) -> Iterator[T]:
    """Yield those of a known line that are to go: here each would end after it is due.

    ``line`` has (what, when it is due) in the order in which one device makes them, ``seconds``
    each; ``busy_s`` is what the one in the making still takes. Those that go make room: of what
    stays, nothing is predicted to be late.
    """
    ahead_s = busy_s
    for what, due in line:
        if now + ahead_s + seconds > due:
            yield what
        else:
            ahead_s += seconds


class Gauge:
    """A `Pool` that is told of each picture; safe to use from any thread.

    ``seconds`` is what one picture is expected to take before any was made.
    """

    def __init__(self, seconds: float = 0.0, devices: int = 1) -> None:
        self._expected = seconds
        self._devices = devices
        self._alive = True
        self._waiting = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def load(self) -> Load:
        """See `Pool`."""
        with self._lock:
            recent = self._recent
            seconds = sum(recent) / len(recent) if recent else self._expected
            return Load(self._alive, self._waiting, seconds, self._devices)

    def entered(self, pictures: int = 1) -> None:
        """Hear of pictures that joined the line."""
        with self._lock:
            self._waiting += pictures

    def left(self, pictures: int = 1, seconds: float | None = None) -> None:
        """Hear of pictures that left it; ``seconds`` is what they took together, if made."""
        with self._lock:
            self._waiting = max(0, self._waiting - pictures)
            if seconds is not None and pictures > 0:
                self._recent.extend([seconds / pictures] * pictures)
                self._alive = True

    def died(self) -> None:
        """See `Pool`."""
        with self._lock:
            self._alive = False

    def recovered(self) -> None:
        """Hear that a device is there again: a worker has loaded its model."""
        with self._lock:
            self._alive = True


class Overflow:
    """Decides for each render of a pool. Safe to use from any thread.

    ``clock`` returns seconds and never steps.
    """

    def __init__(self, limits: Limits, pool: Pool, clock: Callable[[], float] = monotonic) -> None:
        self.pool = pool
        self._limits = limits
        self._clock = clock
        self._state = HOME
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """Where renders go, as of the last one."""
        return self._state

    def where(self, left_s: float | None = None) -> Why:
        """Return why a render is to go to the hosted provider; "" where it stays."""
        load = self.pool.load()
        with self._lock:
            self._state = step(self._state, load, self._clock(), self._limits)
            return place(self._state, load, left_s)

    def go(
        self, own: Callable[[], T], hosted: Callable[[Why], T], left_s: float | None = None
    ) -> T:
        """Render here, or there; return what came of it.

        A render whose device dies under it goes there. One that nobody there took (an outage, no
        budget left) comes back where a device is alive, since late is better than never. What the
        provider's filter refused comes out as it is: it is not routed around.

        Raises:
            ContentFiltered: see above.
            HostedFailed: it went there, came to nothing, and no device is alive.
            PackshotError: what ``own`` raises, except that its device is dead.
        """
        why = self.where(left_s)
        if not why:
            try:
                return own()
            except Exception as error:
                if not device_is_dead(error):
                    raise
                self.pool.died()
                why = self.where(left_s) or "device"
        try:
            return hosted(why)
        except HostedFailed:
            if not self.pool.load().alive:
                raise
            return own()


def device_is_dead(error: BaseException) -> bool:
    """Tell whether an error says that the device is not there, or will do no more work.

    That a picture was too large for its memory does not, nor that one worker of a batch crashed:
    the next one may load, and only where none does is the device dead (`Pool.died`).
    """
    if isinstance(error, (DeviceMissing, DeviceLost)):
        return True
    # As torch raises it while a model loads. By name: torch is the engine's. The text is that of
    # older ones, and of libraries over CUDA.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return False
    return "AcceleratorError" in names or (
        isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
    )
