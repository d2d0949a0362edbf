"""Real servers for the stores of answers, and what a store of each kind is opened from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from packshot.gateway.cache import postgres_store, valkey_store
from packshot.gateway.cache.entry import BESIDE, Entry
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.cache.postgres_store import PostgresStore
from packshot.gateway.cache.store import MemoryStore, Store
from packshot.gateway.cache.valkey_store import ValkeyStore
from tests.ledger.stores.conftest import new_database, postgres
from tests.relay import Relay
from tests.state.conftest import valkey_server

__all__ = ["Clock", "Place", "entry_of", "postgres", "valkey_server"]

ROOM = 4
BODY = 100
LIMIT = ROOM * (BODY + BESIDE)
SECOND = 1_000_000
LONG = 1 << 60

KINDS = ("memory", "file", "valkey", "postgres")
BEHIND = KINDS[1:]
"""What workers or replicas share."""
SERVERS = KINDS[2:]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


def entry_of(name: str = "", *, cost: int = 1000, until: int = LONG, **more: Any) -> Entry:
    values: dict[str, Any] = {"scope": "key:one", "route": "caption", "target": "openai/x", **more}
    return Entry(name.encode().ljust(BODY, b"."), made_at=0, until=until, cost=cost, **values)


@dataclass
class Place:
    """Where stores of one kind keep the same entries; each that is opened is another replica's."""

    kind: str
    url: str
    """Of the server, or the path of the file."""
    clock: Clock = field(default_factory=Clock)

    def open(self, limit: int = LIMIT, url: str = "") -> Any:
        at, clock = url or self.url, self.clock
        store: Store
        match self.kind:
            case "memory":
                store = MemoryStore(limit, clock)
            case "file":
                store = FileStore(Path(at), limit, clock)
            case "valkey":
                store = ValkeyStore(at, limit, clock)
            case _:
                store = PostgresStore(at, limit, clock)
        return store

    def relay(self) -> tuple[Relay, str]:
        """Return a bad network before the server, and the address on it."""
        parts = urlsplit(self.url)
        if self.kind == "valkey":
            relay = Relay(("127.0.0.1", parts.port or 0))
            return relay, f"valkey://127.0.0.1:{relay.port}/0"
        folder = unquote(parts.query.partition("host=")[2])
        relay = Relay(f"{folder}/.s.PGSQL.5432")
        user = "postgresql://postgres@127.0.0.1"
        return relay, f"{user}:{relay.port}{parts.path}?sslmode=disable"


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Return an empty place of a kind. A busy machine is no silent server."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (valkey_store, postgres_store):
            patch.setattr(module, "ANSWER_S", 5.0)
            patch.setattr(module, "PATIENT_S", 30.0)
        url = str(tmp_path / "answers.db")
        if kind == "valkey":
            server = request.getfixturevalue("valkey_server")
            with server.client() as client:
                client.flushall()
            url = f"valkey://127.0.0.1:{server.port}/0"
        elif kind == "postgres":
            url = new_database(request.getfixturevalue("postgres"))
        yield Place(kind, url)
