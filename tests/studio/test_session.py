"""A device's session: its wall time is booked, once, whatever overlaps, fails or is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.clock import HOUR_US, SECOND_US, wall_us
from packshot.core.errors import LedgerUnavailable
from packshot.core.types import Usage
from packshot.ledger.drain import Drain
from packshot.ledger.homes import name_in
from packshot.ledger.journal import read_journals
from packshot.ledger.prices.book import book_of
from packshot.ledger.records import Dimensions, Held, Settled
from packshot.ledger.reports.period import period_of
from packshot.ledger.reports.stages import stage_table
from packshot.ledger.settings import Settings
from packshot.ledger.signs import BEAT_US, last_sign, tick_us
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import local_ledger
from packshot.studio.booking import Bookkeeper
from packshot.studio.session import DeviceSession

RATE = 50_000_000
"""Nano-EUR per hour: what the shipped table asks for a CPU."""


@dataclass
class Charge:
    amount: int
    priced: bool = True


class Book:
    def charge(self, usage: Usage, provider: str, model: str, at: int) -> Charge:
        return Charge(round(usage.seconds * RATE / 3600))


@dataclass
class LedgerStub:
    """Counts what is posted by stage; refuses while ``full``."""

    full: bool = False
    open: list[Dimensions] = field(default_factory=list)
    posted: list[tuple[str, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def hold(self, dimensions, amount, *, priced, dispatched, expires_in_s, limit_us):
        if self.full:
            raise LedgerUnavailable("the disk is full")
        assert dispatched
        assert amount == round(limit_us * RATE / HOUR_US)
        self.open.append(dimensions)
        return dimensions

    def post(self, hold, usage: Usage, outcome, reason):
        if self.full:
            raise LedgerUnavailable("the disk is full")
        assert outcome == "accrual"
        self.open.remove(hold)
        self.posted.append((hold.stage, round(usage.seconds * SECOND_US)))
        self.reasons.append(reason)

    def of(self, stage: str) -> int:
        return sum(micros for name, micros in self.posted if name == stage)


class Stage:
    """A session whose clock is set by hand."""

    def __init__(self) -> None:
        self.now, self.ledger = 10**9, LedgerStub()
        self.session = DeviceSession(self.ledger, Book(), "render", ticks=lambda: self.now)

    def load(self, micros: int, kind: str = "h100") -> None:
        with self.session.loading() as on_device:
            on_device(kind)
            self.now += micros


def test_load_and_idle_are_booked_beside_what_was_used() -> None:
    stage = Stage()
    stage.load(700)
    stage.now += 50
    use = stage.session.begin()
    assert [each.stage for each in stage.ledger.open] == []
    stage.now += 1000
    assert stage.session.end(use, [600, 300]) == (600, 300)
    assert [each.stage for each in stage.ledger.open] == ["idle"]
    stage.now += 25
    stage.session.close()
    stage.session.close()
    assert stage.ledger.posted == [("load", 700), ("idle", 50), ("idle", 100 + 25)]
    assert stage.ledger.open == []
    assert stage.session.device == "h100"


def test_a_session_that_is_closed_while_it_is_used_ends_with_the_last_use() -> None:
    stage = Stage()
    stage.load(700)
    first, second = stage.session.begin(), stage.session.begin()
    stage.now += 1000
    stage.session.close()
    assert stage.session.end(first, [400]) == (400,)
    stage.now += 10
    assert stage.session.end(second, [300]) == (300,)
    stage.now += 99
    stage.session.close()
    assert stage.ledger.posted == [("load", 700), ("idle", 0), ("idle", 310)]
    assert stage.ledger.open == []


def test_a_ledger_that_refuses_the_idle_time_of_a_closed_session_does_not_hide_the_use() -> None:
    stage = Stage()
    stage.load(700)
    use = stage.session.begin()
    stage.now += 1000
    stage.session.close()
    stage.ledger.full = True
    assert stage.session.end(use, [400]) == (400,)
    stage.ledger.full = False
    stage.session.close()
    assert stage.ledger.of("idle") == 600, "it is booked another time"


def test_a_model_that_does_not_load_costs_time_too() -> None:
    stage = Stage()

    def load() -> None:
        with stage.session.loading() as on_device:
            on_device("cpu")
            stage.now += 300
            raise KeyError

    with pytest.raises(KeyError):
        load()
    stage.now += 7
    stage.session.close()
    assert stage.ledger.posted == [("load", 300), ("idle", 7)]
    assert stage.ledger.reasons == ["KeyError", ""]


def test_where_no_device_was_taken_nothing_is_booked() -> None:
    stage = Stage()
    with stage.session.loading():
        stage.now += 300
    assert stage.session.end(stage.session.begin(), [5, 6]) == (5, 6)
    stage.session.tick()
    stage.session.close()
    assert (stage.ledger.posted, stage.ledger.open) == ([], [])


def test_a_ledger_that_refuses_the_load_refuses_before_it() -> None:
    stage = Stage()
    stage.ledger.full = True
    with pytest.raises(LedgerUnavailable):
        stage.load(1)
    stage.ledger.full = False
    stage.session.close()
    assert stage.ledger.posted == []


def test_a_worker_that_waits_books_every_hour() -> None:
    stage = Stage()
    stage.load(0)
    for _ in range(5):
        stage.now += HOUR_US // 2
        stage.session.tick()
    assert stage.ledger.posted == [("load", 0), ("idle", HOUR_US), ("idle", HOUR_US)]
    stage.session.close()
    assert stage.ledger.of("idle") == 5 * HOUR_US // 2


STEP = st.one_of(
    st.tuples(st.just("begin"), st.just(0), st.just([])),
    st.tuples(st.just("end"), st.integers(0, 5), st.lists(st.integers(0, 4000), max_size=5)),
    st.tuples(st.sampled_from(["tick", "full", "room"]), st.just(0), st.just([])),
)


@given(st.integers(0, 10**7), st.lists(st.tuples(st.integers(0, 3000), STEP), max_size=40))
def test_load_use_and_idle_are_the_wall_time(load: int, steps) -> None:
    """Uses overlap, and report more or less than they had; the ledger is full now and then."""
    stage = Stage()
    begun, used = stage.now, 0
    stage.load(load)
    uses: list[int] = []
    for passed, (what, place, parts) in steps:
        stage.now += passed
        if what in {"full", "room"}:
            stage.ledger.full = what == "full"
        elif what == "end" and uses:
            used += sum(stage.session.end(uses.pop(place % len(uses)), parts))
        else:
            try:
                if what == "begin":
                    uses.append(stage.session.begin())
                elif what == "tick":
                    stage.session.tick()
            except LedgerUnavailable:
                assert stage.ledger.full
    stage.ledger.full = False
    for use in uses:
        used += sum(stage.session.end(use, [10**9, 10**9]))
    stage.session.close()
    assert stage.ledger.of("load") == load
    assert load + used + stage.ledger.of("idle") == stage.now - begun
    assert stage.ledger.open == []


BLOCK = st.tuples(
    st.integers(1, 5),  # pictures
    st.lists(
        st.tuples(st.sampled_from(["encode", "denoise", "decode"]), st.integers(0, 5000)),
        max_size=4,
    ),
    st.booleans(),  # whether it fails
)


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans(), BLOCK), max_size=15))
def test_overlapping_renders_of_batches_are_the_wall_time(steps) -> None:
    """Renders begin and end in any order; stages report what they like; some of them fail."""
    stage, posts = Stage(), []
    ledger = stage.ledger

    def post(hold: Dimensions, usage: Usage, outcome: str, reason: str) -> Settled:
        posts.append((hold, round(usage.seconds * SECOND_US)))
        return Settled("a", 1, 0, 0, 0, outcome, reason, hold)

    books = SimpleNamespace(
        hold=lambda dimensions, amount, **more: dimensions,
        dispatch=lambda hold: None,
        void=lambda hold, reason: None,
        post=post,
    )
    begun, running = stage.now, []
    stage.load(77)
    for passed, ends, (pictures, used, fails) in steps:
        stage.now += passed
        if ends and running:
            block, error = running.pop(len(used) % len(running))
            block.__exit__(*((type(error), error, None) if error else (None, None, None)))
            continue
        keeper = Bookkeeper(books, Book(), "render", "?", session=stage.session)
        meter = [Usage(name, micros / SECOND_US, "h100") for name, micros in used]
        block = keeper.booked(["m"] * pictures, [Usage("caption", 9.0, "cpu"), *meter], [])
        block.__enter__()
        running.append((block, KeyError() if fails else None))
    for block, error in running:
        block.__exit__(*((type(error), error, None) if error else (None, None, None)))
    stage.session.close()
    rendered = sum(micros for hold, micros in posts if hold.device == "h100")
    assert 77 + rendered + ledger.of("idle") == stage.now - begun


def settings_in(folder: Path) -> Settings:
    return Settings(str(folder / "ledger.db"), folder / "journal")


def test_the_books_of_a_session_sum_to_its_wall_time(tmp_path: Path) -> None:
    """A real ledger: batches, and stages whose time the CPU had; the caption is older."""
    settings = settings_in(tmp_path)
    book, now = book_of(settings), [10**9]
    ledger = local_ledger(settings, book)
    session = DeviceSession(ledger, book, "sheet", wall_us, lambda: now[0])
    keeper = Bookkeeper(ledger, book, "sheet", "cpu", wall_us, session)
    with session.loading() as on_device:
        on_device("cpu")
        now[0] += 1_234_567
    for pictures in (1, 3, 7):
        now[0] += 89
        meter: list[Usage] = []
        done: list[int] = []
        with keeper.booked(["m"] * pictures, meter, done):
            meter.append(Usage("caption", 0.5, "cpu"))
            meter += [Usage("denoise", 0.700001, "cpu"), Usage("decode", 0.1, "cpu")]
            now[0] += 1_000_003
    session.close()
    ledger.close()
    store = open_store(settings.store)
    Drain(settings.journal, store, None, wall_us).step()
    rows = dict(store.query("SELECT account, sum(seconds_us) FROM entries GROUP BY 1"))
    assert rows["load"] == 1_234_567
    assert rows["denoise"] == 3 * 700_001
    assert rows["caption"] == 3 * 500_000
    assert sum(rows.values()) - rows["caption"] == now[0] - 10**9
    assert store.query("SELECT sum(seconds_us) FROM renders") == [
        (3 * (700_001 + 100_000 + 500_000),)
    ]
    assert store.verify() == []
    store.close()


KILLED = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from packshot.core.clock import wall_us
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import Settings
    from packshot.ledger.wiring import local_ledger
    from packshot.studio.booking import Bookkeeper
    from packshot.studio.session import DeviceSession
    folder, where, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    settings = Settings(str(folder / "ledger.db"), folder / "journal")
    book = book_of(settings)
    ledger = local_ledger(settings, book)
    begun = time.monotonic()
    clock = lambda: wall_us() + (step if time.monotonic() > begun + 0.1 else 0)
    ledger._clock = clock
    session = DeviceSession(ledger, book, "render", clock)
    keeper = Bookkeeper(ledger, book, "render", "cpu", clock, session)
    def work(name):
        if name != where:
            return
        print(time.monotonic_ns() // 1000, flush=True)
        while True:
            sum(range(1000))
    with session.loading() as on_device:
        on_device("cpu")
        work("load")
    work("idle")
    with keeper.booked(["m", "m", "m"], [], []):
        work("render")
""")


@pytest.mark.parametrize(
    ("where", "step"),
    [("load", 0), ("idle", 0), ("render", 0), ("render", -HOUR_US), ("render", HOUR_US)],
)
def test_kill_9_books_what_was_used_and_no_more(
    tmp_path: Path, where: str, step: int, request: pytest.FixtureRequest
) -> None:
    """A child burns its CPU in a stage and is killed; the clock of the wall steps under it."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), where, str(step)],
        stdout=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(child.kill)  # where the test fails, it must not burn on
    assert child.stdout is not None
    began = int(child.stdout.readline())
    settings = settings_in(tmp_path)
    folder = settings.journal / name_in(settings, "local-0")
    epoch = int((folder / "epoch").read_text())
    while (last_sign(folder, epoch) or 0) < began + 4 * BEAT_US:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    killed = tick_us()
    child.wait(10)
    child.stdout.close()
    last = last_sign(folder, epoch)
    assert last is not None
    holds = [each.event for each in read_journals(settings.journal) if isinstance(each.event, Held)]
    stage = "denoise" if where == "render" else where
    since = min(held.since for held in holds if held.dimensions.stage == stage)
    store = open_store(settings.store)
    Drain(settings.journal, store, None, wall_us).step()
    account = "waste" if where == "render" else where
    rows = store.query(
        "SELECT seconds_us, amount, outcome, reason, stage FROM entries WHERE account = ?"
        " AND reason <> ''",
        (account,),
    )
    used, amount = sum(row[0] for row in rows), sum(row[1] for row in rows)
    assert used == last + BEAT_US - since
    assert 4 * BEAT_US < used <= killed - since + BEAT_US
    assert abs(amount - used * RATE / HOUR_US) <= len(rows)
    if where == "render":
        assert {row[2:] for row in rows} == {("failed_billed", "worker died", "denoise")}
        assert len(rows) == 3
        assert max(row[0] for row in rows) - min(row[0] for row in rows) <= BEAT_US
        free = store.query(
            "SELECT count(*), sum(amount) FROM entries WHERE outcome = 'failed_free'"
        )
        assert free == [(15, 0)]
    else:
        assert [row[2:] for row in rows] == [("accrual", "worker died", "")]
    table = stage_table(store, period_of("", "", "1d", wall_us()))
    shown = {line.name: line for line in table.lines}
    assert (shown[account].amount, shown[account].seconds_us) == (amount, used)
    assert not list(settings.journal.glob("*/*.alive"))
    assert store.verify() == []
    store.close()
