"""Hosted renders: through the real gateway code to a fake provider, marked, booked, and bounded."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from packshot.core.clock import wall_us
from packshot.core.errors import ContentFiltered, HostedFailed, InvalidRequest
from packshot.core.types import Original, RenderRequest
from packshot.gateway.client import LocalClient
from packshot.gateway.settings import load_gateway
from packshot.ledger.caps import Cap
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in, local_ledger
from packshot.providers.fake import Fake
from packshot.providers.fake_pictures import read_form
from packshot.providers.fake_script import NEVER, Fault, Rule, Settings
from packshot.studio.booking import Bookkeeper
from packshot.studio.hosted import (
    ACCOUNT,
    AT_ONCE,
    BESIDE,
    HostedOrder,
    HostedProvider,
    booked_elsewhere,
    hosted_seed,
)
from packshot.studio.overflow import Gauge, Limits, Overflow
from packshot.studio.plan import Options, Plan, plan, plan_like
from packshot.studio.record import Hosted, read_record
from packshot.studio.render import Delivery, render
from tests.studio.provider import provider
from tests.studio.stub import StubEngine

SD = "stability/sd3.5-large"
REPLACE = "stability/replace-background-and-relight"
PRICE = 55_900_000
YAML = """
providers:
  stability:
    base_url: {one}/v2beta
    keys: [{value: env.KEY_A, name: only}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 2}}
ledger: {store: ledger.db, journal: journal, gpu_eur_per_hour: {cpu: 0.05}}
"""
COLUMNS = (
    "render, recipe, stage, provider, model, device, batch, tags, outcome, amount, virtual_key"
)
REQUEST = RenderRequest("a red mug", (7,), 64, 64, 8, 5.0)


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-a")
    monkeypatch.setattr("packshot.gateway.wire.later.EVERY_S", 0.01)


class Here:
    """A fake provider, a ledger, and the hosted provider of one command."""

    def __init__(self, folder: Path, fake: Fake) -> None:
        self.path = folder / "packshot.yaml"
        self.path.write_text(YAML.replace("{one}", fake.url))
        self.fake = fake
        self.clients = 0
        self.costs: list[tuple[str, int, bool]] = []
        self.order = HostedOrder(SD, REPLACE, 20.0, "render", "b1")
        self.cap = -1
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            settings, caps = load_settings(self.path), None
            if self.cap >= 0:
                caps = [Cap("virtual_key", ACCOUNT, self.cap, "month", "refuse")]
            self._ledger = local_ledger(settings, book_of(settings), caps)
        return self._ledger

    def client(self) -> LocalClient:
        self.clients += 1
        book = book_of(load_settings(self.path))
        return LocalClient(load_gateway(self.path), self.ledger, book)

    def provider(self) -> HostedProvider:
        def note(name: str, cost: int, known: bool) -> None:
            self.costs.append((name, cost, known))

        return HostedProvider(self.client, self.order, note)

    def keeper(self) -> Bookkeeper:
        return Bookkeeper(self.ledger, book_of(load_settings(self.path)), "render", "cpu")

    def booked(self) -> list[dict[str, Any]]:
        if self._ledger is not None:
            assert dict(self._ledger.open_holds) == {}
            self._ledger.close()
            self._ledger = None
        settings = load_settings(self.path)
        store = open_store(settings.store)
        try:
            bring_in(settings, store)
            assert store.verify() == []
            rows = store.query(f"SELECT {COLUMNS} FROM entries ORDER BY settled_at, number")  # noqa: S608
            return [dict(zip(COLUMNS.split(", "), row, strict=True)) for row in rows]
        finally:
            store.close()

    def billed(self) -> int:
        book = book_of(load_settings(self.path))
        return sum(
            book.charge(truth.billed, "stability", truth.model, wall_us()).amount
            for truth in self.fake.truth
            if truth.billed is not None
        )


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with provider(Settings(keys={"secret-a": None})) as fake:
        made = Here(tmp_path, fake)
        yield made
        made.booked()


@pytest.fixture
def planned(folder: Path, tmp_path: Path) -> Plan:
    options = Options(
        "white sneakers on a sandy beach",
        model=str(folder),
        count=2,
        seed=7,
        size="128x64",
        out=str(tmp_path / "x.png"),
    )
    return plan(options)


def hosted(here: Here, planned: Plan, keeper: Bookkeeper | None = None) -> Delivery:
    there = here.provider()
    try:
        renderer = there.renderer(planned.renders, "device", planned.size)
        booking = (keeper or here.keeper()).beside(BESIDE)
        return render(planned, renderer, booking=booking)
    finally:
        there.close()


def test_a_hosted_render_is_delivered_marked_and_booked_once(here: Here, planned: Plan) -> None:
    made = hosted(here, planned)
    assert [picture.seed for picture in made.pictures] == [7, 8]
    mark = Hosted("stability", "sd3.5-large", SD, "device", 7)
    assert made.hosted == (mark, replace(mark, seed=8))
    assert any("no device is alive" in said for said in made.warnings)
    record = read_record(made.pictures[0].path)
    assert record.hosted == mark
    assert (record.model.name, record.model.fingerprint) == (SD, "")
    assert (record.size, record.caption) == ((128, 64), planned.caption.text)
    with Image.open(made.pictures[0].path) as picture:
        assert picture.size == (128, 64)
    entries = here.booked()
    by_stage = {entry["stage"] for entry in entries}
    assert by_stage == {*BESIDE, "denoise"}
    bought = [entry for entry in entries if entry["provider"]]
    assert [entry["render"] for entry in bought] == list(planned.renders)
    for entry in bought:
        assert (entry["stage"], entry["amount"], entry["device"]) == ("denoise", PRICE, "")
        assert (entry["recipe"], entry["batch"]) == ("render", "b1")
        assert (entry["virtual_key"], entry["tags"]) == (ACCOUNT, "key=only,overflow=device")
    assert sum(entry["amount"] for entry in bought) == here.billed() == 2 * PRICE
    assert here.costs == [(SD, PRICE, True)] * 2
    assert {entry["device"] for entry in entries if not entry["provider"]} == {"cpu"}


def test_the_shape_the_words_and_the_seed_go_over(here: Here, planned: Plan) -> None:
    request = replace(planned.request, negative_prompt="text, people")
    hosted(here, replace(planned, request=request))
    first = here.fake.truth[0]
    asked = read_form(first.path, first.headers["content-type"], first.body)
    assert (asked.prompt, asked.seed, asked.ratio) == (planned.caption.text, 7, "16:9")
    assert b"text, people" in first.body


def test_seeds_that_the_provider_does_not_take() -> None:
    assert [hosted_seed(seed) for seed in (1, 4_294_967_293)] == [1, 4_294_967_293]
    for seed in (0, 4_294_967_294, 2**63 - 1):
        assert 1 <= hosted_seed(seed) <= 4_294_967_294
        assert hosted_seed(seed) == hosted_seed(seed)


def test_a_hosted_picture_cannot_be_made_again_here(here: Here, planned: Plan) -> None:
    made = hosted(here, planned)
    with pytest.raises(InvalidRequest, match="a hosted provider, and cannot be made again"):
        plan_like(read_record(made.pictures[0].path), model=None, out=None)


# ---------------------------------------------------------------- our own renders


def test_own_renders_never_pass_through_the_gateway(here: Here, planned: Plan) -> None:
    engine = StubEngine()
    overflow = Overflow(Limits(), Gauge(seconds=1.0))
    there = here.provider()
    made = overflow.go(
        lambda: render(planned, engine, booking=here.keeper()),
        lambda why: render(planned, there.renderer(planned.renders, why)),
    )
    there.close()
    assert made.hosted == ()
    assert read_record(made.pictures[0].path).hosted is None
    assert len(engine.requests) == 1
    assert here.clients == 0  # no plan, no dispatcher, no pool was ever made
    assert here.fake.truth == []
    assert here.fake.connections == set()
    assert {entry["provider"] for entry in here.booked()} == {""}


def test_a_long_line_goes_there_and_comes_back(here: Here, planned: Plan) -> None:
    engine, gauge, now = StubEngine(), Gauge(seconds=5.0), [0.0]
    overflow = Overflow(Limits(20.0, 10.0, 30.0), gauge, lambda: now[0])
    there = here.provider()

    def go() -> Delivery:
        return overflow.go(
            lambda: render(planned, engine, booking=here.keeper()),
            lambda why: render(
                planned, there.renderer(planned.renders, why), booking=here.keeper().beside(BESIDE)
            ),
        )

    gauge.entered(5)
    assert [mark.why for mark in go().hosted] == ["wait", "wait"]
    gauge.left(3, 15.0)
    now[0] = 29.0
    assert go().hosted
    now[0] = 30.0
    assert go().hosted == ()
    there.close()
    assert (len(engine.requests), len(here.fake.truth)) == (1, 4)
    tags = [entry["tags"] for entry in here.booked() if entry["provider"]]
    assert tags == ["key=only,overflow=wait"] * 4


def test_the_main_path_does_not_load_the_gateway() -> None:
    """What is not imported cannot be called: render, its booking and the decision know no HTTP."""
    script = (
        "import sys, packshot.studio.render, packshot.studio.booking, packshot.studio.session\n"
        "import packshot.studio.overflow, packshot.studio.hosted, packshot.studio.plan\n"
        "print([name for name in sys.modules if name.startswith('packshot.gateway')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what may go wrong


def test_a_filtered_picture_is_not_delivered_and_not_asked_for_again(
    here: Here, planned: Plan
) -> None:
    here.fake.rule(Rule(fault=Fault(code="filter")))
    with pytest.raises(ContentFiltered, match="content filter"):
        hosted(here, planned)
    assert len(here.fake.truth) == 2  # the two pictures of the plan, once each
    assert not planned.targets[0].path.exists()
    bought = [entry for entry in here.booked() if entry["provider"]]
    assert {entry["outcome"] for entry in bought} == {"unknown"}
    assert sum(entry["amount"] for entry in bought) == here.billed() == 2 * PRICE


def test_an_outage_is_told_and_free(here: Here, planned: Plan) -> None:
    here.fake.rule(Rule(fault=Fault(status=503)))
    with pytest.raises(HostedFailed, match="overloaded"):
        hosted(here, planned)
    assert here.billed() == sum(cost for _, cost, _ in here.costs) == 0


def test_no_more_is_spent_than_the_overflows_own_budget(here: Here, planned: Plan) -> None:
    here.cap = PRICE
    with pytest.raises(HostedFailed, match="1 of 2 were made, and are paid for"):
        hosted(here, planned)
    assert here.billed() == PRICE
    bought = [entry for entry in here.booked() if entry["provider"]]
    assert sum(entry["amount"] for entry in bought) == PRICE


def test_after_a_failure_no_more_are_asked_for(here: Here) -> None:
    here.fake.rule(Rule(fault=Fault(status=422)))
    there = here.provider()
    renders = [f"r{number}" for number in range(3 * AT_ONCE)]
    request = replace(REQUEST, seeds=tuple(range(1, 3 * AT_ONCE + 1)))
    try:
        with pytest.raises(ContentFiltered):
            there.renderer(renders, "wait").render(request)
    finally:
        there.close()
    assert len(here.fake.truth) == AT_ONCE


def test_silence_ends_at_the_deadline(here: Here) -> None:
    here.order = replace(here.order, deadline_s=0.5)
    here.fake.rule(Rule(fault=Fault(head_after_s=NEVER)))
    there = here.provider()
    try:
        with pytest.raises(HostedFailed):
            there.renderer(["r1"], "wait").render(REQUEST)
    finally:
        there.close()
    (entry,) = here.booked()
    assert (entry["outcome"], entry["amount"]) == ("unknown", here.billed())


def test_what_is_no_picture_inside_is_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "packshot.providers.fake_pictures._png",
        lambda *_, plain: b"\x89PNG\r\n\x1a\n" + (b"" if plain else b"rest"),
    )
    there = here.provider()
    try:
        with pytest.raises(HostedFailed, match="cannot be read"):
            there.renderer(["r1"], "wait").render(REQUEST)
    finally:
        there.close()


def test_several_threads_share_the_connections(here: Here) -> None:
    there = here.provider()
    barrier = threading.Barrier(6)

    def one(number: int) -> int:
        barrier.wait(10)
        renderer = there.renderer([f"r{number}"], "wait")
        return renderer.render(replace(REQUEST, seeds=(number + 1,))).hosted[0].seed

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, range(6))) == [1, 2, 3, 4, 5, 6]
    there.close()
    assert here.clients == 1
    assert sum(entry["amount"] for entry in here.booked()) == 6 * PRICE == here.billed()


def test_a_close_in_the_middle_settles_what_is_under_way(here: Here) -> None:
    here.fake.rule(Rule(fault=Fault(head_after_s=NEVER)))
    there = here.provider()
    errors: list[BaseException] = []

    def one() -> None:
        try:
            there.renderer(["r1"], "wait").render(REQUEST)
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            errors.append(error)

    thread = threading.Thread(target=one)
    thread.start()
    while not here.fake.truth and not errors:
        threading.Event().wait(0.01)
    there.close()
    thread.join(10)
    assert len(errors) == 1
    (entry,) = here.booked()
    assert (entry["outcome"], entry["amount"]) == ("unknown", PRICE)


# ---------------------------------------------------------------- pictures to start from


def original(mask: np.ndarray | None) -> Original:
    return Original(np.full((64, 64, 3), 200, np.uint8), 0.5, mask)


def test_a_picture_to_start_from_goes_along(here: Here) -> None:
    there = here.provider()
    try:
        there.renderer(["r1"], "wait").render(replace(REQUEST, original=original(None)))
    finally:
        there.close()
    (truth,) = here.fake.truth
    assert truth.path.endswith("/generate/sd3")
    assert b"image-to-image" in truth.body
    start = truth.body.index(b"\x89PNG")
    assert Image.open(BytesIO(truth.body[start:])).size == (64, 64)


def test_a_part_that_is_kept_is_a_new_ground(here: Here) -> None:
    masked = replace(REQUEST, original=original(np.ones((64, 64))))
    there = here.provider()
    try:
        made = there.renderer(["r1"], "wait").render(masked)
    finally:
        there.close()
    assert made.model == REPLACE
    assert here.fake.truth[0].path.endswith("/replace-background-and-relight")
    here.order = replace(here.order, ground_route="")
    there = here.provider()
    with pytest.raises(HostedFailed, match="ground_to"):
        there.renderer(["r2"], "wait").render(masked)
    there.close()


def test_without_the_gateways_libraries_it_is_told_how_to_get_them(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "packshot.gateway.background", raising=False)
    monkeypatch.setitem(sys.modules, "packshot.gateway.client", None)
    with pytest.raises(InvalidRequest, match=r"pip install .packshot\[gateway\]"):
        here.provider().renderer(["r1"], "wait").render(REQUEST)
    assert here.fake.truth == []


def test_a_use_that_the_gateway_booked_is_told_apart(here: Here) -> None:
    there = here.provider()
    try:
        made = there.renderer(["r1"], "wait").render(REQUEST)
    finally:
        there.close()
    assert [booked_elsewhere(part) for part in made.usage] == [True]
    assert not any(booked_elsewhere(part) for part in StubEngine().usage(1, 8))
