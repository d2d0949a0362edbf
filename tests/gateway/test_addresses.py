"""Who calls: what a trusted proxy appended, and nothing that a caller wrote before it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.gateway.addresses import caller_of, network_of, within
from packshot.gateway.settings import ServerEntry
from packshot.providers.fake_script import Settings
from tests.gateway.world import world

PROXIES = [network_of(each, "trusted_proxies") for each in ("10.0.0.0/8", "fd00::/8")]
SECRET = "pk-" + "s" * 43


def caller(said: str | None, peer: str = "10.0.0.7") -> str:
    headers = {} if said is None else {b"x-forwarded-for": said.encode()}
    return caller_of(headers, peer, PROXIES)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("203.0.113.9, ::ffff:10.1.2.3 , fd00::1", "203.0.113.9"),
        ("2001:db8::1,", "2001:db8::1"),
        ("10.1.2.3", "10.0.0.7"),
        ("", "10.0.0.7"),
        (None, "10.0.0.7"),
        ("203.0.113.9, unknown", "unknown"),
    ],
)
def test_the_last_that_is_no_proxy_calls(said, found):
    assert caller(said) == found


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60))
def test_what_a_caller_writes_before_it_changes_nothing(forged):
    headers = {b"x-forwarded-for": f"{forged}, 203.0.113.9, 10.9.9.9".encode("latin-1")}
    assert caller_of(headers, "10.0.0.7", PROXIES) == "203.0.113.9"


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60))
def test_who_is_no_proxy_is_not_listened_to(said):
    headers = {b"x-forwarded-for": said.encode("latin-1")}
    assert caller_of(headers, "203.0.113.50", PROXIES) == "203.0.113.50"
    assert caller_of(headers, "10.0.0.7", []) == "10.0.0.7"


def test_what_is_no_address_lies_nowhere():
    assert not within("unknown", PROXIES)
    assert not within("", PROXIES)


def test_a_proxy_that_is_none_is_refused_at_the_start():
    with pytest.raises(InvalidRequest, match=r"trusted_proxies are addresses or networks.*'lb-1'"):
        ServerEntry(trusted_proxies=("10.0.0.0/8", "lb-1"))


YAML = """
server: {{trusted_proxies: [{proxies}]}}
providers:
  openai:
    base_url: {{one}}/v1
    keys: [{{name: production, value: env.KEY_A}}]
access:
  virtual_keys: [{{id: shop, value: env.VK, allow_ips: [203.0.113.0/24]}}]
"""


@pytest.mark.parametrize(
    ("proxies", "said", "status"),
    [
        ("127.0.0.1", "203.0.113.9", 200),
        ("127.0.0.1", "198.51.100.1", 403),
        ("127.0.0.1", "203.0.113.9, 198.51.100.1", 403),
        ("10.0.0.1", "203.0.113.9", 403),
        ("", "203.0.113.9", 403),
    ],
)
def test_addresses_of_a_key_hold_behind_a_proxy(tmp_path: Path, monkeypatch, proxies, said, status):
    monkeypatch.setenv("KEY_A", "secret-A")
    monkeypatch.setenv("VK", SECRET)
    text = YAML.format(proxies=proxies)
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {SECRET}", "x-forwarded-for": said}
    with world(tmp_path, text, one=Settings()) as w, httpx2.Client() as http:
        for _ in range(2):  # the head is known the second time
            got = http.post(f"{w.url}/v1/chat/completions", json=body, headers=headers)
            assert got.status_code == status
