"""Captions by a language model, written ahead of the rendering: the device never waits for a call.

Calls are made side by side in a thread of their own, in the order of the works, a bounded number
ahead. A caption is kept as soon as it is there, under all that decides it: neither a crash nor a
changed sampler pays for it twice. Where nobody answers, works wait: after some calls in vain only
one is made now and then, until it is answered (RELIABILITY R2); after `Waiting.patience_s` the run
stops, and says so. Where the answers cannot be used, or the brief is refused, the rules' caption
stands, as in `packshot render`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from packshot.core.errors import BudgetExceeded, PackshotError
from packshot.core.money import Nanos
from packshot.studio.batch.state import Attempt, RunState, Todo

if TYPE_CHECKING:
    from packshot.studio.caption import Caption

__all__ = ["Ahead", "Gate", "Scribe", "Unanswered", "Waiting", "write_all"]


FIRST_PAUSE_S = 0.5
"""Before a brief is sent again that nobody answered; it doubles, up to `Waiting.probe_s`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Limits of the calls.

    ``at_once``: briefs that are written side by side. ``ahead``: captions that may wait for their
    rendering. ``enough``: calls in vain, one after the other, before all but one wait; that one is
    made every ``probe_s`` seconds. ``patience_s``: so long without any answer ends the run.
    ``tries``: calls in vain for one brief before it is left to the rules: an hour and a half's.
    """

    at_once: int = 8
    ahead: int = 64
    enough: int = 3
    probe_s: float = 30.0
    patience_s: float = 4 * 3600.0
    tries: int = 200


class Unanswered(PackshotError):
    """Nobody answered for so long that the run stops; what is done is kept."""


class Scribe(Protocol):
    """Who writes; `packshot.cli.batch` has the one that asks the gateway."""

    @property
    def cost(self) -> Nanos:
        """What its calls have cost so far, in nano-EUR."""
        ...

    async def write(self, brief: str, render: str, /) -> Caption:
        """Return a caption; its ``writer.why`` says why it is the rules' own, if it is."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class Gate:
    """Who may call: everybody while there are answers, else one now and then."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self._failed = 0
        self._since = self._next = 0.0
        self._probing = False
        self.why = ""

    async def enter(self) -> None:
        """Wait until a call may be made."""
        loop = asyncio.get_running_loop()
        while self._failed >= self.waiting.enough:
            if not self._probing and loop.time() >= self._next:
                self._probing = True
                return
            await asyncio.sleep(max(0.05, min(1.0, self._next - loop.time())))

    def answered(self) -> None:
        """Open for all."""
        self._failed, self._probing, self.why = 0, False, ""

    def unanswered(self, why: str) -> None:
        """Count a call in vain.

        Raises:
            Unanswered: it has been too long.
        """
        now = asyncio.get_running_loop().time()
        if not self._failed:
            self._since = now
        self._failed += 1
        self._probing, self.why = False, why
        self._next = now + self.waiting.probe_s
        if now - self._since > self.waiting.patience_s:
            hours = self.waiting.patience_s / 3600
            raise Unanswered(
                f"no caption for {hours:g} h, at last because: {why}. What is done is kept: run "
                "again when the provider is well, or with --caption rules"
            )


async def write_all(
    jobs: Iterator[Todo],
    write: Callable[[Todo], Awaitable[Caption]],
    keep: Callable[[Todo, Caption], None],
    gate: Gate,
    room: Callable[[], bool] = lambda: True,
) -> None:
    """Write a caption for each of ``jobs``, and hand it to ``keep``, in any order; lose none.

    ``room`` tells whether there is room for another caption that waits.

    Raises:
        BudgetExceeded: the ledger lets no call be made.
        Unanswered: see `Waiting`.
    """

    async def hand() -> None:
        for job in jobs:
            while not room():  # noqa: ASYNC110 - it is another thread that makes room
                await asyncio.sleep(0.05)
            keep(job, await _one(job, write, gate))

    hands = [asyncio.ensure_future(hand()) for _ in range(gate.waiting.at_once)]
    try:
        await asyncio.gather(*hands)
    finally:
        for each in hands:
            each.cancel()
        await asyncio.gather(*hands, return_exceptions=True)


async def _one(job: Todo, write: Callable[[Todo], Awaitable[Caption]], gate: Gate) -> Caption:
    """Have one caption written, however long it takes."""
    pause = FIRST_PAUSE_S
    for number in count(1):
        await gate.enter()
        caption = await write(job)
        why = caption.writer.why
        if why == "budget":
            raise BudgetExceeded(f"no caption may be asked for: {caption.problem}")
        if why not in {"unanswered", "deadline"}:
            gate.answered()
            return caption
        gate.unanswered(caption.problem)
        if number >= gate.waiting.tries:
            return caption
        # Or the same brief would be the one that tries a silent provider each time.
        await asyncio.sleep(pause)
        pause = min(2 * pause, gate.waiting.probe_s)
    raise AssertionError("there is no last number")


class Ahead:
    """The captions of a run, written in a thread ahead of it.

    ``scribe`` makes who writes, inside the thread's event loop. ``run`` runs a coroutine there.
    ``about`` says what else decides a caption: the route, the prompt, the lexicon.
    """

    def __init__(
        self,
        state: RunState,
        scribe: Callable[[], Scribe],
        about: str,
        run: Callable[[Coroutine[Any, Any, None]], None],
        waiting: Waiting | None = None,
    ) -> None:
        self._state = state
        self._scribe = scribe
        self._about = about
        self._run = run
        self._gate = Gate(waiting or Waiting())
        self._changed = threading.Condition()
        self._ready: dict[bytes, tuple[bytes, Attempt | None]] = {}
        self._asked: set[bytes] = set()
        self._writer: Scribe | None = None
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="captions", daemon=True)

    @property
    def cost(self) -> Nanos:
        """What the captions of this run have cost so far, in nano-EUR."""
        return 0 if self._writer is None else self._writer.cost

    @property
    def trouble(self) -> str:
        """Why nobody answers, "" where somebody does."""
        return self._gate.why

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def take(self, todo: Todo, stopped: Callable[[], bool]) -> tuple[bytes, Attempt | None] | None:
        """Return a work's caption, and the attempt that its calls were booked on, if any were made.

        None where the run is to end.

        Raises:
            PackshotError: no more captions can be had.
        """
        with self._changed:
            while todo.work not in self._ready:
                if self._error is not None:
                    raise self._error
                kept = self._state.caption(self._mark(todo))
                if kept is not None:
                    return kept, None
                if stopped():
                    return None
                self._changed.wait(0.2)
            return self._ready.pop(todo.work)

    def stop(self) -> None:
        """End the calls that are under way; they settle themselves."""
        self._stop = True
        self._thread.join(5.0)

    def _work(self) -> None:
        try:
            self._run(self._all())
        except BaseException as error:  # noqa: BLE001 - `take` raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    async def _all(self) -> None:
        scribe = self._writer = self._scribe()
        attempts: dict[bytes, Attempt] = {}

        async def write(todo: Todo) -> Caption:
            if todo.work not in attempts:
                attempts[todo.work] = self._state.begin(todo.work)
            return await scribe.write(todo.item.brief, attempts[todo.work].render)

        def keep(todo: Todo, caption: Caption) -> None:
            content = msgspec.msgpack.encode(caption)
            mark = self._mark(todo)
            self._state.keep_caption(mark, content)
            self._asked.discard(mark)
            with self._changed:
                self._ready[todo.work] = (content, attempts.pop(todo.work))
                self._changed.notify_all()

        work = asyncio.ensure_future(
            write_all(self._wanted(), write, keep, self._gate, self._has_room)
        )
        try:
            while not work.done() and not self._stop:
                await asyncio.wait({work}, timeout=0.1)
            work.cancel() if self._stop else await work
            await asyncio.gather(work, return_exceptions=True)
        finally:
            await scribe.close()

    def _wanted(self) -> Iterator[Todo]:
        """Yield the works whose captions are not there yet, of those that share one the first."""
        for todo in self._state.waiting("todo"):
            mark = self._mark(todo)
            if mark not in self._asked and self._state.caption(mark) is None:
                self._asked.add(mark)
                yield todo

    def _has_room(self) -> bool:
        return len(self._ready) < self._gate.waiting.ahead

    def _mark(self, todo: Todo) -> bytes:
        return sha256(f"{self._about}\0{todo.item.brief}".encode()).digest()
