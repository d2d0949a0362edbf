"""What a caller is told of a call that failed twice over, and by which name the log knows it."""

from __future__ import annotations

import json
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from packshot.gateway.log import Line, Log, Redactor
from packshot.providers.fake_script import Fault, Rule, Settings, limited
from tests.gateway.launched import bearer, http_get, http_post, until
from tests.gateway.world import World, world

KEY = "pk-" + "s" * 43
MANY = "pk-" + "m" * 43
YAML = """
providers:
  openai:
    base_url: "{one}/v1"
    keys: [{name: a, value: env.KEY_A}, {name: b, value: env.KEY_B}]
    network: {on_hangup: HANGUP, retry: {max_retries: 2, backoff_initial_ms: 1, backoff_max_ms: 2}}
routes:
  - {id: dear, primary: openai/gpt-4o-mini, fallbacks: [openai/gpt-4]}
  - {id: unknown, primary: openai/gpt-4o-mini, fallbacks: [openai/nobody-sells-it]}
access:
  virtual_keys:
    - {id: one, value: env.VK, max_cost_eur: "0.001"}
    - {id: many, value: env.VK_2, limits: {tokens_per_minute: 100000}}
"""
ID = re.compile("[0-9a-f]{32}")
HELLO = [{"role": "user", "content": "a shoe"}]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AB":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")
    monkeypatch.setenv("VK", KEY)
    monkeypatch.setenv("VK_2", MANY)


def run(folder: Path, *, hangup: str = "cancel", **settings: Any) -> Any:
    return world(folder, YAML.replace("HANGUP", hangup), one=Settings(**settings))


def ask(there: World, model: str, key: str = KEY, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": HELLO, "max_tokens": 700, **more}
    return http_post(f"{there.url}/v1/chat/completions", json=body, headers=bearer(key))


def left(there: World) -> int:
    """Return the tokens that are left of the limit."""
    got = ask(there, "openai/gpt-4o-mini", MANY, max_tokens=1, messages=[])
    return int(got.headers["x-ratelimit-remaining-tokens"])


def test_a_budget_that_ends_the_retries_does_not_hide_why_there_was_one(tmp_path: Path) -> None:
    with run(tmp_path) as there:
        # Booked at its bound: two of them are more than one call may cost.
        there.fakes["one"].next(*[Fault(status=504, billed="all")] * 3)
        got = ask(there, "openai/gpt-4o-mini", max_tokens=1000)
        assert got.status_code == 504, got.text
        assert got.headers["x-should-retry"] == "false"
        assert got.headers["x-packshot-attempts"] == "1"
        assert "max_cost_eur" in got.json()["error"]["message"], "and why there was no second one"
        assert [entry.outcome for entry in there.booked()] == ["unknown"]


@pytest.mark.parametrize(("route", "why"), [("dear", "max_cost_eur"), ("unknown", "price")])
def test_a_fallback_that_the_ledger_refuses_does_not_hide_the_failure(
    tmp_path: Path, route: str, why: str
) -> None:
    with run(tmp_path) as there:
        there.fakes["one"].next(*[Fault(status=503)] * 4)
        got = ask(there, route, max_tokens=1000)
        assert got.status_code == 503, got.text
        assert got.json()["error"]["code"] == "overloaded"
        assert why in got.json()["error"]["message"]


def test_a_first_refusal_of_the_ledger_is_told_as_such(tmp_path: Path) -> None:
    with run(tmp_path) as there:
        got = ask(there, "openai/gpt-4", max_tokens=1000)
        assert (got.status_code, got.json()["error"]["code"]) == (402, "budget_exceeded")


@pytest.mark.parametrize(
    ("path", "key", "body", "status"),
    [
        ("/v1/chat/completions", KEY, b"{", 400),
        ("/v1/chat/completions", "wrong", b"{}", 401),
        ("/v1/messages", "wrong", b"{}", 401),
        ("/raw/openai/x", "wrong", b"{}", 401),
        ("/raw/nobody/x", KEY, b"{}", 400),
        ("/v1/nothing", KEY, b"{}", 404),
        ("/v1/models", KEY, b"{}", 405),
    ],
)
def test_an_answer_has_an_id_that_the_log_knows(
    tmp_path: Path, path: str, key: str, body: bytes, status: int
) -> None:
    with run(tmp_path) as there:
        logged = logged_by(there)
        got = http_post(there.url + path, content=body, headers=bearer(key))
        assert got.status_code == status, got.text
        assert ID.fullmatch(got.headers["x-packshot-request-id"])
        until(lambda: logged)
        assert logged == [(got.headers["x-packshot-request-id"], status)]


def logged_by(there: World) -> list[tuple[str, int]]:
    """Keep what the log is given from now on: a request's id, and its status."""
    found: list[tuple[str, int]] = []
    finished = there.worker.telemetry.finished

    def keep(job: Any, surface: str, status: int, *more: Any, request: str) -> None:
        found.append((job.id if job is not None else request, status))
        finished(job, surface, status, *more, request=request)

    there.worker.telemetry.finished = keep  # type: ignore[method-assign]
    return found


def test_the_list_of_models_has_an_id_for_everybody(tmp_path: Path) -> None:
    with run(tmp_path) as there:
        for path, key, status in (
            ("/v1/models", KEY, 200),
            ("/v1/models", "wrong", 401),
            ("/v1/models/nobody%2Fhas-it", KEY, 404),
            ("/v1/models/nobody%2Fhas-it", "wrong", 401),
        ):
            got = http_get(f"{there.url}{path}", headers=bearer(key))
            assert got.status_code == status
            assert ID.fullmatch(got.headers["x-packshot-request-id"])


def test_what_is_no_http_has_an_id_that_the_log_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "packshot.gateway")
    with run(tmp_path) as there:
        place = urlsplit(there.url)
        with socket.create_connection((place.hostname, place.port), 10) as made:  # type: ignore[arg-type]
            made.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a b\r\n\r\n")
            head = made.recv(65536)
    assert head.startswith(b"HTTP/1.1 400")
    found = re.search(rb"x-packshot-request-id: ([0-9a-f]{32})\r\n", head)
    assert found is not None
    assert f"{found[1].decode()}: answered 400" in caplog.text


# ------------------------------------------------------------------------- one hold, one bill
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/raw/openai/chat/completions"])
def test_a_provider_that_bills_and_dies_on_a_kept_connection_is_booked_for_it(
    tmp_path: Path, path: str
) -> None:
    """What is sent again is an attempt of its own: two bills, two entries, neither too small."""
    with run(tmp_path) as there:
        body = {"model": "openai/gpt-4o-mini", "messages": HELLO, "max_tokens": 700}
        body["model"] = "gpt-4o-mini" if "raw" in path else body["model"]
        fake = there.fakes["one"]
        keys = [fake.truth[-1].key for _ in range(2) if warm(there, path, body)]
        assert len(set(keys)) == 2, "a kept connection, whichever key is next"
        fake.next(Fault(ending="close", at=-1, billed="all"))
        got = http_post(there.url + path, json=body, headers=bearer(MANY))
        assert got.status_code == (502 if "raw" in path else 200), got.text
        there.ended()
        entries, truths = there.booked()[2:], fake.truth[2:]
        assert len(truths) == len(entries) == (1 if "raw" in path else 2)
        assert entries[0].outcome == "unknown"
        assert truths[0].billed is not None
        assert truths[0].billed.output_tokens <= 700


def warm(there: World, path: str, body: dict[str, Any]) -> bool:
    return http_post(there.url + path, json=body, headers=bearer(MANY)).status_code == 200


# ------------------------------------------------------------------------- tokens per minute


@pytest.mark.parametrize("hangup", ["cancel", "drain"])
def test_a_caller_who_leaves_a_stream_has_used_no_more_than_came(
    tmp_path: Path, hangup: str
) -> None:
    with run(tmp_path, hangup=hangup, usual=Fault(every_s=0.02), reply_bytes=300) as there:
        before = left(there)
        body = {"model": "openai/gpt-4o-mini", "messages": HELLO, "max_tokens": 7000}
        body["stream"] = True
        with httpx.stream(
            "POST", f"{there.url}/v1/chat/completions", json=body, headers=bearer(MANY)
        ) as got:
            next(got.iter_lines())
        there.ended()
        until(lambda: not there.worker.gateway.in_flight and not there.worker.gateway.drains)
        used = before - left(there)
        assert 0 < used < 1000, "of 7,000 that it might have come to"


def test_a_call_whose_use_nobody_says_counts_as_what_was_taken(tmp_path: Path) -> None:
    with run(tmp_path) as there:
        before = left(there)
        there.fakes["one"].next(Fault(usage="absent"))
        assert ask(there, "openai/gpt-4o-mini", MANY).status_code == 200
        assert before - left(there) >= 700


def test_an_attempt_that_cost_nothing_counts_for_nothing(tmp_path: Path) -> None:
    with run(tmp_path) as there:
        before = left(there)
        there.fakes["one"].next(*[Fault(status=400)] * 1)
        assert ask(there, "openai/gpt-4o-mini", MANY).status_code == 400
        assert before - left(there) < 100


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=401), "openai refuses the key NAME (status 401)"),
        (Fault(status=402), "the account of the key NAME of openai has no money left (status 402)"),
        (
            Fault(status=429, code="quota"),
            "the account of the key NAME of openai has no money left (status 429)",
        ),
        (limited(delay_s=9), ""),
        (Fault(status=503), ""),
    ],
)
def test_the_log_says_once_that_a_person_has_to_see_to_a_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: Fault, said: str
) -> None:
    with run(tmp_path) as there:
        there.fakes["one"].rule(Rule(fault=fault))
        for _ in range(3):
            assert ask(there, "openai/gpt-4o-mini", MANY).status_code in {429, 502, 503}
    lines = [line for line in capfd.readouterr().err.splitlines() if " warning " in line]
    assert sorted(line.partition("gateway-0: ")[2].partition(":")[0] for line in lines) == [
        said.replace("NAME", name) for name in "ab" if said
    ]
    assert all("300 s" in line for line in lines)


def test_a_key_that_is_refused_still_is_said_again(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with run(tmp_path) as there:
        there.fakes["one"].rule(Rule(fault=Fault(status=401)))
        for _ in range(2):
            assert ask(there, "openai/gpt-4o-mini", MANY).status_code == 502
            for key in there.worker.gateway.plan.providers["openai"].keys:
                key.ready_at = 0.0  # the five minutes are over
    said = capfd.readouterr().err
    assert said.count("refuses the key a ") == said.count("refuses the key b ") == 2


@pytest.mark.parametrize("kind", ["json", "text"])
def test_every_line_says_when_in_one_form(kind: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """What reads the lines has one type for a field."""
    log = Log(kind, Redactor(), "gateway-0")
    log.start()
    at = time.time()
    log.line(Line(at, "id", "chat", 200, 1.0, 10))
    log.say("warning", "the key is out")
    log.stop()
    lines = capfd.readouterr().err.splitlines()
    if kind == "json":
        times = [json.loads(line)["at"] for line in lines]
    else:
        times = [datetime.fromisoformat(line.partition(" ")[0]).timestamp() for line in lines]
        assert all(line.partition(" ")[0].endswith("+00:00") for line in lines)
    assert len(times) == 2
    assert all(abs(each - at) < 60 for each in times)
