"""``packshot ledger metrics``: the page once, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from packshot.cli.metrics import metrics
from packshot.core.errors import InvalidRequest
from packshot.ledger import exporter, names
from packshot.ledger.stores import open_store


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typer:
    """Return the command alone, in a folder with a configured, empty ledger."""
    monkeypatch.chdir(tmp_path)
    config = "ledger: {store: l.db, journal: journal}\n"
    (tmp_path / "packshot.yaml").write_text(config, encoding="utf-8")
    open_store(str(tmp_path / "l.db")).close()
    made = Typer()
    made.command()(metrics)
    return made


def test_once_prints_the_page(app: Typer) -> None:
    done = CliRunner().invoke(app, ["--once"])
    assert done.exit_code == 0, done.output
    assert f"{names.UP.name} 1\n" in done.stdout


def test_an_address_that_others_reach_is_refused(app: Typer) -> None:
    done = CliRunner().invoke(app, ["--host", "192.0.2.1"])
    assert isinstance(done.exception, InvalidRequest)


def test_it_serves_on_the_port_that_was_asked_for(
    app: Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[object, ...]] = []
    monkeypatch.setattr(exporter, "serve", lambda *given: served.append(given[1:3]))
    assert CliRunner().invoke(app, ["--port", "9000"]).exit_code == 0
    assert CliRunner().invoke(app).exit_code == 0
    assert served == [("127.0.0.1", 9000), ("127.0.0.1", exporter.DEFAULT_PORT)]
