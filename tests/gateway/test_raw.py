"""Raw pass-through: bytes go over as they came, and money is held and settled all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.config import Secret
from packshot.core.errors import InvalidRequest
from packshot.gateway.access import VirtualKey
from packshot.gateway.plan import build_plan
from packshot.gateway.raw import Meter, ask
from packshot.gateway.settings import GatewaySettings, KeyEntry, ProviderEntry
from packshot.providers.anthropic import AnthropicRelay
from packshot.providers.fake_script import Fault, Settings, limited
from tests.gateway.launched import http_post
from tests.gateway.world import World, world

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys:
      - {name: a, value: env.KEY_A}
      - {name: b, value: env.KEY_B}
  anthropic:
    base_url: {two}/v1
    keys: [{value: env.KEY_C}]
"""
SECRETS = {name: f"pk-{name}-0123456789012345678901234567890" for name in ("all", "some", "poor")}
ACCESS = """
access:
  virtual_keys:
    - {id: all, value: env.PK_ALL, models: ["openai/*"]}
    - {id: some, value: env.PK_SOME, models: ["openai/gpt-4o-mini"]}
    - {id: poor, value: env.PK_POOR, budget: {eur: 0.001}}
"""
CHAT = {
    "model": "gpt-4o-mini",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ABC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}-of-a-provider")
    for name, secret in SECRETS.items():
        monkeypatch.setenv(f"PK_{name.upper()}", secret)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as made:
        yield made


def post(there: World, path: str, body: Any, key: str = "", **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {SECRETS[key]}"} if key else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http_post(f"{there.url}/raw/{path}", content=content, headers=headers, **more)


def test_the_body_goes_over_as_it_came_and_its_cost_is_booked(there: World) -> None:
    body = (
        b'{ "model" : "gpt-4o-mini",\n"x_new_field":1e2, "messages":[{"role":"user","content":""}]}'
    )
    answer = post(there, "openai/chat/completions?beta=1%202", body)
    assert answer.status_code == 200
    (truth,) = there.fakes["one"].truth
    assert truth.body == body
    assert truth.path == "/v1/chat/completions"
    assert truth.key in {"secret-A-of-a-provider", "secret-B-of-a-provider"}
    (entry,) = there.booked()
    assert entry.outcome == "succeeded"
    assert entry.stage == "raw"
    assert f"{entry.amount / 1e9:.9f}" == answer.headers["x-packshot-cost-eur"] != "0.000000000"
    assert entry.output_tokens == answer.json()["usage"]["completion_tokens"]


def test_an_sdk_may_have_it_as_its_base_url(there: World) -> None:
    with openai.OpenAI(base_url=there.url + "/raw/openai", api_key="none", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                **CHAT, stream=True, stream_options={"include_usage": True}
            )
        )
        vectors = client.embeddings.create(model="text-embedding-3-small", input="a")
        assert client.models.list().object == "list"
    assert chunks[-1].usage is not None
    assert vectors.data[0].embedding
    chat, embedding = there.booked()  # the list was free
    assert chat.output_tokens == chunks[-1].usage.completion_tokens
    assert embedding.input_tokens == vectors.usage.prompt_tokens
    assert embedding.amount > 0


def test_messages_streamed_and_counted(there: World) -> None:
    body = {**CHAT, "model": "claude-haiku-4-5", "stream": True}
    streamed = post(there, "anthropic/messages", body)
    assert streamed.text.rstrip().endswith('{"type":"message_stop"}')
    body = {**CHAT, "model": "claude-haiku-4-5"}
    assert post(there, "anthropic/messages/count_tokens", body).json()["input_tokens"] > 0
    there.ended()
    (entry,) = there.booked()
    billed = there.fakes["two"].billed()
    assert (entry.input_tokens, entry.output_tokens) == (billed.input_tokens, billed.output_tokens)


def test_a_stream_that_says_no_usage_is_booked_at_its_bound(there: World) -> None:
    assert post(there, "openai/chat/completions", {**CHAT, "stream": True}).status_code == 200
    (entry,) = there.booked()
    assert entry.outcome == "succeeded"
    assert entry.output_tokens == 0
    assert entry.amount > 0
    assert "no usage" in entry.reason


def test_a_key_that_is_limited_or_refused_gives_way_to_the_next(there: World) -> None:
    there.fakes["one"].next(limited(), Fault(status=401, code="auth"))
    answer = post(there, "openai/chat/completions", CHAT)
    assert answer.status_code == 502  # both keys are gone, and no caller learns of a 401 of ours
    assert answer.json()["error"]["code"] == "upstream_credentials_exhausted"
    assert [entry.outcome for entry in there.booked()] == ["failed_free", "failed_free"]


def test_a_refusal_comes_back_as_it_is_without_our_credential(there: World) -> None:
    there.fakes["one"].next(Fault(status=400))
    answer = post(there, "openai/chat/completions", CHAT)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    (entry,) = there.booked()
    assert (entry.outcome, entry.amount) == ("failed_free", 0)


def test_what_broke_off_is_booked_at_its_bound(there: World) -> None:
    there.fakes["one"].next(Fault(ending="reset", at=3))
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = post(there, "openai/chat/completions", body)
    assert '"error"' in answer.text
    assert "[DONE]" not in answer.text
    (entry,) = there.booked()
    assert entry.outcome == "unknown"
    assert entry.amount > 0


def test_who_may(tmp_path: Path) -> None:
    with world(tmp_path, YAML + ACCESS, one=Settings(), two=Settings()) as there:
        assert post(there, "openai/chat/completions", CHAT).status_code == 401
        assert post(there, "openai/chat/completions", CHAT, "some").status_code == 403
        assert post(there, "anthropic/messages", CHAT, "all").status_code == 403
        assert post(there, "openai/chat/completions", CHAT, "all").status_code == 200
        assert not there.fakes["two"].truth


def test_under_a_budget_what_has_no_bound_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, YAML + ACCESS, one=Settings(), two=Settings()) as there:
        bare = {name: value for name, value in CHAT.items() if name != "max_tokens"}
        for path, body, status in (
            ("openai/chat/completions", bare, 400),
            ("openai/responses", {**bare, "max_output_tokens": 5}, 400),
            ("openai/batches", {"input_file_id": "x"}, 403),
            ("openai/images/generations", {"model": "dall-e-3", "prompt": "x"}, 402),
            ("openai/chat/completions", {**CHAT, "web_search_options": {}}, 400),
            ("openai/tokenize", {"model": "text-embedding-3-small", "input": "x"}, 400),
            ("openai/chat/completions", {**CHAT, "max_tokens": 10**6, "n": 128}, 402),
            ("openai/chat/completions", CHAT, 200),
        ):
            answer = post(there, path, body, "poor")
            assert answer.status_code == status, (path, body, answer.text)
        assert len(there.fakes["one"].truth) == 1


def test_of_a_deployment_the_path_says_what_it_costs_and_not_the_body() -> None:
    entry = ProviderEntry(
        kind="azure", base_url="https://x.openai.azure.com", keys=(KeyEntry(Secret("k")),)
    )
    scope = {
        "method": "POST",
        "path": "/raw/eu/openai/deployments/o1-pro/chat/completions",
        "raw_path": b"/raw/eu/openai/deployments/o1-pro/chat/completions",
        "query_string": b"",
    }
    plan = build_plan(GatewaySettings(providers={"eu": entry}))
    asked = ask(scope, plan, VirtualKey("k"), {}, json.dumps(CHAT).encode(), 0.0)
    assert asked.job.route.targets[0].model == "o1-pro"


def test_what_is_no_raw_call(there: World) -> None:
    for path, body, status in (
        ("nobody/chat/completions", CHAT, 400),
        ("openai/", CHAT, 400),
        ("openai", CHAT, 400),
        ("openai/chat/completions", b"[]", 400),
        ("openai/chat/completions", b"not json", 400),
        ("openai/chat/completions", b'{"max_tokens":1,"max_tokens":1000000}', 400),
        ("openai/chat/completions", b'{"a":' * 100_000, 400),
        ("openai/chat/completions", b'{"model":7}', 400),
        ("openai/chat/completions", {**CHAT, "n": 1000}, 400),
        ("openai/%2e%2e/admin", CHAT, 400),
        ("openai/a%2f..%2fadmin", CHAT, 400),
        ("openai/a%5cadmin", CHAT, 400),
        ("openai/a%00", CHAT, 400),
        ("openai/a%252e", CHAT, 400),
        ("openai//evil.example/x", CHAT, 400),
    ):
        answer = post(there, path, body)
        assert answer.status_code == status, (path, answer.text)
    for method in ("PUT", "DELETE", "PATCH", "HEAD"):
        assert httpx.request(method, f"{there.url}/raw/openai/models").status_code == 400
    once = {"idempotency-key": "x"}
    assert http_post(f"{there.url}/raw/openai/x", json={}, headers=once).status_code == 400
    assert not there.fakes["one"].truth
    assert there.booked() == []


PLAN = build_plan(
    GatewaySettings(
        providers={"local": ProviderEntry(kind="openai-compatible", base_url="http://127.0.0.1/v1")}
    )
)


@given(path=st.binary(max_size=60), query=st.binary(max_size=30))
def test_no_path_leaves_the_base_url(path: bytes, query: bytes) -> None:
    scope = {
        "method": "GET",
        "path": "/raw/local/",
        "raw_path": b"/raw/local/" + path,
        "query_string": query,
    }
    try:
        asked = ask(scope, PLAN, VirtualKey("k"), {}, b"", 0.0)
    except InvalidRequest:
        return
    assert asked.target.startswith(b"/v1/")
    assert asked.target == b"/v1/" + path + (b"?" + query if query else b"")
    assert all(33 <= each <= 126 for each in asked.target)
    assert not any(part in {b".", b"..", b""} for part in path.split(b"/"))


@pytest.mark.parametrize(
    ("form", "events", "tokens"),
    [
        (
            "openai-responses",
            [
                {"type": "response.created", "response": {"usage": None}},
                {"type": "response.output_text.done"},
                {
                    "type": "response.completed",
                    "response": {"usage": {"input_tokens": 7, "output_tokens": 3}},
                },
            ],
            (7, 3),
        ),
        (
            "openai-images",
            [
                {"type": "image_generation.partial_image"},
                {
                    "type": "image_generation.completed",
                    "usage": {"input_tokens": 5, "output_tokens": 2},
                },
            ],
            (5, 2),
        ),
        ("", [{"type": "speech.audio.done", "usage": {"input_tokens": 5}}], None),
    ],
)
def test_streams_of_other_apis_are_metered(form: str, events: list[Any], tokens: Any) -> None:
    meter = Meter(form)
    data = b"".join(
        f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events
    )
    out = b""
    for at in range(0, len(data), 7):
        assert not meter.done
        out += meter.feed(data[at : at + 7])
    assert out == data
    assert meter.done
    used = meter.usage and (meter.usage.input_tokens, meter.usage.output_tokens)
    assert used == tokens


def test_a_failed_stream_is_no_end() -> None:
    meter = Meter("openai-responses")
    meter.feed(b'data: {"type":"response.failed","response":{"error":{"message":"x"}}}\n\n')
    assert meter.failure is not None
    assert not meter.done


def test_a_usage_in_every_event_is_kept_once() -> None:
    """Of a stream of 8,000 such events the last took 20 s to read, all together."""
    meter, relay = Meter("openai-chat"), AnthropicRelay()
    for count in range(1, 200):
        meter.feed(b'data: {"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n' % count)
        relay.feed(
            b'data: {"type":"message_delta","usage":{"input_tokens":5,"output_tokens":%d}}\n\n'
            % count
        )
        assert meter.usage is not None
        assert relay.usage is not None
        assert meter.usage.output_tokens == relay.usage.output_tokens == count
    assert len(meter._said) <= 3
    assert len(relay.said) <= 3
