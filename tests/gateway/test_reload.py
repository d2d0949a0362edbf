"""A new configuration takes effect whole or not at all, and keys while everything runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packshot.core.errors import PackshotError
from packshot.gateway.access import VirtualKey
from packshot.gateway.virtual_key import BudgetEntry
from packshot.gateway.worker import all_caps
from packshot.ledger.caps import Cap
from packshot.ledger.settings import CapRow
from packshot.ledger.settings import Settings as LedgerSettings
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.launched import http_post
from tests.gateway.world import World, world

KEY = "pk-of-a-shop-0123456789012345678901234567890"
OTHER = "pk-of-others-0123456789012345678901234567890"
PROVIDERS = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{name: first, value: env.KEY_A}]
  anthropic:
    base_url: {two}/v1
    keys: [{value: env.KEY_B}]
"""
ACCESS = """
access:
  virtual_keys:
    - {id: shop, value: env.PK_SHOP}
"""
OLD = PROVIDERS + ACCESS + "routes:\n  - {id: caption, primary: openai/gpt-4o-mini}\n"
NEW = (
    PROVIDERS.replace("env.KEY_A", "env.KEY_C").replace("first", "second")
    + ACCESS
    + "    - {id: others, value: env.PK_OTHER}\n"
    + "routes:\n  - {id: caption, primary: anthropic/claude-haiku-4-5}\n"
)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ABC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")
    monkeypatch.setenv("PK_SHOP", KEY)
    monkeypatch.setenv("PK_OTHER", OTHER)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, OLD, one=Settings(), two=Settings()) as made:
        yield made


def ask(there: World, model: str = "caption", key: str = KEY, **more: Any) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    headers = {"authorization": f"Bearer {key}"}
    return http_post(f"{there.url}/v1/chat/completions", json=body, headers=headers)


def test_all_of_a_new_file_is_in_force_at_once(there: World) -> None:
    assert ask(there).headers["x-packshot-provider"] == "openai"
    assert ask(there, key=OTHER).status_code == 401
    there.write(NEW)
    assert there.run(there.worker.reload()) == ()
    assert ask(there).headers["x-packshot-provider"] == "anthropic"
    assert ask(there, key=OTHER).status_code == 200
    assert ask(there, "gpt-4o-mini").headers["x-packshot-key"] == "second"
    assert [truth.key for truth in there.fakes["one"].truth] == ["secret-A", "secret-C"]


def test_a_stream_that_began_before_ends_as_it_began(there: World) -> None:
    go = threading.Event()
    there.fakes["one"].next(Fault(every_s=0.01))
    body = {"model": "caption", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with (
        httpx2.Client(headers={"authorization": f"Bearer {KEY}"}) as client,
        client.stream("POST", there.url + "/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        first = next(lines)
        there.write(NEW)
        there.run(there.worker.reload())
        go.set()
        rest = [first, *lines]
    assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
    (entry,) = there.booked()
    assert (entry.provider, entry.outcome) == ("openai", "succeeded")


BAD = [
    "providers: [",
    NEW + "rutes: []\n",
    NEW.replace("anthropic/claude-haiku-4-5", "nobody/claude"),
    NEW.replace("env.KEY_C", "env.NOBODY_SET_THIS"),
    NEW.replace("id: others", "id: shop"),
    NEW + "ledger: {store: ledger.db, journal: journal, timezone: Nowhere/AtAll}\n",
    NEW
    + "ledger:\n  store: ledger.db\n  journal: journal\n"
    + "  caps: [{scope: total, eur: 1}, {scope: total, eur: 2}]\n",
    NEW.replace("{two}/v1", "{two}/v1\n    network: {ca: nowhere.pem}"),
    NEW.replace("{two}/v1", "{two}/v1\n    network: {proxy: 'nonsense'}"),
]


@pytest.mark.parametrize("yaml", BAD)
def test_of_a_bad_file_nothing_is_in_force(there: World, yaml: str) -> None:
    gateway = there.worker.gateway
    before = (gateway.plan, gateway.settings)
    there.write(yaml)
    with pytest.raises(PackshotError):
        there.run(there.worker.reload())
    assert (gateway.plan, gateway.settings) == before
    assert ask(there).headers["x-packshot-provider"] == "openai"
    assert ask(there, key=OTHER).status_code == 401
    there.write(NEW)  # and a good one after it is
    there.run(there.worker.reload())
    assert ask(there).headers["x-packshot-provider"] == "anthropic"


def test_what_needs_a_restart_is_said_and_stays(there: World) -> None:
    there.write(
        NEW
        + "server: {max_body_bytes: 10}\n"
        + "ledger: {store: elsewhere.db, journal: elsewhere, unpriced: refuse}\n"
    )
    notes = there.run(there.worker.reload())
    assert [note.partition(":")[0] for note in notes] == ["server", "ledger"]
    assert ask(there).status_code == 200
    there.write(NEW)
    assert len(there.booked()) == 1


def test_a_budget_and_a_limit_of_the_file_are_in_force_after_the_next_call(there: World) -> None:
    assert ask(there, max_tokens=10).status_code == 200
    there.write(OLD.replace("env.PK_SHOP}", "env.PK_SHOP, budget: {eur: 0}}"))
    there.run(there.worker.reload())
    assert ask(there, max_tokens=10).status_code == 402
    limits = "env.PK_SHOP, limits: {requests_per_minute: 1}}"
    there.write(OLD.replace("env.PK_SHOP}", limits))
    there.run(there.worker.reload())
    assert [ask(there).status_code for _ in range(2)] == [200, 429]


def test_a_key_that_is_issued_has_its_budget_whatever_the_file_looks_like_by_then(
    there: World,
) -> None:
    """An editor may have half of it: keys are issued all the same, and never without their cap."""
    access = there.worker._access
    assert access is not None
    there.path.write_text("providers: [")
    digest = access._digest(OTHER.encode())
    access._issued.keys = {digest: VirtualKey("new", budget=BudgetEntry(Decimal(0)), digest=digest)}
    access.changed()
    assert ask(there, key=OTHER, max_tokens=10).status_code == 402
    assert ask(there, max_tokens=10).status_code == 200
    there.write(OLD)


def test_a_budget_and_a_cap_on_one_key_are_the_stricter_one() -> None:
    """An issued key must not put out of force what all others may spend."""
    money = LedgerSettings(
        caps=(
            CapRow("virtual_key", Decimal(5), name="a"),
            CapRow("virtual_key", Decimal(1), name="b", unpriced="refuse"),
            CapRow("total", Decimal(9), "day"),
        )
    )
    budget = BudgetEntry(Decimal(3), unpriced="allow")
    keys = [VirtualKey(name, budget=budget) for name in "abc"]
    assert all_caps(money, keys) == [
        Cap("virtual_key", "a", 3 * 10**9, "month"),
        Cap("virtual_key", "b", 10**9, "month", "refuse"),
        Cap("total", "", 9 * 10**9, "day"),
        Cap("virtual_key", "c", 3 * 10**9, "month"),
    ]
