"""The response cache on real sockets: what is kept, for whom, and what a caller hears of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import msgspec
import openai
import pytest
import requests

from packshot.gateway.cache.cache import MOST_SAVED
from packshot.gateway.cache.entry import Purge
from packshot.gateway.cache.file_store import FileStore
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.world import World, world

MODEL = "gpt-4o-mini"
KEYS = "abcde"
YAML = """
providers:
  openai: {base_url: "{openai}/v1", keys: [{value: env.KEY_A}], network: {retry: {max_retries: 0}}}
  anthropic: {base_url: "{anthropic}/v1", keys: [{value: env.KEY_A}]}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
  - {id: open, primary: openai/gpt-4o-mini}
access:
  virtual_keys:
    - {id: one, value: env.SECRET_a}
    - {id: two, value: env.SECRET_b}
    - {id: three, cache_group: shared, value: env.SECRET_c}
    - {id: four, cache_group: shared, value: env.SECRET_d}
    - {id: shared, value: env.SECRET_e}
semantic_cache:
  enabled: true
  semantic: false
  routes: {open: {also: [multi_turn, tools, temperature]}}
server: {state: state}
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.chdir(tmp_path)
    for letter in KEYS:
        monkeypatch.setenv(f"SECRET_{letter}", letter * 40)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, YAML, openai=Settings(), anthropic=Settings()) as made:
        yield made


def body_of(text: str = "a white sneaker", **more: Any) -> dict[str, Any]:
    return {"model": "caption", "messages": [{"role": "user", "content": text}], **more}


def ask(
    there: World, said: str = "", *, key: str = "a", content: bytes | None = None, **more: Any
) -> requests.Response:
    headers = {"authorization": f"Bearer {key * 40}", "content-type": "application/json"}
    if said:
        headers["x-packshot-cache"] = said
    data = json.dumps(body_of(**more)).encode() if content is None else content
    return requests.post(f"{there.url}/v1/chat/completions", data=data, headers=headers, timeout=30)


@contextmanager
def closing_now(store: FileStore) -> Iterator[FileStore]:
    yield store
    store.close_now()


def calls(there: World) -> int:
    return sum(len(fake.truth) for fake in there.fakes.values())


def did(answer: requests.Response) -> str:
    return answer.headers["x-packshot-cache"]


def test_the_second_call_is_answered_from_the_cache_and_costs_nothing(there: World) -> None:
    first, second = ask(there), ask(there)
    assert (did(first), did(second)) == ("miss", "hit")
    assert first.content == second.content
    assert second.headers["x-packshot-cache-kind"] == "exact"
    assert second.headers["x-packshot-cost-eur"] == "0.000000000"
    assert second.headers["x-packshot-cache-saved-eur"] == first.headers["x-packshot-cost-eur"]
    assert float(second.headers["x-packshot-cache-saved-eur"]) > 0
    assert int(second.headers["age"]) >= 0
    assert calls(there) == 1
    assert [entry.outcome for entry in there.booked()] == ["succeeded"]
    page = there.worker.telemetry.page()
    assert 'packshot_gateway_cache_total{route="caption",result="exact"} 1' in page
    assert 'packshot_gateway_cache_saved_eur_total{route="caption",kind="exact"} 0.0' in page


def test_spaces_and_order_do_not_count_and_everything_else_does(there: World) -> None:
    plain = b'{"model":"caption","messages":[{"role":"user","content":"Cafe"}],"temperature":0.5}'
    same = (
        b'{"temperature": 0.5, "messages": [{"content": "Cafe", "role": "user"}], '
        b'"model": "caption"}'
    )
    assert [did(ask(there, content=each)) for each in (plain, same)] == ["miss", "hit"]
    for other in (
        plain.replace(b"Cafe", b"cafe"),
        plain.replace(b"Cafe", b"Cafe "),
        plain.replace(b"0.5", b"0.6"),
        plain.replace(b'"temperature":0.5', b'"max_tokens":100'),
        plain.replace(b"user", b"system"),
        plain.replace(b'"caption"', b'"openai/gpt-4o-mini"'),
        plain.replace(b'"model"', b'"user":"x","model"'),
    ):
        assert did(ask(there, content=other)) == "miss"


def test_a_name_that_stands_twice_is_not_kept(there: World) -> None:
    twice = b'{"model":"caption","messages":[{"role":"user","content":"evil","content":"good"}]}'
    answer = ask(there, content=twice)
    assert (did(answer), answer.headers["x-packshot-cache-why"]) == ("bypass", "ambiguous")
    assert did(ask(there, text="good")) == "miss"


def test_nothing_of_one_key_is_served_to_another_but_within_a_group(there: World) -> None:
    assert [did(ask(there, key=key)) for key in "aabcdec"] == [
        *("miss", "hit", "miss", "miss", "hit", "miss", "hit"),
    ]
    assert calls(there) == 4


@pytest.mark.parametrize("streamed_first", [False, True])
def test_streams_and_whole_answers_share_an_entry(there: World, streamed_first: bool) -> None:
    with closing(openai.OpenAI(api_key="a" * 40, base_url=f"{there.url}/v1")) as client:

        def whole() -> tuple[str, int]:
            got = client.chat.completions.create(**body_of())
            return got.choices[0].message.content or "", got.usage.completion_tokens

        def streamed() -> tuple[str, int]:
            text, tokens = "", 0
            options = {"include_usage": True}
            for chunk in client.chat.completions.create(
                **body_of(), stream=True, stream_options=options
            ):
                text += "".join(each.delta.content or "" for each in chunk.choices)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            return text, tokens

        order = [streamed, whole, streamed] if streamed_first else [whole, streamed, whole]
        answers = [each() for each in order]
    assert answers[0][0]
    assert answers[0][1] > 0
    assert answers[1:] == [answers[0]] * 2
    assert calls(there) == 1


@pytest.mark.parametrize("streamed_first", [False, True])
def test_the_same_of_messages(there: World, streamed_first: bool) -> None:
    asked: dict[str, Any] = {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "a white sneaker"}],
    }
    with closing(anthropic.Anthropic(api_key="a" * 40, base_url=there.url)) as client:

        def whole() -> Any:
            return client.messages.create(**asked).to_dict()

        def streamed() -> Any:
            with client.messages.stream(**asked) as stream:
                return stream.get_final_message().to_dict()

        order = [streamed, whole, streamed] if streamed_first else [whole, streamed, whole]
        answers = [each() for each in order]
    for answer in answers[1:]:
        assert answer["content"][0]["text"] == answers[0]["content"][0]["text"]
        assert answer["usage"]["output_tokens"] == answers[0]["usage"]["output_tokens"] > 0
        assert answer["stop_reason"] == answers[0]["stop_reason"]
    assert calls(there) == 1


async def _many(url: str, count: int) -> list[tuple[int, str]]:
    """Ask the same ``count`` times at once, every other time as a stream."""

    async def one(number: int) -> tuple[int, str]:
        body = body_of(stream=bool(number % 2))
        headers = {"authorization": "Bearer " + "a" * 40}
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as got:
            await got.read()
            return got.status, got.headers["x-packshot-cache"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=count)) as session:
        return await asyncio.gather(*(one(number) for number in range(count)))


def test_200_identical_requests_are_one_call(tmp_path: Path) -> None:
    slow = Settings(usual=Fault(head_after_s=0.5))
    with world(tmp_path, YAML, openai=slow, anthropic=Settings()) as there:
        answers = asyncio.run(_many(there.url, 200))
        assert sorted(answers) == [(200, "hit")] * 199 + [(200, "miss")]
        assert calls(there) == 1
        assert len(there.booked()) == 1


def test_those_who_wait_hear_of_a_failure_and_it_is_not_kept(tmp_path: Path) -> None:
    broken = Settings(usual=Fault(status=500, head_after_s=0.5))
    with world(tmp_path, YAML, openai=broken, anthropic=Settings()) as there:
        answers = asyncio.run(_many(there.url, 50))
        assert {status for status, _ in answers} == {502}
        assert calls(there) == 1
        assert ask(there).status_code == 502
        assert calls(there) == 2


def test_what_a_caller_says(there: World) -> None:
    assert ask(there, "only-if-cached").status_code == 504
    assert calls(there) == 0
    assert did(ask(there, "no-store")) == "bypass"
    assert did(ask(there)) == "miss"
    assert did(ask(there, "only-if-cached")) == "hit"
    assert did(ask(there, "no-store")) == "bypass"
    assert did(ask(there, "no-cache")) == "refresh"
    assert did(ask(there)) == "hit"
    assert calls(there) == 4
    wrong = ask(there, "no-cash")
    assert wrong.status_code == 400
    assert "only-if-cached" in wrong.json()["error"]["message"]


def test_metadata_says_the_same_and_does_not_go_on(there: World) -> None:
    assert did(ask(there, metadata={"packshot_cache": "no-cache", "shop": "12"})) == "refresh"
    assert did(ask(there, metadata={"packshot_cache": "ttl=5"})) == "hit"
    assert ask(there, text="x", metadata={"packshot_cache": "ttl=0"}).status_code == 400
    sent = json.loads(there.fakes["openai"].truth[0].body)
    assert sent["metadata"] == {"shop": "12"}


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
LINK = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
SENT = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


@pytest.mark.parametrize(
    ("why", "more"),
    [
        ("tools", {"tools": TOOLS}),
        ("multi_turn", {"messages": TURNS}),
        ("temperature", {"temperature": 1.5}),
        ("links", {"messages": [{"role": "user", "content": LINK}]}),
    ],
)
def test_kinds_that_are_kept_only_when_asked(there: World, why: str, more: Any) -> None:
    for _ in range(2):
        answer = ask(there, content=json.dumps({**body_of(), **more}).encode())
        assert (did(answer), answer.headers["x-packshot-cache-why"]) == ("bypass", why)
    data = json.dumps({**body_of(), **more}).encode()
    assert [did(ask(there, "store", content=data)) for _ in range(2)] == ["miss", "hit"]
    if why != "links":
        data = json.dumps({**body_of(), **more, "model": "open"}).encode()
        assert [did(ask(there, content=data)) for _ in range(2)] == ["miss", "hit"]


def test_a_picture_counts_by_its_bytes(there: World) -> None:
    one = json.dumps(body_of(SENT))  # type: ignore[arg-type]
    other = one.replace("AAAA", "AAAB")
    assert [did(ask(there, content=each.encode())) for each in (one, one, other)] == [
        *("miss", "hit", "miss"),
    ]


def test_it_survives_a_restart_and_is_purged(tmp_path: Path) -> None:
    with world(tmp_path, YAML, openai=Settings(), anthropic=Settings()) as there:
        ask(there)
        ask(there, key="b")
    with world(tmp_path, YAML, openai=Settings(), anthropic=Settings()) as there:
        answers = [ask(there), ask(there, key="b")]
        assert [did(each) for each in answers] == ["hit", "hit"]
        assert calls(there) == 0
        cache = there.worker.gateway.cache
        assert cache is not None
        assert there.run(cache.purge(Purge("scope", "key:one"))) == 1
        assert [did(ask(there)), did(ask(there, key="b"))] == ["miss", "hit"]


def test_what_the_command_line_purges_a_worker_lets_go_of(there: World) -> None:
    ask(there)
    ask(there, key="b")
    cache = there.worker.gateway.cache
    assert cache is not None
    there.run(cache.tick())
    with closing_now(FileStore(there.folder / "state" / "answers.db", 1 << 30)) as store:
        assert store.purge_now(Purge("scope", "key:one")) == 1
    there.run(cache.tick())
    assert ask(there, "only-if-cached").status_code == 504
    assert did(ask(there, "only-if-cached", key="b")) == "hit"


def test_without_the_section_there_is_no_cache_and_no_header(tmp_path: Path) -> None:
    yaml = YAML.replace("enabled: true", "enabled: false")
    with world(tmp_path, yaml, openai=Settings(), anthropic=Settings()) as there:
        assert there.worker.gateway.cache is None
        assert "x-packshot-cache" not in ask(there).headers


def avoided(there: World) -> list[tuple[Any, ...]]:
    """Bring in what the worker has noted, and return it by caller and kind."""
    there.worker._ledger.tick()  # type: ignore[union-attr]
    there.booked()
    with closing(open_store(load_settings(there.path).store)) as store:
        return store.query(
            "SELECT virtual_key, kind, stage, provider, model, route, SUM(hits), SUM(amount)"
            " FROM avoided GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1"
        )


def test_the_ledger_hears_what_each_hit_saved_and_books_nothing(there: World) -> None:
    ask(there)
    (first,) = there.booked()
    assert avoided(there) == []
    for _ in range(3):
        ask(there)
    ask(there, "no-store")
    for key in "cdd":
        ask(there, key=key)
    spent = [entry.amount for entry in there.booked()]
    assert spent == [first.amount] * 3
    named = ("exact", "chat", "openai", MODEL, "caption")
    assert avoided(there) == [
        ("four", *named, 2, 2 * first.amount),
        ("one", *named, 3, 3 * first.amount),
    ]


def test_those_who_waited_saved_it_and_a_stop_loses_nothing(tmp_path: Path) -> None:
    slow = Settings(usual=Fault(head_after_s=0.3))
    with world(tmp_path, YAML, openai=slow, anthropic=Settings()) as there:
        asyncio.run(_many(there.url, 20))
    (entry,) = there.booked()
    with closing(open_store(load_settings(there.path).store)) as store:
        assert store.query("SELECT kind, SUM(hits), SUM(amount) FROM avoided") == [
            ("exact", 19, 19 * entry.amount)
        ]


@pytest.mark.parametrize(("cost", "saved"), [(-5, 0), (2**62, MOST_SAVED)])
def test_a_cost_that_somebody_made_up_neither_fails_a_call_nor_the_ledger(
    there: World, cost: int, saved: int
) -> None:
    key = ask(there).headers["x-packshot-cache-key"]
    cache = there.worker.gateway.cache
    assert cache is not None
    cache.front.keep(key, msgspec.structs.replace(cache.front.look(key), cost=cost))
    assert did(ask(there)) == "hit"
    assert [row[-2:] for row in avoided(there)] == [(1, saved)]
