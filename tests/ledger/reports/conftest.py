"""The small ledger, in either kind of store."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from packshot.ledger.stores import open_store
from packshot.ledger.stores.base import Store
from tests.ledger.reports.worlds import world
from tests.ledger.stores.conftest import postgres, postgres_url, url

__all__ = ["postgres", "postgres_url", "store", "url"]


@pytest.fixture
def store(url: str) -> Generator[Store]:
    """Return a store that holds the small ledger."""
    opened = open_store(url)
    opened.append(world())
    yield opened
    opened.close()
