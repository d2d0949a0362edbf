"""The page of a gateway with two worker processes: what one counts stays when it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx2
import pytest

from packshot.providers.fake_script import Settings
from tests.gateway.launched import Launched, fakes, launched, until
from tests.gateway.test_telemetry import value

YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
server: {admin_port: 0, workers: 2}
telemetry: {log: off}
ledger: {store: ledger.db, journal: journal}
"""
REQUESTS = "packshot_gateway_requests_total"


def page(gateway: Launched) -> str:
    """Return the page; "" while the worker that serves it is being replaced."""
    try:
        got = httpx2.get(gateway.admin + "/metrics", timeout=20)
    except httpx2.TransportError:
        return ""
    return got.text if got.status_code == 200 else ""


def counted(gateway: Launched, name: str = REQUESTS) -> float:
    return value(page(gateway), name)


@pytest.mark.slow
def test_the_page_sums_workers_and_forgets_no_dead_one(tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    path = tmp_path / "packshot.yaml"
    environment = {"XDG_STATE_HOME": str(home), "KEY_A": "sk-of-the-provider"}
    with fakes(one=Settings()) as there:
        path.write_text(there.fill(YAML))
        with launched(path, **environment) as gateway:
            until(lambda: counted(gateway, "packshot_gateway_workers") == 2)
            for _ in range(30):
                assert gateway.chat("openai/gpt-4o-mini").status_code == 200
            until(lambda: counted(gateway) == 30)
            metrics = home / "packshot" / "metrics"
            assert {each.name for each in metrics.glob("*.metrics")} == {
                "gateway-0.metrics",
                "gateway-1.metrics",
            }
            workers = set(gateway.workers())
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            until(lambda: len(set(gateway.workers()) - workers) == 2)
            until(lambda: counted(gateway) == 30)
            for _ in range(10):
                assert gateway.chat("openai/gpt-4o-mini").status_code == 200
            until(lambda: counted(gateway) == 40)
            assert gateway.end() == 0
        with launched(path, **environment) as gateway:
            until(lambda: counted(gateway, "packshot_gateway_workers") == 2)
            assert counted(gateway) == 0
