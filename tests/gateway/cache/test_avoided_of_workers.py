"""What hits saved, over two worker processes, a kill and a restart: all of it that was told."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest

from packshot.core.money import nanos_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.providers.fake_script import Settings
from tests.gateway.launched import Launched, bearer, fakes, http_post, launched, until

YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
routes: [{id: caption, primary: openai/gpt-4o-mini}]
access: {virtual_keys: [{id: one, value: env.SECRET_A}, {id: two, value: env.SECRET_B}]}
semantic_cache: {enabled: true, semantic: false}
server: {admin_port: 0, workers: 2}
telemetry: {log: off}
ledger: {store: ledger.db, journal: journal}
"""
SECRETS = {"one": "a" * 40, "two": "b" * 40}


def ask(gateway: Launched, key: str) -> httpx2.Response:
    body = {"model": "caption", "messages": [{"role": "user", "content": "a white mug"}]}
    return http_post(f"{gateway.url}/v1/chat/completions", json=body, headers=bearer(SECRETS[key]))


def saved_by(gateway: Launched, key: str, count: int) -> int:
    """Ask ``count`` times, and return what the answers say that hits saved, in nano-EUR."""
    saved = 0
    for _ in range(count):
        headers = ask(gateway, key).headers
        if headers["x-packshot-cache"] == "hit":
            saved += nanos_of(Decimal(headers["x-packshot-cache-saved-eur"]))
    return saved


def stored(path: Path) -> dict[str, int]:
    with closing(open_store(str(path / "ledger.db"), read_only=True)) as store:
        rows = store.query("SELECT virtual_key, SUM(amount) FROM avoided GROUP BY virtual_key")
    return {key: int(amount) for key, amount in rows}


@pytest.mark.slow
def test_workers_add_up_through_a_kill_and_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    open_store(str(tmp_path / "ledger.db")).close()
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "KEY_A": "sk-of-the-provider"}
    environment |= {"SECRET_A": SECRETS["one"], "SECRET_B": SECRETS["two"]}
    path = tmp_path / "packshot.yaml"
    told = dict.fromkeys(SECRETS, 0)
    with fakes(one=Settings()) as there:
        path.write_text(there.fill(YAML))

        def many(gateway: Launched) -> None:
            def work(key: str) -> None:
                told[key] += saved_by(gateway, key, 25)

            threads = [threading.Thread(target=work, args=(key,)) for key in SECRETS]
            for each in threads:
                each.start()
            for each in threads:
                each.join()

        with launched(path, **environment) as gateway:
            many(gateway)
            until(lambda: stored(tmp_path) == told)  # by ticks alone, within seconds
            workers = set(gateway.workers())
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            until(lambda: len(set(gateway.workers()) - workers) == 2)
            many(gateway)
            assert gateway.end() == 0
        assert stored(tmp_path) == told  # a stop in order leaves nothing behind
        with launched(path, **environment) as gateway:
            many(gateway)
            assert gateway.end() == 0
        assert stored(tmp_path) == told
        assert all(told.values())
        settings = load_settings(path)
        with closing(open_store(settings.store)) as store:
            assert store.verify() == []
            assert store.query("SELECT COUNT(*) FROM entries") == [(len(there["one"].truth),)]
