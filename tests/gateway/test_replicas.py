"""Two replicas that share Valkey and PostgreSQL, both real; and what one of them bears (R12, R13).

A replica has a folder of journals of its own: it could be another machine.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from packshot.core.errors import LedgerUnavailable, Saturated
from packshot.gateway.access import Hasher
from packshot.gateway.keystore import open_key_store
from packshot.gateway.virtual_key import VirtualKeyEntry
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.launched import (
    Fakes,
    Launched,
    bearer,
    fakes,
    http_get,
    http_post,
    launched,
    until,
)
from tests.gateway.world import World, world
from tests.ledger.stores.conftest import postgres, postgres_url
from tests.relay import Relay
from tests.state.conftest import new_valkey

__all__ = ["postgres", "postgres_url"]

KEYS = {name: f"pk-{name}-0123456789012345678901234567890" for name in ("rated", "poor", "free")}
LIMIT = 30
YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A}]
access:
  pepper: env.PEPPER
  admin_secret: env.PEPPER
  virtual_keys:
    - {id: rated, value: env.PK_RATED, limits: {requests_per_minute: 30}}
    - {id: poor, value: env.PK_POOR, budget: {eur: 0.0005}}
    - {id: free, value: env.PK_FREE}
"""
SERVER = "server: {admin_port: 0, limits: 'VALKEY', replicas: 2, state: STATE}\n"
LEDGER = "ledger: {store: 'STORE', journal: JOURNAL}\n"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")
    monkeypatch.setenv("PEPPER", "p" * 40)
    for name, secret in KEYS.items():
        monkeypatch.setenv(f"PK_{name.upper()}", secret)


@pytest.fixture
def valkey() -> Iterator[Any]:
    with new_valkey() as server:
        yield server


def relay_of(postgres_url: str) -> tuple[Relay, str]:
    """Return a relay before PostgreSQL, and the address of the database through it."""
    before, _, folder = postgres_url.partition("?host=")
    relay = Relay(str(Path(unquote(folder)) / ".s.PGSQL.5432"))
    database = before.rpartition("/")[2]
    return relay, f"postgresql://postgres@127.0.0.1:{relay.port}/{database}?sslmode=disable"


def write(folder: Path, name: str, there: Fakes, store: str, valkey: str) -> Path:
    path = folder / f"{name}.yaml"
    text = there.fill(YAML + SERVER + LEDGER).replace("VALKEY", valkey).replace("STORE", store)
    path.write_text(text.replace("JOURNAL", f"journal-{name}").replace("STATE", f"state-{name}"))
    return path


@contextmanager
def two(folder: Path, there: Fakes, store: str, valkey: str) -> Iterator[list[Launched]]:
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(launched(write(folder, name, there, store, valkey)))
            for name in ("a", "b")
        ]
        for each in replicas:
            until(lambda each=each: each.get("/readyz").status_code == 200)
        yield replicas


def books(paths: list[Path], store_url: str) -> list[tuple[str, str, int]]:
    """Bring in what is in all journals: (virtual key, outcome, nano-EUR) of each entry."""
    store = open_store(store_url)
    try:
        for path in paths:
            bring_in(load_settings(path), store)
        assert store.verify() == []
        return [(*row,) for row in store.query("SELECT virtual_key, outcome, amount FROM entries")]
    finally:
        store.close()


def test_budgets_are_exact_over_both_and_a_killed_one_owes_nothing(
    tmp_path: Path, postgres_url: str, valkey: Any
) -> None:
    address = f"valkey://127.0.0.1:{valkey.port}/0"
    with fakes(one=Settings()) as there, two(tmp_path, there, postgres_url, address) as replicas:
        a, b = replicas

        # Requests per minute: never more than there may be, whichever replica is asked. On a busy
        # machine Valkey may answer too late, and a replica then keeps to its share.
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(
                lambda n: replicas[n % 2].chat("gpt-4o-mini", KEYS["rated"]).status_code,
                range(2 * LIMIT),
            )
            statuses = Counter(asked)
        assert set(statuses) == {200, 429}
        assert LIMIT // 2 <= statuses[200] <= LIMIT

        # One replica dies in the middle of a call: what it held is booked, what it leased is free.
        there["one"].next(Fault(first_after_s=30.0))
        with ThreadPoolExecutor(1) as pool:
            before = len(there["one"].truth)
            lost = pool.submit(lost_call, a)
            until(lambda: len(there["one"].truth) > before)
            for pid in (a.process.pid, *a.workers()):
                os.kill(pid, signal.SIGKILL)
            a.process.wait()
            assert lost.result(30)
        # The dead gateway's own drain may still be at work, and ours then brings nothing in.
        until(lambda: any(each[1] == "unknown" for each in books([a.path], postgres_url)))
        entries = books([a.path], postgres_url)
        (dead,) = [each for each in entries if each[1] == "unknown"]
        assert dead[0] == "poor"
        assert dead[2] > 0

        # Its former budget can be spent to the end by the other, and not a nano-euro beyond.
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(
                lambda _: b.chat("gpt-4o-mini", KEYS["poor"], max_tokens=100).status_code,
                range(60),
            )
            statuses = Counter(asked)
        assert set(statuses) == {200, 402}, statuses
        # Calls of one token settle the rest, down to less than one of them can cost.
        while b.chat("gpt-4o-mini", KEYS["poor"], max_tokens=1).status_code == 200:
            pass
        assert b.end() == 0
        spent = sum(amount for key, _, amount in books([b.path], postgres_url) if key == "poor")
        assert 470_000 < spent <= 500_000


def lost_call(replica: Launched) -> bool:
    """Make a call that never comes back; tell whether it was so."""
    try:
        replica.chat("gpt-4o-mini", KEYS["poor"], max_tokens=5)
    except httpx2.HTTPError:
        return True
    return False


# ---------------------------------------------------------------- R12, R13: one replica, in process


def config(store: str, valkey: str = "") -> str:
    server = SERVER.replace("VALKEY", valkey) if valkey else "server: {state: STATE}\n"
    text = YAML + server.replace("STATE", "state") + LEDGER.replace("STORE", store)
    return text.replace("JOURNAL", "journal")


def ask(there: World, key: str, **more: Any) -> int:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], **more}
    url = f"{there.url}/v1/chat/completions"
    return http_post(url, json=body, headers=bearer(KEYS[key])).status_code


def test_valkey_slow_and_then_gone_fails_no_call_and_is_soon_left_alone(
    tmp_path: Path, postgres_url: str, valkey: Any
) -> None:
    with Relay(("127.0.0.1", valkey.port)) as relay:
        yaml = config(postgres_url, f"valkey://127.0.0.1:{relay.port}/0")
        with world(tmp_path, yaml, one=Settings()) as there:
            assert ask(there, "rated") == 200
            before = relay.request_bytes
            assert ask(there, "rated") == 200
            of_one_call = relay.request_bytes - before
            assert of_one_call > 0

            relay.latency_s = 30.0  # slow, not dead
            assert [ask(there, "rated") for _ in range(6)] == [200] * 6
            sent = relay.request_bytes
            # From then on nobody waits for it: the share of this replica holds, half the limit.
            statuses = Counter(ask(there, "rated") for _ in range(LIMIT))
            assert set(statuses) == {200, 429}
            assert statuses[200] <= LIMIT // 2
            assert relay.request_bytes - sent < LIMIT * of_one_call / 2
            assert [ask(there, "free") for _ in range(5)] == [200] * 5

            relay.down()
            assert [ask(there, "free") for _ in range(5)] == [200] * 5
            assert ask(there, "rated") in {200, 429}
            # Money does not depend on it.
            assert ask(there, "poor", max_tokens=5) == 200
            assert ask(there, "poor", max_tokens=100_000) == 402


def test_limits_are_exact_over_two_replicas(
    tmp_path: Path, postgres_url: str, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packshot.state.valkey.ANSWER_S", 10.0)  # a busy machine is not a slow one
    yaml = config(postgres_url, f"valkey://127.0.0.1:{valkey.port}/0")
    with ExitStack() as stack:
        replicas: list[World] = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            replicas.append(stack.enter_context(world(tmp_path / name, yaml, one=Settings())))
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(lambda n: ask(replicas[n % 2], "rated"), range(2 * LIMIT))
            assert Counter(asked) == {200: LIMIT, 429: LIMIT}


def test_a_database_that_hangs_holds_up_who_needs_it_and_nobody_else(
    tmp_path: Path, postgres_url: str
) -> None:
    relay, store = relay_of(postgres_url)
    with relay, world(tmp_path, config(store), one=Settings()) as there:
        assert ask(there, "free") == 200
        relay.stall()
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(ask, there, "poor", max_tokens=5) for _ in range(4)]
            until(lambda: there.worker.gateway.in_flight == 4)
            assert [ask(there, "free") for _ in range(20)] == [200] * 20
            assert http_get(there.url + "/readyz").status_code == 200
            assert not any(each.done() for each in waiting)
            relay.resume()
            assert [each.result(30) for each in waiting] == [200] * 4


def test_the_database_gone_and_back(tmp_path: Path, postgres_url: str) -> None:
    relay, store = relay_of(postgres_url)
    yaml = config(store).replace("0.0005", "0.01")
    with relay, world(tmp_path, yaml, one=Settings()) as there:
        assert ask(there, "poor", max_tokens=5) == 200  # a slice is leased
        relay.down()
        within = [ask(there, "poor", max_tokens=5) for _ in range(5)]
        assert within == [200] * 5  # what is leased can be spent
        assert [ask(there, "free") for _ in range(5)] == [200] * 5
        assert http_get(there.url + "/readyz").status_code == 200
        beyond = ask(there, "poor", max_tokens=10_000)
        assert beyond == 503  # and no more than that: the call is not made
        made = len(there.fakes["one"].truth)
        assert made == 11
        relay.up()
        until(lambda: ask(there, "poor", max_tokens=10_000) == 200)
        made = len(there.fakes["one"].truth)
        there.ended()

        # An answer to COMMIT that is lost is no loss and no second entry.
        direct = open_store(postgres_url)
        for size in (1, 200, 600, 1_000):
            relay.cut_after(size)
            with suppress(LedgerUnavailable):  # wherever the cut met it, it can be sent again
                through = open_store(store)
                try:
                    bring_in(load_settings(there.path), through)
                finally:
                    through.close()
        relay.cut_after(1 << 40)
        assert len(there.booked()) == made
        assert direct.query("SELECT count(*), count(DISTINCT attempt) FROM entries") == [
            (made, made)
        ]
        direct.close()
        assert all(isinstance(each, LedgerUnavailable) for each in there.errors)
        there.errors.clear()


def test_issued_keys_outlive_the_database_for_a_minute_and_no_longer(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, store = relay_of(postgres_url)
    yaml = config(store)
    with relay, world(tmp_path, yaml, one=Settings()) as there:
        made = open_key_store(postgres_url, Hasher(b"p" * 40))
        secret = made.create(VirtualKeyEntry("issued"), "test")
        made.close()
        monkeypatch.setitem(KEYS, "issued", secret)
        until(lambda: ask(there, "issued") == 200)
        relay.down()
        assert [ask(there, "issued") for _ in range(5)] == [200] * 5
        access = there.worker._access
        assert access is not None
        access._issued.stale_at = 0.0  # the minute has passed
        assert ask(there, "issued") == 503
        assert ask(there, "free") == 200
        relay.up()
        until(lambda: ask(there, "issued") == 200)
        assert all(isinstance(each, LedgerUnavailable | Saturated) for each in there.errors)
        there.errors.clear()
