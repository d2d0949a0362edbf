"""The journal as a table of PostgreSQL, for durability "store": it outlives the worker's machine.

``lives`` has a row per worker and life (epoch): ``beat``, when its worker last wrote (the server's
clock, microseconds; 0 once it has said goodbye), and ``closed``, 1 once nothing of it is taken any
more. ``notes`` has the events of each life by sequence, as msgpack. Whoever finds a life silent
closes it and writes how its open attempts end, in one transaction; a worker that was only cut off
finds its life closed then, and cannot settle what is settled already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.leases import Shared
from packshot.ledger.records import Dispatched, Event, Held, Settled
from packshot.ledger.stores.database import Transaction

__all__ = ["Life", "Note", "Notes", "opened_holds"]

TRIES = 10
"""Times that a new life is begun again where another worker of the name began one as well."""

NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
UP = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
"""While the server was down, nobody could write: that is no silence."""

BEGIN = f"""
INSERT INTO lives SELECT worker, greatest({NOW},
    (SELECT coalesce(max(epoch), 0) + 1 FROM journals WHERE worker = name.worker),
    (SELECT coalesce(max(epoch), 0) + 1 FROM lives WHERE worker = name.worker)), {NOW}, 0
  FROM (SELECT ?::text AS worker) name
ON CONFLICT DO NOTHING RETURNING epoch
"""  # noqa: S608 - constants of ours
BEAT = f"UPDATE lives SET beat = {NOW} WHERE worker = ? AND epoch = ? AND closed = 0 RETURNING beat"  # noqa: S608
WRITE = """
INSERT INTO notes SELECT ?::text, ?::bigint, seq, event
  FROM unnest(?::bigint[], ?::bytea[]) AS fresh (seq, event)
ON CONFLICT DO NOTHING
"""
TAKE_BACK = "DELETE FROM notes WHERE worker = ? AND epoch = ? AND seq = ANY(?::bigint[])"
SILENT = f"""
SELECT worker, epoch, {NOW} FROM lives
WHERE closed = 0 AND (beat = 0 OR {NOW} - greatest(beat, {UP}) > ?)
ORDER BY worker, epoch
"""  # noqa: S608
CLOSE = """
UPDATE lives SET closed = 1 WHERE worker = ? AND epoch = ? AND beat = ? AND closed = 0
RETURNING closed
"""
READ = "SELECT seq, event FROM notes WHERE worker = ? AND epoch = ? ORDER BY seq"

ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Event)


@dataclass(frozen=True, slots=True)
class Note:
    """An event with its sequence in its life."""

    seq: int
    event: Event


@dataclass(frozen=True, slots=True)
class Life:
    """A life that the table has; ``closed`` once nothing is added to it any more."""

    worker: str
    epoch: int
    closed: bool


class Notes:
    """The two tables, in the store's own database. All methods raise `LedgerUnavailable`."""

    def __init__(self, database: Shared) -> None:
        self._database = database

    def begin(self, worker: str) -> int:
        """Begin a life and return its epoch, which no other life of that name has.

        It is microseconds by the server's clock: far above the epochs of journals in files, which
        are seconds, so that a name may be used for both.
        """
        for _ in range(TRIES):
            with self._database.transaction() as within:
                rows = within.query(BEGIN, (worker,))
            if rows:
                return int(rows[0][0])
        raise LedgerUnavailable(f"too many workers begin as {worker!r}: give each its own name")

    def write(
        self, worker: str, epoch: int, fresh: Sequence[Note], withdrawn: Sequence[int]
    ) -> bool:
        """Commit notes, and take back the ``withdrawn``; both may come again, and change nothing.

        Return false where the life is closed: nothing was written, and nothing ever will be.
        """
        with self._database.transaction() as within:
            if not within.query(BEAT, (worker, epoch)):
                return False
            _insert(within, worker, epoch, fresh)
            if withdrawn:
                within.execute(TAKE_BACK, (worker, epoch, list(withdrawn)))
        return True

    def leave(self, worker: str, epoch: int) -> None:
        """Say that the worker is gone, and that nobody need wait for its silence."""
        with self._database.transaction() as within:
            within.execute(
                "UPDATE lives SET beat = 0 WHERE worker = ? AND epoch = ? AND closed = 0",
                (worker, epoch),
            )

    def lives(self) -> list[Life]:
        """Return all lives that have not been forgotten."""
        with self._database.transaction() as within:
            rows = within.query("SELECT worker, epoch, closed FROM lives ORDER BY worker, epoch")
        return [Life(worker, epoch, bool(closed)) for worker, epoch, closed in rows]

    def read(self, life: Life) -> list[Note]:
        """Return a life's notes in order: every one up to the last, less those taken back."""
        with self._database.transaction() as within:
            return _read(within, life.worker, life.epoch)

    def close_silent(
        self, silent_s: float, end: Callable[[Held, int, int, int], Settled]
    ) -> list[Life]:
        """Close each life that was silent for ``silent_s`` seconds and whose holds have expired.

        ``end`` makes, of an open hold, when it was dispatched (0: never), a number and the time in
        microseconds, the record that ends it. A worker that left in order is not waited for.
        """
        with self._database.transaction() as within:
            silent = within.query(SILENT, (round(silent_s * 1_000_000),))
        closed: list[Life] = []
        for worker, epoch, now in silent:
            with self._database.transaction() as within:
                if self._close(within, (worker, epoch, now), end):
                    closed.append(Life(worker, epoch, closed=True))
        return closed

    def forget(self, life: Life, seqs: Sequence[int]) -> None:
        """Delete notes that have done their work."""
        with self._database.transaction() as within:
            within.execute(TAKE_BACK, (life.worker, life.epoch, list(seqs)))

    def bury(self, life: Life) -> None:
        """Delete a closed life of which no note is left."""
        with self._database.transaction() as within:
            within.execute(
                "DELETE FROM lives WHERE worker = ? AND epoch = ? AND closed = 1",
                (life.worker, life.epoch),
            )

    def _close(
        self,
        within: Transaction,
        silent: tuple[str, int, int],
        end: Callable[[Held, int, int, int], Settled],
    ) -> bool:
        worker, epoch, now = silent
        # Locked first: a worker that writes after all has written before this look, or finds its
        # life closed.
        beat = within.query(
            "SELECT beat FROM lives WHERE worker = ? AND epoch = ? AND closed = 0 FOR UPDATE",
            (worker, epoch),
        )
        if not beat or beat[0][0] > now:
            return False
        notes = _read(within, worker, epoch)
        left = opened_holds(notes)
        if any(held.expires > now for held, _ in left.values()) and beat[0][0] != 0:
            return False
        if not within.query(CLOSE, (worker, epoch, beat[0][0])):
            return False
        marks = within.query(
            "SELECT seq, number FROM journals WHERE worker = ? AND epoch = ?", (worker, epoch)
        )
        seq, number = marks[0] if marks else (0, 0)
        seq = max([seq, *(note.seq for note in notes)])
        settled = [note.event.number for note in notes if isinstance(note.event, Settled)]
        number = max([number, *settled])
        ends = [
            Note(seq + place, end(held, sent, number + place, now))
            for place, (held, sent) in enumerate(left.values(), 1)
        ]
        _insert(within, worker, epoch, ends)
        return True


def opened_holds(notes: Sequence[Note]) -> dict[str, tuple[Held, int]]:
    """Return the holds without an end, each with the time of its dispatch (0: never)."""
    left: dict[str, tuple[Held, int]] = {}
    for note in notes:
        event = note.event
        if isinstance(event, Held):
            left[event.attempt] = (event, event.at if event.dispatched else 0)
        elif isinstance(event, Dispatched):
            if event.attempt in left:
                left[event.attempt] = (left[event.attempt][0], event.at)
        elif isinstance(event, Settled):
            left.pop(event.attempt, None)
    return left


def _insert(within: Transaction, worker: str, epoch: int, fresh: Sequence[Note]) -> None:
    if fresh:
        within.execute(
            WRITE,
            (
                worker,
                epoch,
                [note.seq for note in fresh],
                [ENCODER.encode(note.event) for note in fresh],
            ),
        )


def _read(within: Transaction, worker: str, epoch: int) -> list[Note]:
    notes: list[Note] = []
    for seq, event in within.query(READ, (worker, epoch)):
        try:
            notes.append(Note(seq, DECODER.decode(event)))
        except msgspec.DecodeError as error:
            raise LedgerCorrupt(f"note {seq} of worker {worker}, life {epoch}: {error}") from error
    return notes
