"""Fixtures of the studio's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.studio.stub import make_folder

# How long one example takes says nothing here: the machine may be busy.
settings.register_profile("packshot", deadline=None)
settings.load_profile("packshot")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model folder that can be opened, not rendered with."""
    return make_folder(tmp_path / "model")
