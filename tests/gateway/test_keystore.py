"""Issued keys, on SQLite and PostgreSQL: made, rotated, revoked, watched, and written down."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from packshot.core.errors import (
    InvalidRequest,
    LedgerCorrupt,
    LedgerUnavailable,
    Saturated,
    Unauthorized,
)
from packshot.gateway import keystore as keystore_module
from packshot.gateway.access import (
    Access,
    AccessEntry,
    BudgetEntry,
    Hasher,
    Issued,
    LimitEntry,
    VirtualKey,
    VirtualKeyEntry,
    load_pepper,
    open_access,
    pepper_path,
)
from packshot.gateway.keystore import (
    KeyStore,
    KeyWatch,
    entry_of,
    open_key_store,
    settings_of,
)
from packshot.gateway.settings import GatewaySettings, ServerEntry
from packshot.ledger.settings import Settings as LedgerSettings
from tests.ledger.stores.conftest import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]

HASHER = Hasher(b"p" * 32)
FULL = VirtualKeyEntry(
    "research",
    team="lab",
    models=("openai/*", "rewrite"),
    routes=("r*",),
    keys=("openai/research",),
    limits=LimitEntry(300, None),
    budget=BudgetEntry(Decimal("50.10"), "day"),
    allow_ips=("10.0.0.0/8",),
    expires="2030-01-31",
    tags={"season": "spring"},
    cache_group="lab",
    content_log=True,
    max_cost_eur=Decimal("0.25"),
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where an empty store of either kind can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[KeyStore]:
    opened = open_key_store(url, HASHER, clock)
    yield opened
    opened.close()


def who(store: KeyStore, secret: str, clock: Clock) -> VirtualKey:
    """Return whose a secret is, by a gateway that reads the store now."""
    _, keys = store.load()
    access = Access(HASHER, (), Issued(keys), clock=clock)
    return access.authenticate({b"x-api-key": secret.encode()}, "10.0.0.1")


def refused(store: KeyStore, secret: str, clock: Clock) -> bool:
    try:
        who(store, secret, clock)
    except Unauthorized:
        return True
    return False


def test_a_key_is_all_that_was_asked_for(store: KeyStore, clock: Clock) -> None:
    secret = store.create(FULL, "anna")
    found = who(store, secret, clock)
    assert found.id == "research"
    assert (found.models, found.routes, found.keys) == (FULL.models, FULL.routes, FULL.keys)
    assert (found.limits, found.budget) == (FULL.limits, FULL.budget)
    assert (found.tags, found.cache_group, found.content_log) == (("season=spring",), "lab", True)
    assert found.max_cost_eur == Decimal("0.25")
    (row,) = store.rows()
    assert row.entry == FULL
    assert row == store.row("research")
    assert (row.rotated_at, row.revoked_at) == (0, 0)
    assert entry_of(settings_of(FULL)) == FULL
    assert settings_of(VirtualKeyEntry("x")) == {"id": "x"}


def test_revoked_is_for_ever_and_the_id_is_spent(store: KeyStore, clock: Clock) -> None:
    secret = store.create(VirtualKeyEntry("shop"), "anna")
    store.revoke("shop", "bert")
    assert refused(store, secret, clock)
    assert store.rows() == []
    assert [row.id for row in store.rows(revoked=True)] == ["shop"]
    for change in (
        lambda: store.revoke("shop", "bert"),
        lambda: store.rotate("shop", "bert"),
        lambda: store.create(VirtualKeyEntry("shop"), "bert"),
    ):
        with pytest.raises(InvalidRequest, match=r"revoked|another key"):
            change()
    assert store.version() == 2


def test_rotated_the_old_secret_ends_at_once_or_after_its_grace(
    store: KeyStore, clock: Clock
) -> None:
    first = store.create(VirtualKeyEntry("shop"), "anna")
    second = store.rotate("shop", "anna")
    assert refused(store, first, clock)
    third = store.rotate("shop", "anna", grace_s=60)
    assert who(store, second, clock).id == who(store, third, clock).id == "shop"
    clock.now += 60_000_000
    assert refused(store, second, clock)
    assert who(store, third, clock).id == "shop"
    store.rotate("shop", "anna", grace_s=60)
    store.revoke("shop", "anna")
    assert refused(store, third, clock)
    with pytest.raises(InvalidRequest, match="grace"):
        store.rotate("shop", "anna", grace_s=-1)


def test_names_that_are_none_are_told_with_the_nearest(store: KeyStore) -> None:
    store.create(VirtualKeyEntry("research"), "anna")
    with pytest.raises(InvalidRequest, match="Did you mean 'research'"):
        store.revoke("reserch", "anna")
    with pytest.raises(InvalidRequest, match="unknown virtual key"):
        store.row("x\0y")


INJECTIONS = [
    "'; DROP TABLE virtual_keys; --",
    "' OR '1'='1",
    "research' UNION SELECT digest, 1, 2, 3 FROM virtual_keys --",
    "%",
    "_",
    "$1",
    "?",
    "\\",
    "\0",
    '"; SELECT pg_sleep(10); --',
    "=cmd|' /C calc'!A0",
    "x\r\nSet-Cookie: a=b",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "é" * 100,
    "x" * 100_000,
]


@pytest.mark.parametrize("payload", INJECTIONS)
def test_injected_text_is_only_text(store: KeyStore, payload: str) -> None:
    """S1: no field reaches a statement as anything but a value."""
    store.create(VirtualKeyEntry("research"), payload)
    for attempt in (
        lambda: store.row(payload),
        lambda: store.revoke(payload, payload),
        lambda: store.rotate(payload, payload),
        lambda: entry_of({"id": payload}),
        lambda: entry_of({"id": "x", payload: 1}),
    ):
        with pytest.raises(InvalidRequest):
            attempt()
    assert store.audit(payload) == []
    assert [row.id for row in store.rows()] == ["research"]
    (row,) = store.audit()
    assert row.actor == payload.replace("\0", "\ufffd")[:200]
    assert store.check_audit() is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"id": 5},
        {"id": "x", "value": "x" * 40},
        {"id": "x", "limits": {"request_per_minute": 5}},
        {"id": "x", "limits": {"requests_per_minute": "5"}},
        {"id": "x", "limits": 5},
        {"id": "x", "budget": {"per": "day"}},
        {"id": "x", "budget": {"eur": "NaN"}},
        {"id": "x", "budget": {"eur": "-1"}},
        {"id": "x", "budget": {"eur": 1, "per": "year"}},
        {"id": "x", "models": "openai/*"},
        {"id": "x", "models": [5]},
        {"id": "x", "content_log": "yes"},
        {"id": "x", "max_cost_eur": "Infinity"},
        {"id": "x", "unknown": 1},
    ],
)
def test_settings_that_are_none(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        entry_of(settings)


@pytest.mark.parametrize("expires", ["2027-01-15", "2027-01-15T07:59:59Z"])
def test_a_key_that_is_over_already_is_not_issued(store: KeyStore, expires: str) -> None:
    with pytest.raises(InvalidRequest, match="is over already"):
        store.create(VirtualKeyEntry("late", expires=expires), "anna")
    assert store.audit() == []
    assert store.create(VirtualKeyEntry("late", expires="2027-01-16"), "anna")


# ---------------------------------------------------------------- the audit trail
def test_every_change_is_written_down(store: KeyStore) -> None:
    store.create(FULL, "anna")
    store.rotate("research", "bert", 60)
    store.revoke("research", "carla")
    store.create(VirtualKeyEntry("shop"), "anna")
    rows = store.audit()
    assert [(row.seq, row.actor, row.action, row.key_id) for row in rows] == [
        (4, "anna", "create", "shop"),
        (3, "carla", "revoke", "research"),
        (2, "bert", "rotate", "research"),
        (1, "anna", "create", "research"),
    ]
    assert [row.seq for row in store.audit("research", 2)] == [3, 2]
    assert '"openai/*"' in rows[3].after
    assert rows[3].before == ""
    assert "revoked_at" in rows[1].after
    assert store.check_audit() is None


def test_the_trail_cannot_be_changed_and_a_forced_change_is_seen(store: KeyStore, url: str) -> None:
    for name in ("a", "b", "c"):
        store.create(VirtualKeyEntry(name), "anna")
    database = store._database
    for sql in ("UPDATE key_audit SET actor = 'x'", "DELETE FROM key_audit"):
        refusal = pytest.raises(LedgerCorrupt, match="append-only")
        with refusal, database.transaction() as within:
            within.execute(sql)
    with database.transaction() as within:
        if database.dialect == "sqlite":
            within.execute("DROP TRIGGER key_audit_no_update")
        else:
            within.execute("DROP TRIGGER key_audit_no_change ON key_audit")
        within.execute("UPDATE key_audit SET actor = 'nobody' WHERE seq = 2")
    assert store.check_audit() == 2


def test_no_secret_and_no_digest_is_in_the_trail_or_a_text(store: KeyStore, clock: Clock) -> None:
    secrets = [store.create(FULL, "anna"), store.rotate("research", "anna", 60)]
    said = repr(store.audit()) + repr(store.rows()) + repr(store.load()) + repr(store)
    for secret in secrets:
        assert secret[:12] not in said
        assert HASHER.digest(secret.encode()).hex() not in said


def test_the_file_has_no_secret_and_is_its_owners(tmp_path: Path) -> None:
    store = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    secrets = [store.create(FULL, "anna"), store.rotate("research", "anna")]
    store.close()
    file = tmp_path / "keys.db"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(secret.encode()[3:15] in file.read_bytes() for secret in secrets)
    with pytest.raises(InvalidRequest, match="another pepper"):
        open_key_store(str(tmp_path / "ledger.db"), Hasher(b"q" * 32))


# ---------------------------------------------------------------- many at once
def test_changes_at_once_are_all_there_and_chained(url: str) -> None:
    def change(number: int) -> None:
        mine = open_key_store(url, HASHER)
        for each in range(5):
            mine.create(VirtualKeyEntry(f"k{number}-{each}"), f"thread {number}")
        mine.close()

    threads = [threading.Thread(target=change, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_key_store(url, HASHER)
    assert len(store.rows()) == 20
    assert store.version() == 20
    assert store.check_audit() is None
    store.close()


# ---------------------------------------------------------------- the watch
def wait_for(what: Callable[[], bool]) -> bool:
    end = monotonic() + 30
    pause = threading.Event()
    while monotonic() < end:
        if what():
            return True
        pause.wait(0.01)
    return False


def test_a_change_elsewhere_is_noticed(url: str, store: KeyStore) -> None:
    issued = Issued()
    changes: list[int] = []
    other = open_key_store(url, HASHER)
    access = Access(HASHER, (), issued)
    watch = KeyWatch(other, issued, lambda: changes.append(len(access.virtual_keys())), poll_s=0.01)

    def works(secret: str) -> bool:
        try:
            access.authenticate({b"x-api-key": secret.encode()}, "10.0.0.1")
        except Unauthorized:
            return False
        return True

    try:
        first = store.create(VirtualKeyEntry("shop"), "anna")
        assert wait_for(lambda: works(first))
        second = store.rotate("shop", "anna")
        assert wait_for(lambda: works(second))
        assert not works(first)
        store.revoke("shop", "anna")
        assert wait_for(lambda: not works(second))
        assert wait_for(lambda: changes == [1, 1, 0])
    finally:
        watch.close()


def test_who_failed_to_hear_of_a_change_is_told_again(tmp_path: Path) -> None:
    """Caps are set by it: it must not be lost, nor end the watch."""
    store = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    issued = Issued()
    calls: list[int] = []

    def hear() -> None:
        calls.append(watch.failures)
        assert not issued.keys, "nobody spends before the caps are set"
        if len(calls) < 3:
            raise InvalidRequest("packshot.yaml, line 3: a mistake")

    other = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    watch = KeyWatch(other, issued, hear, poll_s=0.01)
    store.create(VirtualKeyEntry("shop"), "anna")
    assert wait_for(lambda: len(calls) == 3 and watch.failures == 0)
    assert calls == [0, 1, 2]
    assert len(issued.keys) == 1
    watch.close()
    store.close()


def test_a_watch_that_waits_for_a_silent_server_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    watch = KeyWatch(store, Issued(), poll_s=0.01)
    silent, over = threading.Event(), threading.Event()

    def version() -> int:
        silent.set()
        over.wait(30)
        return 0

    monkeypatch.setattr(store, "version", version)
    monkeypatch.setattr(keystore_module, "CLOSE_S", 0.01)
    assert silent.wait(30)
    watch.close()
    assert watch._thread.is_alive()
    over.set()
    watch._thread.join(30)
    monkeypatch.undo()
    watch.close()


def test_a_key_with_two_secrets_is_one_key(store: KeyStore) -> None:
    store.create(VirtualKeyEntry("shop"), "anna")
    store.rotate("shop", "anna", grace_s=60)
    keys = store.load()[1]
    assert len(keys) == 2
    assert [key.id for key in Access(HASHER, (), Issued(keys)).virtual_keys()] == ["shop"]


def test_half_a_second_is_what_a_change_takes() -> None:
    assert keystore_module.POLL_S <= 0.5


def test_while_the_store_is_away_known_keys_hold_for_a_minute_and_then_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    secret = store.create(VirtualKeyEntry("shop"), "anna")
    issued = Issued()
    watch = KeyWatch(store, issued, poll_s=0.01)
    access = Access(HASHER, (), issued)
    headers = {b"x-api-key": secret.encode()}
    broken = sqlite3.OperationalError("disk gone")

    def away(*_: object) -> int:
        raise LedgerUnavailable(str(broken))

    with monkeypatch.context() as patch:
        patch.setattr(store, "version", away)
        assert wait_for(lambda: watch.failures > 2)
        stale = issued.stale_at
        assert wait_for(lambda: watch.failures > 5)
        assert issued.stale_at == stale
        now = monotonic()
        assert now < stale <= now + 60
        assert access.authenticate(headers, "10.0.0.1").id == "shop"
        with monkeypatch.context() as later:
            later.setattr("packshot.gateway.access.monotonic", lambda: stale + 0.1)
            with pytest.raises(Saturated):
                access.authenticate(headers, "10.0.0.1")
    assert wait_for(lambda: watch.failures == 0 and issued.stale_at > stale)
    watch.close()


def test_a_store_that_is_not_there_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        open_key_store("/proc/none/ledger.db", HASHER)
    with pytest.raises(LedgerUnavailable):
        open_key_store("postgresql://nobody@127.0.0.1:1/none", HASHER)


def test_a_gateways_access_is_opened_whole_and_closed_whole(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = GatewaySettings(
        access=AccessEntry((VirtualKeyEntry("shop", models=("openai/*",)),)),
        server=ServerEntry(state=state),
    )
    money = LedgerSettings(str(tmp_path / "ledger.db"))
    access = open_access(settings, money)
    changes: list[int] = []
    access.on_change(lambda: changes.append(1))
    hasher = Hasher(load_pepper(settings.access, pepper_path(settings)))
    store = open_key_store(money.store, hasher)
    headers = {b"x-api-key": store.create(VirtualKeyEntry("shop"), "anna").encode()}
    assert wait_for(lambda: bool(changes))
    assert access.authenticate(headers, "10.0.0.1").models == ("openai/*",)
    access.replace(AccessEntry((VirtualKeyEntry("shop", models=("mistral/*",)),)))
    assert access.authenticate(headers, "10.0.0.1").models == ("mistral/*",)
    store.close()
    access.close()
    access.close()
    assert not [each for each in threading.enumerate() if each.name == "packshot-keys"]
