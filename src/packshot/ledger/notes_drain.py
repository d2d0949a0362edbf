"""The drain of durability "store": from the table of notes to the entries, on any machine.

Several may be at work: the store and the leases keep the sequence up to which each life has reached
them, and skip what comes again. A life that was silent is ended by whoever finds it (`Notes`).
"""

from __future__ import annotations

from pathlib import Path

from packshot.core.clock import Clock
from packshot.ledger.drain import BATCH, Drain, Open, charges_of, ended
from packshot.ledger.leases import Leases, LeaseTable
from packshot.ledger.notes import Life, Note, Notes
from packshot.ledger.records import Avoided, Held, Settled, Stamped
from packshot.ledger.stores.table_store import TableStore

__all__ = ["SILENT_S", "NotesDrain", "SharedDrain"]

SILENT_S = 60.0
"""Seconds without a sign of life, of which a living worker gives one every five, after which it is
taken for dead. One that is not dead finds out by its next write, and is fenced off."""


class NotesDrain:
    """Follows the notes in a PostgreSQL store into its entries, and charges the caps beside them.

    ``silent_s`` is after how many seconds without a sign of life a worker is taken for dead.
    """

    def __init__(self, store: TableStore, *, silent_s: float = SILENT_S) -> None:
        self.store = store
        self._notes = Notes(store.database)
        self._leases: LeaseTable | None = None
        self._silent_s = silent_s

    def step(self) -> int:
        """Bring in everything that is there now; return how many attempts were new to the store.

        Raises:
            LedgerUnavailable: the store cannot be reached; the next step goes on.
        """
        self._notes.close_silent(self._silent_s, _end)
        lives = self._notes.lives()
        if not lives:
            return 0
        if self._leases is None:
            self._leases = LeaseTable(self.store.database)
        stored, charged = self.store.marks(), self._leases.marks()
        moved = 0
        for life in lives:
            key = (life.worker, life.epoch)
            moved += self._life(life, self._leases, stored.get(key, 0), charged.get(key, 0))
        return moved

    def _life(self, life: Life, leases: LeaseTable, stored: int, charged: int) -> int:
        notes = self._notes.read(life)
        rows = [
            Stamped(life.worker, life.epoch, note.seq, note.event)
            for note in notes
            if isinstance(note.event, Settled | Avoided)
        ]
        moved = 0
        fresh = [row for row in rows if row.seq > stored]
        for at in range(0, len(fresh), BATCH):
            moved += self.store.append(fresh[at : at + BATCH])
        owed = [row for row in rows if row.seq > charged]
        if owed:
            # Another machine's drain may have charged some of them since the mark was read: then
            # nothing is charged now, and the rest by the next step.
            fully = leases.settle(
                life.worker, life.epoch, owed[-1].seq, charges_of(owed), after=charged
            )
            if not fully:
                return moved
        done = _done(notes)
        if done:
            self._notes.forget(life, done)
        if life.closed and len(done) == len(notes):
            leases.release(life.worker, life.epoch)
            self._notes.bury(life)
        return moved


class SharedDrain(Drain):
    """The drain of a store that machines share: this one's journals, and the notes of all."""

    def __init__(
        self, folder: Path, store: TableStore, leases: Leases | None, clock: Clock
    ) -> None:
        super().__init__(folder, store, leases, clock)
        self._notes = NotesDrain(store)

    def step(self) -> int:
        """Bring in everything that is there now; see `Drain.step`."""
        return super().step() + self._notes.step()


def _done(notes: list[Note]) -> list[int]:
    """Return the sequences of all notes that stand alone, or whose attempt has ended."""
    over = {note.event.attempt for note in notes if isinstance(note.event, Settled)}
    return [
        note.seq for note in notes if isinstance(note.event, Avoided) or note.event.attempt in over
    ]


def _end(held: Held, sent: int, number: int, now: int) -> Settled:
    # Where an attempt was written says nothing here: the notes are all in one table.
    return ended(Open(held, sent, Path()), number, now)
