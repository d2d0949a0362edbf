"""Who is let in, and to what: scopes, expiry, addresses, near misses, and no secret in any text."""

from __future__ import annotations

import base64
import hmac
import random
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.config import Secret, read
from packshot.core.errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    OutputError,
    PackshotError,
    RateLimited,
    Saturated,
    Unauthorized,
)
from packshot.gateway.access import Access, Hasher, Issued, load_pepper, new_secret
from packshot.gateway.virtual_key import (
    AccessEntry,
    VirtualKey,
    VirtualKeyEntry,
    is_secret,
    micros_of,
    virtual_key_of,
)

PEPPER = b"p" * 32
HASHER = Hasher(PEPPER)
SECRET = new_secret()


def entry(**fields: Any) -> VirtualKeyEntry:
    return VirtualKeyEntry(**{"id": "research", "value": Secret(SECRET), **fields})


def access(*entries: VirtualKeyEntry, **options: Any) -> Access:
    return Access(HASHER, entries, **options)


def bearer(secret: str | bytes) -> dict[bytes, bytes]:
    value = secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogatepass")
    return {b"authorization": b"Bearer " + value}


def issued(key_id: str, secret: str, **fields: Any) -> Issued:
    digest = HASHER.digest(secret.encode())
    return Issued({digest: virtual_key_of(VirtualKeyEntry(key_id, **fields), digest)})


# ---------------------------------------------------------------- the header
@pytest.mark.parametrize(
    "headers",
    [
        bearer(SECRET),
        {b"authorization": b"bearer " + SECRET.encode()},
        {b"x-api-key": SECRET.encode()},
        {b"api-key": SECRET.encode()},
        {b"authorization": b"Basic abc", b"x-api-key": SECRET.encode()},
    ],
)
def test_each_header_of_the_sdks_is_read(headers: dict[bytes, bytes]) -> None:
    assert access(entry()).authenticate(headers, "10.0.0.1").id == "research"


@pytest.mark.parametrize("headers", [{}, {b"authorization": b"Bearer"}, {b"x-api-key": b""}])
def test_no_secret_is_said_to_be_none(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthorized, match="no virtual key"):
        access(entry()).authenticate(headers, "10.0.0.1")


def test_near_misses_are_not_accepted() -> None:
    """S4: one character changed, dropped, added, swapped or in the other case; prefixes; floods."""
    gate = access(entry())
    draw = random.Random(4)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    misses = {SECRET.upper(), SECRET.lower(), SECRET + " ", " " + SECRET, SECRET + "\0", "pk-"}
    misses |= {SECRET[:n] for n in range(len(SECRET))}
    misses |= {SECRET + SECRET, "x" * 2**20, SECRET + "x" * 2**20, "é" * 46}
    for _ in range(20_000):
        at = draw.randrange(len(SECRET))
        misses.add(SECRET[:at] + draw.choice(letters) + SECRET[at + 1 :])
        misses.add(SECRET[:at] + SECRET[at + 1 :])
        misses.add(SECRET[:at] + draw.choice(letters) + SECRET[at:])
    misses.discard(SECRET)
    for number, miss in enumerate(misses):
        with pytest.raises((Unauthorized, RateLimited)):
            gate.authenticate(bearer(miss), f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert gate.authenticate(bearer(SECRET), "10.0.0.1").id == "research"


@given(st.binary(max_size=600))
def test_no_bytes_at_all_get_in(secret: bytes) -> None:
    for headers in (bearer(secret), {b"x-api-key": secret}, {b"authorization": secret}):
        with pytest.raises((Unauthorized, RateLimited)):
            access(entry()).authenticate(headers, "10.0.0.1")


def test_failures_are_limited_by_address_and_a_good_key_is_not_locked_out() -> None:
    gate = access(entry())

    def knock(address: str) -> type[GatewayError]:
        with pytest.raises(GatewayError) as caught:
            gate.authenticate(bearer("pk-wrong"), address)
        return type(caught.value)

    assert [knock("10.0.0.1") for _ in range(25)] == [Unauthorized] * 20 + [RateLimited] * 5
    assert knock("10.0.0.2") is Unauthorized
    assert gate.authenticate(bearer(SECRET), "10.0.0.1").id == "research"
    # One subscriber has a /64: 25 addresses of it count as one.
    assert [knock(f"2001:db8::{n:x}") for n in range(25)][-1] is RateLimited
    assert knock("2001:db8:0:1::1") is Unauthorized
    for number in range(10_000):
        knock(f"10.1.{number >> 8}.{number & 255}")
    assert len(gate._failures._windows) <= 4096


# ---------------------------------------------------------------- expiry, addresses, staleness
def test_expiry_is_to_the_microsecond() -> None:
    now = micros_of("2027-01-31") - 1
    gate = access(entry(expires="2027-01-31"), clock=lambda: now)
    assert gate.authenticate(bearer(SECRET), "10.0.0.1")
    now += 1
    with pytest.raises(Unauthorized, match="expired"):
        gate.authenticate(bearer(SECRET), "10.0.0.1")


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::5", True),
        ("2001:db9::5", False),
        ("", False),
        ("10.1.2.3, 11.1.1.1", False),
    ],
)
def test_allowed_addresses(address: str, good: bool) -> None:
    gate = access(entry(allow_ips=("10.0.0.0/8", "2001:db8::/32")))
    if good:
        assert gate.authenticate(bearer(SECRET), address)
        assert gate.authenticate(bearer(SECRET), address)
    else:
        with pytest.raises(Forbidden):
            gate.authenticate(bearer(SECRET), address)


def test_issued_keys_and_those_of_the_file_are_one_set() -> None:
    store = issued("shop", other := new_secret(), team="shop")
    gate = access(entry(), issued=store)
    assert gate.authenticate(bearer(other), "10.0.0.1").team == "shop"
    assert [key.id for key in gate.virtual_keys()] == ["research", "shop"]
    store.keys = {}
    with pytest.raises(Unauthorized):
        gate.authenticate(bearer(other), "10.0.0.1")


def test_what_an_issued_key_may_stands_in_the_file_where_it_has_the_key() -> None:
    store = issued("research", other := new_secret())
    gate = access(entry(value=Secret(), models=("openai/*",)), issued=store)
    key = gate.authenticate(bearer(other), "10.0.0.1")
    assert key.models == ("openai/*",)
    assert [each.id for each in gate.virtual_keys()] == ["research"]


def test_when_the_store_was_away_too_long_issued_keys_are_refused_and_others_not() -> None:
    store = issued("shop", other := new_secret())
    gate = access(entry(), issued=store)
    store.stale_at = 0.0
    with pytest.raises(Saturated):
        gate.authenticate(bearer(other), "10.0.0.1")
    assert gate.authenticate(bearer(SECRET), "10.0.0.1").id == "research"


def test_without_any_key_this_machine_is_let_in_and_nobody_else() -> None:
    gate = access(loopback_open=True)
    for address in ("127.0.0.1", "::1", ""):
        assert gate.authenticate({}, address).id == "anonymous"
        assert gate.authenticate(bearer("dummy"), address).id == "anonymous"
    for closed, address in (
        (gate, "10.0.0.1"),
        (access(), "127.0.0.1"),
        (access(entry(), loopback_open=True), "127.0.0.1"),
        (access(issued=issued("shop", new_secret()), loopback_open=True), "127.0.0.1"),
        (access(issued=Issued(ever=True), loopback_open=True), "127.0.0.1"),  # all are revoked
    ):
        with pytest.raises(Unauthorized):
            closed.authenticate({}, address)


# ---------------------------------------------------------------- scopes
def key(**fields: Any) -> VirtualKey:
    return virtual_key_of(VirtualKeyEntry("k", **fields))


SCOPES = [
    # models, routes -> route "rewrite", route "other", openai/gpt-4o, anthropic/claude
    ((), (), (True, True, True, True)),
    (("rewrite", "openai/*"), (), (True, False, True, False)),
    ((), ("rewrite",), (True, False, False, False)),
    (("openai/gpt-4o",), ("o*",), (False, True, True, False)),
    (("*",), (), (True, True, True, True)),
    (("openai/gpt-4",), (), (False, False, False, False)),
    (("OPENAI/*",), (), (False, False, False, False)),
]


@pytest.mark.parametrize(("models", "routes", "expected"), SCOPES)
def test_scopes(
    models: tuple[str, ...], routes: tuple[str, ...], expected: tuple[bool, ...]
) -> None:
    for _ in range(2):  # the second time from memory
        who = key(models=models, routes=routes)
        targets = (("openai", "gpt-4o"), ("anthropic", "claude"))
        got = (
            who.permits_route("rewrite"),
            who.permits_route("other"),
            *(who.permits_target(*target) for target in targets),
        )
        assert got == expected
        assert got[:2] == (who.may_see("rewrite"), who.may_see("other"))
        assert got[2:] == (who.may_see("openai/gpt-4o"), who.may_see("anthropic/claude"))
        for route, good in zip(("rewrite", "other"), expected, strict=False):
            # A route brings its targets, though they could not be asked for by name.
            assert who.may_use("anthropic", "claude", route) is good
            if good:
                who.permit(route, targets)
            else:
                with pytest.raises(Forbidden, match=route):
                    who.permit(route, targets)
        for target, good in zip(targets, expected[2:], strict=True):
            if good:
                who.permit("", [target])
            else:
                with pytest.raises(Forbidden, match=target[0]):
                    who.permit("", [target])


def test_a_route_and_a_target_of_one_name_are_not_mistaken_for_each_other() -> None:
    who = key(models=("x",), routes=("openai/gpt-4o",))
    assert who.permits_route("openai/gpt-4o")
    assert not who.permits_target("openai", "gpt-4o")


def test_named_provider_keys() -> None:
    who = key(keys=("openai/research", "openai/spare", "anthropic/*"))
    assert set(who.names_of("openai")) == {"research", "spare"}
    assert who.names_of("anthropic") is None
    assert who.may_use("anthropic", "claude")
    assert not who.may_use("mistral", "large")
    assert not who.may_use("mistral", "large", "rewrite")
    assert not who.may_use("openai-eu", "gpt-4o")
    assert not key(keys=("openai-eu/x",)).may_use("openai", "gpt-4o")
    assert who.names_of("mistral") == [], "none, which is not all"
    assert key().names_of("openai") is None


def test_what_is_remembered_of_callers_names_is_bounded() -> None:
    who = key(models=("openai/*",), allow_ips=("10.0.0.0/8",))
    for number in range(5000):
        assert who.may_use("openai", f"model-{number}")
        who.from_address(f"10.0.{number >> 8}.{number & 255}")
    assert len(who._known) <= 1024


# ---------------------------------------------------------------- the file
YAML = """
access:
  pepper: env.PEPPER
  virtual_keys:
    - id: research
      team: research
      models: ["prompt-rewrite", "openai/*"]
      keys: [openai/research]
      limits: {requests_per_minute: 300}
      budget: {eur: 50, per: month}
      allow_ips: [10.0.0.0/8]
      expires: "2027-01-31"
      tags: {season: spring}
      value: env.RESEARCH
    - id: shop
"""


def test_the_section_is_read(tmp_path: Path) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text(YAML)
    environment = {"PEPPER": "q" * 40, "RESEARCH": SECRET}
    section = read(path, frozenset({"access"}), environment).section("access", AccessEntry)
    assert section is not None
    gate = Access(Hasher(load_pepper(section, tmp_path / "none")), section.virtual_keys)
    found = gate.authenticate(bearer(SECRET), "10.0.0.1")
    assert (found.id, found.team, found.tags) == ("research", "research", ("season=spring",))
    assert found.limits.requests_per_minute == 300
    assert found.limits.tokens_per_minute is None
    assert found.budget is not None
    assert (found.budget.eur, found.budget.per) == (Decimal(50), "month")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": ""}, "id is"),
        ({"id": "a b"}, "id is"),
        ({"id": "é"}, "id is"),
        ({"id": "x\n"}, "id is"),
        ({"id": "x" * 65}, "id is"),
        ({"team": "../x"}, "team is"),
        ({"cache_group": "{x}"}, "cache_group is"),
        ({"keys": ("research",)}, "provider/name"),
        ({"models": ("",)}, "models are"),
        ({"models": ("a\r\nb",)}, "models are"),
        ({"models": ("m",) * 257}, "at most 256"),
        ({"allow_ips": ("10.0.0.0/33",)}, "allow_ips"),
        ({"expires": "tomorrow"}, "2027-01-31"),
        ({"max_cost_eur": Decimal(-1)}, "max_cost_eur"),
        ({"tags": {"a": "b,c"}}, "tags are"),
        ({"value": Secret("short")}, "value is"),
        ({"value": Secret("x" * 31 + " ")}, "value is"),
        ({"value": Secret("x" * 40 + "é")}, "value is"),
    ],
)
def test_entries_that_cannot_be_meant(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        entry(**fields)


def test_sections_that_cannot_be_meant() -> None:
    with pytest.raises(InvalidRequest, match="two virtual keys"):
        AccessEntry((entry(), entry()))
    with pytest.raises(InvalidRequest, match="admin_secret"):
        AccessEntry(admin_secret=Secret("changeme"))


# ---------------------------------------------------------------- the pepper
def test_the_pepper_is_made_once_by_many_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pepper"
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_pepper(AccessEntry(), path)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert len(found[0]) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["pepper"]


def test_a_pepper_that_others_can_read_or_that_is_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    load_pepper(AccessEntry(), path)
    path.chmod(0o640)
    with pytest.raises(OutputError, match="chmod 600"):
        load_pepper(AccessEntry(), path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(OutputError, match="backup"):
        load_pepper(AccessEntry(pepper_file=path), tmp_path / "other")


# ---------------------------------------------------------------- S8
def forms_of(secret: str) -> list[str]:
    raw = secret.encode()
    return [secret[k : k + 12] for k in range(len(secret) - 11)] + [
        base64.b64encode(raw).decode()[:-4],
        raw.hex(),
        quote(secret, safe=""),
    ]


def test_no_text_of_ours_has_a_secret() -> None:
    gate = access(entry(), issued=issued("shop", SECRET[::-1] + "x"))
    section = AccessEntry((entry(),), Secret("q" * 40), admin_secret=Secret("r" * 40))
    texts = [
        repr(section),
        repr(entry()),
        repr(gate),
        repr(vars(gate)),
        repr(gate.virtual_keys()),
        repr(HASHER),
    ]
    wrong = SECRET[:-1] + "!"
    for headers, address in (
        (bearer(wrong), "10.0.0.1"),
        ({b"x-api-key": wrong.encode()}, "x"),
        (bearer(SECRET), "11.0.0.1"),
    ):
        try:
            texts.append(repr(gate.authenticate(headers, address)))
        except PackshotError as error:
            texts += [str(error), repr(error)]
    for bad in ("short-" + SECRET[:20], SECRET + " "):
        with pytest.raises(InvalidRequest) as caught:
            entry(value=Secret(bad))
        texts.append(str(caught.value))
    for text in texts:
        assert not [form for form in forms_of(SECRET) if form in text]
        assert "q" * 12 not in text
        assert "r" * 12 not in text


def test_secrets_are_256_random_bits() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(each) == 46 and each.startswith("pk-") for each in made)
    assert all(is_secret(each.encode()) for each in made)


@given(st.binary(max_size=200), st.binary(max_size=600))
def test_the_digest_is_hmac_sha_256(pepper: bytes, secret: bytes) -> None:
    hasher = Hasher(pepper)
    for _ in range(2):  # what was kept of the pepper is as it was
        assert hasher.digest(secret) == hmac.digest(pepper, secret, "sha256")
