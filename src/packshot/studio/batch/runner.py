"""The run of a batch: threads make pictures in the worker, others bring them to the store.

::

    waiting works ─► make (one worker) ─► the run's folder ─► send (a few threads) ─► delivered
                │      │ fails: to the end of the line, or quarantined
                └────► make (a hosted provider, some threads) what would be late here

The threads that make take turns at the device, which never waits for a picture to be finished: who
is through with it lets the next one begin. Where the worker is lost, whose turn it is has used up
an attempt; what was being finished has not, but is made alone when it comes again.

Each arrow is a transaction of the state, so whatever dies, the next run goes on from there. Money
is held before a work is made and posted when it is, as `packshot render` does; so is what storing
takes. A picture that is made is never made again: if it cannot be stored, it waits in the folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Queue
from time import monotonic, perf_counter

from packshot.core.errors import (
    BudgetExceeded,
    CheckFailed,
    ContentFiltered,
    DeviceMissing,
    HostedFailed,
    InvalidRequest,
    LedgerError,
    OutputError,
    PackshotError,
    WorkerLost,
)
from packshot.core.ids import new_id
from packshot.core.money import Nanos, show_eur
from packshot.core.types import STAGES, Stage, Usage
from packshot.studio.batch.elsewhere import AT_ONCE
from packshot.studio.batch.frames import Do
from packshot.studio.batch.line import Line, Turn
from packshot.studio.batch.setup import Books, Rules, Setup
from packshot.studio.batch.spool import Spool
from packshot.studio.batch.state import Attempt, Delivered, Made, RunState, Todo
from packshot.studio.batch.supervise import Worker
from packshot.studio.batch.tally import Tally
from packshot.studio.booking import Bookkeeper
from packshot.studio.overflow import Why
from packshot.studio.session import DeviceSession

__all__ = ["Books", "Rules", "Run", "Setup"]

MAKING: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage != "store")
TICK_S = 0.2
"""Between two looks at the run, and two lines of its progress."""

WAKES_S = 1.0
"""Between two looks of a sender that has nothing to send, or a thread that has none to pick."""

_BESIDE: tuple[Why, ...] = ("deadline", "wait")
"""Why a work is made elsewhere though a worker is well."""

BESIDE_RENDER: tuple[Stage, ...] = ("caption", "finish")
"""What is made here of a work that is rendered elsewhere."""


@dataclass(slots=True)
class Stop:
    """Whether, and how soon, the run is to end: 0 not, 1 after what is begun, 2 at once."""

    level: int = 0
    why: str = ""
    heard: threading.Event = field(default_factory=threading.Event)

    def ask(self, level: int, why: str) -> None:
        """Ask for an end; the first reason counts."""
        self.level = max(self.level, level)
        self.why = self.why or why
        self.heard.set()


class Run:
    """One run of a batch, from where the last one ended. `go` may be called once."""

    def __init__(self, state: RunState, setup: Setup) -> None:
        self.state = state
        self.tally = Tally(state.counts())
        self.stop = Stop()
        self.worker = Worker(setup.order, setup.watch)
        self.spool = Spool(state.folder)
        self.line = Line(state)
        self._setup = setup
        self._books = setup.books
        self._rules = setup.rules
        self._session: DeviceSession | None = None
        self._error: BaseException | None = None
        self._unlucky = 0
        self._out = 0
        self._starts = 0
        self._cost: Nanos = 0
        self._unsent: Queue[tuple[bytes, Made, int, float] | None] = Queue()
        self._room = threading.Semaphore(setup.rules.waiting)
        self._refused = 0
        self._pending = 0
        self._closed = False
        self._made_all = threading.Event()
        self._lock = threading.Lock()
        self._device = threading.Lock()
        self._alone: set[bytes] = set()

    def go(self, tick: Callable[[Tally], None] | None = None, *, most: int | None = None) -> Tally:
        """Make and store what is left, at ``most`` so many works, and return the tally.

        ``tick`` is called several times a second, in this thread. `stop` may be asked from anywhere
        meanwhile; what is made then waits for the next run.

        Raises:
            PackshotError: the run cannot go on: the ledger, the model, the store, or the worker.
        """
        self.state.abandon()
        self.spool.sweep()
        # What is made to measure is made one by one.
        hands = 1 if most is not None else self._rules.in_hand
        maker = threading.Thread(
            target=self._guarded, args=(self._make_all, most, hands), daemon=True
        )
        beside = [
            threading.Thread(target=self._guarded, args=(self._make_beside,), daemon=True)
            for _ in range(self._hands(most))
        ]
        senders = [
            threading.Thread(target=self._guarded, args=(self._send_all,), daemon=True)
            for _ in range(self._rules.senders)
        ]
        captions = self._setup.captions
        if captions is not None:
            captions.start()
        for thread in (maker, *beside, *senders):
            thread.start()
        try:
            self._watch([maker, *beside], senders, tick)
        finally:
            if captions is not None:
                captions.stop()
            if self.stop.level > 1:
                self.worker.kill()
            if not maker.is_alive():
                self.worker.close()
            if self._setup.elsewhere is not None:
                self._setup.elsewhere.close()
                for thread in beside:
                    thread.join(0.5)
            self._end_session()
        if self._error is not None:
            raise self._error
        return self.tally

    def _watch(
        self,
        makers: Sequence[threading.Thread],
        senders: Sequence[threading.Thread],
        tick: Callable[[Tally], None] | None,
    ) -> None:
        """Wait for the threads; at an end at once, only a moment."""
        patience, told = None, False
        while any(thread.is_alive() for thread in (*makers, *senders)):
            at_work = [maker for maker in makers if maker.is_alive()]
            if at_work:
                at_work[0].join(TICK_S)
            else:
                if not told:
                    told = True
                    for _ in senders:
                        self._unsent.put(None)
                senders[0].join(0.02)
            if self.stop.level > 1:
                self.worker.kill()
                patience = patience or monotonic() + 2.0
                if monotonic() > patience:
                    return
            if self._setup.captions is not None:
                self.tally.waiting = self._setup.captions.trouble
                self.tally.captions = self._setup.captions.cost
            if tick is not None:
                tick(self.tally)
            self._tick_session()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """Do a thread's work; its first error ends the run."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - `go` raises it
            with self._lock:
                self._error = self._error or error
            self.stop.ask(1, str(error))

    # -------------------------------------------------------------------------- making

    def _make_all(self, most: int | None, hands: int) -> None:
        for todo in self.state.waiting("made"):
            if todo.made is not None:
                self._hand_over(todo.work, todo.made)
        others = [
            threading.Thread(target=self._guarded, args=(self._make_here, most), daemon=True)
            for _ in range(hands - 1)
        ]
        for other in others:
            other.start()
        self._guarded(self._make_here, most)
        for other in others:
            other.join()
        self._made_all.set()

    def _make_here(self, most: int | None) -> None:
        """Make what waits, in turn, but for what others have or are to take."""
        done = 0
        while not self.stop.level:
            with Turn(self._device) as turn:
                if self.stop.level or (most is not None and done >= most):
                    return
                todo = self.line.following(partial(self._is_left, most))
                if todo is not None:
                    done += 1
                    try:
                        self._check_agreed()
                        self._make(todo, self._place(), turn)
                    except BaseException as error:
                        self.stop.ask(1, str(error))  # before the next turn begins
                        raise
                    finally:
                        self.line.leave(todo.work)
                elif self.line.empty:
                    return
            if todo is None:  # what is left, others have
                self.stop.heard.wait(TICK_S)

    def _make_beside(self) -> None:
        """Have made elsewhere what would be late here, until all is made."""
        elsewhere = self._setup.elsewhere
        while elsewhere is not None and not self.stop.level and not self._made_all.is_set():
            picked = elsewhere.pick(self.line)
            if picked is None:
                self._made_all.wait(WAKES_S)
                continue
            todo, why = picked
            try:
                if self._reserved(elsewhere.beside.price if elsewhere.beside else 0):
                    self._make(todo, why, Turn())
                else:
                    elsewhere.rest()
            finally:
                with self._lock:
                    self._out -= 1
                self.line.leave(todo.work)
                if self.state.todo(todo.work) is not None:
                    elsewhere.returned()

    def _reserved(self, price: Nanos) -> bool:
        """Count a work as under way elsewhere; return whether what was agreed covers all those."""
        agreed, captions = self._books.agreed, self._setup.captions
        with self._lock:
            self._out += 1
            cost = self._cost + (captions.cost if captions else 0) + self._out * price
            if agreed is None or cost <= agreed:
                return True
        self.tally.not_taken = f"the {show_eur(agreed)} EUR that were agreed are used up"
        return False

    def _hands(self, most: int | None) -> int:
        """Return how many threads have works made beside the worker; none while it is measured."""
        elsewhere = self._setup.elsewhere
        if elsewhere is None:
            return 0
        elsewhere.begin(self.state.counts().todo)
        if most is not None or elsewhere.beside is None:
            return 0
        return AT_ONCE if elsewhere.beside.whole or self.state.dated() else 0

    def _is_left(self, most: int | None, todo: Todo) -> bool:
        elsewhere = self._setup.elsewhere
        return elsewhere is not None and most is None and elsewhere.wants(todo)

    def _check_agreed(self) -> None:
        agreed, captions = self._books.agreed, self._setup.captions
        cost = self._cost + (captions.cost if captions else 0)
        if agreed is not None and cost > agreed:
            raise BudgetExceeded(
                f"this run has cost {show_eur(cost)} EUR, and {show_eur(agreed)} were agreed:"
                " run it again with a higher --yes-up-to"
            )

    def _make(self, todo: Todo, why: Why | None, turn: Turn) -> None:
        """Make one work, in the worker or for the reason ``why`` elsewhere, and see to what comes
        of it; None: the run is to end.
        """
        if why is None:
            return
        begun = self._begun(todo)
        if begun is None:
            return
        attempt, caption = begun
        keeper = self._keeper(MAKING, self._session)
        if why:
            keeper = self._keeper(MAKING, None).beside(BESIDE_RENDER)
        meter: list[Usage] = []
        made: list[Made] = []
        tags: list[str] = []
        try:
            with keeper.booked([self._books.model], meter, made, [attempt.render], tags=tags):
                limit_s = self._setup.watch.item_s
                do = Do(new_id(), todo.item, attempt.render, limit_s, caption)
                turn.whole = todo.work in self._alone
                made.append(self._made(do, why, meter, tags, keeper, turn))
                self.state.made(attempt, made[0])
        except LedgerError as error:
            self.state.ended(attempt, "abandoned", str(error))
            raise
        except PackshotError as error:
            if self.stop.level > 1:
                self.state.ended(attempt, "abandoned", "the run was stopped")
                return
            if why in _BESIDE and isinstance(error, HostedFailed):
                self._not_taken(attempt, error)
                return
            lost = isinstance(error, WorkerLost)
            if lost and turn.over:
                self._alone.add(todo.work)
                self.state.ended(attempt, "abandoned", f"beside another work's turn: {error}")
                return
            self.state.ended(attempt, "lost" if lost else "failed", str(error))
            self._failed(todo, attempt.number, error, why)
        else:
            self._done(why)
            self._hand_over(todo.work, made[0])
        finally:
            self._charge(attempt.render, keeper)

    def _place(self) -> Why | None:
        """Return why a work is to be made elsewhere, "" in the worker; None at the run's end."""
        elsewhere = self._setup.elsewhere
        if elsewhere is None:
            return "" if self.worker.alive or self._load() else None
        if not self.worker.alive and elsewhere.may_load():
            try:
                if not self._load():
                    return None
                elsewhere.loaded(alive=True)
            except (WorkerLost, DeviceMissing):
                self._end_session()
                elsewhere.loaded(alive=False)
        return elsewhere.why()

    def _made(
        self, do: Do, why: Why, meter: list[Usage], tags: list[str], keeper: Bookkeeper, turn: Turn
    ) -> Made:
        """Return what was made of a work, in the worker or elsewhere."""
        elsewhere = self._setup.elsewhere
        if elsewhere is None:
            return self.worker.ask(do, meter, tags, turn.free).made
        if not why:
            with elsewhere.here() as free:
                turn.heard = free
                return self.worker.ask(do, meter, tags, turn.free).made
        try:
            return elsewhere.make(do, why, meter, tags)
        finally:
            for name, cost, priced in elsewhere.calls:
                keeper.bill.add_call(name, cost, priced=priced, stage="denoise")

    def _begun(self, todo: Todo) -> tuple[Attempt, bytes] | None:
        """Return the attempt at a work, and its caption if one was written; None at an end."""
        captions = self._setup.captions
        if captions is None:
            return self.state.begin(todo.work), b""
        taken = captions.take(todo, lambda: self.stop.level > 0)
        if taken is None:
            return None
        caption, attempt = taken
        return attempt or self.state.begin(todo.work), caption

    def _done(self, why: Why) -> None:
        """Count a work that was made."""
        with self._lock:
            self._unlucky = 0
            self.tally.made += 1
            self.tally.elsewhere += bool(why)
        if why not in _BESIDE:
            self._starts = 0
        if why:  # the worker's own were measured on their way
            self._left_line(why)

    def _not_taken(self, attempt: Attempt, error: HostedFailed) -> None:
        """Let a work that nobody elsewhere made be made here: that says nothing against it."""
        self.state.ended(attempt, "abandoned", str(error))
        self.tally.not_taken = str(error)
        if self._setup.elsewhere is not None:
            self._setup.elsewhere.rest()

    def _left_line(self, why: Why) -> None:
        if why not in _BESIDE and self._setup.elsewhere is not None:
            self._setup.elsewhere.gone()

    def _failed(self, todo: Todo, number: int, error: PackshotError, why: Why) -> None:
        """Quarantine a work that failed too often, or cannot be done; or let it wait."""
        with self._lock:
            self.tally.failed_attempts += 1
        if why not in _BESIDE and not self.worker.alive:
            self._end_session()
        final = isinstance(error, (InvalidRequest, ContentFiltered, CheckFailed))
        if final or number >= self._rules.attempts:
            tries = "" if final else f" ({number} attempts)"
            self._quarantine(todo.work, f"{error}{tries}")
            self._left_line(why)
        if number > 1:
            return
        with self._lock:
            self._unlucky += 1
            unlucky = self._unlucky
        if unlucky >= self._rules.in_a_row:
            raise type(error)(
                f"{unlucky} works in a row failed at their first try, the last one so: "
                f"{error}. The run stops, for it does not seem to be the works"
            )

    def _load(self) -> bool:
        """Start a worker, its device's time booked; false where the run is to end instead.

        The first is started at once, later ones after a while that doubles.
        """
        watch, books = self._setup.watch, self._books
        last: PackshotError | None = None
        for _ in range(self._rules.attempts):
            if self._starts:
                wait_s = watch.backoff_s * 2 ** (self._starts - 1)
                self.stop.heard.wait(min(watch.backoff_most_s, wait_s))
            if self.stop.level:
                return False
            self._starts += 1
            self.tally.starts += 1
            self._end_session()
            self._session = DeviceSession(books.ledger, books.book, books.recipe)
            try:
                with self._session.loading() as on_device:
                    self.worker.load(on_device)
            except WorkerLost as error:
                self._end_session()
                last = error
            else:
                return True
        raise WorkerLost(f"no worker could be started in {self._rules.attempts} tries: {last}")

    # -------------------------------------------------------------------------- sending

    def _hand_over(self, work: bytes, made: Made) -> None:
        """Give a picture to the senders; wait while too many wait there."""
        while not self._room.acquire(timeout=0.2):
            if self.stop.level:
                return  # it is in the folder, for the next run
        with self._lock:
            self._pending += 1
        self._unsent.put((work, made, 1, 0.0))

    def _let_go(self) -> None:
        """Make room for another picture."""
        with self._lock:
            self._pending -= 1
        self._room.release()

    def _send_all(self) -> None:
        """Store what is handed over, until nothing more comes (None) and nothing waits."""
        while self.stop.level < 2 and not self._closed:
            try:
                handed = self._unsent.get(timeout=WAKES_S)
            except Empty:
                continue
            if handed is None:
                if not self._pending or self.stop.level:
                    return
                self._unsent.put(None)  # what is to be sent again is behind it
                time.sleep(0.02)
                continue
            work, made, number, at = handed
            if at > monotonic():
                self._unsent.put(handed)
                if self.stop.level:
                    return  # it waits in the folder, for the next run
                time.sleep(0.02)
                continue
            self._send(work, made, number)

    def _send(self, work: bytes, made: Made, number: int) -> None:
        """Store one picture, and see to what comes of it."""
        keeper = self._keeper(("store",), None)
        sent: list[Delivered] = []
        try:
            with keeper.booked(
                [self._books.model], meter := [], sent, [made.render], tags=made.tags
            ):
                sent.append(self._stored(made, meter))
                self.state.deliver(work, sent[0])
        except _Gone:
            self.state.unmade(work)
            self._let_go()
        except OutputError as error:
            self._unsendable(work, made, number, error)
        else:
            with self._lock:
                self._refused = 0
                self.tally.delivered += 1
            self.spool.drop(made)
            self._let_go()
        finally:
            self._charge(made.render, keeper, delivered=bool(sent))

    def _stored(self, made: Made, meter: list[Usage]) -> Delivered:
        start = perf_counter()
        data = self.spool.read(made)
        if data is None:
            raise _Gone(f"{made.file} is not in the run's folder any more: it is made again")
        kept = self._setup.store.put(data, made.name)
        if kept.sha256 != made.sha256:
            raise OutputError(f"the store has {kept.sha256} at {kept.key}, sent was {made.sha256}")
        seconds = perf_counter() - start
        size = kept.size if kept.new else 0
        meter.append(Usage("store", seconds, "cpu", stored_bytes=size, requests=kept.requests))
        return Delivered(kept.key, kept.new)

    def _unsendable(self, work: bytes, made: Made, number: int, error: OutputError) -> None:
        """Send a picture again later, or quarantine it; stop where the store takes none at all."""
        with self._lock:
            self._refused += 1
            refused = self._refused
        if refused >= self._rules.in_a_row:
            self._closed = True
            raise OutputError(
                f"the store refused {refused} times in a row, at last so: {error}. What is made "
                f"waits in {self.state.folder}; run again when the store is well"
            ) from error
        if number < self._rules.attempts:
            later = monotonic() + self._rules.resend_s * 2 ** (number - 1)
            self._unsent.put((work, made, number + 1, later))
            return
        self._quarantine(work, f"not stored ({number} attempts): {error}")
        self._let_go()

    # -------------------------------------------------------------------------- books

    def _keeper(self, stages: tuple[Stage, ...], session: DeviceSession | None) -> Bookkeeper:
        books = self._books
        return Bookkeeper(
            books.ledger,
            books.book,
            books.recipe,
            "cpu",
            session=session,
            batch=books.batch,
            stages=stages,
        )

    def _charge(self, render: str, keeper: Bookkeeper, *, delivered: bool = False) -> None:
        amount = keeper.bill.amount
        self.state.charge(render, amount, delivered=delivered and not keeper.bill.problem)
        with self._lock:
            self._cost += amount
            self.tally.charge(keeper.bill)
            if keeper.bill.problem:
                self.tally.problem = keeper.bill.problem

    def _quarantine(self, work: bytes, reason: str) -> None:
        self.state.quarantine(work, reason)
        with self._lock:
            self.tally.quarantined += 1

    def _tick_session(self) -> None:
        session = self._session
        try:
            if session is not None:
                session.tick()
        except LedgerError as error:  # it is booked another time
            self.tally.problem = str(error)

    def _end_session(self) -> None:
        """Book the device's idle time until now."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.close()
        except LedgerError as error:
            self.tally.problem = f"the device's time beside the renders: {error}"


class _Gone(PackshotError):
    """A made picture is not in the run's folder."""
