"""The process that holds the model: it is handed one item after the other, and may die of any.

Whatever goes wrong in here, a crash of a driver or a kernel that never returns, ends this process
and no other. It keeps nothing: a picture is in the run's folder, whole, before it is told of.
Started as ``python -m packshot.studio.batch.worker SOCKET``.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, cast, runtime_checkable

from packshot.core.errors import (
    CheckFailed,
    DeviceLost,
    InvalidRequest,
    ModelError,
    PackshotError,
)
from packshot.core.types import Usage
from packshot.studio.batch.frames import (
    Beat,
    Channel,
    Closed,
    Device,
    Do,
    Done,
    Failed,
    Free,
    Go,
    Ready,
    Start,
)
from packshot.studio.batch.items import Item
from packshot.studio.batch.state import Made

__all__ = ["BEAT_S", "Divided", "Factory", "Job", "Performer", "Rest", "serve"]

BEAT_S = 0.5
"""Seconds between two signs of life."""

FINISHING = 2
"""Items that are finished at once; `packshot.studio.batch.setup.Rules.in_hand` bounds them, too."""

OVERTIME_S = 60.0
"""Beyond its limit the process ends itself, even where nobody is left to end it."""


class Job(Protocol):
    """One item in the making, as its `Performer` sees it."""

    item: Item
    render: str
    caption: bytes
    usage: list[Usage]
    """What was used so far; it is told where the work fails, too."""
    tags: list[str]
    """Of its rows in the ledger, "name=value", sorted; told where the work fails, too."""

    def step(self) -> None:
        """Tell that something was done: a worker that tells nothing for long is taken to hang."""
        ...


class Performer(Protocol):
    """What does the work. It is made by a `Factory`, in the worker's process."""

    def __call__(self, job: Job, /) -> Made:
        """Make a picture, and put its file into the run's folder.

        Raises:
            InvalidRequest: it cannot be done, however often it is tried.
            PackshotError: this attempt failed. What is no PackshotError ends the process.
        """
        ...


Rest: TypeAlias = Callable[[], Made]
"""What is left to do of an item when its time on the device is over; for another thread."""


@runtime_checkable
class Divided(Performer, Protocol):
    """A `Performer` that can tell apart what needs the device: the next item has it meanwhile."""

    def begin(self, job: Job, /) -> Rest:
        """Do what needs the device, and return what does the rest; both raise as `__call__`."""
        ...


Factory: TypeAlias = Callable[[dict[str, Any], Path, Callable[[str], None]], Performer]
"""Called with the settings, the run's folder, and what is to be told the kind of the device before
anything is loaded there."""


class _Job:
    def __init__(self, do: Do, pulse: _Pulse) -> None:
        self.item = do.item
        self.render = do.render
        self.caption = do.caption
        self.usage: list[Usage] = []
        self.tags: list[str] = []
        self.step = pulse.step


class _Pulse:
    """Beats in a thread of its own until the run is gone, and then ends the process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._count = 0
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def step(self) -> None:
        self._count += 1

    def stop(self) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._channel.send(Beat(self._count))
            except Closed:
                os._exit(0)  # the run is gone: whatever is being made, nobody waits for it


def serve(channel: Channel) -> None:
    """Do what the run asks for, until it says good-bye or is gone."""
    start = channel.receive()
    if not isinstance(start, Start):
        raise Closed(f"expected Start, got {start}")
    pulse = _Pulse(channel)
    try:
        performer = _loaded(start, channel)
        if performer is None:
            return
        channel.send(Ready())
        with _Desk(channel, performer) as desk:
            while isinstance(do := channel.receive(), Do):
                if not desk.take(do, _Job(do, pulse)):
                    return
    finally:
        pulse.stop()


def _loaded(start: Start, channel: Channel) -> Performer | None:
    """Return what does the work; None where it could not be made, and the run was told why."""

    def on_device(kind: str) -> None:
        channel.send(Device(kind))
        if not isinstance(channel.receive(), Go):
            raise Closed("the device is not to be used")

    _end_after(start.limit_s)
    try:
        module, _, name = start.factory.partition(":")
        factory = cast("Factory", getattr(importlib.import_module(module), name))
        return factory(start.settings, Path(start.folder), on_device)
    except Closed:
        raise
    except Exception as error:  # noqa: BLE001 - the run is told, whatever it is
        traceback.print_exc()
        channel.send(_failed("", error))
        return None
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Desk:
    """The items in hand: one on the device, and those before it, which threads finish."""

    def __init__(self, channel: Channel, performer: Performer) -> None:
        self._channel = channel
        self._performer = performer
        self._threads = ThreadPoolExecutor(FINISHING, "finish")
        self._lock = threading.Lock()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def take(self, do: Do, job: Job) -> bool:
        """Do what needs the device; return whether this process can still be trusted."""
        self._begun(do.limit_s)
        if not isinstance(self._performer, Divided):
            return self._answer(do, job, lambda: self._performer(job))
        try:
            rest = self._performer.begin(job)
        except Exception as error:  # noqa: BLE001 - the run is told, whatever it is
            return self._answer(do, job, partial(_raised, error))
        self._channel.send(Free(do.token))
        self._threads.submit(self._finish, do, job, rest)
        return True

    def _finish(self, do: Do, job: Job, rest: Rest) -> None:
        """Do the rest of an item; a process that cannot tell what became of it ends."""
        try:
            self._answer(do, job, rest)
        except BaseException:  # noqa: BLE001 - nobody else would hear of it
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _answer(self, do: Do, job: Job, work: Rest) -> bool:
        """Do the work, and tell what came of it."""
        try:
            answer: Done | Failed = Done(do.token, work(), tuple(job.usage))
        except Exception as error:  # noqa: BLE001 - the run is told, whatever it is
            if not isinstance(error, PackshotError):
                traceback.print_exc()
            answer = _failed(do.token, error, job)
        self._ended()
        self._channel.send(answer)
        return not (isinstance(answer, Failed) and answer.broken)

    def _begun(self, limit_s: float) -> None:
        """Have the process end itself, should what is in hand take too long."""
        with self._lock:
            self._count += 1
            _end_after(limit_s)

    def _ended(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                faulthandler.cancel_dump_traceback_later()


def _raised(error: Exception) -> Made:
    raise error


def _failed(token: str, error: Exception, job: Job | None = None) -> Failed:
    """Return what the run is told.

    An error that nobody foresaw may have left anything behind: an out-of-memory or an assertion on
    the device breaks every render after it.
    """
    return Failed(
        token,
        type(error).__name__,
        " ".join(str(error).split())[:2000],
        final=isinstance(error, (InvalidRequest, ModelError, CheckFailed)),
        broken=isinstance(error, DeviceLost) or not isinstance(error, PackshotError),
        usage=tuple(job.usage) if job else (),
        tags=tuple(job.tags) if job else (),
    )


def _end_after(seconds: float) -> None:
    """End the process after this time, from a thread that needs no lock of the interpreter's."""
    faulthandler.dump_traceback_later(seconds + OVERTIME_S, exit=True)


def main() -> None:
    """Serve on the socket whose number is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to hear
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        serve(channel)
    except Closed:
        print("the run is gone", file=sys.stderr)  # noqa: T201 - into the worker's log
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries have nothing to say in the end


if __name__ == "__main__":
    main()
