"""What only PostgreSQL has: a network between, and a server that goes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import asyncpg
import pytest

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.stores import open_store
from packshot.ledger.stores.migrations import STEPS
from packshot.ledger.stores.postgres import PostgresDatabase, numbered
from tests.ledger.stores.relay import Relay
from tests.ledger.stores.worlds import attempts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("a = ? AND b < ?", "a = $1 AND b < $2"),
        ("a = '?' AND b = ?", "a = '?' AND b = $1"),
        ("a = 'it''s ?' AND b = ?", "a = 'it''s ?' AND b = $1"),
    ],
)
def test_placeholders(given: str, expected: str) -> None:
    assert numbered(given) == expected


def test_an_answer_lost_after_the_commit_is_resolved_by_sending_again(
    postgres_url: str,
) -> None:
    before, _, folder = postgres_url.partition("?host=")
    database = before.rpartition("/")[2]
    relay = Relay(str(Path(unquote(folder)) / ".s.PGSQL.5432"))
    store = open_store(f"postgresql://postgres@127.0.0.1:{relay.port}/{database}?sslmode=disable")
    direct = open_store(postgres_url)
    rows = attempts(60)
    assert store.append(rows[:20]) == 20
    relay.cut = True
    with pytest.raises(LedgerUnavailable, match="can be sent again"):
        store.append(rows[20:40])
    assert relay.cuts == 1
    assert direct.query("SELECT count(*) FROM entries") == [(40,)]  # it was committed
    assert store.append(rows[20:40]) == 0
    assert store.append(rows[20:]) == 20
    assert store.verify() == []
    store.close()
    direct.close()
    relay.close()


def test_a_server_that_drops_the_connection_is_found_again(
    postgres: Any, postgres_url: str
) -> None:
    store = open_store(postgres_url)
    store.append(attempts(10))
    postgres.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'packshot ledger';"
    )
    rows = attempts(10, first=11)
    try:
        new = store.append(rows)
    except LedgerUnavailable:
        new = store.append(rows)
    assert new == 10
    store.close()


def test_no_server_is_unavailable_and_the_message_has_no_password() -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        open_store("postgresql://packshot:hunter2@127.0.0.1:1/ledger")
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1/ledger" in str(caught.value)


def test_no_such_database_is_unavailable(postgres_url: str) -> None:
    with pytest.raises(LedgerUnavailable, match="does not exist"):
        open_store(postgres_url.replace("?", "x?"))


def test_a_database_of_a_newer_version_is_refused(postgres_url: str) -> None:
    open_store(postgres_url).close()
    database = PostgresDatabase(postgres_url)
    with database.transaction() as within:
        database.set_version(within, len(STEPS["postgresql"]) + 1)
    database.close()
    with pytest.raises(LedgerCorrupt, match="newer packshot"):
        open_store(postgres_url)


def test_commits_wait_for_the_disk(postgres_url: str) -> None:
    store = open_store(postgres_url)
    assert store.query("SELECT current_setting('synchronous_commit')") == [("on",)]
    store.close()


def test_reading_cannot_write(postgres_url: str) -> None:
    store = open_store(postgres_url)
    with pytest.raises(LedgerUnavailable, match="read-only"):
        store.query("DELETE FROM journals")
    store.close()


def test_a_wrong_statement_is_the_callers_bug(postgres_url: str) -> None:
    store = open_store(postgres_url)
    with pytest.raises(asyncpg.UndefinedColumnError):
        store.query("SELECT colour FROM entries")
    assert store.append(attempts(1)) == 1
    store.close()
