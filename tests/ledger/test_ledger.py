"""The facade: one hold, one end; and whatever happens, no cost is lost and no cap is passed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from packshot.core.errors import BudgetExceeded, InvalidRequest, LedgerError, LedgerUnavailable
from packshot.core.errors import Unpriced as NoPrice
from packshot.core.types import Usage
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain
from packshot.ledger.journal import Journal, RealFiles
from packshot.ledger.ledger import Hold, Ledger, Policy, open_ledger
from packshot.ledger.records import Dimensions, Dispatched, Held, Settled
from packshot.ledger.settings import CapRow, Settings
from packshot.ledger.stores import open_store
from tests.ledger.desk import CHAT, Book, Desk, used

RED = Cap("team", "red", 50, "month")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Return a worker with a monthly cap of 50 for team red."""
    made = Desk(tmp_path, [RED])
    yield made
    made.ledger.close()


def test_a_call_that_goes_out_at_once_is_two_records(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 20, key="k", expires_in_s=60)
    desk.now += 5
    settled = desk.ledger.post(hold, Usage("caption", seconds=1.5, input_tokens=3, output_tokens=7))
    held, end = desk.events()
    assert isinstance(held, Held)
    assert (held.amount, held.dispatched, held.caps) == (20, True, ("team:red@2026-11",))
    assert held.expires - held.at == 60_000_000
    assert len(held.key) == 64
    assert end == settled
    assert (settled.attempt, settled.number, settled.outcome) == (held.attempt, 1, "succeeded")
    assert (settled.amount, settled.payable, settled.account) == (7, 7, "chat")
    assert (settled.seconds_us, settled.input_tokens, settled.output_tokens) == (1_500_000, 3, 7)
    assert (settled.held_at, settled.dispatched_at) == (held.at, held.at)
    assert settled.settled_at == held.at + 5
    assert (settled.held, settled.currency, settled.price) == (20, "USD", "tokens")
    assert settled.caps == held.caps


def test_every_quantity_lands_in_its_own_column(desk: Desk) -> None:
    usage = Usage("store", 1.0, "", 2, 3, 14, 5, 6, 7, 8, "64x64", "high", 11, 12)
    settled = desk.ledger.post(desk.ledger.hold(CHAT, 20), usage)
    for name in ("input", "cached", "written", "output"):
        assert getattr(settled, f"{name}_tokens") == getattr(usage, f"{name}_tokens")
    for name in ("images", "image_size", "image_quality", "stored_bytes", "requests"):
        assert getattr(settled, name) == getattr(usage, name)


def test_a_call_that_waits_is_dispatched_by_itself(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 20, dispatched=False)
    with pytest.raises(LedgerError, match="was not dispatched"):
        desk.ledger.post(hold, used(1))
    desk.now += 9
    desk.ledger.dispatch(hold)
    with pytest.raises(LedgerError, match="dispatched already"):
        desk.ledger.dispatch(hold)
    settled = desk.ledger.post(hold, used(1))
    assert settled.dispatched_at == settled.held_at + 9
    assert [type(event) for event in desk.events()] == [Held, Dispatched, Settled]


def test_an_attempt_ends_once(desk: Desk) -> None:
    posted, voided = desk.ledger.hold(CHAT, 5), desk.ledger.hold(CHAT, 5)
    desk.ledger.post(posted, used(1))
    desk.ledger.void(voided, "refused")
    for hold in (posted, voided):
        with pytest.raises(LedgerError, match="not open here"):
            desk.ledger.post(hold, used(1))
        with pytest.raises(LedgerError, match="not open here"):
            desk.ledger.void(hold, "again")
    assert len(desk.events()) == 4
    assert not desk.ledger.open_holds


def test_tags_that_are_found_late_are_in_the_row(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 10)
    desk.ledger.tag(hold, ("core=1", "zoo=2"))
    assert desk.ledger.post(hold, used(1)).dimensions.tags == ("core=1", "zoo=2")
    with pytest.raises(LedgerError, match="not open"):
        desk.ledger.tag(hold, ())


def test_a_void_costs_nothing(desk: Desk) -> None:
    settled = desk.ledger.void(desk.ledger.hold(CHAT, 20), "refused: 429")
    assert (settled.outcome, settled.amount, settled.priced) == ("failed_free", 0, True)
    assert (settled.reason, settled.account, settled.held) == ("refused: 429", "chat", 20)


def test_what_was_billed_and_not_delivered_is_waste_with_a_reason(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 20)
    with pytest.raises(InvalidRequest, match="needs a reason"):
        desk.ledger.post(hold, used(5), "failed_billed")
    with pytest.raises(InvalidRequest, match="voided"):
        desk.ledger.post(hold, used(5), "failed_free", "x")
    settled = desk.ledger.post(hold, used(5), "failed_billed", "cut")
    assert (settled.account, settled.amount, settled.reason) == ("waste", 5, "cut")


def test_an_unknown_usage_is_booked_at_its_hold(desk: Desk) -> None:
    settled = desk.ledger.post(desk.ledger.hold(CHAT, 20), None, "unknown", "hung up")
    assert (settled.amount, settled.payable, settled.account) == (20, 20, "waste")
    assert settled.original == "0.000000020"


def test_own_devices_are_credited_as_depreciation(desk: Desk) -> None:
    dimensions = Dimensions(stage="denoise", device="cpu")
    settled = desk.ledger.post(desk.ledger.hold(dimensions, 20), used(7))
    assert (settled.depreciation, settled.payable) == (7, 0)
    settled = desk.ledger.post(desk.ledger.hold(dimensions, 20), None, "unknown", "?")
    assert (settled.depreciation, settled.payable) == (20, 0)


def test_what_has_no_price_is_said_to_have_none(desk: Desk) -> None:
    mystery = Dimensions(stage="chat", provider="openai", model="mystery", team="red")
    hold = desk.ledger.hold(mystery, None, priced=False)
    settled = desk.ledger.post(hold, used(7))
    assert (settled.amount, settled.priced, settled.reason) == (0, False, "")
    hold = desk.ledger.hold(mystery, None, priced=False)
    assert not desk.ledger.post(hold, None, "unknown", "hung up").priced


def test_the_operator_may_refuse_what_has_no_price(tmp_path: Path) -> None:
    desk = Desk(tmp_path, policy=Policy(unpriced="refuse"))
    with pytest.raises(NoPrice):
        desk.ledger.hold(CHAT, None, priced=False)
    assert desk.events() == []
    desk.ledger.close()


def test_an_expired_hold_is_settled_by_the_next_tick(desk: Desk) -> None:
    sent = desk.ledger.hold(CHAT, 20, expires_in_s=0)
    waiting = desk.ledger.hold(CHAT, 20, dispatched=False, expires_in_s=0)
    desk.ledger.hold(CHAT, 10)
    desk.ledger.tick()
    ends = [event for event in desk.events() if isinstance(event, Settled)]
    assert {end.attempt: (end.outcome, end.amount) for end in ends} == {
        sent.attempt: ("unknown", 20),
        waiting.attempt: ("failed_free", 0),
    }
    with pytest.raises(LedgerError, match="expired"):
        desk.ledger.post(sent, used(1))
    desk.ledger.hold(CHAT, 20)


def test_a_step_of_the_wall_clock_expires_nothing(desk: Desk) -> None:
    hold = desk.ledger.hold(CHAT, 20)
    desk.now += 3600 * 10**6
    desk.ledger.tick()
    desk.ledger.post(hold, used(1))


class FullDisk(RealFiles):
    """A disk that is full while `full` is true."""

    full = False

    def write(self, descriptor: int, data: bytes, /) -> int:  # type: ignore[override]
        if self.full:
            raise OSError(28, "No space left on device")
        return RealFiles.write(descriptor, data)


def test_a_full_disk_takes_no_new_money_and_loses_none(tmp_path: Path) -> None:
    files = FullDisk()
    desk = Desk(tmp_path, [RED], journal=Journal(tmp_path / "journal", "w", files=files))
    hold = desk.ledger.hold(CHAT, 20)
    waiting = desk.ledger.hold(CHAT, 20, dispatched=False)
    files.full = True
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            desk.ledger.hold(CHAT, 10)
    with pytest.raises(LedgerUnavailable):
        desk.ledger.dispatch(waiting)
    with pytest.raises(LedgerUnavailable):
        desk.ledger.post(hold, used(7))
    files.full = False
    desk.ledger.hold(CHAT, 10)
    assert desk.ledger.post(hold, used(7)).number == 1
    assert desk.ledger.void(waiting, "gave up").number == 2
    desk.ledger.close()


def test_power_waits_for_the_disk_before_it_acknowledges(tmp_path: Path) -> None:
    desk = Desk(tmp_path, policy=Policy(durable=True))
    with patch.object(desk.journal, "wait", wraps=desk.journal.wait) as wait:
        hold = desk.ledger.hold(CHAT, 20, dispatched=False)
        assert wait.call_count == 0
        desk.ledger.dispatch(hold)
        assert wait.call_args.args == (2,)
        desk.ledger.post(hold, used(1))
        assert wait.call_args.args == (3,)
        desk.ledger.hold(CHAT, 20)
        assert wait.call_args.args == (4,)
    desk.ledger.close()


def test_the_settings_open_a_ledger(tmp_path: Path) -> None:
    caps = (CapRow("total", Decimal("0.00000005"), "day"),)
    at = {"store": str(tmp_path / "l.db"), "journal": tmp_path / "j"}
    ledger = open_ledger(Settings(**at, caps=caps), Book(), "w", idempotency=True)
    assert ledger.once("k", b"body") is None
    ledger.hold(CHAT, 50)
    with pytest.raises(BudgetExceeded):
        ledger.hold(CHAT, 1)
    with (
        pytest.raises(LedgerUnavailable, match="own name"),
        patch("packshot.ledger.journal.LOCK_PATIENCE_S", 0.0),
    ):
        open_ledger(Settings(**at), Book(), "w")
    ledger.close()


class Money(RuleBasedStateMachine):
    """Two workers, one cap, a drain: held and spent are compared with a plain account of both."""

    holds = Bundle("holds")
    CAP = 300

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="packshot-money-"))
        self.cap = Cap("total", "", self.CAP, "ever")
        self.desks: dict[str, Desk] = {}
        self.held: dict[str, int] = {}
        self.spent = 0
        self.costs: dict[str, int] = {}
        for worker in "ab":
            self.desks[worker] = Desk(self.folder, [self.cap], worker)
        self.store = open_store(str(self.folder / "ledger.db"))
        self.drain = Drain(
            self.folder / "journal", self.store, self.desks["a"].leases, lambda: 10**15
        )

    @rule(
        target=holds, worker=st.sampled_from("ab"), amount=st.integers(0, 120), sent=st.booleans()
    )
    def hold(self, worker: str, amount: int, sent: bool) -> Any:
        try:
            hold = self.desks[worker].ledger.hold(Dimensions(provider="p"), amount, dispatched=sent)
        except BudgetExceeded:
            return None
        self.held[hold.attempt] = amount
        return (worker, hold)

    @rule(pair=consumes(holds), part=st.integers(0, 100), twice=st.booleans())
    def post(self, pair: tuple[str, Hold] | None, part: int, twice: bool) -> None:
        if pair is None:
            return
        ledger, hold = self.desks[pair[0]].ledger, pair[1]
        if not hold.dispatched_at:
            ledger.dispatch(hold)
        cost = hold.amount * part // 100
        self.end(ledger, hold, ledger.post(hold, used(cost)), cost)
        if twice:
            with pytest.raises(LedgerError):
                ledger.post(hold, used(cost))

    @rule(pair=consumes(holds))
    def void(self, pair: tuple[str, Hold] | None) -> None:
        if pair is not None:
            ledger = self.desks[pair[0]].ledger
            self.end(ledger, pair[1], ledger.void(pair[1], "no"), 0)

    def end(self, ledger: Ledger, hold: Hold, settled: Settled, cost: int) -> None:
        assert settled.amount == cost
        assert hold.attempt not in ledger.open_holds
        del self.held[hold.attempt]
        self.costs[hold.attempt] = cost

    @rule(worker=st.sampled_from("ab"))
    def tick(self, worker: str) -> None:
        self.desks[worker].ledger.tick()

    @rule()
    def step(self) -> None:
        self.drain.step()

    @invariant()
    def spent_and_held_stay_within_the_cap(self) -> None:
        total = sum(self.held.values()) + sum(self.costs.values())
        assert total <= self.CAP
        spent, leased = self.desks["a"].period("total@ever")
        assert total <= spent + leased <= self.CAP

    def teardown(self) -> None:
        if not hasattr(self, "desks"):
            return
        left = {
            hold.attempt: hold.amount if hold.dispatched_at else 0
            for desk in self.desks.values()
            for hold in desk.ledger.open_holds.values()
        }
        self.desks["b"].ledger.close()
        # The drain goes on with the leases of "a": only its journal ends.
        self.desks["a"].journal.close()
        for _ in range(3):
            self.drain.step()
        rows = dict(self.store.query("SELECT attempt, amount FROM entries"))
        assert rows == self.costs | left
        assert self.desks["a"].period("total@ever") == (sum(rows.values()), 0) or not rows
        self.store.close()
        self.desks["a"].leases.close()
        shutil.rmtree(self.folder)


Money.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestMoney = Money.TestCase
