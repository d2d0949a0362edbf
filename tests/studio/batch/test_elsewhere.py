"""A batch whose devices are dead: works are made by the hosted provider, and return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packshot.core.clock import wall_us
from packshot.core.errors import HostedFailed, WorkerLost
from packshot.gateway.client import LocalClient
from packshot.gateway.settings import load_gateway
from packshot.ledger.ledger import Ledger
from packshot.ledger.wiring import local_ledger
from packshot.providers.fake import Fake
from packshot.providers.fake_script import Fault, Rule, Settings
from packshot.studio.batch.elsewhere import Elsewhere
from packshot.studio.batch.perform import with_engine
from packshot.studio.batch.runner import Rules, Run
from packshot.studio.hosted import HostedOrder, HostedProvider, hosted_seed
from packshot.studio.overflow import Limits
from packshot.studio.recipes.recipe import load_recipe
from tests.studio.batch.world import CONFIG, QUICK, World
from tests.studio.provider import provider

SD = "stability/sd3.5-large"
PRICE = 55_900_000
PROVIDERS = """
providers:
  stability:
    base_url: {one}/v2beta
    keys: [{value: env.KEY_A, name: only}]
    network: {retry: {max_retries: 0}}
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("KEY_A", "secret-a")
    with provider(Settings(keys={"secret-a": None})) as made:
        yield made


class Clock:
    """Seconds of one's own: each look takes one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Here(World):
    """A batch that may be made elsewhere; ``load`` is what a worker does when it is started."""

    def __init__(self, folder: Path, fake: Fake, model: Path, briefs: list[str], **how: Any):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packshot.yaml").write_text(PROVIDERS.replace("{one}", fake.url) + CONFIG)
        self.fake, self.model = fake, model
        self.clients = 0
        super().__init__(folder, briefs, **how)

    def run_with(self, limits: Limits, rules: Rules | None = None) -> Run:
        ledger = local_ledger(self.ledger_settings, self.book)
        try:
            setup = self.setup(ledger, QUICK, rules or Rules(attempts=2))
            run = Run(self.state, replace(setup, elsewhere=self.elsewhere(ledger, limits)))
            run.go()
        finally:
            left = dict(ledger.open_holds)
            ledger.close()
            self.drain()
        assert left == {}
        return run

    def elsewhere(self, ledger: Ledger, limits: Limits) -> Elsewhere:
        def client() -> LocalClient:
            self.clients += 1
            return LocalClient(load_gateway(self.folder / "packshot.yaml"), ledger, self.book)

        told = {"recipe": load_recipe("text").facts(), "model": str(self.model)}
        order = HostedOrder(SD, "", 20.0, "stub", "batch-1")
        return Elsewhere(
            limits,
            lambda on_call: HostedProvider(client, order, on_call),
            lambda engine: with_engine(told, self.folder / "run", engine),
            Clock(),
        )

    def bought(self) -> list[tuple[Any, ...]]:
        return self.query(
            "SELECT stage, model, batch, tags, outcome, amount FROM entries WHERE provider <> ''"
        )

    def billed(self) -> int:
        return sum(
            self.book.charge(truth.billed, "stability", truth.model, wall_us()).amount
            for truth in self.fake.truth
            if truth.billed is not None
        )


def test_a_batch_without_a_device_is_made_elsewhere_marked_and_booked(
    tmp_path: Path, fake: Fake, folder: Path
) -> None:
    here = Here(tmp_path / "b", fake, folder, ["white sneakers", "a red mug"], load="crash")
    run = here.run_with(Limits(dwell_s=1000.0))
    assert set(here.check_delivered().values()) == {"delivered"}
    assert (run.tally.delivered, len(fake.truth)) == (2, 2)
    assert (
        here.bought()
        == [("denoise", "sd3.5-large", "batch-1", "key=only,overflow=device", "succeeded", PRICE)]
        * 2
    )
    assert here.billed() == 2 * PRICE
    own = here.query("SELECT DISTINCT stage FROM entries WHERE provider = '' AND render <> ''")
    assert {stage for (stage,) in own} == {"caption", "finish", "store"}
    for row in here.state.rows():
        assert row.made is not None
        assert any("made by stability" in said for said in row.made.warnings)
        assert row.made.facts["hosted"] == {
            "provider": "stability",
            "model": "sd3.5-large",
            "route": SD,
            "why": "device",
            "seed": row.made.seed or hosted_seed(0),
        }
    ((amount,),) = here.query("SELECT sum(amount) FROM renders")
    assert run.tally.amount == amount == sum(row.cost for row in here.state.rows())


def test_a_batch_whose_worker_is_well_asks_nobody(tmp_path: Path, fake: Fake, folder: Path) -> None:
    here = Here(tmp_path / "b", fake, folder, ["mug 1", "mug 2"])
    here.run_with(Limits())
    assert set(here.check_delivered().values()) == {"delivered"}
    assert (here.clients, fake.truth, fake.connections) == (0, [], set())
    assert here.check_books() == {"succeeded": 2}


def test_it_returns_when_a_worker_loads_and_the_stay_is_over(
    tmp_path: Path, fake: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packshot.studio.batch.elsewhere.RETRY_S", 6.0)
    briefs = [f"mug {number}" for number in range(8)]
    here = Here(tmp_path / "b", fake, folder, briefs, load="crash once")
    run = here.run_with(Limits(dwell_s=6.0), Rules(attempts=1))
    assert set(here.check_delivered().values()) == {"delivered"}
    hosted = len(fake.truth)
    assert 0 < hosted < 8
    assert run.tally.starts == 2
    made_here = {truth.render for truth in here.truths() if truth.usage}
    assert len(made_here) == 8 - hosted
    assert len(here.bought()) == hosted
    assert here.billed() == hosted * PRICE


def test_what_was_filtered_is_quarantined_at_once(tmp_path: Path, fake: Fake, folder: Path) -> None:
    fake.next(Fault(code="filter"))
    here = Here(tmp_path / "b", fake, folder, ["white sneakers", "a red mug"], load="crash")
    run = here.run_with(Limits(dwell_s=1000.0))
    assert here.check_delivered() == {"i0": "quarantined", "i1": "delivered"}
    (bad,) = [row for row in here.state.rows() if row.state == "quarantined"]
    assert "content filter" in bad.reason
    assert (run.tally.failed_attempts, len(fake.truth)) == (1, 2)
    assert sum(row[-1] for row in here.bought()) == here.billed() == 2 * PRICE


def test_an_outage_there_too_stops_the_run_and_loses_nothing(
    tmp_path: Path, fake: Fake, folder: Path
) -> None:
    fake.rule(Rule(fault=Fault(status=503)))
    briefs = [f"mug {number}" for number in range(6)]
    here = Here(tmp_path / "b", fake, folder, briefs, load="crash")
    with pytest.raises(HostedFailed, match="4 works in a row"):
        here.run_with(Limits(dwell_s=1000.0), Rules(attempts=2, in_a_row=4))
    assert here.state.counts().todo == 6
    assert here.billed() == sum(row[-1] for row in here.bought()) == 0


def test_without_it_the_run_ends_as_before(tmp_path: Path, fake: Fake, folder: Path) -> None:
    here = Here(tmp_path / "b", fake, folder, ["mug"], load="crash")
    with pytest.raises(WorkerLost, match="no worker could be started"):
        here.run()
    assert fake.truth == []
