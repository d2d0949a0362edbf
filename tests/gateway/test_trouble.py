"""Trouble of the gateway's own in the middle of a call: the caller hears what is true."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.gateway import dispatch, health
from packshot.gateway.attempt import Attempt, hold_for
from packshot.gateway.health import CONSECUTIVE, Breaker
from packshot.gateway.money import Money
from packshot.gateway.once import Once
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey
from packshot.gateway.waits import Waits
from packshot.ledger.ledger import Hold, Ledger, MustWait
from packshot.providers.fake_script import NEVER, Fault, Rule, Settings
from tests.gateway.launched import http_post, until
from tests.gateway.test_changed import job_of
from tests.gateway.world import World, world

YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
"""
HELLO = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "a shoe"}]}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")


def ask(there: World, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    body = json.dumps({**HELLO, **more}).encode()
    return http_post(there.url + path, content=body, headers=headers)


def broken(*_: object, **__: object) -> None:
    raise LedgerUnavailable("no space left on device: /var/lib/journal")


@pytest.mark.parametrize("stream", [False, True])
def test_a_ledger_that_fails_at_the_end_is_not_said_to_have_made_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with world(tmp_path, YAML, one=Settings()) as there:
        with monkeypatch.context() as patch:
            patch.setattr(Money, "post", broken)
            got = ask(there, stream=stream)
        assert "/var/lib" not in got.text
        if stream:
            assert got.status_code == 200
            last = got.text.strip().rpartition("data: ")[2]
            assert "internal_error" in last
        else:
            assert got.status_code == 503
            assert got.headers["x-should-retry"] == "false", "it would be paid for twice"
            assert "may have billed" in got.text
        assert len(there.fakes["one"].truth) == 1
        until(lambda: there.errors)  # the answer goes out first
        assert [type(error) for error in there.errors] == [LedgerUnavailable]
        there.errors.clear()


def test_a_ledger_that_fails_before_a_call_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(tmp_path, YAML, one=Settings()) as there:
        with monkeypatch.context() as patch:
            patch.setattr(Money, "hold_at_once", broken)
            got = ask(there)
        assert got.status_code == 503
        assert got.headers["x-should-retry"] == "true"
        assert "no call was made" in got.text
        there.errors.clear()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/raw/openai/chat/completions"])
def test_a_hold_that_came_after_the_deadline_is_voided_and_no_call_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    made = Money.hold

    async def slow(*given: Any) -> Any:
        await asyncio.sleep(0.15)
        return await made(*given)

    with world(tmp_path, YAML, one=Settings()) as there:
        assert ask(there).status_code == 200, "a connection is there: it would be used at once"
        monkeypatch.setattr(Money, "hold", slow)
        monkeypatch.setattr(dispatch, "hold_at_once", lambda *_: None)  # it has to be waited for
        model = "gpt-4o-mini"
        got = ask(there, path, headers={"x-packshot-timeout-ms": "100"}, model=f"openai/{model}")
        assert got.status_code == 504, got.text
        assert len(there.fakes["one"].truth) == 1
        (_, late) = there.booked()
        assert (late.outcome, late.amount) == ("failed_free", 0)


class Slow:
    """A ledger whose thread waits while the caller hangs up."""

    def __init__(self) -> None:
        self.asked, self.go_on, self.let_go = (threading.Event() for _ in range(3))

    def once(self, _key: str, _body: bytes, _scope: str) -> None:
        self.asked.set()
        assert self.go_on.wait(10)

    def forget(self, _key: str, _scope: str) -> None:
        self.let_go.set()


def test_a_caller_who_hangs_up_while_the_key_is_noted_may_come_again() -> None:
    ledger = Slow()
    once = Once(ledger, None, Telemetry(), Waits())  # type: ignore[arg-type]

    async def hang_up() -> bool:
        task = asyncio.ensure_future(once.answer(job_of(VirtualKey("k")), b"k", b"{}"))
        assert await asyncio.to_thread(ledger.asked.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        ledger.go_on.set()
        return await asyncio.to_thread(ledger.let_go.wait, 5)

    assert asyncio.run(hang_up()), "its key is refused for ten minutes"


def test_a_key_that_comes_back_is_tried_by_one_call_even_where_the_hold_waits() -> None:
    owner = VirtualKey("k")
    job = job_of(owner)
    target = job.route.targets[0]
    (key,) = target.provider.keys
    breaker = key.breaker(target.model)
    for _ in range(5):
        breaker.failure(0.0)
    assert breaker.open_until

    class Waits:
        async def hold(self, *_: object) -> None:
            assert not breaker.allows(monotonic() + 1.0), "another one is let through"
            raise LedgerUnavailable("away")

    async def attempt() -> None:
        with pytest.raises(LedgerUnavailable):
            await hold_for(Waits(), job, target, key, 5)  # type: ignore[arg-type]

    breaker.open_until = 1.0
    asyncio.run(attempt())
    assert breaker.allows(monotonic()), "that call was not made: the next one decides"
    key.breakers.clear()


def test_a_call_that_began_before_its_key_was_taken_out_does_not_decide_on_its_return() -> None:
    """Its hold waited meanwhile: the breaker heard of it then, and not again now."""
    job = job_of(VirtualKey("k"))
    target = job.route.targets[0]
    (key,) = target.provider.keys
    breaker = key.breaker(target.model)

    class Waits:
        async def hold(self, *_: object) -> Hold:
            for _ in range(5):
                breaker.failure(monotonic())
            return Hold(None, (), True, 0, 0.0, 1)  # type: ignore[arg-type]

    async def attempt() -> Attempt:
        money: Any = Waits()
        hold = await hold_for(money, job, target, key, 5)
        return Attempt(job, target, key, hold, money, Telemetry())

    made = asyncio.run(attempt())
    assert breaker.open_until
    assert not breaker.probe
    made._leave()
    key.breakers.clear()


# ------------------------------------------------------------------------- the call's own deadline
ONCE = """
providers:
  openai:
    base_url: "{one}/v1"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
"""


def timed_out(there: World, ms: int, **more: Any) -> Breaker:
    """Make five calls at the same time whose deadline passes; return the key's breaker."""

    def one() -> int:
        return ask(there, headers={"x-packshot-timeout-ms": str(ms)}, **more).status_code

    with ThreadPoolExecutor(CONSECUTIVE) as pool:
        made = [pool.submit(one) for _ in range(CONSECUTIVE)]
        assert {each.result() for each in made} <= {200, 504}
    return breaker_of(there)


def breaker_of(there: World) -> Breaker:
    (key,) = there.worker.gateway.plan.providers["openai"].keys
    return key.breaker("gpt-4o-mini")


def test_impatient_callers_take_a_key_from_nobody(tmp_path: Path) -> None:
    with world(tmp_path, ONCE, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
        breaker = timed_out(there, 100)
        assert (breaker.open_until, breaker.in_a_row) == (0.0, 0)


def test_silence_that_is_long_counts_though_the_caller_ended_it(tmp_path: Path) -> None:
    with world(tmp_path, ONCE, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
        assert timed_out(there, 1200).open_until > monotonic()


def test_silence_is_long_by_what_the_target_takes(tmp_path: Path) -> None:
    with world(tmp_path, ONCE, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=0.9), times=1))
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
        assert ask(there).status_code == 200
        assert not timed_out(there, 1200).open_until


def test_a_provider_that_is_at_work_at_the_deadline_is_well(tmp_path: Path) -> None:
    with world(tmp_path, ONCE, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(every_s=NEVER)))
        breaker = timed_out(there, 1200, stream=True)
        assert (breaker.open_until, breaker.bad) == (0.0, 0)


@pytest.mark.parametrize(("ms", "decided"), [(100, False), (1200, True)])
def test_a_trial_that_its_own_deadline_ends_is_over(tmp_path: Path, ms: int, decided: bool) -> None:
    """What it says depends on how long it waited; either way another one comes."""
    with world(tmp_path, ONCE, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
        breaker = breaker_of(there)
        for _ in range(CONSECUTIVE):
            breaker.failure(monotonic())
        breaker.open_until = breaker.opened = monotonic()
        assert ask(there, headers={"x-packshot-timeout-ms": str(ms)}).status_code == 504
        assert not breaker.probe
        assert breaker.allows(monotonic()) is not decided
        assert breaker.times == 1 + decided


# ------------------------------------------------------------------------- what waits too long
SHORT = YAML + "server: {ledger_wait_s: 0.2, max_body_bytes: 1000000, max_bodies_bytes: 1500000}\n"


def stuck(go_on: threading.Event, method: Any) -> Any:
    """Return a method of the ledger that waits, as for a database that hangs."""

    def waiting(*given: Any, **named: Any) -> Any:
        if named.get("wait") is False:
            raise MustWait
        assert go_on.wait(20)
        return method(*given, **named)

    return waiting


def test_a_database_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with world(tmp_path, SHORT, one=Settings()) as there:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "hold", stuck(go_on, Ledger.hold))
            got = ask(there)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert got.headers["x-should-retry"] == "true"
        assert "retry-after" in got.headers
        assert not there.fakes["one"].truth, "no hold, and no call"
        go_on.set()
        waits = there.worker.gateway._money.waits
        until(lambda: not waits._out)
        assert ask(there).status_code == 200
        late, made = there.booked()
        assert (late.outcome, late.amount, late.reason) == (
            *("failed_free", 0),
            "nobody waited for the hold",
        )
        assert made.outcome == "succeeded"
        assert [str(error) for error in there.errors] == ["no answer of the ledger within 0.2 s"]
        there.errors.clear()


@pytest.mark.parametrize("stream", [False, True])
def test_a_disk_that_hangs_at_the_end_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    go_on = threading.Event()
    power = SHORT + "ledger: {store: ledger.db, journal: journal, durability: power}\n"
    with world(tmp_path, power, one=Settings()) as there:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "flush", stuck(go_on, Ledger.flush))
            got = ask(there, stream=stream)
            go_on.set()
        if stream:
            assert "internal_error" in got.text.strip().rpartition("data: ")[2]
        else:
            assert got.status_code == 503
            assert "may have billed" in got.text
            assert got.headers["x-should-retry"] == "false"
        there.errors.clear()


def test_an_idempotency_key_that_was_noted_too_late_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with world(tmp_path, SHORT, one=Settings()) as there:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "once", stuck(go_on, Ledger.once))
            got = ask(there, headers={"idempotency-key": "k"})
        assert got.status_code == 503
        assert not there.fakes["one"].truth
        go_on.set()
        until(lambda: ask(there, headers={"idempotency-key": "k"}).status_code == 200)
        there.errors.clear()


def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packshot.gateway.waits.MOST", 2)
    go_on = threading.Event()

    async def scene() -> None:
        waits = Waits(0.05)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match=r"within 0\.05 s"):
                await waits.run(lambda: go_on.wait(20))
        with pytest.raises(LedgerUnavailable, match="the most that may"):
            await waits.run(lambda: None)
        go_on.set()
        while waits._out:  # noqa: ASYNC110 - a thread's end is what is waited for
            await asyncio.sleep(0.01)
        assert await waits.run(lambda: 7) == 7

    asyncio.run(scene())


# ------------------------------------------------------------------------- bodies in memory
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_have_one_room_together(tmp_path: Path, chunked: bool) -> None:
    said = json.dumps({**HELLO, "user": "x" * 900_000}).encode()
    framing = b"content-length: %d" % len(said)
    before, last = said[:-100], said[-100:]
    if chunked:  # counted as it comes, not as it is announced
        framing = b"transfer-encoding: chunked"
        before, last = (b"%x\r\n%b\r\n" % (len(part), part) for part in (before, last))
        last += b"0\r\n\r\n"
    with world(tmp_path, SHORT, one=Settings()) as there:
        room, place = there.worker.gateway._room, urlsplit(there.url)
        with socket.create_connection((str(place.hostname), int(place.port or 0)), 20) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % framing)
            slow.sendall(before)
            until(lambda: room.left < 700_000)
            got = ask(there, user="x" * 900_000)
            assert (got.status_code, got.json()["error"]["code"]) == (503, "saturated")
            assert got.headers["retry-after"] == "1"
            assert ask(there).status_code == 200, "a small one is no burden"
            slow.sendall(last)
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
            until(lambda: room.left == 1_500_000)
            assert ask(there, user="x" * 900_000).status_code == 200
        until(lambda: room.left == 1_500_000)


def test_a_key_that_is_worse_than_its_peers_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What alone takes a key out is out of reach here, and ten calls are enough to compare."""
    names = "ABCDE"
    monkeypatch.setattr(health, "CONSECUTIVE", 1000)
    monkeypatch.setattr(health, "SHARE", 2.0)
    monkeypatch.setattr(health, "PEERS_OF", 10)
    monkeypatch.setattr(health, "WINDOW_S", 600.0)
    for name in names:
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")
    keys = ", ".join(f"{{value: env.KEY_{name}, name: {name}}}" for name in names)
    yaml = YAML.replace("{value: env.KEY_A}", keys)
    with world(tmp_path, yaml, one=Settings()) as there:
        there.fakes["one"].rule(Rule(fault=Fault(status=500), key="secret-C"))
        assert {ask(there).status_code for _ in range(70)} == {200}
        provider = there.worker.gateway.plan.providers["openai"]
        opened = {key.name: key.breaker("gpt-4o-mini").times for key in provider.keys}
        assert opened == {name: int(name == "C") for name in names}
