"""The small ledger, in a real SQLite store."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from packshot.ledger.stores import open_store
from packshot.ledger.stores.base import Store
from tests.ledger.reports.worlds import world


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    """Return a store that holds the small ledger."""
    opened = open_store(str(tmp_path / "ledger.db"))
    opened.append(world())
    yield opened
    opened.close()
