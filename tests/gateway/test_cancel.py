"""A call that is cancelled at any of its awaits: nothing stays held, nothing is ended twice."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from packshot.providers.fake_script import Fault, Settings
from tests.gateway.world import World, world

SECRET = "pk-" + "s" * 43
MOST = 200
"""Awaits of a call; more would mean that it never ends."""

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{name: a, value: env.KEY_A}, {name: b, value: env.KEY_B}]
    network: {on_hangup: HANGUP, drain_s: 2,
      retry: {max_retries: 2, backoff_initial_ms: 1, backoff_max_ms: 2}}
  anthropic:
    base_url: {two}
    keys: [{value: env.KEY_C}]
    network: {retry: {max_retries: 0}}
routes:
  - {id: rewrite, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-haiku-4-5]HEDGE}
access:
  virtual_keys: [{id: bound, value: env.VK, budget: {eur: 1000}, limits: {requests_per_minute: 9000,
    tokens_per_minute: 90000000}}]
"""
DOWN = [Fault(status=503)] * 3


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ABC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")
    monkeypatch.setenv("VK", SECRET)


@types.coroutine
def cancelled_at(
    work: Coroutine[Any, Any, Any], nth: int, *, late: bool, seen: list[int]
) -> Generator[Any, Any, Any]:
    """Run ``work``, and cancel the task at its ``nth`` await: at once, or (``late``) in the moment
    in which what it waits for is there. ``seen`` gets the number of awaits.
    """
    task = asyncio.current_task()
    assert task is not None
    thrown: BaseException | None = None
    while True:
        try:
            waits = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration as end:
            return end.value
        seen[0] += 1
        if seen[0] == nth:
            if late and waits is not None:
                waits.add_done_callback(lambda _done: task.cancel())
            else:
                task.cancel()
        thrown = None
        try:
            yield waits
        except BaseException as error:  # noqa: BLE001 - handed on
            thrown = error


async def call(there: World, path: str, body: bytes, headers: dict[bytes, bytes]) -> None:
    """One request as our server hands it over."""
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop()

    async def send(_message: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(b"authorization", b"Bearer " + SECRET.encode()), *headers.items()],
    }
    await there.worker.gateway(scope, receive, send)


async def settled(there: World) -> None:
    """Wait for what a cancelled call left to be done, and look at what is left."""
    gateway, ledger = there.worker.gateway, there.worker._ledger
    assert ledger is not None
    for _ in range(400):
        providers = gateway.plan.providers.values()
        busy = [p.name for p in providers if p.connections.stats.in_flight]  # type: ignore[attr-defined]
        if not (len(gateway.drains) or ledger.open_holds or busy):
            break
        await asyncio.sleep(0.005)
    assert not ledger.open_holds
    assert not len(gateway.drains)
    assert not busy, "a connection is out"
    assert gateway.in_flight == 0
    assert [key.in_flight for p in gateway.plan.providers.values() for key in p.keys] == [0, 0, 0]
    routes = [*gateway.plan.routes.values(), *gateway.plan._named.values()]
    assert not any(target.in_flight for route in routes for target in route.targets)


CALLS: dict[str, tuple[str, dict[str, Any], dict[bytes, bytes], list[Fault]]] = {
    "plain": ("/v1/chat/completions", {}, {}, []),
    "stream": ("/v1/chat/completions", {"stream": True}, {}, []),
    "fallback": ("/v1/chat/completions", {}, {}, DOWN),
    "streamed fallback": ("/v1/chat/completions", {"stream": True}, {}, DOWN),
    "raw": ("/raw/openai/chat/completions", {"model": "gpt-4o-mini", "max_tokens": 9}, {}, []),
    "raw stream": (
        "/raw/openai/chat/completions",
        {"model": "gpt-4o-mini", "max_tokens": 9, "stream": True},
        {},
        [],
    ),
    "once": ("/v1/chat/completions", {}, {b"idempotency-key": b"k"}, []),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "ready"])
@pytest.mark.parametrize("hangup", ["cancel", "drain"])
@pytest.mark.parametrize("name", [*CALLS, "plain, hedged", "stream, hedged"])
def test_a_call_that_is_cancelled_at_any_await(
    tmp_path: Path, name: str, hangup: str, late: bool
) -> None:
    name, hedged, _ = name.partition(", hedged")
    path, fields, headers, faults = CALLS[name]
    body = {"model": "rewrite", "messages": [{"role": "user", "content": "a shoe"}], **fields}

    async def each(there: World, nth: int) -> bool:
        seen = [0]
        there.fakes["one"].clear()
        there.fakes["one"].next(*(faults or [Fault(first_after_s=0.002, every_s=0.001)] * 2))
        for provider in there.worker.gateway.plan.providers.values():
            for key in provider.keys:
                key.breakers.clear()
        given = {k: b"%s-%d" % (v, nth) for k, v in headers.items()}
        work = call(there, path, json.dumps(body).encode(), given)
        task = asyncio.ensure_future(_run(work, nth, late=late, seen=seen))
        await asyncio.wait([task], timeout=10)
        assert task.done(), "it hangs"
        assert task.cancelled() or task.exception() is None, task
        await settled(there)
        return seen[0] >= nth

    yaml = YAML.replace("HANGUP", hangup).replace(
        "HEDGE", ", hedge_after_ms: 0.01" if hedged else ""
    )
    with world(tmp_path, yaml, one=Settings(), two=Settings()) as there:
        nth = 1
        while there.run(each(there, nth)):
            nth += 1
            assert nth < MOST
        assert nth > 3
        there.ended()
        there.booked()


async def _run(work: Coroutine[Any, Any, Any], nth: int, *, late: bool, seen: list[int]) -> None:
    await cancelled_at(work, nth, late=late, seen=seen)
