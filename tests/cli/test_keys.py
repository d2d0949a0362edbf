"""`packshot keys`: the life of a key at the terminal, within 80 columns, and nothing leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.gateway.access import Access, Hasher, Issued, load_pepper
from packshot.gateway.keystore import open_key_store
from packshot.gateway.virtual_key import AccessEntry
from tests.cli.conftest import Packshot

YAML = """
ledger: {store: ledger.db}
server: {state: state}
providers: {openai: {keys: [{value: env.NOT_SET_HERE}]}}
access:
  virtual_keys:
    - {id: filed, models: ["openai/*"], team: lab}
    - {id: valued, value: env.VALUED}
"""


@pytest.fixture(autouse=True)
def _here(packshot: Packshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED", "v" * 40)
    Path("packshot.yaml").write_text(YAML)


def who(secret: str) -> str:
    hasher = Hasher(load_pepper(AccessEntry(), Path("state/pepper")))
    store = open_key_store("ledger.db", hasher)
    access = Access(hasher, (), Issued(store.load()[1]))
    store.close()
    return access.authenticate({b"x-api-key": secret.encode()}, "10.0.0.1").id


def test_the_life_of_a_key(packshot: Packshot) -> None:
    done = packshot("keys", "create", "shop", "--team", "lab", "--model", "openai/*", "--rpm", "0")
    assert done.code == 0
    secret = done.out.strip()
    assert done.out == f"{secret}\n"
    assert "only time" in done.err
    assert who(secret) == "shop"

    done = packshot("keys", "rotate", "shop", "--grace", "24h", "--json")
    assert done.json["key"] == {"id": "shop", "grace_s": 86_400}
    assert who(done.json["secret"]) == who(secret) == "shop"

    listed = packshot("keys", "list", "--json").json["keys"]
    assert [key["id"] for key in listed] == ["filed", "shop", "valued"]
    assert listed[1]["limits"] == {"requests_per_minute": 0}
    assert [key["has_secret"] for key in listed] == [False, True, True]

    assert packshot("keys", "revoke", "shop").out == "revoked: shop\n"
    assert packshot("keys", "revoke", "shop").code == 2
    assert "shop" not in packshot("keys", "list").out
    assert "revoked" in packshot("keys", "list", "--revoked").out

    trail = packshot("keys", "audit", "shop", "--json").json
    assert [row["action"] for row in trail["entries"]] == ["revoke", "rotate", "create"]
    assert trail["broken_at"] is None
    assert "@" in trail["entries"][0]["actor"]
    everything = packshot("keys", "audit").out + packshot("keys", "list", "--revoked", "--json").out
    assert secret[3:15] not in everything
    assert done.json["secret"][3:15] not in everything


def test_a_key_that_may_spend_without_a_bound_is_told(packshot: Packshot) -> None:
    done = packshot("keys", "create", "fild", "--unbounded")
    assert done.code == 0
    said = " ".join(done.err.split())
    assert "every model, and has no budget" in said
    assert "Did you mean 'filed'?" in said
    assert done.out.count("\n") == 1
    for words in (("filed",), ("shop", "--eur", "5")):
        assert "budget" not in packshot("keys", "create", *words).err


def test_a_key_without_a_budget_has_that_of_the_defaults_and_is_told_so(
    packshot: Packshot,
) -> None:
    done = packshot("keys", "create", "one")
    said = " ".join(done.err.split())
    assert "a budget of 10 EUR per month (--eur, --per)" in said
    assert "300 requests a minute" in said
    listed = {key["id"]: key for key in packshot("keys", "list", "--json").json["keys"]}
    assert listed["one"]["budget"] == {"eur": "10", "per": "month"}
    assert listed["one"]["limits"] == {"requests_per_minute": 300, "tokens_per_minute": 500_000}
    assert "budget" not in listed["filed"], "what it may do stands in the file"

    given = "access:\n  defaults: {budget: {eur: 2, per: day}, limits: {}}"
    Path("packshot.yaml").write_text(YAML.replace("access:", given))
    done = packshot("keys", "create", "two", "--json")
    assert done.json["key"]["budget"] == {"eur": "2", "per": "day"}
    assert "limits" not in done.json["key"]
    assert "2 EUR per day" in " ".join(done.err.split())
    chosen = packshot("keys", "create", "three", "--eur", "7", "--rpm", "5", "--json")
    assert chosen.json["key"]["budget"]["eur"] == "7"
    assert "by default" not in chosen.err
    open_ended = packshot("keys", "create", "four", "--unbounded", "--json").json["key"]
    assert open_ended == {"id": "four"}


def test_an_id_that_is_taken_is_told_apart_from_one_that_was_revoked(packshot: Packshot) -> None:
    packshot("keys", "create", "shop")
    assert "keys rotate shop" in " ".join(packshot("keys", "create", "shop").err.split())
    packshot("keys", "revoke", "shop")
    said = packshot("keys", "create", "shop").err
    assert "revoked, for ever" in " ".join(said.split())
    assert "rotate" not in said


def test_a_key_of_the_file_gets_its_secret_and_nothing_else(packshot: Packshot) -> None:
    assert "no secret" in packshot("keys", "list").out
    done = packshot("keys", "create", "filed", "--team", "other")
    assert (done.code, "packshot.yaml" in done.err) == (2, True)
    done = packshot("keys", "create", "filed")
    assert who(done.out.strip()) == "filed"
    assert "no secret" not in packshot("keys", "list").out
    done = packshot("keys", "create", "valued")
    assert (done.code, "value" in done.err) == (2, True)
    assert "v" * 12 not in done.err + packshot("keys", "list", "--json").out


def test_all_options_arrive(packshot: Packshot) -> None:
    words = (
        *("--team", "lab", "--model", "openai/*", "--model", "rewrite", "--route", "r*"),
        *("--key", "openai/research", "--rpm", "300", "--tpm", "90000", "--eur", "50.10"),
        *("--per", "day", "--max-cost", "0.25", "--allow-ip", "10.0.0.0/8"),
        *("--expires", "2030-01-31", "--tag", "season=spring", "--cache-group", "lab"),
        *("--content-log", "--json"),
    )
    assert packshot("keys", "create", "shop", *words).json["key"] == {
        "id": "shop",
        "team": "lab",
        "models": ["openai/*", "rewrite"],
        "routes": ["r*"],
        "keys": ["openai/research"],
        "limits": {"requests_per_minute": 300, "tokens_per_minute": 90000},
        "budget": {"eur": "50.10", "per": "day"},
        "max_cost_eur": "0.25",
        "allow_ips": ["10.0.0.0/8"],
        "expires": "2030-01-31",
        "tags": {"season": "spring"},
        "cache_group": "lab",
        "content_log": True,
    }
    assert packshot("keys", "create", "other", "--eur", "0", "--unbounded", "--json").json[
        "key"
    ] == {
        "id": "other",
        "budget": {"eur": "0", "per": "month"},
    }


@pytest.mark.parametrize(
    "words",
    [
        ("create", "no spaces"),
        ("create", "shop", "--eur", "much"),
        ("create", "shop", "--eur", "5", "--per", "year"),
        ("create", "shop", "--tag", "spring"),
        ("create", "shop", "--allow-ip", "everywhere"),
        ("create", "shop", "--expires", "soon"),
        ("create", "shop", "--key", "research"),
        ("rotate", "none"),
        ("rotate", "shop", "--grace", "long"),
        ("revoke", "none"),
        ("revoke", "filed"),
    ],
)
def test_calls_that_cannot_be_meant(packshot: Packshot, words: tuple[str, ...]) -> None:
    done = packshot("keys", *words)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")


def test_tables_are_80_columns(packshot: Packshot) -> None:
    wide = ("--model", "openai/" + "x" * 90, "--team", "t" * 64, "--eur", "123456.789")
    packshot("keys", "create", "k" * 64, *wide, "--expires", "2030-01-31T12:00:00+01:00")
    for words in (("list",), ("audit",)):
        lines = packshot("keys", *words).out.splitlines()
        assert len(lines) > 1
        assert max(map(len, lines)) <= 80


def test_a_trail_that_was_changed_is_exit_5(packshot: Packshot) -> None:
    packshot("keys", "create", "shop")
    hasher = Hasher(load_pepper(AccessEntry(), Path("state/pepper")))
    store = open_key_store("ledger.db", hasher)
    with store._database.transaction() as within:
        within.execute("DROP TRIGGER key_audit_no_update")
        within.execute("UPDATE key_audit SET actor = 'nobody'")
    store.close()
    done = packshot("keys", "audit")
    assert done.code == 5
    assert "entry 1" in done.err
    assert packshot("keys", "audit", "--json").json["broken_at"] == 1


def test_without_a_file_all_is_in_the_state_folder(packshot: Packshot, state_home: Path) -> None:
    Path("packshot.yaml").unlink()
    assert packshot("keys", "list").out.startswith("no virtual key")
    assert packshot("keys", "create", "shop").code == 0
    names = {each.name: each.stat().st_mode & 0o777 for each in (state_home / "packshot").iterdir()}
    assert set(names) - {"keys.db-journal"} == {"keys.db", "pepper"}
    assert set(names.values()) == {0o600}
