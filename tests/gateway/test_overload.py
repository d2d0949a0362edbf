"""More than there is room for, and the end of a process with streams under way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from packshot.core.clock import wall_us
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.caller import Caller
from tests.gateway.faults import LONG, Saw
from tests.gateway.process import Process, booked, provider
from tests.gateway.world import world

MODEL = "gpt-4o-mini"
YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A}]
server: {max_in_flight: 20, port: 0, admin_port: 0}
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "k1")


def test_what_is_too_much_is_told_to_come_back(tmp_path: Path) -> None:
    """Five times what there is room for: the surplus hears 503, and never reaches the provider."""
    slow = Settings(usual=Fault(head_after_s=0.3))
    with world(tmp_path, YAML, one=slow) as there:
        port = int(there.url.rpartition(":")[2])
        first = asyncio.Event()

        async def call(number: int) -> tuple[float, Saw]:
            if number >= 20:
                await first.wait()
            at = time.monotonic()
            saw = await Caller(port, {"openai": f"openai/{MODEL}"})(
                api="openai", stream=number % 2 == 0
            )
            return time.monotonic() - at, saw

        async def crowd() -> list[tuple[float, Saw]]:
            tasks = [asyncio.create_task(call(number)) for number in range(100)]
            while len(there.fakes["one"].truth) < 20:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.005)
            first.set()
            return await asyncio.gather(*tasks)

        seen = asyncio.run(crowd())
        good = [saw for _, saw in seen if saw.complete]
        shed = [saw for _, saw in seen if saw.status == 503]
        assert len(good) + len(shed) == 100
        assert 20 <= len(good) < 100
        assert all(saw.retry_after_s and "saturated" in saw.error for saw in shed)
        there.ended()
        assert len(there.fakes["one"].truth) == len(good)
        assert Counter(entry.outcome for entry in there.booked()) == {"succeeded": len(good)}
        assert there.worker.gateway.in_flight == 0
        saw = asyncio.run(Caller(port, {"openai": f"openai/{MODEL}"})(api="openai", stream=False))
        assert saw.complete, "it is as before"


PROCESS = """
providers:
  openai:
    base_url: {url}/v1
    keys: [{value: env.KEY_A}]
server: {workers: {workers}, port: 0, admin_port: 0, state: state, grace_s: 20}
ledger: {store: ledger.db, journal: {journal}}
"""


def write(folder: Path, url: str, *, workers: int, name: str) -> Path:
    path = folder / f"{name}.yaml"
    text = PROCESS.replace("{url}", url).replace("{workers}", str(workers))
    path.write_text(text.replace("{journal}", f"journal-{name}"))
    return path


def test_a_process_that_is_told_to_end_finishes_its_streams(tmp_path: Path) -> None:
    pace = Settings(usual=Fault(every_s=0.02), reply_bytes=150)
    with provider(pace) as (fake, _):
        path = write(tmp_path, fake.url, workers=2, name="a")

        async def streams(gateway: Process) -> list[Saw]:
            caller = Caller(gateway.port, {"openai": f"openai/{MODEL}"}, limit_s=60)
            tasks = [asyncio.create_task(caller(api="openai", stream=True)) for _ in range(200)]
            while len(fake.truth) < 200:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks)

        with Process(path, {"KEY_A": "k1"}) as gateway:
            seen = asyncio.run(streams(gateway))
            assert gateway.process.wait(60) == 0, gateway.log()
        assert all(saw.complete for saw in seen)
        agree(path, fake.truth)


def test_a_second_signal_cuts_and_loses_no_row(tmp_path: Path) -> None:
    pace = Settings(usual=Fault(every_s=0.5), reply_bytes=1000)
    with provider(pace) as (fake, _):
        path = write(tmp_path, fake.url, workers=2, name="a")

        async def streams(gateway: Process) -> list[Saw | BaseException]:
            caller = Caller(gateway.port, {"openai": f"openai/{MODEL}"}, limit_s=60)
            tasks = [asyncio.create_task(caller(api="openai", stream=True)) for _ in range(50)]
            while len(fake.truth) < 50:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.7)
            for _ in range(2):
                gateway.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
            return await asyncio.gather(*tasks, return_exceptions=True)

        with Process(path, {"KEY_A": "k1"}) as gateway:
            seen = asyncio.run(streams(gateway))
            assert gateway.process.wait(60) == 1, gateway.log()
        assert not any(isinstance(saw, Saw) and saw.complete for saw in seen)
        entries = booked(path, "outcome, amount")
        assert [outcome for outcome, _ in entries] == ["unknown"] * 50
        book = book_of(load_settings(path))
        for truth, (_, amount) in zip(fake.truth, entries, strict=True):
            if truth.billed is not None:
                assert amount >= book.charge(truth.billed, "openai", MODEL, wall_us()).amount


def agree(path: Path, truths: list) -> None:
    """Assert that the ledger has every answer, at what the provider billed for it."""
    book = book_of(load_settings(path))
    entries = booked(path, "outcome, amount")
    assert {outcome for outcome, _ in entries} == {"succeeded"}
    billed = [book.charge(t.billed, "openai", MODEL, wall_us()).amount for t in truths]
    assert sorted(amount for _, amount in entries) == sorted(billed)


@pytest.mark.skipif(not LONG, reason="takes 20 s; PACKSHOT_LONG=1")
def test_a_rolling_restart_fails_nobody(tmp_path: Path) -> None:
    """Two gateways behind what a balancer does: a connection that is refused goes to the other."""
    pace = Settings(usual=Fault(every_s=0.01), reply_bytes=100)
    with provider(pace) as (fake, _):
        paths = [write(tmp_path, fake.url, workers=2, name=name) for name in ("a", "b")]
        running: dict[int, Process] = {}
        for number, path in enumerate(paths):
            running[number] = Process(path, {"KEY_A": "k1"})
        stop = False
        seen: list[Saw] = []
        refused = 0

        async def client(number: int) -> None:
            nonlocal refused
            turn = number
            while not stop:
                turn += 1
                port = running[turn % 2].port
                try:
                    caller = Caller(port, {"openai": f"openai/{MODEL}"}, limit_s=60)
                    saw = await caller(api="openai", stream=turn % 4 > 1)
                except ConnectionError:
                    refused += 1
                    await asyncio.sleep(0.02)
                    continue
                if not saw.status:  # closed before it was read: nobody served it
                    refused += 1
                    continue
                seen.append(saw)

        async def roll() -> None:
            nonlocal stop
            tasks = [asyncio.create_task(client(number)) for number in range(40)]
            for turn in range(4):
                await asyncio.sleep(1.0)
                assert await asyncio.to_thread(running[turn % 2].end) == 0
                running[turn % 2] = await asyncio.to_thread(
                    Process, paths[turn % 2], {"KEY_A": "k1"}
                )
            stop = True
            await asyncio.gather(*tasks)

        try:
            asyncio.run(roll())
            assert [one.end() for one in running.values()] == [0, 0]
        finally:
            for one in running.values():
                one.__exit__()
        assert len(seen) > 200
        assert all(saw.complete for saw in seen), [saw for saw in seen if not saw.complete][:3]
        assert len(fake.truth) == len(seen), "a call was made for nobody"
        booked(paths[0], "outcome")
        agree(paths[1], fake.truth)
