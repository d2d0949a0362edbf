"""Renders book themselves: one attempt per stage and picture, and what failed as waste."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import BudgetExceeded, LedgerUnavailable, OutputError
from packshot.core.money import NANO
from packshot.core.types import STAGES, Usage
from packshot.ledger.records import Dimensions, Settled
from packshot.studio import render as render_module
from packshot.studio.booking import LIMIT_S, Bookkeeper, shares
from packshot.studio.plan import Options, plan
from packshot.studio.render import render
from packshot.studio.sheet import Brief, plan_sheet, render_sheet
from tests.studio.stub import StubEngine

RATES = {"cpu": NANO // 20, "h100": 23 * NANO // 10}


@dataclass(frozen=True)
class Charge:
    amount: int
    priced: bool


class Book:
    """EUR per hour by device kind, rounded once."""

    def charge(self, usage: Usage, provider: str, model: str, at: int) -> Charge:
        rate = RATES.get(usage.device)
        if rate is None:
            return Charge(0, False)
        return Charge(round(Fraction(round(usage.seconds * 10**6) * rate, 3600 * 10**6)), True)


@dataclass
class Hold:
    dimensions: Dimensions
    amount: int
    dispatched: bool


@dataclass
class LedgerStub:
    """Keeps the rules of the ledger that a caller can break: one end for each hold."""

    fail_hold: int | None = None
    fail_post: bool = False
    open: list[Hold] = field(default_factory=list)
    posts: list[tuple[Dimensions, Usage, str, str]] = field(default_factory=list)
    voids: list[tuple[Dimensions, str]] = field(default_factory=list)

    def hold(self, dimensions, amount, *, priced, dispatched, expires_in_s, limit_us) -> Hold:
        if len(self.open) == self.fail_hold:
            raise BudgetExceeded("the cap is reached")
        assert dispatched == (dimensions.stage == "denoise")
        assert limit_us > 0
        assert expires_in_s > sum(LIMIT_S.values())
        self.open.append(Hold(dimensions, amount, dispatched))
        return self.open[-1]

    def dispatch(self, hold: Hold) -> None:
        assert not hold.dispatched
        hold.dispatched = True

    def post(self, hold: Hold, usage: Usage, outcome="succeeded", reason="") -> Settled:
        if self.fail_post:
            raise LedgerUnavailable("the disk is full")
        assert hold.dispatched
        self.open.remove(hold)
        self.posts.append((hold.dimensions, usage, outcome, reason))
        charge = Book().charge(usage, "", "", 0)
        return Settled(
            "a",
            1,
            0,
            0,
            0,
            outcome,
            reason,
            hold.dimensions,
            amount=charge.amount,
            depreciation=charge.amount,
            priced=charge.priced,
        )

    def void(self, hold: Hold, reason: str) -> None:
        self.open.remove(hold)
        self.voids.append((hold.dimensions, reason))


@pytest.fixture
def ledger() -> LedgerStub:
    return LedgerStub()


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options("white sneakers", model=str(folder), out=str(tmp_path / "out"), seed=7, steps=3)


def keeper_of(ledger: LedgerStub, recipe: str = "render", device: str = "cpu") -> Bookkeeper:
    return Bookkeeper(ledger, Book(), recipe, device)


def count(options: Options, pictures: int) -> Options:
    return replace(options, count=pictures)


def test_each_stage_of_each_picture_is_an_attempt(options: Options, ledger: LedgerStub) -> None:
    keeper = keeper_of(ledger)
    delivery = render(plan(count(options, 3)), StubEngine(), booking=keeper)
    assert (ledger.open, ledger.voids) == ([], [])
    assert len(set(keeper.bill.renders)) == 3
    seen = Counter((d.render, d.stage) for d, *_ in ledger.posts)
    assert seen == Counter((r, s) for r in keeper.bill.renders for s in STAGES)
    for dimensions, _, outcome, reason in ledger.posts:
        assert (dimensions.recipe, dimensions.model, dimensions.device) == (
            "render",
            "model",
            "cpu",
        )
        assert (outcome, reason) == ("succeeded", "")
    for part in delivery.usage:
        posted = [usage for d, usage, *_ in ledger.posts if d.stage == part.stage]
        assert sum(round(u.seconds * 10**6) for u in posted) == round(part.seconds * 10**6)
        assert sum(u.steps for u in posted) == part.steps
    denoise = keeper.bill.stages["denoise"]
    assert denoise == pytest.approx(700 / 3600 * 0.05 * NANO, abs=3)
    assert keeper.bill.amount == sum(keeper.bill.stages.values())
    assert keeper.bill.rates == {"cpu": NANO // 20}


def test_a_gpu_has_its_own_rate_and_the_rest_is_the_cpu_s(options, ledger: LedgerStub) -> None:
    keeper = keeper_of(ledger, device="h100")
    render(plan(options), StubEngine(device_kind="h100"), booking=keeper)
    devices = {d.stage: (d.device, usage.device) for d, usage, *_ in ledger.posts}
    assert devices == {
        stage: (("h100",) * 2 if stage in {"encode", "denoise", "decode"} else ("cpu",) * 2)
        for stage in STAGES
    }
    assert keeper.bill.rates == {"cpu": NANO // 20, "h100": 23 * NANO // 10}


def test_a_device_without_a_price_is_unpriced_and_not_free(options, ledger: LedgerStub) -> None:
    keeper = keeper_of(ledger, device="b300")
    render(plan(options), StubEngine(device_kind="b300"), booking=keeper)
    assert keeper.bill.unpriced == {"b300"}
    assert keeper.bill.unpriced_stages == {"encode", "denoise", "decode"}
    assert "b300" not in keeper.bill.rates


def test_holds_are_upper_bounds(options: Options, ledger: LedgerStub) -> None:
    keeper = keeper_of(ledger)
    held = []
    engine = StubEngine()
    run = engine.render

    def watch(request, *, on_step=None):
        held.extend((h.dimensions.stage, h.amount) for h in ledger.open)
        return run(request, on_step=on_step)

    engine.render = watch
    render(plan(options), engine, booking=keeper)
    assert dict(held) == {s: round(LIMIT_S[s] * (NANO // 20) / 3600) for s in STAGES}


def test_a_cancelled_render_is_waste_of_the_time_used(options, ledger: LedgerStub) -> None:
    keeper = keeper_of(ledger)
    with pytest.raises(KeyboardInterrupt):
        render(plan(count(options, 2)), StubEngine(fail_at=2), booking=keeper)
    assert ledger.open == []
    assert {(d.stage, outcome, why) for d, _, outcome, why in ledger.posts} == {
        ("caption", "failed_billed", "cancelled"),
        ("denoise", "failed_billed", "cancelled"),
    }
    assert len(ledger.posts) == 4
    assert len(ledger.voids) == 8
    assert all(usage.seconds >= 0 for _, usage, *_ in ledger.posts)


def test_what_was_delivered_before_a_failure_is_no_waste(options, ledger, monkeypatch) -> None:
    write, written = render_module.write_picture, []

    def full(picture, target, extra):
        if written:
            raise OutputError("disk full")
        written.append(target)
        return write(picture, target, extra)

    monkeypatch.setattr(render_module, "write_picture", full)
    keeper = keeper_of(ledger)
    with pytest.raises(OutputError):
        render(plan(count(options, 2)), StubEngine(), booking=keeper)
    first, second = keeper.bill.renders
    outcomes = {(d.render, outcome, reason) for d, _, outcome, reason in ledger.posts}
    assert outcomes == {(first, "succeeded", ""), (second, "failed_billed", "OutputError")}
    assert len(ledger.posts) == 2 * len(STAGES)
    assert ledger.open == []


def test_a_refused_hold_starts_nothing_and_leaves_nothing(options: Options) -> None:
    ledger, engine = LedgerStub(fail_hold=8), StubEngine()
    with pytest.raises(BudgetExceeded):
        render(plan(count(options, 2)), engine, booking=keeper_of(ledger))
    assert engine.requests == []
    assert (ledger.open, ledger.posts) == ([], [])
    assert [reason for _, reason in ledger.voids] == ["not started"] * 8


def test_a_picture_that_is_there_is_not_taken_away(options: Options) -> None:
    keeper = keeper_of(LedgerStub(fail_post=True))
    delivery = render(plan(options), StubEngine(), booking=keeper)
    assert delivery.pictures[0].path.exists()
    assert keeper.bill.problem == "the disk is full"


def test_the_error_of_the_render_is_the_one_that_comes_out(options: Options) -> None:
    with pytest.raises(KeyboardInterrupt) as error:
        render(plan(options), StubEngine(fail_at=1), booking=keeper_of(LedgerStub(fail_post=True)))
    assert "not booked: the disk is full" in error.value.__notes__[0]


def test_a_sheet_is_one_render_per_tile(options, ledger: LedgerStub) -> None:
    briefs = [Brief(1, "white sneakers"), Brief(2, "red vase")]
    plans = plan_sheet(Path("briefs.txt"), briefs, options, 2)
    keeper = keeper_of(ledger, "sheet")
    sheet = render_sheet(plans, StubEngine(), 2, booking=keeper)
    assert len(ledger.posts) == 2 * len(STAGES)
    assert {d.recipe for d, *_ in ledger.posts} == {"sheet"}
    posted = sum(round(usage.seconds * 10**6) for _, usage, *_ in ledger.posts)
    assert posted == sum(round(part.seconds * 10**6) for part in sheet.usage)


def test_nobody_is_booked_who_does_not_ask(options: Options, state_home: Path) -> None:
    render(plan(options), StubEngine())
    assert list(state_home.iterdir()) == []


@given(st.integers(0, 10**12), st.integers(0, 10**6), st.integers(1, 100))
def test_shares_add_up(micros: int, steps: int, pictures: int) -> None:
    part = Usage("denoise", micros / 10**6, "cpu", steps=steps, pixels=3 * steps)
    parts = shares(part, pictures)
    sizes = [round(p.seconds * 10**6) for p in parts]
    assert sum(sizes) == micros
    assert max(sizes) - min(sizes) <= 1
    assert sum(p.steps for p in parts) == steps
    assert sum(p.pixels for p in parts) == 3 * steps
    assert len(parts) == pictures
