"""Pictures asked for from within and at the door: the caller, the fake's truth and the ledger."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from packshot.core.clock import wall_us
from packshot.core.errors import InvalidRequest
from packshot.gateway.client import LocalClient, RemoteClient, run
from packshot.gateway.pictures import Picture, PictureAsk
from packshot.gateway.settings import load_gateway
from packshot.gateway.wire.later import IN_VAIN, Later
from packshot.gateway.wire.upstream import Call, Timeouts
from packshot.ledger.caps import Cap
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in, local_ledger
from packshot.providers.fake import Fake
from packshot.providers.fake_script import NEVER, Fault, Rule, Settings, limited
from packshot.providers.stability import media_type
from tests.gateway.launched import http_post
from tests.gateway.world import world
from tests.providers.test_stability import png
from tests.studio.provider import provider

SD = "stability/sd3.5-large"
REPLACE = "stability/replace-background-and-relight"
YAML = """
providers:
  stability:
    base_url: {one}/v2beta
    keys: [{value: env.KEY_A, name: first}, {value: env.KEY_B, name: second}]
    network: {retry: {max_retries: 2, backoff_initial_ms: 1, backoff_max_ms: 2}}
  spare:
    kind: stability
    base_url: {two}/v2beta
    keys: [{value: env.KEY_A, name: only}]
    network: {retry: {max_retries: 0}}
  openai: {keys: [{value: env.KEY_A}]}
routes:
  - {id: photo, primary: stability/sd3.5-large, fallbacks: [spare/sd3.5-large]}
ledger:
  store: ledger.db
  journal: journal
  prices:
    - {provider: spare, model: sd3.5-large, unit: image, price: 0.07, since: 2025-01-01, source: us}
"""
BOOKED_ON = {"render": "a1", "recipe": "render", "stage": "denoise", "tags": "overflow=wait"}
COLUMNS = "render, stage, provider, model, tags, outcome, reason, amount, images, virtual_key"


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-a")
    monkeypatch.setenv("KEY_B", "secret-b")
    monkeypatch.setattr("packshot.gateway.wire.later.EVERY_S", 0.01)


class Here:
    """A configuration, its fakes, and the ledger of one command after the other."""

    def __init__(self, folder: Path, one: Fake, two: Fake) -> None:
        self.path = folder / "packshot.yaml"
        self.one, self.two = one, two
        self.path.write_text(YAML.replace("{one}", one.url).replace("{two}", two.url))

    def ask(self, route: str = SD, within_s: float = 20.0, **more: Any) -> Picture:
        return self.asks((route, within_s, more))[0]

    def asks(self, *each: tuple[str, float, dict[str, Any]], cap: int = -1) -> list[Picture]:
        settings = load_settings(self.path)
        book = book_of(settings)
        caps = [Cap("virtual_key", "studio/overflow", cap, "month", "refuse")] if cap >= 0 else None
        ledger = local_ledger(settings, book, caps)
        try:
            client = LocalClient(load_gateway(self.path), ledger, book)
            got = run(self._asked(client, each))
        finally:
            left = dict(ledger.open_holds)
            ledger.close()
        assert left == {}
        return got

    async def _asked(self, client: LocalClient, each: Any) -> list[Picture]:
        try:
            return [
                await client.picture(
                    PictureAsk(
                        route,
                        "a red mug",
                        monotonic() + within_s,
                        seed=7,
                        booked_on=BOOKED_ON,
                        account="studio/overflow",
                        **more,
                    )
                )
                for route, within_s, more in each
            ]
        finally:
            await client.close()

    def booked(self) -> list[dict[str, Any]]:
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
        """Return what the truth logs come to."""
        book = book_of(load_settings(self.path))
        parts = [
            book.charge(truth.billed, name, truth.model, wall_us()).amount
            for name, fake in (("stability", self.one), ("spare", self.two))
            for truth in fake.truth
            if truth.billed is not None
        ]
        return sum(parts)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    keys: dict[str, Fault | None] = {"secret-a": None, "secret-b": None}
    with provider(Settings(keys=keys)) as one, provider(Settings(keys=keys)) as two:
        yield Here(tmp_path, one, two)


def outcomes(here: Here) -> list[tuple[str, str]]:
    return [(entry["outcome"], entry["reason"]) for entry in here.booked()]


def agree(here: Here, *got: Picture) -> None:
    """The callers, the provider and the ledger name one sum, to the nano-EUR."""
    assert sum(each.cost for each in got) == here.billed()
    assert sum(entry["amount"] for entry in here.booked()) == here.billed()


def test_a_picture_is_made_and_booked_on_its_render(here: Here) -> None:
    got = here.ask()
    assert (got.trouble, got.kind, got.attempts, got.seed) == ("", "", 1, 7)
    assert (got.provider, got.model, got.priced) == ("stability", "sd3.5-large", True)
    assert media_type(got.data) == "image/png"
    (entry,) = here.booked()
    assert entry == {
        "render": "a1",
        "stage": "denoise",
        "provider": "stability",
        "model": "sd3.5-large",
        "tags": "key=first,overflow=wait",
        "outcome": "succeeded",
        "reason": "",
        "amount": 55_900_000,  # USD 0.065 at the shipped rate of 0.86
        "images": 1,
        "virtual_key": "studio/overflow",
    }
    agree(here, got)


@pytest.mark.parametrize(("status", "billed"), [(200, True), (403, False)])
def test_what_was_filtered_is_refused_once_and_nowhere_else_asked_for(
    here: Here, status: int, *, billed: bool
) -> None:
    here.one.rule(Rule(fault=Fault(status=status, code="filter")))
    got = here.ask("photo")
    assert (got.kind, got.data, got.attempts) == ("refused", b"", 1)
    assert len(here.one.truth) == 1
    assert here.two.truth == []
    assert (got.cost > 0) == billed
    assert outcomes(here) == [("unknown" if billed else "failed_free", "refusal")]
    agree(here, got)


def test_a_mistake_of_ours_is_refused_and_free(here: Here) -> None:
    here.one.rule(Rule(fault=Fault(status=422)))
    got = here.ask("photo")
    assert (got.kind, got.attempts, here.two.truth) == ("refused", 1, [])
    agree(here, got)


def test_an_empty_account_is_left_for_the_next_key_then_for_the_next_target(here: Here) -> None:
    here.one.next(Fault(status=402))
    got = here.ask("photo")
    assert (got.trouble, got.attempts) == ("", 2)
    assert [truth.key for truth in here.one.truth] == ["secret-a", "secret-b"]
    here.one.rule(Rule(fault=Fault(status=402)))
    second = here.ask("photo")
    assert (second.provider, second.attempts) == ("spare", 3)
    agree(here, got, second)


def test_nobody_has_credit(here: Here) -> None:
    for fake in (here.one, here.two):
        fake.rule(Rule(fault=Fault(status=402)))
    got = here.ask("photo")
    assert (got.kind, got.cost, got.attempts) == ("unanswered", 0, 3)
    assert "credit" in got.trouble
    agree(here, got)


def test_a_limit_is_waited_for_as_long_as_the_provider_says(here: Here) -> None:
    here.one.next(limited("ms", 0.2), limited("ms", 0.2))
    got = here.ask()
    assert (got.trouble, got.attempts) == ("", 3)
    first, second, third = here.one.truth
    assert {first.key, second.key} == {"secret-a", "secret-b"}
    assert third.at - first.at >= 0.2
    agree(here, got)


def test_an_error_then_a_picture(here: Here) -> None:
    here.one.next(Fault(status=500))
    got = here.ask()
    assert (got.trouble, got.attempts) == ("", 2)
    assert outcomes(here) == [("failed_free", "server"), ("succeeded", "")]
    agree(here, got)


def test_silence_until_the_deadline_is_booked_at_its_price(here: Here) -> None:
    here.one.rule(Rule(fault=Fault(head_after_s=NEVER)))
    got = here.ask(SD, 0.6)
    assert (got.kind, got.attempts) == ("deadline", 1)
    assert outcomes(here) == [("unknown", "timeout")]
    agree(here, got)  # the fake bills what a client hung up on


def test_a_body_that_is_cut_is_billed_and_asked_for_again(here: Here) -> None:
    here.one.next(Fault(ending="reset", at=4))
    got = here.ask()
    assert (got.trouble, got.attempts) == ("", 2)
    assert outcomes(here) == [("unknown", "garbage"), ("succeeded", "")]
    agree(here, got)


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_in_between_may_have_had_it_billed(here: Here, status: int) -> None:
    here.one.next(Fault(status=status, billed="all"))
    got = here.ask()
    assert (got.trouble, got.attempts) == ("", 2)
    assert [outcome for outcome, _ in outcomes(here)] == ["unknown", "succeeded"]
    agree(here, got)


def test_half_a_picture_in_good_json_is_no_picture(here: Here) -> None:
    here.one.next(Fault(ending="bad_json", billed="all"))
    got = here.ask()
    assert (got.trouble, got.attempts) == ("", 2)
    agree(here, got)


def test_no_more_is_held_than_the_budget_has(here: Here) -> None:
    two = (SD, 20.0, {})
    first, second = here.asks(two, two, cap=100_000_000)
    assert first.trouble == ""
    assert (second.kind, second.cost) == ("budget", 0)
    assert "studio/overflow" in second.trouble
    assert len(here.one.truth) == 1
    agree(here, first, second)


# ---------------------------------------------------------------- a new ground, that comes later


def replaced(here: Here, within_s: float = 20.0) -> Picture:
    return here.ask(REPLACE, within_s, image=png(), more={"light_source_direction": "left"})


def test_a_new_ground_is_one_attempt_however_often_it_is_looked_for(here: Here) -> None:
    got = replaced(here)
    assert (got.trouble, got.attempts, media_type(got.data)) == ("", 1, "image/png")
    assert [truth.path.split("/")[2] for truth in here.one.truth] == [
        "stable-image",
        "results",
        "results",
    ]
    assert {truth.key for truth in here.one.truth} == {"secret-a"}
    assert b"left" in here.one.truth[0].body
    (entry,) = here.booked()
    assert (entry["model"], entry["outcome"]) == ("replace-background-and-relight", "succeeded")
    agree(here, got)


def test_a_result_that_broke_off_is_fetched_again_and_not_paid_again(here: Here) -> None:
    here.one.next(Fault(ending="close", at=3))
    got = replaced(here)
    assert (got.trouble, got.attempts) == ("", 1)
    assert len(here.one.truth) == 4
    agree(here, got)


def test_a_filtered_ground_is_refused(here: Here) -> None:
    here.one.next(Fault(code="filter"))
    got = replaced(here)
    assert (got.kind, got.attempts) == ("refused", 1)
    agree(here, got)


def test_a_result_that_never_comes_is_booked_when_the_deadline_passes(here: Here) -> None:
    here.one.settings = Settings(pending=10**6)
    got = replaced(here, 0.5)
    assert (got.kind, got.attempts) == ("deadline", 1)
    assert outcomes(here) == [("unknown", "timeout")]
    agree(here, got)


class Said:
    """A reply of a stub."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body, self.headers = status, body, {}

    async def read(self, _limit: int) -> bytes:
        return self.body

    async def chunk(self) -> bytes:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


class Stub:
    """Connections that answer what they were told, the last for ever."""

    def __init__(self, *said: tuple[int, bytes]) -> None:
        self.said = [Said(*each) for each in said]
        self.calls: list[Call] = []

    async def send(self, call: Call) -> Said:
        self.calls.append(call)
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]

    async def close(self) -> None:
        return


def later(*said: tuple[int, bytes], target: bytes = b"/later") -> tuple[Any, Stub]:
    stub = Stub(*said)
    call = Call(target, b"a: b\r\n", b"form", monotonic() + 5, Timeouts())
    made = Later(stub, frozenset({b"/later"}), b"/results/")

    async def send() -> Any:
        try:
            reply = await made.send(call)
            return reply.status, await reply.read(1000)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            return error

    return asyncio.run(send()), stub


def test_only_what_comes_later_is_waited_for() -> None:
    got, stub = later((200, b"now"), target=b"/now")
    assert got == (200, b"now")
    assert len(stub.calls) == 1
    got, stub = later((403, b"no"))
    assert got == (403, b"no")
    assert len(stub.calls) == 1


def test_a_result_is_fetched_with_the_same_headers_and_deadline() -> None:
    got, stub = later((200, b'{"id":"a-1"}'), (202, b""), (503, b""), (404, b""), (200, b"it"))
    assert got == (200, b"it")
    first, *looks = stub.calls
    assert len(looks) == 4
    for look in looks:
        assert (look.method, look.target, look.body) == (b"GET", b"/results/a-1", b"")
        assert (look.headers, look.deadline) == (first.headers, first.deadline)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"id":"../x"}', b'{"id":""}', b'{"id":"a b"}'])
def test_an_id_that_is_none_is_an_answer_that_is_none(body: bytes) -> None:
    got, stub = later((200, body))
    assert getattr(got, "began", False)
    assert len(stub.calls) == 1


def test_looks_in_vain_come_to_an_end() -> None:
    got, stub = later((200, b'{"id":"1"}'), (500, b""))
    assert getattr(got, "sent", False)
    assert len(stub.calls) == 1 + IN_VAIN


# ---------------------------------------------------------------- what may be asked of whom


def test_a_route_that_makes_no_pictures_is_refused_before(here: Here) -> None:
    settings = load_settings(here.path)
    book = book_of(settings)
    ledger = local_ledger(settings, book)
    try:
        client = LocalClient(load_gateway(here.path), ledger, book)
        client.check_pictures(SD)
        client.check_pictures("photo")
        for wrong, said in (
            ("openai/gpt-4o-mini", "stability, spare"),
            ("stability/sd9", "sd3.5-large"),
            ("foto", "photo"),
            ("nobody/x", "stability"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                client.check_pictures(wrong)
    finally:
        ledger.close()


def test_the_door_and_a_gateway_elsewhere(tmp_path: Path) -> None:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as there:
        body = {"model": SD, "prompt": "a red mug", "size": "1536x1024", "seed": 3}
        answer = http_post(f"{there.url}/v1/images/generations", json=body)
        assert answer.status_code == 200
        (made,) = answer.json()["data"]
        assert made["seed"] == 3
        assert media_type(b64decode(made["b64_json"])) == "image/png"
        assert answer.headers["x-packshot-cost-eur"] == "0.055900000"
        for wrong in ({"n": 2}, {"stream": True}, {"prompt": ""}):
            answer = http_post(f"{there.url}/v1/images/generations", json={**body, **wrong})
            assert answer.status_code == 400, wrong
        answer = http_post(f"{there.url}/raw/stability/user/account", json={"a": 1})
        assert answer.status_code == 400
        assert "forms" in answer.json()["error"]["message"]

        async def ask() -> list[Picture]:
            client = RemoteClient(there.url)
            asked = PictureAsk(SD, "a red mug", monotonic() + 10, seed=3, booked_on=BOOKED_ON)
            try:
                return [await client.picture(asked), await client.picture(asked)]
            finally:
                await client.close()

        there.fakes["one"].next(Fault(), Fault(code="filter"))
        good, bad = run(ask())
        assert (good.trouble, good.seed, good.cost) == ("", 3, 55_900_000)
        assert media_type(good.data) == "image/png"
        assert (bad.kind, bad.data, bad.cost) == ("refused", b"", 55_900_000)
        stages = [entry.stage for entry in there.booked()]
        assert stages == ["images", "denoise", "denoise"]
