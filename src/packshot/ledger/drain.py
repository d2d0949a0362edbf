"""The drain: brings what the journals hold into the store, and ends what dead workers left open.

One drain runs at a time. It reads each worker's segments in order, hands settled attempts to the
store, then to the leases; each is there exactly once, since both keep the sequence up to which a
journal has reached them. A worker whose lock is free is dead: its open attempts are settled by
appending to its own journal (nobody else writes it any more), so a drain that is killed half-way
finds what it had settled already.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from pathlib import Path

from packshot.core.clock import HOUR_US, Clock
from packshot.core.errors import LedgerUnavailable
from packshot.core.money import Nanos
from packshot.ledger.devices import BESIDE, beside, used_until
from packshot.ledger.frames import encode_frame, scan
from packshot.ledger.journal import SEGMENT
from packshot.ledger.lag import write_cursor
from packshot.ledger.leases import Leases
from packshot.ledger.records import Avoided, Event, Held, Outcome, Settled, Stamped
from packshot.ledger.signs import last_sign, sign_path
from packshot.ledger.stores.base import Finding, Store

__all__ = ["BATCH", "Drain", "DrainBusy", "locked"]

BATCH = 5000
"""Settled attempts per transaction of the store."""

CHUNK = 256 << 10
"""Bytes of a journal decoded at once: so many records stay in the processor's cache."""

KEEP_US = 35 * 24 * HOUR_US
"""How long a cap's period that is over is kept: longer than any invoice or clock is late."""

EVERY_S = 0.25
"""Seconds until the next look where less than a batch was new: so few attempts are not worth the
disk's sync of a transaction of their own."""


class DrainBusy(LedgerUnavailable):
    """Another drain is at work on these journals, which is as good."""


@dataclass(slots=True)
class Open:
    """A hold without an end: the hold, when it was dispatched (0: never), where it is written.

    ``since`` is the same instant by `packshot.ledger.signs.tick_us`, where a device is used.
    """

    held: Held
    dispatched_at: int
    segment: Path
    since: int = 0


@dataclass(slots=True)
class Life:
    """What is known of one epoch of a worker's journal; ``offsets`` of segments read so far.

    The store has its records up to ``stored``, the leases up to ``charged``.
    """

    worker: str
    epoch: int
    seq: int = 0
    number: int = 0
    stored: int = 0
    charged: int = 0
    open: dict[str, Open] = field(default_factory=dict[str, Open])
    offsets: dict[Path, int] = field(default_factory=dict[Path, int])
    damaged: set[Path] = field(default_factory=set[Path])


@dataclass(frozen=True, slots=True)
class Marks:
    """Up to which sequence the store, and the leases where there are any, have each journal."""

    store: dict[tuple[str, int], int]
    leases: dict[tuple[str, int], int] | None

    def of(self, worker: str, epoch: int) -> tuple[int, int]:
        """Return both marks of one life; without leases, nothing is owed to them."""
        stored = self.store.get((worker, epoch), 0)
        if self.leases is None:
            return stored, 1 << 62
        return stored, self.leases.get((worker, epoch), 0)


class Drain:
    """Follows the journals in ``folder`` into ``store``.

    ``findings`` lists damage that was met in journals: what stands around it is stored, the bytes
    themselves are kept in a file ending in ``.damaged``.
    """

    def __init__(self, folder: Path, store: Store, leases: Leases | None, clock: Clock) -> None:
        self.folder, self.store, self.leases, self.clock = folder, store, leases, clock
        self.findings: list[Finding] = []
        self._lives: dict[tuple[str, int], Life] = {}
        self._pruned = 0
        self._told: tuple[dict[Path, int], set[Path]] | None = None

    def run(self, stop: threading.Event, beside: Callable[[], object] | None = None) -> None:
        """Drain until ``stop`` is set; a store that is away for a while is waited for.

        ``beside`` is called between steps, for what else is to be done now and then.

        Raises:
            DrainBusy: another drain is at work.
        """
        while not stop.is_set():
            if beside is not None:
                beside()
            try:
                moved = self.step()
            except DrainBusy:
                raise
            except LedgerUnavailable as error:
                self.findings.append(Finding("drain", str(self.folder), str(error)))
                moved = 0
            if moved < BATCH:
                stop.wait(EVERY_S)

    def step(self) -> int:
        """Bring in everything that is there now; return how many attempts were new to the store.

        Raises:
            DrainBusy: another drain is at work.
            LedgerUnavailable: journals cannot be read, or the store cannot be written; nothing is
                lost, and the next step goes on.
        """
        if not self.folder.is_dir():
            return 0
        try:
            with self._alone():
                marks = Marks(self.store.marks(), self.leases.marks() if self.leases else None)
                workers = sorted(path.parent for path in self.folder.glob("*/lock"))
                moved = sum(self._worker(folder, marks) for folder in workers)
                self._tell()
                self._prune()
                return moved
        except OSError as error:
            raise LedgerUnavailable(f"the journals in {self.folder} fail: {error}") from error

    def close(self) -> None:
        """Release the leases' connection; the store is its owner's."""
        if self.leases is not None:
            self.leases.close()

    def _prune(self) -> None:
        """Once an hour, delete cap periods that have been over for `KEEP_US`."""
        now = self.clock()
        if self.leases is not None and not 0 <= now - self._pruned < HOUR_US:
            self.leases.prune(now - KEEP_US)
            self._pruned = now

    def _tell(self) -> None:
        """Note where the drain is, for those who look from outside; all up to there is stored."""
        offsets: dict[Path, int] = {}
        damaged: set[Path] = set()
        for life in self._lives.values():
            offsets |= life.offsets
            damaged |= life.damaged
        if (offsets, damaged) != self._told:
            try:
                write_cursor(self.folder, offsets, damaged)
            except OSError:  # a full disk: what is stored is stored, and the next step says so
                self._told = None
            else:
                self._told = (offsets, damaged)

    @contextmanager
    def _alone(self) -> Generator[None]:
        with locked(self.folder / "drain.lock") as alone:
            if not alone:
                raise DrainBusy(f"another drain is at work in {self.folder}")
            yield

    def _worker(self, folder: Path, marks: Marks) -> int:
        """Drain one worker's lives; those before the last are over, the last if its lock is free.

        The lock is looked at before the segments are listed, and held while a dead worker's are
        dealt with: it cannot come back to life in between.
        """
        with locked(folder / "lock") as dead:
            names = sorted(folder.glob("*.journal"))
            newest = int((folder / "epoch").read_text()) if (folder / "epoch").exists() else 0
            moved = 0
            for epoch, group in groupby(names, key=_epoch_of):
                life = self._lives.setdefault((folder.name, epoch), Life(folder.name, epoch))
                over = dead or epoch < newest
                life.stored, life.charged = marks.of(folder.name, epoch)
                moved += self._life(life, list(group), over=over)
            return moved

    def _life(self, life: Life, segments: list[Path], *, over: bool) -> int:
        try:
            return self._bring_in(life, segments, over=over)
        except BaseException:
            # What was read and not stored is known to nobody but the journal: read it again.
            self._lives.pop((life.worker, life.epoch), None)
            raise

    def _bring_in(self, life: Life, segments: list[Path], *, over: bool) -> int:
        rows: list[Stamped] = []
        moved = 0
        for segment in segments:
            last = segment == segments[-1]
            for row in self._read(life, segment, sealed=over or not last):
                if row.seq > min(life.stored, life.charged):
                    rows.append(row)
                if len(rows) == BATCH:
                    moved += self._store(life, rows)
                    rows = []
        if over:
            rows += self._recover(life, segments[-1])
        moved += self._store(life, rows)
        self._forget(life, segments, over=over)
        return moved

    def _read(self, life: Life, segment: Path, *, sealed: bool) -> Iterator[Stamped]:
        """Yield what the store is to have of a segment, behind what was read of it before."""
        for seq, event in self._events(life, segment, sealed=sealed):
            life.seq = max(life.seq, seq)
            if isinstance(event, Settled):
                life.open.pop(event.attempt, None)
                life.number = max(life.number, event.number)
                yield Stamped(life.worker, life.epoch, seq, event)
            elif isinstance(event, Avoided):
                yield Stamped(life.worker, life.epoch, seq, event)
            elif isinstance(event, Held):
                at = event.at if event.dispatched else 0
                life.open[event.attempt] = Open(event, at, segment, event.since)
            elif event.attempt in life.open:
                life.open[event.attempt].dispatched_at = event.at
                life.open[event.attempt].since = event.since

    def _events(self, life: Life, segment: Path, *, sealed: bool) -> Iterator[tuple[int, Event]]:
        """Yield what was written to a segment since it was read before, and note the damage."""
        offset = life.offsets.setdefault(segment, 0)
        with segment.open("rb") as file:
            end = file.seek(0, os.SEEK_END)  # what comes meanwhile waits: there are other workers
            size = CHUNK
            while offset < end:
                file.seek(offset)
                data = file.read(min(size, end - offset))
                last = offset + len(data) >= end
                found = scan(data, sealed=sealed and last)
                for damage in found.damage:
                    life.damaged.add(segment)
                    where = f"{segment} at byte {offset + damage.offset}, {damage.length} bytes"
                    self.findings.append(Finding("journal", where, damage.why))
                yield from found.events
                offset += found.end
                life.offsets[segment] = offset
                if last:
                    return
                # Damage may have no end in sight: look further.
                size = CHUNK if found.end else 2 * size

    def _recover(self, life: Life, segment: Path) -> list[Stamped]:
        """Settle what a dead worker left open, in its own journal, before the store hears of it."""
        self._drop_settled(life)
        if not life.open:
            return []
        rows: list[Stamped] = []
        stored = self.store.query(
            "SELECT seq, number FROM journals WHERE worker = ? AND epoch = ?",
            (life.worker, life.epoch),
        )
        for seq, number in stored:  # of segments that are deleted
            life.seq, life.number = max(life.seq, seq), max(life.number, number)
        frames = bytearray()
        used = seconds_of(life.open, last_sign(segment.parent, life.epoch))
        for name, left in life.open.items():
            life.seq += 1
            life.number += 1
            settled = ended(left, life.number, self.clock(), used.get(name))
            frames += encode_frame(life.seq, settled)
            rows.append(Stamped(life.worker, life.epoch, life.seq, settled))
        with segment.open("r+b") as file:
            file.truncate(life.offsets[segment])  # a record that the death cut in two
            file.seek(0, os.SEEK_END)
            file.write(frames)
            file.flush()
            os.fsync(file.fileno())
        life.offsets[segment] += len(frames)
        life.open.clear()
        return rows

    def _drop_settled(self, life: Life) -> None:
        """Forget open holds whose ends the store has: the journal lost them with the power.

        They were read from the kernel's memory before the disk had them; or their segment is gone,
        and an older one came back.
        """
        names = list(life.open) if life.stored else []
        for at in range(0, len(names), BATCH):
            asked = names[at : at + BATCH]
            places = ", ".join("?" * len(asked))
            sql = f"SELECT attempt FROM entries WHERE attempt IN ({places})"  # noqa: S608
            for (attempt,) in self.store.query(sql, asked):
                del life.open[attempt]

    def _store(self, life: Life, rows: list[Stamped]) -> int:
        if not rows:
            return 0
        moved = self.store.append(rows)
        last = rows[-1].seq
        if self.leases is not None and last > life.charged:
            charges = charges_of(row for row in rows if row.seq > life.charged)
            self.leases.settle(life.worker, life.epoch, last, charges)
            life.charged = last
        return moved

    def _forget(self, life: Life, segments: list[Path], *, over: bool) -> None:
        """Delete segments that are stored and hold nothing open; keep damaged ones aside."""
        if over and self.leases is not None:  # first: without its segments nobody would come back
            self.leases.release(life.worker, life.epoch)
        needed = {left.segment for left in life.open.values()}
        for segment in segments if over else segments[:-1]:
            if segment in needed:
                return  # later segments stay, too: a sequence has no holes while it is needed
            life.offsets.pop(segment, None)
            if segment in life.damaged:
                segment.rename(segment.with_suffix(".damaged"))
            else:
                segment.unlink()
        if over:
            sign_path(segments[0].parent, life.epoch).unlink(missing_ok=True)
            self._lives.pop((life.worker, life.epoch), None)


@contextmanager
def locked(file: Path) -> Generator[bool]:
    """Take a lock for the block if it is free, and say whether it was."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def seconds_of(left: Mapping[str, Open], last: int | None) -> dict[str, int]:
    """Return the microseconds that attempts on our own devices have used until the ``last`` sign.

    Those without one are not in it, nor those that were never dispatched: nobody can tell.
    """
    own = {
        name: (each.held.dimensions.device, each.since)
        for name, each in left.items()
        if each.dispatched_at and each.held.limit_us and each.since
    }
    return {} if last is None else used_until(own, last)


def ended(left: Open, number: int, now: int, used_us: int | None = None) -> Settled:
    """Return how an attempt ends whose worker died: free if never dispatched, else unknown.

    What is unknown is booked at its hold, the upper bound, until an invoice says otherwise. Where
    the time of our own device is known, ``used_us``, that is booked, at the rate of the hold.
    """
    held = left.held
    sent = left.dispatched_at > 0
    amount = held.amount if sent else 0
    price = "upper bound of its hold" if sent and held.priced else ""
    outcome: Outcome = "unknown" if sent else "failed_free"
    stage = held.dimensions.stage
    reason = f"worker died {'after' if sent else 'before'} dispatch"
    seconds = 0
    if sent and used_us is not None and held.limit_us:
        seconds = min(used_us, held.limit_us)
        amount = round(Fraction(held.amount * seconds, held.limit_us))  # half to even
        price = "rate of its hold, until the last sign of life" if held.priced else ""
        outcome = "accrual" if stage in BESIDE else "failed_billed"
        reason = "worker died"
    owed = bool(held.dimensions.provider)
    return Settled(
        attempt=held.attempt,
        number=number,
        held_at=held.at,
        dispatched_at=left.dispatched_at,
        settled_at=now,
        outcome=outcome,
        reason=reason,
        dimensions=beside(held.dimensions) if outcome == "accrual" else held.dimensions,
        seconds_us=seconds,
        held=held.amount,
        account="waste" if sent and outcome != "accrual" else stage,
        amount=amount,
        payable=amount if owed else 0,
        depreciation=0 if owed else amount,
        priced=held.priced or not sent,
        price=price,
        caps=held.caps,
    )


def charges_of(rows: Iterable[Stamped]) -> dict[str, Nanos]:
    """Return what settled attempts charge to the cap periods that they were held against."""
    sums: dict[str, Nanos] = {}
    for row in rows:
        if isinstance(row.event, Settled):
            for period in row.event.caps:
                sums[period] = sums.get(period, 0) + row.event.amount
    return sums


def _epoch_of(segment: Path) -> int:
    name = SEGMENT.fullmatch(segment.name)
    return int(name[1]) if name else 0
