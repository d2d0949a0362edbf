"""``packshot gateway`` as processes of its own, and a fake provider in a thread of the test's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in
from packshot.providers.fake import Fake
from packshot.providers.fake_script import Settings

__all__ = ["Process", "booked", "provider"]


@contextmanager
def provider(settings: Settings) -> Iterator[tuple[Fake, asyncio.AbstractEventLoop]]:
    """Run a fake provider in a thread; its loop is for `run`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="provider")
    thread.start()
    fake = Fake(settings)

    def run(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    run(fake.start())
    try:
        yield fake, loop
    finally:
        run(fake.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Process:
    """A gateway and its workers; ``path`` is its configuration. Use it as a context manager."""

    def __init__(self, path: Path, environment: dict[str, str], *, port: int = 0) -> None:
        self.errors = path.with_suffix(f".{time.monotonic_ns()}.log")
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "packshot", "gateway"),
                    *("--config", str(path), "--port", str(port)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **environment},
            )
        self.port = self._port()

    def _port(self) -> int:
        """Wait until it listens and a worker answers; return where."""
        give_up = time.monotonic() + 60
        while True:
            assert time.monotonic() < give_up, self.log()
            assert self.process.poll() is None, self.log()
            lines = [line for line in self.log().splitlines() if "listening on http" in line]
            if lines:
                port = urlsplit(lines[0].rpartition("listening on ")[2].split(",")[0]).port or 0
                if self.ready(port):
                    return port
            time.sleep(0.02)

    def ready(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as got:
                return got.status == 200
        except urllib.error.URLError:
            return False

    def log(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def end(self) -> int:
        """Have it finish what it does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def booked(path: Path, what: str) -> list[tuple[Any, ...]]:
    """Bring the journals into the store; return columns of its entries."""
    settings = load_settings(path)
    store = open_store(settings.store)
    try:
        bring_in(settings, store)
        assert store.verify() == []
        return store.query(f"SELECT {what} FROM entries ORDER BY held_at, seq")  # noqa: S608 - ours
    finally:
        store.close()
