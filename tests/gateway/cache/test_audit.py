"""Checks of semantic hits: what is found false, what people say, and the tier that goes off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from packshot.core.errors import CheckFailed, InvalidRequest
from packshot.gateway.cache.audit import Auditor, verdict_of
from packshot.gateway.cache.audit_log import AuditLog, Check
from packshot.gateway.cache.entry import Purge
from packshot.gateway.cache.settings import AuditEntry
from packshot.gateway.worker import Worker
from packshot.providers.fake_script import Settings
from tests.gateway.cache.test_cache import KEYS, YAML, calls, did
from tests.gateway.cache.test_semantic import Words, ask, with_tier
from tests.gateway.world import World

ASKED = "a white sneaker, size 42"


@pytest.mark.parametrize(
    ("served", "fresh", "cosine", "verdict"),
    [
        ("White sneaker, size 42, dawn light", "size 42 sneaker in white, noon", 0.9, "same"),
        ("White sneaker, size 43, dawn light", "size 42 sneaker in white, noon", 0.9, "false"),
        ("Red sneaker, size 42, dawn light", "size 42 sneaker in white, noon", 0.9, "false"),
        ("A sneaker on sand", "A sneaker by the sea", 0.9, "same"),
        ("White sneaker, size 42", "White sneaker, size 42", 0.4, "false"),
    ],
)
def test_what_the_request_says_and_its_answer_repeats_must_have_been_served(
    served: str, fresh: str, cosine: float, verdict: str
) -> None:
    assert verdict_of(ASKED, served, fresh, cosine, 0.5) == verdict


def check_of(route: str = "caption", verdict: Any = "same", **more: Any) -> Check:
    rows: dict[str, Any] = {"scope": "key:one", "asked": "a", "kept": "b", **more}
    return Check(
        number=0, at=1, route=route, similarity=0.97, served="s", fresh="f", cosine=0.9,
        verdict=verdict, **rows,
    )  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    made = AuditLog(tmp_path / "audit.db", keep=3)
    yield made
    made.close()


def test_counts_outlive_the_checks_and_people_go_before_the_machine(log: AuditLog) -> None:
    for number in range(5):
        count = log.add(check_of(verdict="false" if number == 4 else "same"))
    assert (count.checked, count.false) == (5, 1)
    assert [check.number for check in log.checks(None, 10, false=False, open_=False)] == [5, 4, 3]
    assert [check.number for check in log.checks(None, 10, false=True, open_=False)] == [5]
    assert log.judge(5, "same", "ann").false == 0
    assert log.judge(5, "same", "ann").false == 0
    assert log.judge(4, "false", "ann").false == 1
    assert [check.number for check in log.checks(None, 10, false=False, open_=True)] == [3]
    with pytest.raises(InvalidRequest, match="no check 1"):
        log.judge(1, "false", "ann")


def test_off_and_on_again(log: AuditLog) -> None:
    log.add(check_of())
    log.turn("caption", 77)
    assert [count.off for count in log.counts()] == [77]
    log.turn("caption", 0)
    assert log.counts() == []


def test_forgetting_a_caller(log: AuditLog) -> None:
    log.add(check_of(scope="key:one", asked="very private"))
    log.add(check_of(scope="key:two"))
    assert log.forget(Purge("key", "x")) == 0
    assert log.forget(Purge("scope", "key:one")) == 1
    assert [check.scope for check in log.checks(None, 9, false=False, open_=False)] == ["key:two"]
    assert not any(b"private" in file.read_bytes() for file in log.path.parent.iterdir())


# ---------------------------------------------------------------- on the wire
@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    for letter in KEYS:
        monkeypatch.setenv(f"SECRET_{letter}", letter * 40)


def audited(folder: Path, entry: AuditEntry) -> World:
    def prepare(worker: Worker) -> None:
        with_tier(worker)
        cache = worker.gateway.cache
        assert cache is not None
        audits = AuditLog(folder / "audit.db")
        parts = (worker.gateway.dispatcher, Words(), worker.telemetry)
        cache.shadow = Auditor(entry, audits, *parts)

    yaml = YAML.replace("semantic: false", "semantic: true")
    fakes = {"openai": Settings(), "anthropic": Settings()}
    made = World(folder, yaml, fakes, prepare)
    made.start()
    return made


def settled(there: World, number: int) -> None:
    """Wait for the checks beside the calls."""
    cache = there.worker.gateway.cache
    assert cache is not None
    until = time.monotonic() + 10
    while (calls(there) < number or cache._tasks) and time.monotonic() < until:
        time.sleep(0.01)


def test_a_hit_is_checked_booked_apart_and_the_tier_goes_off(tmp_path: Path) -> None:
    # The fake's answers to two texts have nothing in common, so every check is a false hit.
    there = audited(tmp_path, AuditEntry(share=1.0, limit=0.1, same_above=0.99))
    try:
        words = ["a white sneaker on a beach", "on a beach, a white sneaker"]
        assert did(ask(there, words[0])) == "miss"
        number = 1
        while did(answer := ask(there, words[1])) == "hit" and number < 50:
            assert answer.headers["x-packshot-cache-kind"] == "semantic"
            number += 1
            settled(there, number)
        assert 2 < number < 50
        assert [type(error) for error in there.errors] == [CheckFailed]
        page = there.worker.telemetry.page()
        assert 'cache_checks_total{route="caption",verdict="false"}' in page
        assert 'packshot_gateway_cache_semantic_off{route="caption"} 1' in page
        tags = [json.dumps(entry.tags) for entry in there.booked()]
        assert sum("cache=audit" in each for each in tags) == number - 1
    finally:
        there.stop()


def test_no_more_is_spent_on_checks_than_allowed(tmp_path: Path) -> None:
    there = audited(tmp_path, AuditEntry(share=1.0, eur_per_day=Decimal(0)))
    try:
        ask(there, "a white sneaker on a beach")
        assert did(ask(there, "on a beach, a white sneaker")) == "hit"
        settled(there, 1)
        assert calls(there) == 1
    finally:
        there.stop()
