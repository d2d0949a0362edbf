"""R12 and R13 through running gateways: two replicas under load while what they share stands still,
dies, and comes back. Money stays exact throughout, and nobody has to start anything again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in
from packshot.providers.fake_script import Settings
from tests.gateway.faults import LONG
from tests.gateway.launched import (
    CONTEXT,
    Fakes,
    Launched,
    bearer,
    fakes,
    http_get,
    launched,
    until,
)
from tests.ledger.stores.conftest import new_database, new_postgres
from tests.state.conftest import new_valkey

KEYS = {name: f"pk-{name}-0123456789012345678901234567890" for name in ("rated", "poor", "free")}
MODEL = "openai/gpt-4o-mini"
BUDGET = 1_500_000
"""Nano-euro of the key "poor": some hundred calls."""
YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A}]
access:
  pepper: env.PEPPER
  admin_secret: env.PEPPER
  virtual_keys:
    - {id: rated, value: env.PK_RATED, limits: {requests_per_minute: 100000}}
    - {id: poor, value: env.PK_POOR, budget: {eur: 0.0015}}
    - {id: free, value: env.PK_FREE}
server: {admin_port: 0, replicas: 2, state: STATE, ledger_wait_s: 2LIMITS}
ledger: {store: 'STORE', journal: JOURNAL, durability: DURABILITY}
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-A")
    monkeypatch.setenv("PEPPER", "p" * 40)
    for name, secret in KEYS.items():
        monkeypatch.setenv(f"PK_{name.upper()}", secret)


@contextmanager
def replicas(
    folder: Path, there: Fakes, store: str, *, limits: str = "", durability: str = "process"
) -> Iterator[list[Launched]]:
    with ExitStack() as stack:
        made: list[Launched] = []
        for name in ("a", "b"):
            text = there.fill(YAML).replace("STORE", store).replace("DURABILITY", durability)
            text = text.replace("JOURNAL", f"journal-{name}").replace("STATE", f"state-{name}")
            path = folder / f"{name}.yaml"
            path.write_text(text.replace("LIMITS", f", limits: '{limits}'" if limits else ""))
            made.append(stack.enter_context(launched(path)))
        for each in made:
            until(lambda each=each: each.get("/readyz").status_code == 200)
        yield made


class Load:
    """Callers of both replicas, one call after the other, until told to stop."""

    def __init__(self, gateways: list[Launched], keys: tuple[str, ...]) -> None:
        self.seen: Counter[tuple[str, int]] = Counter()
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(gateway, key))
            for gateway in gateways
            for key in keys
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, gateway: Launched, key: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 30}
        with httpx2.Client(verify=CONTEXT, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    got = client.post(
                        f"{gateway.url}/v1/chat/completions", json=body, headers=bearer(KEYS[key])
                    )
                    self.seen[key, got.status_code] += 1
                except httpx2.HTTPError as error:
                    self.broken.append(repr(error))
                time.sleep(0.02)

    def more(self, key: str, status: int, calls: int = 20) -> None:
        """Wait until as many more calls of a key have ended so."""
        before = self.seen[key, status]
        until(lambda: self.seen[key, status] >= before + calls)

    def stop(self) -> dict[str, set[int]]:
        """End it; return the statuses that each key saw."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.broken, self.broken
        found: dict[str, set[int]] = {}
        for key, status in self.seen:
            found.setdefault(key, set()).add(status)
        return found


def metric(gateway: Launched, name: str) -> float:
    page = http_get(gateway.admin + "/metrics").text
    return sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name)
    )


def check_books(paths: list[Path], url: str, there: Fakes) -> None:
    """Hold the ledger against what the provider did: each call once, none below its bill, and the
    budget kept.
    """
    store = open_store(url)
    try:
        for path in paths:
            bring_in(load_settings(path), store)
        assert store.verify() == []
        rows = store.query("SELECT virtual_key, outcome, amount, output_tokens FROM entries")
    finally:
        store.close()
    truths = there["one"].truth
    made = Counter(outcome for _, outcome, _, _ in rows if outcome != "failed_free")
    assert sum(made.values()) == len(truths), made
    assert set(made) <= {"succeeded", "unknown"}
    billed = sum(each.billed.output_tokens for each in truths if each.billed is not None)
    known = sum(output for _, outcome, _, output in rows if outcome == "succeeded")
    assert known <= billed
    assert billed <= known + 30 * made["unknown"], "an unknown one is booked at its bound"
    assert sum(amount for key, _, amount, _ in rows if key == "poor") <= BUDGET


# ---------------------------------------------------------------- R12
def test_valkey_stands_still_is_flushed_dies_and_comes_back(tmp_path: Path) -> None:
    with (
        new_valkey() as valkey,
        new_postgres() as server,
        fakes(one=Settings()) as there,
    ):
        store, address = new_database(server), f"valkey://127.0.0.1:{valkey.port}/0"
        with replicas(tmp_path, there, store, limits=address) as pair:
            load = Load(pair, ("rated", "poor", "free"))
            load.more("rated", 200)
            alone = [metric(each, "packshot_gateway_limits_local_total") for each in pair]

            os.kill(valkey._process.pid, signal.SIGSTOP)
            load.more("rated", 200, 60)
            load.more("free", 200)
            until(
                lambda: all(
                    metric(each, "packshot_gateway_limits_local_total") > before
                    for each, before in zip(pair, alone, strict=True)
                )
            )
            os.kill(valkey._process.pid, signal.SIGCONT)
            until(lambda: shared(pair, load))

            valkey.client().flushall()
            load.more("rated", 200, 60)

            os.kill(valkey._process.pid, signal.SIGKILL)
            valkey._process.wait()
            load.more("rated", 200, 60)
            load.more("free", 200)
            valkey._process = None
            valkey.start()
            until(lambda: shared(pair, load))

            statuses = load.stop()
            assert statuses["rated"] == statuses["free"] == {200}, load.seen
            assert statuses["poor"] <= {200, 402}, load.seen
            assert all(each.end() == 0 for each in pair)
        check_books([each.path for each in pair], store, there)


def shared(pair: list[Launched], load: Load) -> bool:
    """Tell whether both replicas ask the shared store again: nothing is decided alone any more."""

    def alone() -> list[float]:
        return [metric(each, "packshot_gateway_limits_local_total") for each in pair]

    before = alone()
    load.more("rated", 200, 20)
    return alone() == before


# ---------------------------------------------------------------- R13
def stop_at_once(server: Any) -> None:
    """Stop PostgreSQL as ``pg_ctl stop -m immediate`` does."""
    os.kill(server.get_pid(), signal.SIGQUIT)
    gone(server)


def kill_all(server: Any) -> None:
    """Kill PostgreSQL with all of its processes, in whatever they are at."""
    pid = server.get_pid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    os.kill(pid, signal.SIGKILL)
    for child in children:
        try:
            os.kill(int(child), signal.SIGKILL)
        except ProcessLookupError:
            continue
    gone(server)


def gone(server: Any) -> None:
    until(lambda: not server.get_postmaster_info().is_running())


CASES = [(stop_at_once, "process"), (kill_all, "store")]
ALL = [(end, durability) for end in (stop_at_once, kill_all) for durability in ("process", "store")]


@pytest.mark.parametrize(("end", "durability"), ALL if LONG else CASES)
def test_postgres_goes_and_comes_back_under_load(
    tmp_path: Path, end: Callable[[Any], None], durability: str
) -> None:
    with new_postgres() as server, fakes(one=Settings()) as there:
        store = new_database(server)
        with replicas(tmp_path, there, store, durability=durability) as pair:
            load = Load(pair, ("poor", "free"))
            load.more("free", 200)
            for _ in range(3 if LONG else 1):
                end(server)
                if durability == "store":  # what cannot be noted is not done
                    load.more("free", 503, 4)
                else:  # the journal is on this machine
                    load.more("free", 200)
                for each in pair:
                    assert each.get("/readyz").status_code == 200, "its callers are not sent away"
                server.ensure_postgres_running()
                load.more("free", 200)
            load.stop()
            assert {status for key, status in load.seen if key == "free"} <= {200, 503}, load.seen
            assert {status for key, status in load.seen if key == "poor"} <= {200, 402, 503}
            # What is left of the budget can be spent: nothing stays held by what was cut off.
            until(lambda: all(spend(each) == 402 for each in pair))
            assert all(each.end() == 0 for each in pair)
        check_books([each.path for each in pair], store, there)


@pytest.mark.parametrize("durability", ["process", "store"])
def test_postgres_that_can_only_be_read_for_a_while(tmp_path: Path, durability: str) -> None:
    """As after a fail-over to a server that is not yet the first."""
    with new_postgres() as server, fakes(one=Settings()) as there:
        store = new_database(server)
        with replicas(tmp_path, there, store, durability=durability) as pair:
            load = Load(pair, ("poor", "free"))
            load.more("free", 200)
            server.psql(READ_ONLY.replace("WHETHER", "on"))
            load.more("free", 503 if durability == "store" else 200)
            if durability == "process":  # no more than is leased, or was before
                until(lambda: load.seen["poor", 503] or load.seen["poor", 402])
            server.psql(READ_ONLY.replace("WHETHER", "off"))
            load.more("free", 200)
            load.stop()
            assert {status for _, status in load.seen} <= {200, 402, 503}, load.seen
            until(lambda: all(spend(each) == 402 for each in pair))
            assert all(each.end() == 0 for each in pair)
        check_books([each.path for each in pair], store, there)


READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = WHETHER; SELECT pg_reload_conf();"


def spend(gateway: Launched) -> int:
    return gateway.chat(MODEL, KEYS["poor"], max_tokens=30).status_code
