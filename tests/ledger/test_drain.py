"""The drain: every settled attempt reaches the store once, whoever is killed and when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from packshot.core.clock import HOUR_US, wall_us
from packshot.core.errors import LedgerUnavailable
from packshot.core.ids import new_id
from packshot.ledger.drain import KEEP_US, Drain, DrainBusy, locked
from packshot.ledger.frames import HEADER
from packshot.ledger.journal import Journal
from packshot.ledger.leases import LeaseTable, Want, open_shared
from packshot.ledger.periods import over_by
from packshot.ledger.records import Dimensions, Dispatched, Held, Settled
from packshot.ledger.stores import open_store

OWN = Dimensions(render="r", stage="denoise", device="cpu")
SENT = Dimensions(render="r", stage="caption", provider="openai", model="gpt-4o-mini")


def held(attempt: str, dimensions: Dimensions = OWN, *, dispatched: bool = True, **more) -> Held:
    return Held(attempt, 1, 50, 10**18, dimensions, dispatched=dispatched, **more)


def settle(journal: Journal, attempt: str, amount: int = 5, caps: tuple[str, ...] = ()) -> Settled:
    return journal.settle(
        lambda number: Settled(
            attempt,
            number,
            1,
            1,
            2,
            "succeeded",
            "",
            OWN,
            account="denoise",
            amount=amount,
            depreciation=amount,
            caps=caps,
        )
    )


class World:
    def __init__(self, folder: Path) -> None:
        self.journals, self.url = folder / "journal", str(folder / "ledger.db")
        self.store = open_store(self.url)
        self.leases = LeaseTable(open_shared(self.url))

    def drain(self) -> Drain:
        return Drain(self.journals, self.store, self.leases, wall_us)

    def entries(self, what: str = "attempt, outcome, amount, reason") -> list[tuple]:
        return self.store.query(f"SELECT {what} FROM entries ORDER BY seq")  # noqa: S608


@pytest.fixture
def world(tmp_path: Path):
    made = World(tmp_path)
    yield made
    made.leases.close()
    made.store.close()


def die(journal: Journal) -> None:
    """End a journal as a killed process does: nothing is written, the lock is gone."""
    os.close(journal._lock_file)


def test_nothing_there_is_nothing_to_do(world: World) -> None:
    assert world.drain().step() == 0


def test_a_live_journal_is_followed(world: World) -> None:
    journal, drain = Journal(world.journals, "gateway-0"), world.drain()
    journal.append(held("a"))
    assert drain.step() == 0
    settle(journal, "a")
    assert drain.step() == 1
    assert drain.step() == 0
    journal.append(held("b"))
    settle(journal, "b")
    assert drain.step() == 1
    assert world.drain().step() == 0, "another drain finds the marks of the first"
    journal.close()
    assert [row[0] for row in world.entries()] == ["a", "b"]
    assert world.store.verify() == []


def test_a_dead_worker_s_attempts_end(world: World) -> None:
    journal = Journal(world.journals, "gateway-0")
    journal.append(held("never sent", dispatched=False))
    journal.append(held("own device"))
    journal.append(held("sent later", SENT, dispatched=False))
    journal.append(Dispatched("sent later", 7))
    settle(journal, "done")
    die(journal)
    assert world.drain().step() == 4
    assert {row[0]: row[1:] for row in world.entries()} == {
        "done": ("succeeded", 5, ""),
        "never sent": ("failed_free", 0, "worker died before dispatch"),
        "own device": ("unknown", 50, "worker died after dispatch"),
        "sent later": ("unknown", 50, "worker died after dispatch"),
    }
    assert dict(world.entries("attempt, payable"))["sent later"] == 50
    assert dict(world.entries("attempt, depreciation"))["own device"] == 50
    assert not list(world.journals.glob("*/*.journal")), "what is stored is deleted"
    assert world.drain().step() == 0
    assert world.store.verify() == []


def test_what_has_no_price_is_never_booked_as_nothing(world: World) -> None:
    journal = Journal(world.journals, "gateway-0")
    journal.append(Held("a", 1, 0, 10**18, SENT, dispatched=True, priced=False))
    die(journal)
    world.drain().step()
    assert world.entries("attempt, priced") == [("a", 0)]


def test_a_worker_that_came_back_left_a_life_that_ends(world: World) -> None:
    first = Journal(world.journals, "gateway-0")
    first.append(held("a"))
    die(first)
    second = Journal(world.journals, "gateway-0")
    second.append(held("b"))
    assert world.drain().step() == 1
    settle(second, "b")
    second.close()
    assert world.drain().step() == 1
    assert [row[:2] for row in world.entries()] == [("a", "unknown"), ("b", "succeeded")]


def test_a_record_that_death_cut_in_two_is_dropped(world: World) -> None:
    journal = Journal(world.journals, "gateway-0")
    settle(journal, "a")
    journal.append(held("b"))
    (file,) = world.journals.glob("*/*.journal")
    with file.open("ab") as end:
        end.write(HEADER.pack(500, 1) + b"half")
    die(journal)
    drain = world.drain()
    assert drain.step() == 2
    assert [row[:2] for row in world.entries()] == [("a", "succeeded"), ("b", "unknown")]


def test_damage_in_the_middle_is_told_and_what_follows_is_kept(world: World) -> None:
    journal = Journal(world.journals, "gateway-0")
    for name in "abc":
        settle(journal, name)
    (file,) = world.journals.glob("*/*.journal")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    die(journal)
    drain = world.drain()
    assert drain.step() == 2
    assert [row[0] for row in world.entries()] == ["a", "c"]
    assert len(drain.findings) == 1
    assert "byte" in drain.findings[0].where
    assert list(world.journals.glob("*/*.damaged")), "the bytes are kept"
    assert [finding.check for finding in world.store.verify()], "the gap is in the store's checks"


def test_an_end_that_the_store_has_and_the_journal_lost_is_not_booked_again(world: World) -> None:
    """The power went after the drain had read what the disk had not kept yet."""
    journal = Journal(world.journals, "gateway-0")
    journal.append(held("a"))
    journal.append(held("b"))
    (file,) = world.journals.glob("*/*.journal")
    size = file.stat().st_size
    settle(journal, "a")
    assert world.drain().step() == 1
    os.truncate(file, size)
    die(journal)
    assert world.drain().step() == 1
    assert [row[:2] for row in world.entries()] == [("a", "succeeded"), ("b", "unknown")]
    assert world.drain().step() == 0
    assert world.store.verify() == []


def killed(done):
    """Return a method that dies before, or (with the method ``done``) after its work."""

    def method(self, *arguments, **more):
        if done is not None:
            done(self, *arguments, **more)
        raise KeyboardInterrupt

    return method


def test_a_drain_killed_anywhere_is_made_good_by_the_next(world: World, monkeypatch) -> None:
    journal = Journal(world.journals, "gateway-0")
    journal.append(held("a", caps=("total@ever",)))
    settle(journal, "b", 7, ("total@ever",))
    world.leases.take("gateway-0", journal.epoch, [Want("total@ever", 100, 1000)])
    die(journal)
    for name, done in (("_store", None), ("_forget", None), ("_recover", Drain._recover)):
        with monkeypatch.context() as patched:
            patched.setattr(Drain, name, killed(done))
            with pytest.raises(KeyboardInterrupt):
                world.drain().step()
    world.drain().step()
    assert sorted(row[0] for row in world.entries()) == ["a", "b"]
    (grant,) = world.leases.take("another", 1, [Want("total@ever", 1, 1000)])
    assert (grant.spent, grant.leased - grant.amount) == (57, 0)
    assert world.store.verify() == []


def test_numbers_go_on_where_deleted_segments_ended(world: World) -> None:
    journal, drain = Journal(world.journals, "gateway-0", segment_bytes=300), world.drain()
    for _ in range(20):
        settle(journal, new_id())
    drain.step()
    assert len(list(world.journals.glob("*/*.journal"))) == 1
    journal.append(held("open"))
    for _ in range(5):
        settle(journal, new_id())
    die(journal)
    world.drain().step()
    assert world.entries("number")[-1] == (26,)
    assert world.store.verify() == []


def test_one_drain_at_a_time(world: World) -> None:
    Journal(world.journals, "gateway-0").close()
    with locked(world.journals / "drain.lock") as alone:
        assert alone
        with pytest.raises(DrainBusy):
            world.drain().step()


@pytest.mark.parametrize("part", ["store", "leases"])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_store_that_is_away_loses_nothing(world: World, monkeypatch, part, batch) -> None:
    monkeypatch.setattr("packshot.ledger.drain.BATCH", batch)
    journal, drain = Journal(world.journals, "gateway-0", segment_bytes=300), world.drain()
    world.leases.take("gateway-0", journal.epoch, [Want("total@ever", 100, 1000)])
    for name in "abcdefg":
        settle(journal, name, 5, ("total@ever",))
    journal.append(held("open"))

    def away(*_arguments: object) -> int:
        raise LedgerUnavailable("gone")

    broken = (world.store, "append") if part == "store" else (world.leases, "settle")
    with monkeypatch.context() as patched:
        patched.setattr(*broken, away)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                drain.step()
    drain.step()
    settle(journal, "open", 5, ("total@ever",))
    assert drain.step() == 1
    assert [row[0] for row in world.entries()] == [*"abcdefg", "open"]
    (grant,) = world.leases.take("another", 1, [Want("total@ever", 1, 1000)])
    assert grant.spent == 40
    assert world.store.verify() == []
    journal.close()


def test_few_attempts_wait_for_more_and_a_whole_batch_does_not(world: World, monkeypatch) -> None:
    monkeypatch.setattr("packshot.ledger.drain.BATCH", 3)
    journal, drain, seen = Journal(world.journals, "gateway-0"), world.drain(), []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            seen.append("waits")
            self.set()
            return True

    def step() -> int:
        seen.append(Drain.step(drain))
        return seen[-1]

    monkeypatch.setattr(drain, "step", step)
    for name in "abcd":
        settle(journal, name)
    drain.run(Stop())
    assert seen == [4, 0, "waits"]
    settle(journal, "e")
    drain.run(Stop())
    assert seen[3:] == [1, "waits"]
    journal.close()


def test_journals_are_read_in_parts(world: World, monkeypatch) -> None:
    monkeypatch.setattr("packshot.ledger.drain.CHUNK", 50)
    journal, drain = Journal(world.journals, "gateway-0"), world.drain()
    for name in "abc":
        settle(journal, name)
    (file,) = world.journals.glob("*/*.journal")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    settle(journal, "d")
    assert drain.step() == 3
    assert [row[0] for row in world.entries()] == ["a", "c", "d"]
    (found,) = drain.findings
    assert f"at byte {len(data) // 3}, {len(data) // 3} bytes" in found.where
    journal.close()


def test_cap_periods_that_are_long_over_are_deleted_once_an_hour(world: World) -> None:
    journal, now = Journal(world.journals, "gateway-0"), [over_by("2026-09") + KEEP_US]
    drain = Drain(world.journals, world.store, world.leases, lambda: now[0])
    want = Want("total@2026-09", 50, 1000)
    world.leases.take("gateway-0", journal.epoch, [want])
    journal.append(held("a", caps=("total@2026-09",)))

    def periods() -> int:
        with world.leases.database.transaction() as within:
            return within.query("SELECT count(*) FROM cap_periods")[0][0]

    now[0] += 1
    drain.step()
    assert periods() == 1, "a hold in it is open"
    settle(journal, "a", 50, ("total@2026-09",))
    drain.step()
    assert periods() == 1, "looked at within the hour"
    now[0] += HOUR_US
    drain.step()
    assert periods() == 0
    journal.close()


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from packshot.core.ids import new_id
    from packshot.ledger.journal import Journal
    from packshot.ledger.records import Dimensions, Held, Settled
    from packshot.core.errors import LedgerUnavailable
    journal = Journal(Path(sys.argv[1]), sys.argv[2])
    own = Dimensions(stage="denoise", device="cpu")
    print("ready", flush=True)
    for _ in range(200_000):
        attempt = new_id()
        journal.append(Held(attempt, 1, 50, 10**18, own, dispatched=True))
        sys.stdout.write("h" + attempt + "\\n")
        sys.stdout.flush()
        journal.settle(lambda n: Settled(attempt, n, 1, 1, 2, "succeeded", "", own,
            account="denoise", amount=5, depreciation=5))
        sys.stdout.write("s" + attempt + "\\n")
        sys.stdout.flush()
""")


def test_kill_9_loses_and_doubles_nothing(world: World) -> None:
    """12 kills at random points; `benchmarks/ledger_crash.py` does 1,000."""
    rng = random.Random(11)
    promised: dict[str, str] = {}
    for cycle in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(world.journals), f"w-{cycle % 2}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(rng.randrange(2, 400))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.wait(10)
        writer.stdout.close()
        promised.update((line[1:-1], line[0]) for line in lines if len(line) == 34)
        if cycle % 3 == 2:
            world.drain().step()
    world.drain().step()
    stored = world.entries("attempt, outcome")
    assert len(stored) == len(dict(stored))
    missing = set(promised) - set(dict(stored))
    assert not missing
    settled = {attempt for attempt, kind in promised.items() if kind == "s"}
    assert all(dict(stored)[attempt] == "succeeded" for attempt in settled)
    assert world.store.verify() == []
