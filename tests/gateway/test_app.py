"""The gateway as its callers see it: the official SDKs on real sockets, before fake providers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from packshot.providers.fake_script import Fault, Settings, limited
from tests.gateway.world import LEDGER, World, world

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys:
      - {name: production, value: env.KEY_A, weight: 0.7}
      - {name: backup, value: env.KEY_B, weight: 0.3}
    network: {retry: {max_retries: 2, backoff_initial_ms: 1, backoff_max_ms: 5}}
  anthropic:
    base_url: {two}
    keys: [{value: env.KEY_C}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 5}}
routes:
  - {id: prompt-rewrite, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-haiku-4-5]}
"""
HELLO = [{"role": "user", "content": "white sneaker on beach"}]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ABC":
        monkeypatch.setenv(f"KEY_{name}", f"secret-{name}")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, YAML, one=Settings(), two=Settings()) as made:
        yield made


def client(there: World, prefix: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=there.url + prefix, api_key="none", max_retries=0)


def claude(there: World) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=there.url + "/anthropic", api_key="none", max_retries=0)


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_a_chat(there: World, prefix: str) -> None:
    with client(there, prefix) as openai_client:
        raw = openai_client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=HELLO, extra_headers={"x-packshot-tags": "shop=7"}
        )
    answer = raw.parse()
    assert answer.choices[0].message.content
    headers = raw.headers
    assert headers["x-packshot-provider"] == "openai"
    assert headers["x-packshot-model"] == "gpt-4o-mini"
    assert headers["x-packshot-key"] in {"production", "backup"}
    assert headers["x-packshot-attempts"] == "1"
    assert int(headers["x-packshot-overhead-us"]) >= 0
    (entry,) = there.booked()
    assert f"{entry.amount / 1e9:.9f}" == headers["x-packshot-cost-eur"]
    assert entry.outcome == "succeeded"
    assert "shop=7" in entry.tags
    assert answer.usage is not None
    assert entry.output_tokens == answer.usage.completion_tokens
    there.ended()
    billed = there.fakes["one"].billed()
    assert (billed.input_tokens, billed.output_tokens) == (entry.input_tokens, entry.output_tokens)


def test_a_stream_with_and_without_usage(there: World) -> None:
    for asked in (False, True):
        options = {"stream_options": {"include_usage": True}} if asked else {}
        with client(there) as openai_client:
            chunks = list(
                openai_client.chat.completions.create(
                    model="gpt-4o-mini", messages=HELLO, stream=True, **options
                )
            )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert any(c.usage for c in chunks) is asked
        assert all(c.choices for c in chunks) is not asked
    entries = there.booked()
    assert [entry.outcome for entry in entries] == ["succeeded"] * 2
    assert entries[0].output_tokens == entries[1].output_tokens > 0


def test_the_asynchronous_client(there: World) -> None:
    async def talk() -> str:
        async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="none") as made:
            stream = await made.chat.completions.create(
                model="prompt-rewrite", messages=HELLO, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(talk())
    (entry,) = there.booked()
    assert entry.route == "prompt-rewrite"


def test_embeddings_as_floats_and_base64(there: World) -> None:
    with client(there) as openai_client:
        default = openai_client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        floats = openai_client.embeddings.create(
            model="text-embedding-3-small", input=["a", "b"], encoding_format="float"
        )
    assert default.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-6)
    assert {entry.stage for entry in there.booked()} == {"embeddings"}


def test_tools_json_and_pictures_pass(there: World) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
    with client(there) as openai_client:
        called = openai_client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, tools=[tool], tool_choice="required"
        )
        seen = openai_client.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, picture]}],
            response_format={"type": "json_object"},
        )
    assert called.choices[0].message.tool_calls
    assert seen.choices[0].message.content


def test_anthropics_own_api(there: World) -> None:
    with claude(there) as anthropic_client:
        answer = anthropic_client.messages.create(
            model="claude-haiku-4-5", max_tokens=100, messages=HELLO
        )
        assert answer.content[0].type == "text"
        with anthropic_client.messages.stream(
            model="claude-haiku-4-5", max_tokens=100, messages=HELLO
        ) as stream:
            assert "".join(stream.text_stream)
        count = anthropic_client.messages.count_tokens(model="claude-haiku-4-5", messages=HELLO)
        assert count.input_tokens > 0
        listed = anthropic_client.models.list().data
        assert anthropic_client.models.retrieve(listed[0].id) == listed[0]
    entries = there.booked()
    assert [entry.outcome for entry in entries] == ["succeeded"] * 2, "counting is free"
    there.ended()
    billed = there.fakes["two"].billed()
    assert sum(entry.input_tokens for entry in entries) == billed.input_tokens
    assert sum(entry.cached_tokens for entry in entries) == billed.cached_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_request_reaches_anthropic_when_openai_is_down(
    there: World, stream: bool
) -> None:
    there.fakes["one"].next(*[Fault(status=503)] * 3)
    with client(there) as openai_client:
        got = openai_client.chat.completions.with_raw_response.create(
            model="prompt-rewrite", messages=HELLO, stream=stream
        )
        parsed = got.parse()
        if stream:
            text = "".join(c.choices[0].delta.content or "" for c in parsed)
        else:
            text = parsed.choices[0].message.content
    assert text
    assert got.headers["x-packshot-provider"] == "anthropic"
    outcomes = [entry.outcome for entry in there.booked()]
    assert outcomes == ["failed_free"] * 3 + ["succeeded"]


def test_a_429_takes_the_next_key_at_once(tmp_path: Path) -> None:
    one = Settings(keys={"secret-A": limited("seconds", 30), "secret-B": None})
    with world(tmp_path, YAML, one=one, two=Settings()) as there:
        with client(there) as openai_client:
            keys = [
                openai_client.chat.completions.with_raw_response.create(
                    model="gpt-4o-mini", messages=HELLO
                ).headers["x-packshot-key"]
                for _ in range(10)
            ]
        assert keys == ["backup"] * 10
        there.ended()
        asked = [truth.key for truth in there.fakes["one"].truth]
        assert asked.count("secret-A") == 1, "it rests for as long as it asked"


ERRORS = [
    (Fault(status=400, code="context"), openai.BadRequestError, "context_length_exceeded"),
    (Fault(status=400, code="filter"), openai.BadRequestError, "content"),
    (Fault(status=404, code="not_found"), openai.NotFoundError, "model_not_found"),
]


@pytest.mark.parametrize(("fault", "kind", "code"), ERRORS)
def test_errors_are_those_of_the_sdk(there: World, fault: Fault, kind: type, code: str) -> None:
    there.fakes["one"].next(fault)
    with client(there) as openai_client, pytest.raises(kind) as caught:
        openai_client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert code in str(caught.value.code)
    there.ended()
    assert len(there.fakes["one"].truth) == 1, "a mistake is not tried again"
    (entry,) = there.booked()
    assert (entry.outcome, entry.amount) == ("failed_free", 0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"model": 3}', 400),
        (b'{"messages": []}', 400),
        (b'{"model": "gpt-4o-mini", "max_tokens": -1}', 400),
        (b'{"model": "gpt-4o-mini", "n": 100000}', 400),
        (b'{"model": "' + b"x" * 500 + b'/y"}', 400),
        (b'{"a":' * 100_000, 400),
        (b"\xff\xfe{}", 400),
    ],
)
def test_bad_bodies_cost_nothing(there: World, body: bytes, status: int) -> None:
    with openai.DefaultHttpxClient() as http:
        got = http.post(there.url + "/v1/chat/completions", content=body)
    assert got.status_code == status, got.text
    assert got.json()["error"]["message"]
    assert there.booked() == []
    assert not there.fakes["one"].truth


def test_health_models_and_what_is_not_there(there: World) -> None:
    with openai.DefaultHttpxClient(base_url=there.url) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").status_code == 200
        assert http.get("/v1/chat/completions").status_code == 405
        assert http.post("/nothing").status_code == 404
    with client(there) as openai_client:
        names = {model.id for model in openai_client.models.list()}
        assert {"prompt-rewrite", "openai/gpt-4o-mini"} <= names
        for name in ("prompt-rewrite", "openai/gpt-4o-mini"):
            assert openai_client.models.retrieve(name).id == name
        with pytest.raises(openai.NotFoundError, match="no model 'nobody/has-it' for this key"):
            openai_client.models.retrieve("nobody/has-it")


def test_an_idempotency_key_is_paid_once(there: World) -> None:
    with client(there) as openai_client:
        answers = [
            openai_client.chat.completions.with_raw_response.create(
                model="gpt-4o-mini",
                messages=HELLO,
                extra_headers={"Idempotency-Key": "order-17"},
            )
            for _ in range(3)
        ]
        assert len({answer.text for answer in answers}) == 1
        assert [a.headers.get("x-packshot-replayed") for a in answers] == [None, "true", "true"]
        with pytest.raises(openai.ConflictError):
            openai_client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": "another"}],
                extra_headers={"Idempotency-Key": "order-17"},
            )
    assert len(there.booked()) == 1


def test_a_fallback_that_cannot_express_a_field_is_passed_over(there: World) -> None:
    there.fakes["one"].next(*[Fault(status=503)] * 3)
    with client(there) as openai_client, pytest.raises(openai.InternalServerError) as caught:
        openai_client.chat.completions.create(model="prompt-rewrite", messages=HELLO, seed=7)
    assert caught.value.status_code == 503, "what OpenAI said, not what Anthropic lacks"
    assert not there.fakes["two"].truth


def test_what_the_only_target_cannot_express_is_named(there: World) -> None:
    with client(there) as openai_client, pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(
            model="anthropic/claude-haiku-4-5", messages=HELLO, seed=7
        )
    assert caught.value.param == "seed"
    assert there.booked() == []


def test_anthropics_headers_go_on_to_it(tmp_path: Path) -> None:
    with world(tmp_path, YAML, one=Settings(), two=Settings(bodies=True)) as there:
        with claude(there) as anthropic_client:
            anthropic_client.beta.messages.create(
                model="claude-haiku-4-5", max_tokens=10, messages=HELLO, betas=["files-api-1"]
            )
        there.ended()
        (truth,) = there.fakes["two"].truth
        assert truth.key == "secret-C"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-packshot-stage", "idle"),
        ("x-packshot-stage", "load"),
        ("x-packshot-stage", "x" * 200),
        ("x-packshot-tags", "key=another"),
        ("x-packshot-tags", "no-value"),
        ("x-packshot-timeout-ms", "soon"),
        ("x-packshot-target", "nobody/model"),
    ],
)
def test_headers_that_are_refused_before_any_cost(there: World, header: str, value: str) -> None:
    with client(there) as openai_client, pytest.raises(openai.BadRequestError):
        openai_client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, extra_headers={header: value}
        )
    assert there.booked() == []


def test_a_mistyped_route_is_told_where_only_its_price_is_missed(tmp_path: Path) -> None:
    yaml = YAML + "ledger: {store: ledger.db, journal: journal, unpriced: refuse}\n"
    with world(tmp_path, yaml, one=Settings(), two=Settings()) as there:
        for model, said in (
            ("prompt-rewrit", "no route is called 'prompt-rewrit'"),
            ("opnai/gpt-4o", "no provider is called 'opnai'"),
            ("openai/prompt-rewrit", ""),
        ):
            with client(there) as caller, pytest.raises(openai.PermissionDeniedError) as raised:
                caller.chat.completions.create(model=model, messages=HELLO)
            assert said in str(raised.value)
            assert ("is called" in str(raised.value)) is bool(said)


def test_a_shared_budget_tells_a_caller_nothing_of_the_others(tmp_path: Path) -> None:
    caps = YAML + LEDGER.replace("}", ", caps: [{scope: total, eur: 0.000001, per: ever}]}")
    with (
        world(tmp_path, caps, one=Settings(), two=Settings()) as there,
        client(there) as openai_client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        openai_client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert caught.value.status_code == 402
    assert caught.value.code == "budget_exceeded"
    assert "EUR" not in caught.value.message
    assert "total" not in caught.value.message


@pytest.mark.parametrize(("eur", "per"), [("0.0001", "day"), ("0.0001", "ever"), ("0", "day")])
def test_a_spent_budget_says_when_it_begins_anew(tmp_path: Path, eur: str, per: str) -> None:
    caps = YAML + LEDGER.replace("}", f", caps: [{{scope: total, eur: {eur}, per: {per}}}]}}")
    with world(tmp_path, caps, one=Settings(), two=Settings()) as there, client(there) as caller:

        def spend(times: int) -> None:
            for _ in range(times):
                caller.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=20)

        before = time.time()
        with pytest.raises(openai.APIStatusError) as caught:
            spend(99)
        after = time.time()
    headers = caught.value.response.headers
    assert caught.value.code == "budget_exceeded"
    assert headers["x-should-retry"] == "false"
    if (eur, per) != ("0.0001", "day"):
        assert "retry-after" not in headers  # no period will be better
        return
    midnights = {(at // 86400 + 1) * 86400 for at in (before, after)}
    ends = {round(at + int(headers["retry-after"])) for at in (before, after)}
    assert any(abs(end - midnight) <= 2 for end in ends for midnight in midnights)


def test_refused_keys_are_no_overload(there: World) -> None:
    there.fakes["one"].next(Fault(status=401, code="auth"), Fault(status=401, code="auth"))
    with client(there) as openai_client:
        for _ in range(3):
            with pytest.raises(openai.APIStatusError) as caught:
                openai_client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
            assert caught.value.status_code == 502
            assert caught.value.code == "upstream_credentials_exhausted"
    there.ended()
    assert len(there.fakes["one"].truth) == 2
