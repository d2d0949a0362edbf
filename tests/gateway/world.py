"""A gateway on real sockets with fake providers behind it, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import uvloop

from packshot.gateway.wire.server import Door
from packshot.gateway.worker import Worker
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in
from packshot.providers.fake import Fake
from packshot.providers.fake_script import Settings

__all__ = ["World", "world"]


@dataclass(frozen=True)
class Booked:
    """What a test looks at in an entry."""

    outcome: str
    amount: int
    reason: str
    provider: str
    model: str
    route: str
    virtual_key: str
    team: str
    stage: str
    tags: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    priced: bool


LEDGER = "ledger: {store: ledger.db, journal: journal}\n"


class World:
    """Use it as a context manager; ``fakes`` are by name, and ``{name}`` in the YAML is a URL."""

    def __init__(
        self,
        folder: Path,
        yaml: str,
        fakes: Mapping[str, Settings],
        prepare: Callable[[Worker], None] | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder / "packshot.yaml"
        self.fakes = {name: Fake(settings) for name, settings in fakes.items()}
        self.worker = Worker(self.path)
        self.errors: list[BaseException] = []
        self._yaml = yaml
        self._prepare = prepare
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway")
        self._server: asyncio.Server | None = None
        self._door: Door | None = None
        self.url = ""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the gateway's own loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def write(self, yaml: str) -> None:
        """Write the configuration, with the fakes' addresses in it."""
        for name, fake in self.fakes.items():
            yaml = yaml.replace("{" + name + "}", fake.url)
        self.path.write_text(yaml if "ledger:" in yaml else yaml + LEDGER)

    def start(self) -> None:
        self._thread.start()
        self.run(self._start())

    def stop(self) -> None:
        """Stop the gateway, then the fakes; what is open in the ledger is closed."""
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        for fake in self.fakes.values():
            await fake.start()
        self.write(self._yaml)
        self.worker.telemetry.error = lambda _job, error, *_: self.errors.append(error)  # type: ignore[method-assign]
        await self.worker.start()
        if self._prepare is not None:
            self._prepare(self.worker)
        self._door = Door(self.worker)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._door.protocol, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def _stop(self) -> None:
        assert self._server is not None
        assert self._door is not None
        self._server.close()
        await self._door.drain(5)
        await self._door.close()
        await self.worker.stop(grace_s=10)
        for fake in self.fakes.values():
            await fake.stop()

    def ended(self) -> None:
        """Wait until every request that the fakes received has ended."""
        for fake in self.fakes.values():
            self.run(fake.ended())

    def booked(self) -> list[Booked]:
        """Bring the journal into the store and return its entries, the oldest first."""
        settings = load_settings(self.path)
        store = open_store(settings.store)
        try:
            bring_in(settings, store)
            assert store.verify() == []
            columns = ", ".join(field.name for field in fields(Booked))
            rows = store.query(f"SELECT {columns} FROM entries ORDER BY settled_at, number")  # noqa: S608
            return [Booked(*row) for row in rows]
        finally:
            store.close()


@contextmanager
def world(folder: Path, yaml: str, **fakes: Settings) -> Iterator[World]:
    """Run a world; an error that the gateway did not expect fails the test."""
    made = World(folder, yaml, fakes)
    made.start()
    try:
        yield made
    finally:
        made.stop()
    assert not made.errors, made.errors
