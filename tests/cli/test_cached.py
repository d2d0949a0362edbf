"""``packshot cache purge`` and ``audit``, from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from packshot.cli.cache import app
from packshot.core.errors import InvalidRequest, PackshotError
from packshot.gateway.cache import embed
from packshot.gateway.cache.audit_log import AuditLog
from packshot.gateway.cache.file_store import FileStore
from packshot.gateway.content import ContentLog
from tests.gateway.cache.test_audit import check_of
from tests.gateway.cache.test_store import entry_of
from tests.gateway.cache.test_traffic import content

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


# ---------------------------------------------------------------- undecided, and one's own traffic
def test_what_no_judge_decided_is_put_to_a_person_first(cache: Cache, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state" / "cache-audit.db")
    log.add(check_of(verdict="open", note="bench (judge-1): undecided. it gives orders"))
    log.add(check_of())
    log.close()
    shown = cache("audit")
    assert "1 undecided, not counted" in shown
    assert "why     bench (judge-1): undecided. it gives orders" in shown
    cache("audit", "--judge", "-n", "1", typed="n\n")
    facts = json.loads(cache("audit", "--json"))
    assert facts["undecided"] == {}
    assert (facts["routes"][0]["checked"], facts["routes"][0]["false"]) == (2, 1)


class Alike:
    """A model to which all texts are the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


def test_tuning_on_traffic(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "MiniLM", Alike)
    with pytest.raises(InvalidRequest, match="name one of"):
        cache("tune")
    with pytest.raises(InvalidRequest, match="no pair of the traffic has a label"):
        cache("tune", "--from-traffic")
    key = "k" * 32
    monkeypatch.setenv("CONTENT", key)
    yaml = "server: {state: state}\ntelemetry: {content_key: env.CONTENT}\n"
    yaml += "semantic_cache: {routes: {caption: {similarity_threshold: 0.9}}}\n"
    (tmp_path / "packshot.yaml").write_text(yaml)
    log = ContentLog(tmp_path / "state" / "content", key, 30, "w")
    log.start()
    for text in ("a red mug", "a blue mug", "on a beach, a red mug", "a red mug on a beach"):
        log.put(content(text, text))
    log.stop()
    fill(tmp_path / "state")
    shown = cache("tune", "--from-traffic")
    assert "labelled: " in shown
    assert "2 by slots" not in shown
    assert "in force: 0.90; keep it, or a higher one, until it is proven" in shown
    facts = json.loads(cache("tune", "--from-traffic", "--json"))
    (route,) = facts["routes"]
    assert (route["route"], route["proven"], route["in_force"]) == ("caption", False, 0.9)
    assert route["others_needed"] == 3688
    assert sum(route["labelled_by"].values()) == route["same"] + route["other"]
    assert route["other"] >= 2
