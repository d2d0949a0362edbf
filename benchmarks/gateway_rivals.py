"""The gateways that `gateway.py` compares: how each is installed, configured, started and asked.

Rivals are installed on demand, each in a folder of its own, and never beside packshot.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from packshot.gateway.bench import SECRET, VARIABLE

MODEL = "gpt-4o-mini"
PATIENCE_S = 60.0

VERSIONS = {"litellm": "1.106.2", "portkey": "1.15.2", "tensorzero": "2026.6.0"}

TENSORZERO = """
import asyncio, sys
import tensorzero
async def main():
    port = int(sys.argv[2])
    gateway = tensorzero._start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None,
        async_setup=False,
    )
    print("address", gateway.base_url, flush=True)
    await asyncio.sleep(10**6)
asyncio.run(main())
"""


class Absent(Exception):
    """A gateway cannot be run here; the message says why."""


@dataclass
class Running:
    """A gateway under test: where it listens, its process, and what it is asked."""

    name: str
    port: int
    process: subprocess.Popen[str]
    path: str = "/v1/chat/completions"
    model: str = MODEL
    headers: dict[str, str] = field(default_factory=dict)
    no_limit: bool = False


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def process(
    command: list[str], folder: Path, core: int | None, **environment: str
) -> Generator[subprocess.Popen[str]]:
    """Run a program on one core, with what it says in ``folder/log``; end it with its children."""
    taken = ["taskset", "-c", str(core)] if core is not None else []
    with (folder / "log").open("a") as log:
        started = subprocess.Popen(
            [*taken, *command], text=True, cwd=folder, stdout=log, stderr=log,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        yield started
    finally:
        # Stopped ones do not hear a signal before they go on.
        os.killpg(started.pid, signal.SIGCONT)
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_for(port: int, started: subprocess.Popen[str], folder: Path) -> None:
    """Return when somebody listens on the port."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if started.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    tail = (folder / "log").read_text(errors="replace")[-600:]
    raise Absent(f"it did not start: {tail}")


# ------------------------------------------------------------------------------ packshot

PACKSHOT = """
server: {{host: 127.0.0.1, port: {port}, admin_port: 0, state: state}}
providers:
  openai:
    base_url: {url}/v1
    network: {{allow_http: true{ca}}}
    keys:
      - {{name: a, value: env.{secret}, weight: 0.5}}
      - {{name: b, value: env.{secret}, weight: 0.3}}
      - {{name: c, value: env.{secret}, weight: 0.2}}
{more}
access:
  virtual_keys:
    - id: bench
      team: red
      value: env.{secret}
      limits: {{requests_per_minute: 1000000000, tokens_per_minute: 1000000000000}}
      budget: {{eur: {budget}, per: month}}
telemetry: {{log: "off"}}
ledger: {{store: ledger.db, journal: journal}}
"""

ANTHROPIC = """
  anthropic:
    base_url: http://127.0.0.1:{port}
    keys: [{{name: d, value: env.{secret}}}]
"""


@contextmanager
def packshot(  # noqa: PLR0913 - what a run may differ in
    folder: Path,
    url: str,
    ca: str,
    core: int | None,
    anthropic: int,
    python: str,
    *,
    workers: int = 1,
    budget: str = "1000000",
) -> Generator[Running]:
    """Run ours with everything on: virtual key, limits, budget, journal and drain."""
    port = free_port()
    more = ANTHROPIC.format(port=anthropic, secret=VARIABLE) if anthropic else ""
    text = PACKSHOT.format(
        port=port,
        url=url,
        secret=VARIABLE,
        more=more,
        ca=f", ca: {ca}" if ca else "",
        budget=budget,
    )
    (folder / "packshot.yaml").write_text(text)
    command = [python or sys.executable, "-m", "packshot", "gateway", "-c", "packshot.yaml"]
    command += ["--workers", str(workers)]
    with process(command, folder, core, **{VARIABLE: SECRET}) as started:
        wait_for(port, started, folder)
        time.sleep(2.0)  # whoever binds first listens first; the worker follows
        yield Running("packshot", port, started, model=f"openai/{MODEL}")


# ------------------------------------------------------------------------------ rivals

NGINX = """
{user} worker_processes {workers}; daemon off; error_log {folder}/error.log crit; pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  keepalive_requests 1000000000;
  upstream up {{ server {host}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port}{reuse}; client_body_buffer_size 64k;
    location / {{ {place} }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, url: str, core: int | None, *, workers: int = 1) -> Generator[Running]:
    """Run nginx as a reverse proxy that replaces one header: the limit of what is possible."""
    scheme, host = url.split("://")
    place = f'proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection "";'
    place += 'proxy_set_header Authorization "Bearer sk-upstream"; proxy_buffering off;'
    place += "proxy_ssl_session_reuse on;"
    with _nginx(folder, core, host, place, workers) as made:
        yield made


@contextmanager
def answering(folder: Path, body: str, workers: int) -> Generator[Running]:
    """Run nginx as a provider that always answers the same JSON, which has no apostrophe."""
    place = f"default_type application/json; return 200 '{body}';"
    with _nginx(folder, None, "127.0.0.1:9", place, workers) as made:
        yield made


@contextmanager
def _nginx(
    folder: Path, core: int | None, host: str, place: str, workers: int
) -> Generator[Running]:
    found = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(found).exists():
        raise Absent("nginx is not installed (Debian: apt-get install nginx-light wrk)")
    port = free_port()
    config = NGINX.format(
        folder=folder, port=port, host=host, place=place, workers=workers,
        reuse=" reuseport" if workers > 1 else "",
        user="user root;" if os.geteuid() == 0 else "",  # who owns the folder of this run
    )  # fmt: skip
    (folder / "nginx.conf").write_text(config)
    with process([found, "-c", str(folder / "nginx.conf")], folder, core) as started:
        wait_for(port, started, folder)
        yield Running("nginx", port, started)


def installed(folder: Path, name: str, *packages: str) -> Path:
    """Return a virtual environment with the packages, made if it is not there."""
    place = folder / name
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        print(f"installing {name} into {place}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=False)
        if done.returncode:
            raise Absent("it could not be installed")
        (place / "installed").touch()
    return place / "bin"


@contextmanager
def litellm(folder: Path, url: str, core: int | None, rivals: Path) -> Generator[Running]:
    """Run LiteLLM's proxy as favourably as it goes: no database, no logs, one worker, uvloop."""
    bin_ = installed(
        rivals, "litellm", f"litellm[proxy,proxy-runtime]=={VERSIONS['litellm']}", "httptools"
    )
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": f"sk-{n}",
                },
            }
            for n in range(3)
        ],
        "general_settings": {"master_key": SECRET},
        "litellm_settings": {"ssl_verify": False},
    }  # fmt: skip
    (folder / "litellm.yaml").write_text(json.dumps(config))
    command = [str(bin_ / "litellm"), "--config", "litellm.yaml", "--port", str(port)]
    with process(
        [*command, "--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"],
        folder, core, LITELLM_MODE="PRODUCTION", LITELLM_LOG="ERROR",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    ) as started:  # fmt: skip
        wait_for(port, started, folder)
        yield Running("litellm", port, started)


@contextmanager
def portkey(folder: Path, url: str, core: int | None, rivals: Path) -> Generator[Running]:
    """Run Portkey's gateway; it takes the provider from the caller's headers."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Absent("node and npm are not installed")
    place = rivals / "portkey"
    start = place / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not start.exists():
        place.mkdir(parents=True, exist_ok=True)
        package = f"@portkey-ai/gateway@{VERSIONS['portkey']}"
        done = subprocess.run([npm, "install", "--silent", package], cwd=place, check=False)
        if done.returncode or not start.exists():
            raise Absent("it could not be installed")
    port = free_port()
    command = [node, str(start), f"--port={port}", "--headless"]
    # Only this process, and only to a certificate that was made for this run.
    with process(command, folder, core, NODE_TLS_REJECT_UNAUTHORIZED="0") as started:
        wait_for(port, started, folder)
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{url}/v1"}
        yield Running("portkey", port, started, headers=headers)


@contextmanager
def tensorzero(folder: Path, url: str, core: int | None, rivals: Path) -> Generator[Running]:
    """Run TensorZero's Rust gateway out of its Python wheel, without its database."""
    if url.startswith("https"):
        raise Absent("it trusts the system's authorities only")
    bin_ = installed(rivals, "tensorzero", f"tensorzero=={VERSIONS['tensorzero']}")
    port = free_port()
    (folder / "tensorzero.toml").write_text(
        f'[gateway]\nbind_address = "127.0.0.1:{port}"\nobservability.enabled = false\n'
        f'[models."{MODEL}"]\nrouting = ["fake"]\n[models."{MODEL}".providers.fake]\n'
        f'type = "openai"\nmodel_name = "{MODEL}"\napi_base = "{url}/v1/"\n'
    )
    (folder / "run.py").write_text(TENSORZERO)
    command = [str(bin_ / "python"), "run.py", "tensorzero.toml", str(port)]
    with process(command, folder, core, OPENAI_API_KEY="sk-upstream") as started:
        until = time.monotonic() + PATIENCE_S
        address = ""
        while not address and time.monotonic() < until and started.poll() is None:
            said = (folder / "log").read_text(errors="replace")
            address = next((w for w in said.split() if w.startswith("http://")), "")
            time.sleep(0.1)
        if not address:
            raise Absent(f"it did not start: {(folder / 'log').read_text()[-400:]}")
        port = urlsplit(address).port or port
        wait_for(port, started, folder)
        yield Running(
            "tensorzero", port, started, "/openai/v1/chat/completions",
            f"tensorzero::model_name::{MODEL}",
        )  # fmt: skip
