"""The worker's process, seen from the run: started, watched, ended, and started anew.

A worker is **lost** where its process ended, gives no sign of life, or gives signs but gets no step
further. Then it is killed, and the next one is started after a while that doubles each time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from packshot.core import errors
from packshot.core.errors import InvalidRequest, ModelError, PackshotError, WorkerLost
from packshot.core.types import Usage
from packshot.studio.batch.frames import (
    Beat,
    Bye,
    Channel,
    Closed,
    Device,
    Do,
    Done,
    Failed,
    Free,
    FromWorker,
    Go,
    Ready,
    Start,
)

__all__ = ["Order", "Patience", "Watch", "Worker", "error_of"]

LOG = "worker.log"
MAX_LOG = 1 << 20
"""Bytes; a longer log is begun anew with the next worker."""

SAID = 300
"""Characters of a dead worker's last words that are told."""

DIES_S = 10.0
"""A process that a SIGKILL does not end in this time is stuck in its device's driver (R22)."""


OURS: dict[str, type[PackshotError]] = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type)
    and issubclass(found, PackshotError)
    and not issubclass(found, (errors.UpstreamError, errors.Inexpressible, WorkerLost))
}
"""The errors of ours that are made of their message alone, by name."""


@dataclass(frozen=True, slots=True)
class Watch:
    """When a worker is taken to hang, in seconds, and how long the next one is waited with.

    ``silent_s``: no sign of life. ``stall_s``: no step done, before `enough` steps were seen; from
    then on ``times`` the 99th percentile of a step, and ``least_s`` at the least (RELIABILITY R22).
    ``item_s``: a whole item. ``load_s``: until the model is there.
    ``backoff_s``: before the second start in a row, doubled each time, up to ``backoff_most_s``.
    """

    silent_s: float = 30.0
    stall_s: float = 300.0
    least_s: float = 10.0
    times: float = 5.0
    enough: int = 50
    item_s: float = 3600.0
    load_s: float = 600.0
    backoff_s: float = 0.5
    backoff_most_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is started: a factory, its settings, and the run's folder."""

    factory: str
    settings: dict[str, Any]
    folder: Path


class Patience:
    """How long a step may take, from those that were seen."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen: deque[float] = deque(maxlen=1000)

    def saw(self, seconds: float) -> None:
        """Count a step that took this long."""
        self._seen.append(seconds)

    @property
    def limit_s(self) -> float:
        """Seconds without a step after which a worker is lost."""
        watch = self._watch
        if len(self._seen) < watch.enough:
            return watch.stall_s
        usual = sorted(self._seen)[len(self._seen) * 99 // 100]
        return max(watch.least_s, watch.times * usual)


class _Hung(Exception):
    """A process gives no sign of life, or gets no step further."""


class _Talk:
    """What is said with one process. Of the threads that ask, one reads at a time, for all."""

    def __init__(self, channel: Channel, watch: Watch, patience: Patience) -> None:
        self.channel = channel
        self._watch = watch
        self._patience = patience
        self._told = threading.Condition()
        self._inbox: dict[str, deque[Free | Done | Failed]] = {}
        self._reading = False
        self._over: Closed | _Hung | None = None
        self._heard = self._moved = monotonic()
        self._count = 0

    def loading(self) -> Iterator[FromWorker]:
        """Yield what a process says until it is ready."""
        end = monotonic() + self._watch.load_s
        while True:
            frame = self._next(end, "loading")
            if isinstance(frame, Ready):
                return
            yield frame

    def ask(self, do: Do, on_free: Callable[[], None]) -> Done | Failed:
        """Have an item made, and return the answer to its token; no other is taken.

        Raises:
            Closed, _Hung: the process is of no more use.
        """
        with self._told:
            self._inbox[do.token] = deque()
            self._heard = self._moved = monotonic()
            self._count = 0
        try:
            self.channel.send(do)
            end = monotonic() + self._watch.item_s
            while isinstance(frame := self._frame(do.token, end), Free):
                on_free()
            return frame
        finally:
            with self._told:
                del self._inbox[do.token]

    def _frame(self, token: str, end: float) -> Free | Done | Failed:
        """Return the next frame to a token."""
        mine = self._inbox[token]
        with self._told:
            while not mine:
                if self._over is not None:
                    raise type(self._over)(*self._over.args)
                if self._reading:
                    self._told.wait(1.0)
                    continue
                self._read(end)
            return mine.popleft()

    def _read(self, end: float) -> None:
        """Read a frame, whoever it is for; the others wait meanwhile."""
        self._reading = True
        self._told.release()
        frame: FromWorker | None = None
        try:
            frame = self._next(end, "one item")
        except (Closed, _Hung) as error:
            self._over = error
        finally:
            self._told.acquire()
            self._reading = False
            self._told.notify_all()
        if isinstance(frame, (Free, Done, Failed)) and frame.token in self._inbox:
            self._inbox[frame.token].append(frame)

    def _next(self, end: float, what: str) -> FromWorker:
        """Return the next frame that is no beat; `_Hung` where the process hangs."""
        loading = what == "loading"
        while True:
            frame = self.channel.receive(min(1.0, self._watch.silent_s / 4))
            now = monotonic()
            if isinstance(frame, Beat):
                self._heard = now
                if frame.count != self._count:
                    if self._count and not loading:
                        self._patience.saw(now - self._moved)
                    self._moved, self._count = now, frame.count
            elif frame is not None:
                return frame  # type: ignore[return-value] - a worker sends no other
            if now > end:
                limit_s = self._watch.load_s if loading else self._watch.item_s
                raise _Hung(f"{what} took longer than {limit_s:g} s")
            if now - self._heard > self._watch.silent_s and not loading:
                raise _Hung(f"no sign of life for {now - self._heard:.0f} s")
            if now - self._moved > self._patience.limit_s and not loading:
                raise _Hung(f"no step was done in {now - self._moved:.0f} s")


class Worker:
    """One worker process at a time. `load` is one thread's, `ask` and `kill` are anybody's."""

    def __init__(self, order: Order, watch: Watch) -> None:
        self._order = order
        self._watch = watch
        self._patience = Patience(watch)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._talk: _Talk | None = None
        self._killed = False
        self.starts = 0

    @property
    def alive(self) -> bool:
        """Whether there is a process that can be asked."""
        return self._process is not None and self._talk is not None

    def load(self, on_device: Callable[[str], None]) -> None:
        """Start a process and wait until its model is loaded.

        ``on_device`` is told the kind of device before it is used; what it raises comes out, and
        nothing is loaded.

        Raises:
            WorkerLost: the process ended, or does not come to an end.
            ModelError, InvalidRequest: the model cannot be loaded, nor will it the next time.
        """
        talk = self._start()
        try:
            talk.channel.send(
                Start(
                    self._order.factory,
                    self._order.settings,
                    str(self._order.folder),
                    self._watch.load_s,
                )
            )
            self._until_ready(talk, on_device)
        except Closed as error:
            raise self._lost(talk, str(error)) from error
        except _Hung as error:
            raise self._hung(talk, str(error)) from error
        except BaseException:
            self.kill()
            self._reap(talk)
            raise

    def ask(
        self,
        do: Do,
        meter: list[Usage],
        tags: list[str],
        on_free: Callable[[], None] = lambda: None,
    ) -> Done:
        """Have an item made; ``meter`` gets what it used, also where it comes to nothing, and
        ``tags`` those of its rows in the ledger. ``on_free`` is called where the device is free
        before it is done: another thread may then ask for the next item.

        Raises:
            WorkerLost: the process crashed, hangs, or was killed; the next one has to be loaded.
            PackshotError: the item failed, and the worker said why. It may be gone all the same.
        """
        talk = self._talk
        if talk is None:
            raise WorkerLost("no worker is loaded")
        try:
            answer = talk.ask(do, on_free)
        except Closed as error:
            raise self._lost(talk, str(error)) from error
        except _Hung as error:
            raise self._hung(talk, str(error)) from error
        meter += answer.usage
        if isinstance(answer, Done):
            tags += answer.made.tags
            return answer
        tags += answer.tags
        if answer.broken:
            self._reap(talk)
        raise error_of(answer)

    def close(self) -> None:
        """Let the process end by itself, and end it if it does not."""
        talk = self._talk
        if talk is not None:
            try:
                talk.channel.send(Bye())
            except Closed:
                self.kill()
        self._reap(talk)

    def kill(self) -> None:
        """End the process at once."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    # -------------------------------------------------------------------------- inside

    def _start(self) -> _Talk:
        self._reap(self._talk)
        ours, theirs = socket.socketpair()
        self._order.folder.mkdir(parents=True, exist_ok=True)
        log = self._order.folder / LOG
        mode = "ab" if log.exists() and log.stat().st_size < MAX_LOG else "wb"
        with theirs, log.open(mode) as out, self._lock:
            self._killed = False
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packshot.studio.batch.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                process_group=0,  # the terminal's Ctrl-C does not reach it
            )
            talk = self._talk = _Talk(Channel(ours), self._watch, self._patience)
        self.starts += 1
        return talk

    def _until_ready(self, talk: _Talk, on_device: Callable[[str], None]) -> None:
        for frame in talk.loading():
            if isinstance(frame, Device):
                on_device(frame.kind)
                talk.channel.send(Go())
            elif isinstance(frame, Failed):
                raise error_of(frame)

    def _hung(self, talk: _Talk, why: str) -> WorkerLost:
        """Kill a process that hangs, and return the error that says so."""
        killed = self._killed
        with self._lock:
            if self._process is not None and self._talk is talk:
                self._process.kill()
        self._reap(talk)
        return WorkerLost("the worker was stopped" if killed else f"the worker hung: {why}")

    def _lost(self, talk: _Talk, why: str) -> WorkerLost:
        """Return the error of a process that is gone: how it ended, and its last words."""
        killed, process = self._killed, self._reap(talk)
        if killed:
            return WorkerLost("the worker was stopped")
        code = process.returncode if process else None
        how = why if code is None else f"it ended with code {code}"
        if code is not None and code < 0:
            how = f"it was ended by {signal.Signals(-code).name}"
        said = _last_words(self._order.folder / LOG)
        return WorkerLost(f"the worker crashed: {how}{f' ({said})' if said else ''}")

    def _reap(self, talk: _Talk | None) -> subprocess.Popen[bytes] | None:
        """End what is left of the process that was talked with, and wait for it; return it.

        None where another thread has seen to that: the next process may be there already.
        """
        with self._lock:
            process = self._process
            if process is None or talk is None or self._talk is not talk:
                return None
            self._process = self._talk = None
        talk.channel.close()  # it ends by itself, where nothing holds it
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                process.wait(DIES_S)
            except subprocess.TimeoutExpired as error:
                raise PackshotError(
                    f"the worker's process {process.pid} does not die of SIGKILL: its device hangs,"
                    " and so will the next one there. Restart the machine, then run again"
                ) from error
        return process


def _environment() -> dict[str, str]:
    """Return the worker's: it imports what we can, and its idle threads sleep (`cli.main`)."""
    path = os.pathsep.join(part for part in sys.path if part)
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}


def error_of(failed: Failed) -> PackshotError:
    """Return the error that a worker told of, as the same class where it is one of ours."""
    found = OURS.get(failed.kind)
    if found is not None:
        return found(failed.message)
    said = f"{failed.kind}: {failed.message}" if failed.message else failed.kind
    if failed.final:
        return InvalidRequest(said)
    return WorkerLost(f"the worker failed: {said}") if failed.broken else ModelError(said)


def _last_words(log: Path) -> str:
    """Return the last line that a process wrote."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:SAID] for line in reversed(lines) if line.strip()), "")
