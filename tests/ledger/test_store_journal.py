"""Durability "store", against a real PostgreSQL: what was acknowledged outlives the machine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote

import pytest

from packshot.core.clock import SECOND_US, wall_us
from packshot.core.errors import LedgerError, LedgerUnavailable
from packshot.core.ids import new_id
from packshot.ledger import notes_drain
from packshot.ledger.caps import Cap
from packshot.ledger.leases import LeaseTable, open_shared
from packshot.ledger.ledger import Ledger, Policy, open_ledger
from packshot.ledger.notes import Notes
from packshot.ledger.notes_drain import NotesDrain
from packshot.ledger.records import Dispatched, Held, Settled
from packshot.ledger.settings import CapRow, Settings
from packshot.ledger.store_journal import StoreJournal
from packshot.ledger.stores import open_store
from packshot.ledger.stores.backup import backup, restore
from packshot.ledger.wiring import drain_of
from tests.ledger.desk import CHAT, Book, used
from tests.ledger.stores.relay import Relay

TOTAL = Cap("total", "", 1000, "ever")


class World:
    """A PostgreSQL store, behind a relay that can be cut, and machines that share it."""

    def __init__(self, url: str) -> None:
        before, _, folder = url.partition("?host=")
        name = before.rpartition("/")[2]
        self.relay = Relay(str(Path(unquote(folder)) / ".s.PGSQL.5432"))
        self.url = f"postgresql://postgres@127.0.0.1:{self.relay.port}/{name}?sslmode=disable"
        self.store = open_store(url)
        self.notes = Notes(self.store.database)
        self.journals: list[StoreJournal] = []
        self.leases: list[LeaseTable] = []
        self.direct = url

    def journal(self, worker: str = "gateway-0", patience_s: float = 30.0) -> StoreJournal:
        database = open_store(self.url).database
        journal = StoreJournal(Notes(database), worker, patience_s=patience_s, database=database)
        self.journals.append(journal)
        return journal

    def ledger(self, journal: StoreJournal, clock: Callable[[], int] = wall_us) -> Ledger:
        leases = LeaseTable(open_shared(self.direct))
        self.leases.append(leases)
        return Ledger(journal, Book(), [TOTAL], leases, clock, policy=Policy(durable=True))

    def drain(self, silent_s: float = 0.0) -> NotesDrain:
        return NotesDrain(self.store, silent_s=silent_s)

    def entries(self, what: str = "attempt, outcome, amount") -> list[tuple]:
        return self.store.query(f"SELECT {what} FROM entries ORDER BY seq")  # noqa: S608

    def period(self, column: str) -> int:
        return self.store.query(f"SELECT {column} FROM cap_periods")[0][0]  # noqa: S608

    def left(self) -> tuple[int, int]:
        return self.store.query(
            "SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM lives)"
        )[0]


@pytest.fixture
def world(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url)
    yield made
    made.relay.come_back()
    for journal in made.journals:
        journal._patience_s = 0.0
        with suppress(LedgerUnavailable):  # its life was ended by the test
            journal.close()
    for leases in made.leases:
        leases.close()
    made.store.close()
    made.relay.close()


def lose(world: World, journal: StoreJournal) -> None:
    """Lose the machine: what it had not sent is gone, and it says nothing any more."""
    journal._notes = Notes(GONE)  # type: ignore[arg-type]


class Gone:
    dialect = "postgresql"

    def transaction(self):
        raise LedgerUnavailable("this machine is gone")


GONE = Gone()


def past(seconds: int = 7200) -> Callable[[], int]:
    return lambda: wall_us() - seconds * SECOND_US


def test_what_is_posted_is_in_the_store_without_the_machine(world: World) -> None:
    journal = world.journal()
    ledger = world.ledger(journal)
    settled = ledger.post(ledger.hold(CHAT, 20), used(7))
    lose(world, journal)
    drain = world.drain(silent_s=3600)
    assert drain.step() == 1
    assert world.entries() == [(settled.attempt, "succeeded", 7)]
    assert (world.period("spent"), world.period("leased")) == (7, 13)
    assert drain.step() == 0
    assert world.left() == (0, 1), "the notes have done their work; nobody knows yet that it died"
    assert world.drain(silent_s=0).step() == 0
    assert world.left() == (0, 0)
    assert world.period("leased") == 0, "its slices are free again"
    assert world.store.verify() == []


def test_a_lost_machine_s_holds_are_booked_in_full_once_they_expired(world: World) -> None:
    journal = world.journal()
    ledger = world.ledger(journal, past())
    sent = ledger.hold(CHAT, 20, expires_in_s=60)
    waits = ledger.hold(CHAT, 30, dispatched=False)
    later = ledger.hold(CHAT, 40, dispatched=False)
    ledger.dispatch(later)
    journal.wait(journal.seq)
    lose(world, journal)
    drain = world.drain()
    assert drain.step() == 3
    assert sorted(world.entries()) == sorted(
        [
            (sent.attempt, "unknown", 20),
            (waits.attempt, "failed_free", 0),
            (later.attempt, "unknown", 40),
        ]
    )
    assert (world.period("spent"), world.period("leased")) == (60, 0)
    assert drain.step() == world.drain().step() == 0
    assert world.left() == (0, 0)
    assert world.store.verify() == []


def test_before_its_expiry_a_hold_is_nobody_else_s(world: World) -> None:
    journal = world.journal()
    ledger = world.ledger(journal)
    hold = ledger.hold(CHAT, 20, expires_in_s=3600)
    assert world.drain(silent_s=0).step() == 0
    assert world.entries() == []
    ledger.post(hold, used(3))
    assert world.drain().step() == 1
    assert world.entries("amount") == [(3,)]


def test_a_worker_that_gives_signs_of_life_is_left_alone(world: World) -> None:
    ledger = world.ledger(world.journal(), past())
    hold = ledger.hold(CHAT, 20)
    assert world.drain(silent_s=60).step() == 0
    ledger.post(hold, used(3))
    assert world.drain(silent_s=60).step() == 1


def test_a_worker_that_was_only_cut_off_cannot_settle_what_was_settled(world: World) -> None:
    journal = world.journal(patience_s=0.2)
    ledger = world.ledger(journal, past())
    hold = ledger.hold(CHAT, 20)
    world.relay.leave()
    with pytest.raises(LedgerUnavailable):
        ledger.post(hold, used(3))
    assert len(world.notes.close_silent(0.0, notes_drain._end)) == 1
    world.relay.come_back()
    journal._thread.join(30)
    with pytest.raises(LedgerUnavailable, match="restart this worker"):
        ledger.hold(CHAT, 1)
    with pytest.raises(LedgerUnavailable, match="restart this worker"):
        journal.close()
    world.drain().step()
    assert world.entries() == [(hold.attempt, "unknown", 20)]
    assert world.store.verify() == []
    again = world.ledger(world.journal())
    again.post(again.hold(CHAT, 5), used(5))
    assert world.drain().step() == 1


def test_while_the_server_is_away_nothing_is_acknowledged(world: World) -> None:
    journal = world.journal(patience_s=0.3)
    ledger = world.ledger(journal)
    open_hold = ledger.hold(CHAT, 20)
    world.relay.leave()
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            ledger.hold(CHAT, 10)
    with pytest.raises(LedgerUnavailable):
        ledger.post(open_hold, used(4))  # not acknowledged, and not forgotten
    assert journal._queue
    assert len(ledger.open_holds) == 0
    world.relay.come_back()
    journal._patience_s = 30.0
    journal.wait(journal.seq)
    settled = ledger.post(ledger.hold(CHAT, 10), used(1))
    ledger.close()
    assert world.drain().step() == 2
    assert world.entries() == [
        (open_hold.attempt, "succeeded", 4),
        (settled.attempt, "succeeded", 1),
    ]
    assert (world.period("spent"), world.period("leased")) == (5, 0)
    assert world.left() == (0, 0), "the refused holds left nothing behind"
    assert world.store.verify() == []


def test_a_dispatch_that_is_refused_can_be_tried_again(world: World) -> None:
    journal = world.journal(patience_s=0.3)
    ledger = world.ledger(journal)
    hold = ledger.hold(CHAT, 20, dispatched=False)
    world.relay.leave()
    with pytest.raises(LedgerUnavailable):
        ledger.dispatch(hold)
    world.relay.come_back()
    journal._patience_s = 30.0
    ledger.dispatch(hold)
    ledger.post(hold, used(2))
    assert world.drain().step() == 1
    assert world.entries("amount") == [(2,)]


def test_a_commit_whose_answer_was_lost_is_there_once(world: World) -> None:
    journal = world.journal()
    ledger = world.ledger(journal)
    holds = [ledger.hold(CHAT, 20)]
    world.relay.cut = True
    holds.append(ledger.hold(CHAT, 20))  # written again, over a new connection
    assert world.relay.cuts == 1
    world.relay.cut = True
    settled = [ledger.post(hold, used(3)) for hold in holds]
    assert world.relay.cuts == 2
    ledger.close()
    assert world.drain().step() == 2
    assert world.entries() == [(each.attempt, "succeeded", 3) for each in settled]
    assert world.store.verify() == []


def test_a_hold_refused_after_its_commit_is_taken_back(world: World) -> None:
    journal = world.journal(patience_s=0.3)
    ledger = world.ledger(journal)
    ledger.hold(CHAT, 1)  # the connections are there
    written = threading.Event()
    plain = world_write = journal._notes.write

    def slow(*arguments):
        done = world_write(*arguments)
        written.wait(30)
        return done

    journal._notes.write = slow  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable, match="commits nothing"):
        ledger.hold(CHAT, 20)
    assert len(world.notes.read(world.notes.lives()[0])) == 2, "the server has it"
    journal._notes.write = plain  # type: ignore[method-assign]
    written.set()
    journal._patience_s = 30.0
    (kept,) = ledger.open_holds.values()
    ledger.post(kept, used(1))
    ledger.close()
    assert world.drain().step() == 1
    assert world.left() == (0, 0)


def test_the_drain_may_die_between_any_two_of_its_steps(world: World, monkeypatch) -> None:
    journal = world.journal()
    ledger = world.ledger(journal, past())
    ledger.post(ledger.hold(CHAT, 20), used(7))
    ledger.hold(CHAT, 30)
    lose(world, journal)
    steps = (
        (Notes, "close_silent"),
        (type(world.store), "append"),
        (LeaseTable, "settle"),
        (Notes, "forget"),
        (LeaseTable, "release"),
        (Notes, "bury"),
    )
    for owner, name in steps:
        plain = getattr(owner, name)

        def dies(self, *arguments, plain=plain, **more):
            plain(self, *arguments, **more)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dies)
            with pytest.raises(KeyboardInterrupt):
                world.drain().step()
    world.drain().step()
    assert world.entries("outcome, amount") == [("succeeded", 7), ("unknown", 30)]
    assert (world.period("spent"), world.period("leased")) == (37, 0)
    assert world.left() == (0, 0)
    assert world.store.verify() == []


def test_drains_of_two_machines_at_once_book_each_attempt_once(world: World) -> None:
    ledger = world.ledger(world.journal())
    other = World(world.direct)
    over = threading.Event()
    amounts = [3] * 120

    def drain(of: World) -> int:
        mine, moved = of.drain(silent_s=3600), 0
        while not over.is_set():
            moved += mine.step()
        return moved + mine.step()

    with ThreadPoolExecutor(2) as pool:
        moved = [pool.submit(drain, each) for each in (world, other)]
        try:
            for amount in amounts:
                ledger.post(ledger.hold(CHAT, 5), used(amount))
        finally:
            over.set()
        assert sum(each.result() for each in moved) == len(amounts)
    assert world.store.query("SELECT count(*), sum(amount) FROM entries") == [(120, 360)]
    assert world.period("spent") == 360
    assert world.store.verify() == []
    other.store.close()
    other.relay.close()


def test_a_restored_store_keeps_what_is_under_way(world: World, tmp_path: Path) -> None:
    ledger = world.ledger(world.journal())
    first = ledger.post(ledger.hold(CHAT, 20), used(7))
    world.drain(silent_s=3600).step()
    backup(world.store, tmp_path / "backup.db")
    hold = ledger.hold(CHAT, 20)
    restore(tmp_path / "backup.db", world.direct, force=True)
    second = ledger.post(hold, used(3))
    assert world.drain(silent_s=3600).step() == 1
    assert [row[0] for row in world.entries()] == [first.attempt, second.attempt]
    assert world.store.verify() == []


def test_two_workers_of_one_name_have_lives_of_their_own(world: World) -> None:
    first, second = world.journal("same"), world.journal("same")
    assert first.epoch != second.epoch
    for journal in (first, second):
        journal.wait(journal.append(Held(new_id(), 1, 5, 2, CHAT)))
    assert world.left() == (2, 2)


def test_the_settings_open_it_and_leave_no_file(world: World, tmp_path: Path) -> None:
    settings = Settings(
        world.direct, tmp_path / "journal", "store", caps=(CapRow("total", Decimal(1)),)
    )
    ledger = open_ledger(settings, Book(), "gateway-0")
    ledger.post(ledger.hold(CHAT, 20), used(7))
    ledger.close()
    assert not settings.journal.exists()
    drain = drain_of(settings, world.store)
    assert drain.step() == 1
    drain.close()
    assert world.left() == (0, 0)
    with pytest.raises(LedgerUnavailable):
        open_ledger(Settings("postgresql://127.0.0.1:1/x", tmp_path, "store"), Book(), "w")


def test_a_closed_journal_takes_nothing(world: World) -> None:
    journal = world.journal()
    journal.close()
    with pytest.raises(LedgerUnavailable, match="closed"):
        journal.append(Dispatched("a", 1))
    with pytest.raises(LedgerError):
        journal.settle(lambda number: Settled("a", number, 1, 1, 1, "succeeded", "", CHAT))


WRITER = textwrap.dedent("""
    import sys
    from packshot.core.ids import new_id
    from packshot.ledger.notes import Notes
    from packshot.ledger.records import Dimensions, Held, Settled
    from packshot.ledger.store_journal import StoreJournal
    from packshot.ledger.stores import open_store
    journal = StoreJournal(Notes(open_store(sys.argv[1]).database), sys.argv[2])
    own = Dimensions(stage="denoise", device="cpu")
    print("ready", flush=True)
    for _ in range(200_000):
        attempt = new_id()
        journal.wait(journal.append(Held(attempt, 1, 50, 2, own, dispatched=True)))
        print("h" + attempt, flush=True)
        journal.settle(lambda n: Settled(attempt, n, 1, 1, 2, "succeeded", "", own,
            account="denoise", amount=5, depreciation=5))
        journal.wait(journal.seq)
        print("s" + attempt, flush=True)
""")


def test_kill_9_and_a_deleted_folder_lose_and_double_nothing(world: World, tmp_path: Path) -> None:
    rng, promised = random.Random(5), {}
    for cycle in range(6):
        folder = tmp_path / f"machine-{cycle}"
        folder.mkdir()
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, world.direct, f"w-{cycle % 2}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "XDG_STATE_HOME": str(folder),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(rng.randrange(2, 60))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.wait(10)
        writer.stdout.close()
        shutil.rmtree(folder)
        promised.update((line[1:-1], line[0]) for line in lines if len(line) == 34)
        if cycle % 3 == 2:
            world.drain().step()
    world.drain().step()
    stored = world.entries("attempt, outcome")
    assert len(stored) == len(dict(stored))
    assert not set(promised) - set(dict(stored))
    settled = {attempt for attempt, kind in promised.items() if kind == "s"}
    assert settled
    assert all(dict(stored)[attempt] == "succeeded" for attempt in settled)
    assert world.left() == (0, 0)
    assert world.store.verify() == []
