"""The real ``packshot gateway`` as a process, and fake providers in a thread beside the test."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from packshot.providers.fake import Fake
from packshot.providers.fake_script import Settings

__all__ = ["Fakes", "Launched", "bearer", "fakes", "http_get", "http_post", "launched", "until"]

PATIENCE_S = 40.0
CONTEXT = ssl.create_default_context()
"""Made once: it takes longer than a call, and is not used."""


def http_get(url: str, **more: Any) -> httpx2.Response:
    return httpx2.get(url, verify=CONTEXT, timeout=PATIENCE_S, **more)


def http_post(url: str, **more: Any) -> httpx2.Response:
    return httpx2.post(url, verify=CONTEXT, timeout=PATIENCE_S, **more)


class Fakes:
    """Fake providers by name, with a loop of their own."""

    def __init__(self, settings: dict[str, Settings]) -> None:
        self.by = {name: Fake(each) for name, each in settings.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fakes")
        self._thread.start()
        for fake in self.by.values():
            self.run(fake.start())

    def __getitem__(self, name: str) -> Fake:
        return self.by[name]

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    def fill(self, yaml: str) -> str:
        for name, fake in self.by.items():
            yaml = yaml.replace("{" + name + "}", fake.url)
        return yaml

    def close(self) -> None:
        for fake in self.by.values():
            self.run(fake.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def fakes(**settings: Settings) -> Iterator[Fakes]:
    made = Fakes(settings)
    try:
        yield made
    finally:
        made.close()


class Launched:
    """A gateway that runs: ``url`` and ``admin`` are its two addresses."""

    def __init__(self, path: Path, words: tuple[str, ...], env: dict[str, str]) -> None:
        self.path = path
        self.log = path.with_name(f"{path.stem}-log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*MAIN, "gateway", "--config", str(path), "--port", "0", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                cwd=path.parent,
            )
        until(lambda: "listening on" in self.said() or self.process.poll() is not None)
        found = re.findall(r"http://127\.0\.0\.1:\d+", self.said().replace("\n", ""))
        assert len(found) == 2, self.said()
        self.url, self.admin = found

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def get(self, path: str, key: str = "") -> httpx2.Response:
        """Ask on a connection of its own: any worker may answer."""
        return http_get(self.url + path, headers=bearer(key))

    def chat(self, model: str, key: str = "", **more: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return http_post(f"{self.url}/v1/chat/completions", json=body, headers=bearer(key))

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        """Return the process ids of the workers, which are the supervisor's children."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in children.split()]

    def end(self) -> int:
        """Drain it and return its exit code."""
        self.tell(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


MAIN = [sys.executable, "-c", "from packshot.cli.main import main; main()"]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


@contextmanager
def launched(path: Path, *words: str, **env: str) -> Iterator[Launched]:
    """Start a gateway on the configuration ``path``; it is killed where the test did not end it."""
    made = Launched(path, words, env)
    try:
        yield made
    except BaseException:
        print(made.said())  # noqa: T201 - what it said is shown with the failure
        raise
    finally:
        if made.process.poll() is None:
            made.tell(signal.SIGTERM)
            try:
                made.process.wait(15)
            except subprocess.TimeoutExpired:
                for worker in made.workers():
                    os.kill(worker, signal.SIGKILL)
                made.process.kill()
                made.process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "it did not come to be so"
        time.sleep(0.02)
