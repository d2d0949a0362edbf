"""The journal of a worker in durability "store": each event is committed to PostgreSQL.

One thread writes what has gathered since its last commit in one transaction (group commit), and
`StoreJournal.wait` returns when that has happened. While the server is away, no new hold is taken;
what ended meanwhile waits in memory and is written when it is back. The same notes may be sent
twice, so a COMMIT whose answer was lost loses nothing and doubles nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Protocol

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.notes import Note, Notes
from packshot.ledger.records import Avoided, Dispatched, Event, Held, Settled

__all__ = ["BEAT_S", "PATIENCE_S", "StoreJournal"]

BEAT_S = 5.0
"""Seconds between two signs of life while nothing is written; see `notes_drain.SILENT_S`."""

PATIENCE_S = 5.0
"""Seconds that a call waits for its commit before it is refused."""

RETRY_S = 0.2
"""Seconds between two tries to reach a server that is away."""

GROUP = 2000
"""Notes per transaction."""

CLOSED = "the journal is closed"
TAKEN = (
    "another machine has closed this worker's life after its silence, and settled what it left "
    "open; restart this worker"
)


class Database(Protocol):
    """What is closed with the journal that has the notes in it."""

    def close(self) -> None:
        """Release the connections."""
        ...


class StoreJournal:
    """The journal of one worker in one life. Safe to use from any thread; see `journal.Journal`.

    Args:
        notes: the table, in the store's own database.
        worker: this process's name among the workers.
        patience_s: how long a call waits for its commit.
        database: closed with the journal.

    Raises:
        LedgerUnavailable: the database cannot be written.
    """

    def __init__(
        self,
        notes: Notes,
        worker: str,
        *,
        patience_s: float = PATIENCE_S,
        database: Database | None = None,
    ) -> None:
        """Begin a new life of ``worker``."""
        self.worker = worker
        self.epoch = notes.begin(worker)
        self._notes = notes
        self._database = database
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._queue: deque[Note] = deque()
        self._withdrawn: set[int] = set()
        self._seq = self._number = self._committed = 0
        self._away = ""
        self._over = ""
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="store journal", daemon=True)
        self._thread.start()

    @property
    def seq(self) -> int:
        """Sequence of the last event that was appended; 0 before the first."""
        return self._seq

    def append(self, event: Event) -> int:
        """Queue an event for the next commit and return its sequence; `wait` for it.

        Raises:
            LedgerUnavailable: this life is over; or the event is a hold or an avoided cost, and the
                server is away.
        """
        with self._changed:
            if self._away and not self._over and isinstance(event, Held | Avoided):
                raise LedgerUnavailable(self._away)
            return self._add(event)

    def settle(self, make: Callable[[int], Settled]) -> Settled:
        """Queue what ``make`` makes of the next number, and return it.

        It is queued also while the server is away, since its call was made: it is written when the
        server is back. Until `wait` returns, the loss of this machine books its hold instead.
        """
        with self._changed:
            settled = make(self._number + 1)
            self._add(settled)
            self._number += 1
            return settled

    def wait(self, seq: int) -> None:
        """Return when everything up to ``seq`` is committed.

        Raises:
            LedgerUnavailable: it is not yet, or never will be. Do not dispatch: a hold or dispatch
                is taken back, also where its commit comes through later.
        """
        with self._changed:
            try:
                self._wait(seq)
            except BaseException:
                # Under the same lock: it is in the queue if, and only if, nobody has acknowledged
                # it. The end of a call stays, since the call was made.
                for note in self._queue:
                    if note.seq == seq and isinstance(note.event, Held | Dispatched):
                        self._withdrawn.add(seq)
                raise

    def close(self) -> None:
        """Commit what there is, and say goodbye: open holds are anybody's to end afterwards.

        Raises:
            LedgerUnavailable: not all of it could be committed.
        """
        with self._changed:
            if self._leaving:
                return
            self._leaving = True
            self._changed.notify_all()
        self._thread.join()
        if self._database is not None:
            self._database.close()
        if self._over != CLOSED:
            raise LedgerUnavailable(self._over)

    def _add(self, event: Event) -> int:
        if self._over or self._leaving:
            raise LedgerUnavailable(self._over or CLOSED)
        self._seq += 1
        self._queue.append(Note(self._seq, event))
        self._changed.notify_all()
        return self._seq

    def _wait(self, seq: int) -> None:
        until = time.monotonic() + self._patience_s
        while self._committed < seq:
            if self._over:
                raise LedgerUnavailable(self._over)
            left = until - time.monotonic()
            if left <= 0:
                # Also where the server hangs: until it has answered, no new hold is taken.
                self._away = self._away or f"PostgreSQL commits nothing in {self._patience_s:g} s"
                raise LedgerUnavailable(self._away)
            self._changed.wait(left)

    def _run(self) -> None:
        until = 0.0
        while not self._over:
            with self._changed:
                if not (self._queue or self._withdrawn or self._leaving or self._away):
                    self._changed.wait(BEAT_S)
                # They stay in the queue until the answer comes: it may be lost after the commit.
                group = list(islice(self._queue, GROUP))
                last = group[-1].seq if group else self._committed
                withdrawn = {seq for seq in self._withdrawn if seq <= last}
                if self._leaving and not until:
                    until = time.monotonic() + self._patience_s
                if until and not group and not withdrawn:
                    break
            if self._write(group, withdrawn) or self._over:
                continue
            if until and time.monotonic() > until:
                self._end(f"{len(self._queue)} notes are not committed: {self._away}")
            else:
                time.sleep(RETRY_S)
        self._goodbye()

    def _write(self, group: list[Note], withdrawn: set[int]) -> bool:
        """Commit once, and say whether that worked; `_over` says whether it ever will."""
        fresh = [note for note in group if note.seq not in withdrawn]
        try:
            alive = self._notes.write(self.worker, self.epoch, fresh, sorted(withdrawn))
        except LedgerUnavailable as error:
            with self._changed:
                self._away = str(error)
                self._changed.notify_all()
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, waiters must hear of it
            self._end(f"the journal cannot be written: {error}; restart this worker")
            return False
        if not alive:
            self._end(TAKEN)
            return False
        with self._changed:
            self._away = ""
            self._withdrawn -= withdrawn
            for _ in group:
                self._committed = self._queue.popleft().seq
            self._changed.notify_all()
        return True

    def _end(self, why: str) -> None:
        with self._changed:
            self._over = why
            self._changed.notify_all()

    def _goodbye(self) -> None:
        if self._over:
            return
        # Everything is committed: where this fails, the life's silence says the same, later.
        with suppress(LedgerUnavailable, LedgerCorrupt):
            self._notes.leave(self.worker, self.epoch)
        self._end(CLOSED)
