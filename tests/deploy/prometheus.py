"""A real Prometheus on a free loopback port, for the tests that ask it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus"
PATIENCE_S = 60

CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}}
rule_files: [rules.yml, alerts.yml]
scrape_configs:
  - job_name: packshot
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def tool(name: str) -> str:
    """Return the path of a tool of Debian's package, or skip the test and say why."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return path


def ask(port: int, path: str, **parameters: str) -> Any:
    """Return the data of an answer of Prometheus; an error of its own is an AssertionError."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", f"{path}?{urlencode(parameters)}")
        answer = json.load(connection.getresponse())
    assert answer["status"] == "success", answer
    return answer["data"]


def wait_for(port: int, expr: str, good: Callable[[Any], bool] = bool) -> Any:
    """Return the result of ``expr``, asked again until it is ``good``, or the last that was not."""
    end = time.monotonic() + PATIENCE_S
    while not good(result := ask(port, "/api/v1/query", query=expr)["result"]):
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return result


@contextmanager
def prometheus(folder: Path, metrics_port: int) -> Iterator[int]:
    """Run a Prometheus that scrapes ``metrics_port`` with our rules; yield its own port."""
    program = tool("prometheus")
    for rules in RULES.glob("*.yml"):
        text = rules.read_text(encoding="utf-8").replace("interval: 30s", "interval: 250ms")
        (folder / rules.name).write_text(text, encoding="utf-8")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(port=metrics_port), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_until_ready(port, process, folder / "log")
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            try:
                connection.request("GET", "/-/ready")
                if connection.getresponse().status == 200:
                    return
            except ConnectionError:
                time.sleep(0.05)
    raise AssertionError(log.read_text(encoding="utf-8"))
