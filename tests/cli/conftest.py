"""Run the command line in this process, on a folder of its own, with a stand-in for the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from packshot.cli.main import main
from packshot.ledger.signs import tick_us
from tests.studio.stub import StubEngine, make_folder


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Packshot = Callable[..., Done]


@pytest.fixture
def packshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Packshot:
    """Return a function that runs ``packshot`` with the given words in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> Done:
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, said.out, said.err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_folder(tmp_path / "model"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    """Put a stub where the commands would load an engine, and let its seconds pass."""
    stub = StubEngine()
    took_us = 1_000_000 * round(sum(part.seconds for part in stub.usage(1, 1)))
    monkeypatch.setattr(
        "packshot.ledger.signs.tick_us", lambda: tick_us() + took_us * len(stub.requests)
    )

    def load(plan: object, on_device: Callable[[str], None], embeddings: object) -> StubEngine:
        on_device(stub.device_kind)
        return stub

    monkeypatch.setattr("packshot.studio.render.load_engine", load)
    return stub
