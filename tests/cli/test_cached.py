"""``packshot cache purge`` and ``audit``, from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packshot.cli.cache import app
from packshot.core.errors import InvalidRequest, PackshotError
from packshot.gateway.cache.audit_log import AuditLog
from packshot.gateway.cache.file_store import FileStore
from tests.gateway.cache.test_audit import check_of
from tests.gateway.cache.test_store import entry_of

Cache = Callable[..., str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packshot.yaml").write_text("server: {state: state}\n")

    def run(*words: str, typed: str = "") -> str:
        done = CliRunner().invoke(app, words, input=typed)
        if isinstance(done.exception, PackshotError):
            raise done.exception
        assert done.exit_code == 0, done.output
        lines = [] if "--json" in words else done.stdout.splitlines()
        assert [line for line in lines if len(line) > 80] == []
        return done.stdout

    return run


def fill(folder: Path) -> None:
    async def put() -> None:
        store = FileStore(folder / "answers.db", 1 << 20)
        await store.put("a", entry_of("a", scope="key:one"))
        await store.put("b", entry_of("b", scope="group:shop"))
        await store.aclose()

    asyncio.run(put())
    log = AuditLog(folder / "cache-audit.db")
    log.add(check_of(asked="a white sneaker \x1b[2J " * 20))
    log.add(check_of(verdict="false"))
    log.close()


def test_purging(cache: Cache, tmp_path: Path) -> None:
    assert "0 answers" in cache("purge", "--all")
    fill(tmp_path / "state")
    assert json.loads(cache("purge", "--virtual-key", "one", "--json")) == {
        "purged": 1,
        "checks": 2,
    }
    assert "1 answers and 0 checks" in cache("purge", "--group", "shop")
    for words in ([], ["--all", "--key", "x"]):
        with pytest.raises(InvalidRequest, match="name one of"):
            cache("purge", *words)


def test_the_audit_shows_rates_and_takes_verdicts(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no hit was checked yet"):
        cache("audit")
    fill(tmp_path / "state")
    shown = cache("audit")
    assert "50.00%" in shown
    assert "\x1b" not in shown
    assert "#1" not in cache("audit", "--false")
    cache("audit", "--judge", typed="y\nq\n")
    facts = json.loads(cache("audit", "--json"))
    (route,) = facts["routes"]
    assert (route["checked"], route["false"]) == (2, 0)
    assert 0 < route["rate_high"] < 1
    assert facts["checks"][0]["judge"]
    cache("audit", "--on", "caption")
    assert json.loads(cache("audit", "--json"))["routes"] == []
    with pytest.raises(InvalidRequest, match="no checks"):
        cache("audit", "--on", "other")
