"""Vectors of a provider: asked through the gateway itself, on the house, no caller's business."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from math import hypot
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from packshot.core.config import read
from packshot.core.errors import CheckFailed, InvalidRequest, NoEmbedding
from packshot.gateway.cache import embed_route
from packshot.gateway.cache.embed_route import BATCH, RouteEmbedder, vectors_of
from packshot.gateway.cache.embedding_models import KNOWN, asked_model, check_price
from packshot.gateway.cache.semantic import Semantic
from packshot.gateway.cache.settings import EmbeddingsEntry, SemanticCacheEntry
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import load_gateway
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import SECTIONS
from packshot.ledger.settings import Settings as LedgerSettings
from packshot.providers.fake_script import Fault, Settings
from tests.gateway.cache.test_cache import calls, did
from tests.gateway.world import World

YAML = """
providers:
  openai: {base_url: "{openai}/v1", keys: [{value: env.KEY_A}], network: {retry: {max_retries: 0}}}
  vectors:
    base_url: "{vectors}/v1"
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
  spare: {base_url: "{spare}/v1", keys: [{value: env.KEY_A}]}
  anthropic: {keys: [{value: env.KEY_A}]}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
  - {id: texts, primary: vectors/text-embedding-3-small, fallbacks: [spare/text-embedding-3-small]}
  - {id: mixed, primary: vectors/text-embedding-3-small, fallbacks: [spare/mistral-embed]}
  - {id: words, primary: vectors/my-own}
access:
  virtual_keys: [{id: one, value: env.SECRET}]
semantic_cache:
  enabled: true
  similarity_threshold: 0.02
  embeddings: {route: texts, dimension: 8, deadline_ms: 2000}
  audit: {share: 0}
server: {state: state}
"""
PLAIN = "a white sneaker on a beach"
POLITE = "Could you please write me a caption for this photo: a white snaeker on a beach"
"""A slip of the hand is found by its vector alone; the fake's are near PLAIN's by chance: 0.07."""

SHORT = "Write a caption: white sneker on a beach"
SECRET = "s" * 40


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.chdir(tmp_path)


def made(folder: Path, yaml: str = YAML, **vectors: Any) -> World:
    fakes = {"openai": Settings(), "vectors": Settings(**vectors), "spare": Settings()}
    return World(folder, yaml, fakes)


def started(world: World) -> Iterator[World]:
    world.start()
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    world = made(tmp_path)
    yield from started(world)
    assert not world.errors, world.errors


def ask(there: World, text: str, door: str = "chat/completions", **more: Any) -> Any:
    body = {"model": "caption", "messages": [{"role": "user", "content": text}], **more}
    if door == "embeddings":
        body = {"model": "texts", "input": [text], **more}
    headers = {"authorization": f"Bearer {SECRET}"}
    return requests.post(f"{there.url}/v1/{door}", json=body, headers=headers, timeout=30)


def embedded(there: World) -> dict[str, int]:
    page = there.worker.telemetry.page()
    lines = [line for line in page.splitlines() if line.startswith(METRIC + "{")]
    return {line.split('"')[1]: int(line.split()[-1]) for line in lines}


METRIC = "packshot_gateway_cache_embeddings_total"


def tier_of(there: World) -> Semantic:
    cache = there.worker.gateway.cache
    assert cache is not None
    assert isinstance(cache.tier, Semantic)
    return cache.tier


def settle(there: World) -> None:
    there.run(tier_of(there).learned())


def test_a_similar_request_is_found_and_the_house_pays_for_the_vectors(there: World) -> None:
    assert did(ask(there, PLAIN)) == "miss"
    settle(there)
    second = ask(there, POLITE)
    assert (did(second), second.headers["x-packshot-cache-kind"]) == ("hit", "semantic")
    assert float(second.headers["x-packshot-cache-similarity"]) == pytest.approx(0.071, abs=1e-3)
    assert [len(fake.truth) for fake in there.fakes.values()] == [1, 2, 0]
    caption, *vectors = sorted(there.booked(), key=lambda each: each.stage)
    assert (caption.stage, caption.virtual_key) == ("chat", "one")
    for each in vectors:
        assert (each.stage, each.provider, each.model) == (
            *("embeddings", "vectors"),
            "text-embedding-3-small",
        )
        assert (each.route, each.virtual_key, each.outcome) == ("texts", "cache", "succeeded")
        assert "cache=embeddings" in each.tags
    assert embedded(there) == {"made": 2}


def test_a_call_of_embeddings_looks_nothing_up_by_its_meaning(there: World) -> None:
    answers = [ask(there, PLAIN, "embeddings", dimensions=8) for _ in range(2)]
    assert [did(each) for each in answers] == ["miss", "hit"]
    assert answers[1].headers["x-packshot-cache-kind"] == "exact"
    assert len(there.fakes["vectors"].truth) == 1  # the caller's own, and none to find it by
    assert embedded(there) == {}


def test_at_a_failure_the_route_falls_back_to_the_same_model_elsewhere(tmp_path: Path) -> None:
    world = made(tmp_path, usual=Fault(status=500))
    for there in started(world):
        ask(there, PLAIN)
        settle(there)
        assert did(ask(there, POLITE)) == "hit"
        assert len(there.fakes["spare"].truth) == 2
    assert not world.errors


def test_calls_at_once_go_together(tmp_path: Path) -> None:
    # Four calls a second at most: on a machine that is busy the callers take their time, too.
    yaml = YAML.replace("deadline_ms: 2000", "deadline_ms: 5000")
    world = made(tmp_path, yaml, usual=Fault(head_after_s=1.0))

    async def many(count: int) -> list[str]:
        async def one(number: int) -> str:
            body = {"model": "caption", "messages": [{"role": "user", "content": f"mug {number}"}]}
            url = f"{world.url}/v1/chat/completions"
            headers = {"authorization": f"Bearer {SECRET}"}
            async with session.post(url, json=body, headers=headers) as got:
                assert got.status == 200
                return got.headers["x-packshot-cache"]

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=count)) as session:
            return await asyncio.gather(*(one(number) for number in range(count)))

    for there in started(world):
        assert asyncio.run(many(150)) == ["miss"] * 150
        asked = [json.loads(truth.body)["input"] for truth in there.fakes["vectors"].truth]
        assert sum(map(len, asked)) == 150
        assert len(asked) < 40
        assert max(map(len, asked)) <= BATCH
        assert embedded(there) == {"made": 150}
    assert not world.errors


@pytest.mark.parametrize(
    ("yaml", "vectors", "results", "told"),
    [
        ("deadline_ms: 50", {"usual": Fault(head_after_s=1.0)}, {"late"}, ""),
        ("deadline_ms: 2000", {"usual": Fault(status=400)}, {"failed"}, ""),
        ("deadline_ms: 2000", {"keys": {"other": None}}, {"failed"}, ""),
        ("dimension: 9", {"dimensions": 7}, {"failed"}, "expected 9"),
    ],
)
def test_without_a_vector_a_call_goes_upstream_and_is_kept_all_the_same(
    tmp_path: Path, yaml: str, vectors: dict[str, Any], results: set[str], told: str
) -> None:
    said = YAML.replace("deadline_ms: 2000", yaml).replace("dimension: 8, dimension", "dimension")
    if told:
        said = said.replace("route: texts", "route: words")
    said = said.replace(", fallbacks: [spare/text-embedding-3-small]", "")
    world = made(tmp_path, said, **vectors)
    for there in started(world):
        for text in (PLAIN, POLITE):
            answer = ask(there, text)
            assert (answer.status_code, did(answer)) == (200, "miss")
        assert did(ask(there, PLAIN)) == "hit"
        assert len(there.fakes["openai"].truth) == 2
        assert set(embedded(there)) == results
        assert len(tier_of(there)) == 0
        assert all(each.virtual_key == "cache" for each in there.booked() if each.stage != "chat")
    assert [told in str(each) for each in world.errors] == [True] * (len(world.errors) and 1)
    assert bool(world.errors) == bool(told)


def test_a_route_that_fails_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = made(
        tmp_path, YAML.replace("[spare/text-embedding-3-small]", "[]"), usual=Fault(status=400)
    )
    for there in started(world):
        for number in range(6):
            ask(there, f"mug {number}")
        assert embedded(there) == {"failed": 3, "resting": 3}
        assert len(there.fakes["vectors"].truth) == 3
        tier_of(there).embedder._rests_until = 0.0  # type: ignore[attr-defined]
        ask(there, "mug 7")
        assert embedded(there)["failed"] == 4
    assert not world.errors


def test_a_budget_of_the_house_ends_the_vectors_and_not_the_calls(tmp_path: Path) -> None:
    cap = "{scope: virtual_key, name: cache, eur: 0, per: day, unpriced: refuse}"
    ledger = f"ledger: {{store: ledger.db, journal: journal, caps: [{cap}]}}\n"
    world = made(tmp_path, YAML + ledger)
    for there in started(world):
        assert [did(ask(there, text)) for text in (PLAIN, POLITE, PLAIN)] == ["miss", "miss", "hit"]
        assert len(there.fakes["vectors"].truth) == 0
        assert embedded(there) == {"failed": 2}
    assert not world.errors


@pytest.mark.parametrize("fails", [False, True])
def test_a_check_that_cannot_compare_is_none_and_no_error(tmp_path: Path, fails: bool) -> None:
    world = made(tmp_path, YAML.replace("share: 0}", "share: 1}").replace("[spare/", "[vectors/"))
    for there in started(world):
        ask(there, PLAIN)
        settle(there)
        vectors, openai = there.fakes["vectors"], there.fakes["openai"]
        vectors.script = lambda asked: Fault(status=400) if asked.number >= 2 and fails else Fault()
        assert did(ask(there, POLITE)) == "hit"
        cache = there.worker.gateway.cache
        assert cache is not None
        give_up = monotonic() + 20
        while cache._tasks and monotonic() < give_up:
            sleep(0.01)
        assert [len(openai.truth), len(vectors.truth)] == [2, 3]
        checks = there.run(asyncio.to_thread(cache.shadow.log.counts))  # type: ignore[union-attr]
        assert sum(each.checked for each in checks) == (0 if fails else 1)
        assert embedded(there) == ({"failed": 2, "made": 2} if fails else {"made": 4})
    # The fakes' answers differ, which is a check's finding and no failure of ours.
    assert [type(each) for each in world.errors] == [CheckFailed] * (not fails)


def test_another_model_begins_another_index(tmp_path: Path) -> None:
    keys: list[str] = []
    for model, text, kind in (
        ("small", PLAIN, None),
        ("large", POLITE, None),
        ("small", SHORT, "semantic"),
    ):
        world = made(tmp_path, YAML.replace("text-embedding-3-small", f"text-embedding-3-{model}"))
        for there in started(world):
            settle(there)
            answer = ask(there, text)
            assert answer.headers.get("x-packshot-cache-kind") == kind, model
            keys.append(answer.headers["x-packshot-cache-key"])
            assert ask(there, PLAIN).headers["x-packshot-cache-kind"] == "exact"
            settle(there)
            assert len(tier_of(there)) == 1  # of two answers that are kept
        assert not world.errors
    assert keys[2] == keys[0] != keys[1]


def test_a_reload_to_another_model_is_told_and_mixes_nothing(tmp_path: Path) -> None:
    world = made(tmp_path)
    for there in started(world):
        ask(there, PLAIN)
        settle(there)
        there.write(YAML.replace("/text-embedding-3-small", "/text-embedding-3-large"))
        there.run(there.worker.reload())
        for text in (POLITE, "and a green one"):
            assert did(ask(there, text)) == "miss"
        assert len(there.fakes["vectors"].truth) == 1
        assert len(tier_of(there)) == 1
        there.write(YAML)
        there.run(there.worker.reload())
        ask(there, "a tall vase")
        assert len(there.fakes["vectors"].truth) == 2
    (error,) = world.errors
    assert "restart the gateway" in str(error)


def entry(**given: Any) -> EmbeddingsEntry:
    return EmbeddingsEntry(**given)


def plan_of(folder: Path, text: str = YAML) -> Any:
    path = folder / "packshot.yaml"
    for name in ("openai", "vectors", "spare"):
        text = text.replace("{" + name + "}", "http://127.0.0.1:9")
    path.write_text(text)
    return build_plan(load_gateway(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"route": "text"}, "did you mean 'texts'|texts"),
        ({"model": "nobody/text-embedding-3-small"}, "provider"),
        ({"model": "anthropic/claude"}, "serves no embeddings"),
        ({"route": "mixed"}, "2 models.*mistral-embed, text-embedding-3-small"),
        ({"route": "words"}, "how long are the vectors of my-own"),
        ({"route": "texts", "dimension": 1537}, "1536 numbers"),
        ({"model": "spare/mistral-embed", "dimension": 512}, "1024 numbers"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_start(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(InvalidRequest, match=message):
        asked_model(entry(**given), plan)
    told = ", ".join(f"{name}: {value}" for name, value in given.items())
    with pytest.raises(InvalidRequest, match=message):
        plan_of(tmp_path, YAML.replace("route: texts, dimension: 8", told))


def test_what_can_be_asked(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert asked_model(entry(route="texts"), plan)[1:] == (1536, 0)
    assert asked_model(entry(route="texts", dimension=1536), plan)[1:] == (1536, 0)
    assert asked_model(entry(route="texts", dimension=256), plan)[1:] == (256, 256)
    assert asked_model(entry(route="words", dimension=99), plan)[1:] == (99, 0)
    one = asked_model(entry(model="spare/openai/text-embedding-3-large"), plan)
    assert one == ("text-embedding-3-large", 3072, 0)
    assert asked_model(entry(model="spare/all-minilm:latest"), plan).name == "all-minilm/384"
    names = {asked_model(entry(model=f"spare/{name}"), plan).name for name in KNOWN}
    assert len(names) == len(KNOWN)


def test_an_account_that_a_caller_has_is_told(tmp_path: Path) -> None:
    assert not [note for note in plan_of(tmp_path).notes if "account" in note]
    plan = plan_of(tmp_path, YAML.replace("route: texts,", "route: texts, account: one,"))
    assert [note for note in plan.notes if "'one' is a caller's virtual key" in note]


def test_equal_texts_are_sent_once(there: World) -> None:
    embedder = tier_of(there).embedder
    rows = there.run(embedder.embed(["a mug", "a vase", "a mug"]))
    (truth,) = there.fakes["vectors"].truth
    assert json.loads(truth.body)["input"] == ["a mug", "a vase"]
    assert (rows[0] == rows[2]).all()
    assert not np.allclose(rows[0], rows[1])


def test_a_model_that_talks_makes_no_vectors(tmp_path: Path) -> None:
    text = YAML.replace('openai: {base_url: "{openai}/v1",', "openai: {")
    plan, book = plan_of(tmp_path, text), book_of(LedgerSettings())
    with pytest.raises(InvalidRequest, match="openai/gpt-4o-mini is sold by"):
        check_price(entry(route="caption", dimension=9), plan, book)
    for fine in ("mistral-embed", "unheard-of", "text-embedding-3-large"):
        check_price(entry(model=f"openai/{fine}", dimension=9), plan, book)


@pytest.mark.parametrize(
    "text",
    [
        "{route: a, model: b/c}",
        "{model: text-embedding-3-small}",
        "{route: a, dimension: -1}",
        "{route: a, dimension: 5000}",
        "{route: a, deadline_ms: 0}",
        "{route: a, deadline_ms: 6000}",
        "{dimension: 8}",
        "{rout: a}",
    ],
)
def test_what_could_never_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text(f"semantic_cache: {{enabled: true, embeddings: {text}}}\n")
    with pytest.raises(InvalidRequest):
        read(path, SECTIONS).section("semantic_cache", SemanticCacheEntry)
    with pytest.raises(InvalidRequest, match="one embedding model"):
        SemanticCacheEntry(model=Path("here"), embeddings=entry(route="a"))


def body_with(vectors: list[Any], order: list[int] | None = None) -> bytes:
    order = list(range(len(vectors))) if order is None else order
    data = [{"index": index, "embedding": each} for index, each in zip(order, vectors, strict=True)]
    return msgspec.json.encode({"data": data, "model": "m"})


FINITE = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.lists(FINITE, min_size=4, max_size=4), min_size=1, max_size=5), st.randoms())
@example([[0.0, 0.0, 0.0, 5.6695648305292124e-161]], Random(0))  # whose square has two digits
def test_vectors_have_length_one_and_their_own_texts(rows: list[list[float]], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = [rows[index] for index in order]
    body = body_with(shuffled, order)
    if any(np.linalg.norm(row) == 0 for row in rows):
        with pytest.raises(NoEmbedding, match="zeros"):
            vectors_of(body, len(rows), 4)
        return
    found = vectors_of(body, len(rows), 4)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for row, got in zip(rows, found, strict=True):
        assert np.allclose(np.array(row) / hypot(*row), got, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "no list of embeddings"),
        (b'{"data": "none"}', "no list of embeddings"),
        (b'{"data": [{"index": 0, "embedding": "AAAA"}]}', "no list of embeddings"),
        (body_with([[1.0, 0.0]]), "each of 2 texts, got 1"),
        (body_with([[1.0, 0.0]] * 2, [0, 0]), "each of 2 texts"),
        (body_with([[1.0, 0.0], [1.0]]), "expected 2"),
        (body_with([[1.0, 0.0], [0.0, 0.0]]), "zeros"),
        (
            b'{"data": [{"index": 0, "embedding": [1e999, 1]}, {"index": 1, "embedding": [1, 1]}]}',
            "finite|no list",
        ),
    ],
)
def test_answers_that_are_none(body: bytes, message: str) -> None:
    with pytest.raises(NoEmbedding, match=message):
        vectors_of(body, 2, 2)


def test_who_goes_away_is_not_worked_for(tmp_path: Path) -> None:
    world = made(tmp_path, usual=Fault(head_after_s=0.3))

    async def impatient(embedder: RouteEmbedder) -> None:
        held = [asyncio.create_task(embedder.embed([f"text {n}"])) for n in range(3)]
        await asyncio.sleep(0)
        held[1].cancel()
        rows = await asyncio.gather(*held, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in rows] == [False, True, False]

    for there in started(world):
        embedder = tier_of(there).embedder
        assert isinstance(embedder, RouteEmbedder)
        there.run(impatient(embedder))
        (truth,) = there.fakes["vectors"].truth
        assert json.loads(truth.body)["input"] == ["text 0", "text 2"]
    assert not world.errors


def test_more_than_may_wait_is_refused_at_once(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_route, "MOST_WAITING", 0)
    answer = ask(there, PLAIN)
    assert (answer.status_code, did(answer)) == (200, "miss")
    assert embedded(there) == {"full": 1}
    assert calls(there) == 1


def test_the_clock_of_a_stop(tmp_path: Path) -> None:
    """What is under way when the gateway stops is cancelled, and its hold is settled."""
    world = made(tmp_path, usual=Fault(head_after_s=5.0))
    world.start()
    embedder: Any = tier_of(world).embedder

    async def begin() -> None:
        task = asyncio.create_task(embedder.embed(["a mug"]))
        await asyncio.sleep(0.3)
        assert len(embedder._calls) == 1
        task.cancel()

    world.run(begin())
    world.stop()
    assert [each.outcome for each in world.booked()] == ["unknown"]
    assert not world.errors
