"""What every test may use."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest

# A deadline would be a wall time: a busy machine is no defect.
hypothesis.settings.register_profile("packshot", deadline=None)
hypothesis.settings.load_profile("packshot")

# What a script starts with `&` ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random-weight SDXL folder (64 px). Read only: copy it before you damage it."""
    from tests.tiny import make_tiny_sdxl

    return make_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the ledger and caches of each test, and of its processes, in folders of its own."""
    home = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return home
