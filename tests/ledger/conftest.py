"""The real PostgreSQL of the stores' tests, and what workers share, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packshot.ledger.leases import LeaseTable, Shared, open_shared
from tests.ledger.stores.conftest import postgres, postgres_url

__all__ = ["leases", "postgres", "postgres_url", "shared", "shared_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a store that is not there yet, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def shared(shared_url: str) -> Iterator[Shared]:
    """Return the database that workers share, beside that store."""
    opened = open_shared(shared_url)
    yield opened
    opened.close()


@pytest.fixture
def leases(shared: Shared) -> LeaseTable:
    """Return an empty lease table."""
    return LeaseTable(shared)
