"""``packshot gateway`` as it is started by an operator: what listens, who gets in, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.stores import open_store
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.launched import (
    MAIN,
    Fakes,
    Launched,
    fakes,
    http_get,
    http_post,
    launched,
    until,
)

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A}]
server: {admin_port: 0, grace_s: 20}
ledger: {store: ledger.db, journal: journal}
"""
ROUTE = "routes:\n  - {id: NAME, primary: openai/gpt-4o-mini}\n"
CREDENTIAL = "sk-of-the-provider"


@contextmanager
def running(folder: Path, home: Path, *words: str) -> Iterator[tuple[Launched, Fakes]]:
    with fakes(one=Settings()) as there:
        path = folder / "packshot.yaml"
        path.write_text(there.fill(YAML + ROUTE.replace("NAME", "before")))
        state = {"XDG_STATE_HOME": str(home), "KEY_A": CREDENTIAL}
        with launched(path, *words, **state) as gateway:
            until(lambda: ok(gateway))
            yield gateway, there


def ok(gateway: Launched) -> bool:
    return gateway.get("/readyz").status_code == 200


def packshot(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [*MAIN, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def secret_of(said: str) -> str:
    return next(word for word in said.split() if word.startswith("pk-"))


REFUSED = {401, 429}
"""429 after too many of them from one address."""


def everywhere(gateway: Launched, status: set[int], key: str = "") -> bool:
    """Tell whether sixteen connections in a row, which the kernel spreads, hear the same."""
    return all(gateway.get("/v1/models", key).status_code in status for _ in range(16))


def listening(pids: list[int]) -> list[tuple[str, int]]:
    """Return the addresses that processes listen on, by the kernel's own table."""
    inodes: set[str] = set()
    for pid in pids:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = str(each.readlink())
            except FileNotFoundError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found: list[tuple[str, int]] = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            row = line.split()
            if row[3] == "0A" and row[9] in inodes:
                host, _, port = row[1].rpartition(":")
                plain = host
                if table == "tcp":
                    plain = socket.inet_ntoa(bytes.fromhex(host)[::-1])
                found.append((plain, int(port, 16)))
    return found


def test_its_life_from_start_to_drain(tmp_path: Path, state_home: Path) -> None:
    with running(tmp_path, state_home, "--workers", "2") as (gateway, there):
        # S11: loopback alone, before anybody configured anything.
        at = listening([gateway.process.pid, *gateway.workers()])
        assert {host for host, _ in at} == {"127.0.0.1"}
        ports = {int(url.rpartition(":")[2]) for url in (gateway.url, gateway.admin)}
        assert {port for _, port in at} == ports

        # The admin secret was made for its owner's eyes, and it opens the admin port only.
        file = state_home / "packshot" / "admin-secret"
        until(file.exists)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        admin = {"authorization": f"Bearer {file.read_text()}"}
        assert http_get(gateway.admin + "/admin/keys").status_code == 401
        assert http_get(gateway.admin + "/admin/keys", headers=admin).status_code == 200
        assert http_get(gateway.url + "/admin/keys", headers=admin).status_code == 404

        assert gateway.get("/healthz").json() == {"status": "ok"}
        assert gateway.chat("before").status_code == 200

        # The drain beside the first worker fills the store; nobody asked it to.
        def entries() -> int:
            if not (tmp_path / "ledger.db").exists():
                return 0
            try:
                store = open_store(str(tmp_path / "ledger.db"), read_only=True)
            except LedgerUnavailable:  # it is being made
                return 0
            try:
                return int(store.query("SELECT count(*) FROM entries")[0][0])
            finally:
                store.close()

        until(lambda: entries() == 1)

        # A call that is under way when the end is asked for is finished, and booked.
        there["one"].next(Fault(first_after_s=1.0))
        answers: list[int] = []
        late = threading.Thread(target=lambda: answers.append(gateway.chat("before").status_code))
        late.start()
        until(lambda: len(there["one"].truth) == 2)
        assert gateway.end() == 0
        late.join()
        assert answers == [200]
        assert entries() == 2, "it is in the store when the gateway has ended"
        with pytest.raises(httpx2.ConnectError):
            gateway.get("/healthz")
    assert CREDENTIAL not in gateway.said()


def test_what_the_last_worker_booked_is_in_the_store_when_the_gateway_has_ended(
    tmp_path: Path, state_home: Path
) -> None:
    """One of the workers ends long before the other; the drain is beside the first."""
    with running(tmp_path, state_home, "--workers", "2") as (gateway, there):
        there["one"].script = lambda asked: Fault(first_after_s=1 + asked.number % 12 / 6)
        answers: list[int] = []
        calls = [
            threading.Thread(target=lambda: answers.append(gateway.chat("before").status_code))
            for _ in range(12)
        ]
        for call in calls:
            call.start()
        until(lambda: len(there["one"].truth) == 12)
        assert gateway.end() == 0
        for call in calls:
            call.join()
        assert answers == [200] * 12
    store = open_store(str(tmp_path / "ledger.db"), read_only=True)
    try:
        assert store.query("SELECT count(*) FROM entries") == [(12,)]
    finally:
        store.close()


def test_keys_come_and_go_in_every_worker(tmp_path: Path, state_home: Path) -> None:
    with running(tmp_path, state_home, "--workers", "2") as (gateway, _):
        assert everywhere(gateway, {200})  # nobody has a key: this machine needs none
        first = secret_of(packshot("keys", "create", "shop", folder=tmp_path))
        until(lambda: everywhere(gateway, REFUSED))
        assert everywhere(gateway, {200}, first)
        second = secret_of(packshot("keys", "rotate", "shop", folder=tmp_path))
        until(lambda: everywhere(gateway, REFUSED, first))
        assert everywhere(gateway, {200}, second)

        admin = {
            "authorization": f"Bearer {(state_home / 'packshot' / 'admin-secret').read_text()}"
        }
        made = http_post(gateway.admin + "/admin/keys", json={"id": "other"}, headers=admin)
        assert made.status_code == 201
        third = made.json()["secret"]
        until(lambda: everywhere(gateway, {200}, third))
        gone = http_post(gateway.admin + "/admin/keys/other/revoke", headers=admin)
        assert gone.status_code == 200
        until(lambda: everywhere(gateway, REFUSED, third))
        packshot("keys", "revoke", "shop", folder=tmp_path)  # the last one: it does not open
        until(lambda: everywhere(gateway, REFUSED, second))
        for secret in (first, second, third):
            assert secret not in gateway.said()


def test_a_signal_or_the_admin_api_reloads_every_worker(tmp_path: Path, state_home: Path) -> None:
    with running(tmp_path, state_home, "--workers", "2") as (gateway, there):

        def write(name: str) -> None:
            gateway.path.write_text(there.fill(YAML + ROUTE.replace("NAME", name)))

        def all_have(name: str) -> bool:
            answers = [gateway.get("/v1/models").text for _ in range(16)]
            return all(f'"{name}"' in each for each in answers)

        assert all_have("before")
        write("after")
        gateway.tell(signal.SIGHUP)
        until(lambda: all_have("after"))

        gateway.path.write_text("providers: [")
        gateway.tell(signal.SIGHUP)
        until(lambda: gateway.said().count("keeps its configuration") == 2)
        assert all_have("after")

        file = state_home / "packshot" / "admin-secret"
        admin = {"authorization": f"Bearer {file.read_text()}"}
        bad = http_post(gateway.admin + "/admin/reload", headers=admin)
        assert bad.status_code == 400, bad.text
        write("third")
        good = http_post(gateway.admin + "/admin/reload", headers=admin)
        assert good.status_code == 200, good.text
        until(lambda: all_have("third"))


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("providers: {}\n", (), "no provider"),
        (YAML.replace("env.KEY_A", "env.NOT_SET"), (), "NOT_SET"),
        (YAML, ("--host", "0.0.0.0"), "everybody"),  # noqa: S104 - which is what is refused
    ],
)
def test_what_must_not_start_does_not(
    tmp_path: Path, text: str, words: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text(text.replace("{one}", "http://127.0.0.1:9"))
    done = subprocess.run(
        [*MAIN, "gateway", "--config", str(path), "--port", "0", *words],
        env={**os.environ, "KEY_A": CREDENTIAL},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert CREDENTIAL not in done.stderr


@pytest.mark.parametrize("log", ["text", "off"])
def test_why_a_worker_cannot_start_is_told(tmp_path: Path, log: str) -> None:
    """Its log is written by a thread, which is not to end before it has."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "limits").write_bytes(b"something else" * 1000)
    (tmp_path / "packshot.yaml").write_text(
        "providers:\n  openai: {base_url: 'http://127.0.0.1:9/v1', keys: [{value: env.KEY_A}]}\n"
        "routes: [{id: chat, primary: openai/gpt-4o-mini}]\n"
        "server: {port: 0, workers: 2, state: state}\n"
        f"telemetry: {{log: {log}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "packshot", "gateway", "--config", "packshot.yaml"],
        cwd=tmp_path, env=os.environ | {"KEY_A": "sk-a", "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "giving up" in done.stderr
    assert "is no file of limits" in done.stderr
    assert done.returncode != 0
