"""Stability's API: forms that go out, pictures that come back, and every way to be refused."""

from __future__ import annotations

import asyncio
import http.client
import json
from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packshot.core.errors import Inexpressible, InvalidRequest, UpstreamBroken
from packshot.core.types import Usage
from packshot.ledger.prices.book import PriceBook
from packshot.providers.exchanges import exchange_of
from packshot.providers.failures import answer_of, failure_of
from packshot.providers.fake import Fake, Settings
from packshot.providers.fake_pictures import read_form
from packshot.providers.fake_script import Fault
from packshot.providers.forms import CONTENT_TYPE, form
from packshot.providers.rows import ROWS, STABILITY_PATHS, row_of
from packshot.providers.stability import MAX_SEED, RATIOS, TAKES, StabilityImages, ratio_of

SD = "sd3.5-large"
REPLACE = "replace-background-and-relight"
NOW = 1_764_000_000_000_000  # microseconds: November 2025


def png(side: int = 8) -> bytes:
    out = BytesIO()
    Image.new("RGB", (side, side), "red").save(out, "PNG")
    return out.getvalue()


PNG = b64encode(png()).decode()


def fields(**given: Any) -> dict[str, msgspec.Raw]:
    said = {"model": "any", "prompt": "a red mug", **given}
    return msgspec.json.decode(json.dumps(said), type=dict[str, msgspec.Raw])


def asked(model: str = SD, **given: Any):
    body = StabilityImages().request(fields(**given), model, None)
    return read_form("/v2beta" + STABILITY_PATHS[model], CONTENT_TYPE, body)


def test_the_row_serves_pictures_alone_with_a_path_for_each_model() -> None:
    row = ROWS["stability"]
    assert isinstance(exchange_of("images", row), StabilityImages)
    assert exchange_of("chat", row) is None
    assert exchange_of("images", ROWS["openai"]) is None
    assert row.target("", SD) == b"/v2beta/stable-image/generate/sd3"
    assert row.target("", REPLACE).endswith(b"/edit/replace-background-and-relight")
    near = row_of("stability", "http://127.0.0.1:9")
    assert near.target("", "stable-image-core") == b"/stable-image/generate/core"
    assert STABILITY_PATHS.keys() == TAKES.keys()


def test_every_model_has_a_price_of_one_picture() -> None:
    book = PriceBook.load()
    for model in TAKES:
        charge = book.charge(Usage("denoise", images=1), "stability", model, NOW)
        assert charge.priced
        assert charge.amount == book.bound("stability", model, NOW, body_bytes=9, images=1) > 0


def test_a_picture_from_words() -> None:
    made = asked(seed=7, size="1216x832", negative_prompt="text")
    assert (made.model, made.prompt, made.seed, made.ratio) == (SD, "a red mug", 7, "3:2")
    assert not made.later


def test_a_picture_from_a_picture_and_another_ground() -> None:
    assert asked(image=PNG, strength=0.4).model == SD
    made = asked(REPLACE, image=f"data:image/png;base64,{PNG}", light_source_direction="left")
    assert (made.later, made.prompt) == (True, "a red mug")


@given(st.binary(min_size=0, max_size=300), st.text(max_size=60))
def test_nothing_that_a_caller_sends_ends_a_part(data: bytes, text: str) -> None:
    from packshot.providers.fake_pictures import _parts

    body = form({"a": text, "b": "x"}, {"f": (data, "image/png")})
    texts, files = _parts(CONTENT_TYPE, body)
    assert texts == {"a": text, "b": "x"}
    assert files == {"f": data}


def test_the_nearest_shape() -> None:
    for name, shape in RATIOS.items():
        assert ratio_of(round(1000 * shape), 1000) == name
    assert ratio_of(832, 1216) == "2:3"
    assert ratio_of(4000, 100) == "21:9"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (SD, {"n": 2}, "one picture a call"),
    (SD, {"quality": "hd"}, "quality"),
    (SD, {"response_format": "url"}, "b64_json"),
    (SD, {"prompt": " "}, "1 to 10000"),
    (SD, {"prompt": 3}, "otherwise"),
    (SD, {"seed": MAX_SEED + 1}, "seed is 0 to"),
    (SD, {"size": "large"}, "1024x1024"),
    (SD, {"size": "0x8"}, "1024x1024"),
    (SD, {"aspect_ratio": "1:7"}, "21:9"),
    (SD, {"strength": 0.5}, "there is none"),
    (SD, {"image": PNG, "strength": 1.5}, "0 to 1"),
    (SD, {"image": "!!"}, "base64"),
    (SD, {"image": b64encode(b"GIF89a").decode()}, "PNG, JPEG or WebP"),
    ("stable-image-core", {"image": PNG}, "takes no such thing"),
    (REPLACE, {}, "needs an image"),
    ("sd9", {}, "sd3.5-large"),
]


@pytest.mark.parametrize(("model", "given", "said"), REFUSED)
def test_what_stability_would_refuse_is_refused_before(
    model: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises((InvalidRequest, Inexpressible), match=said):
        StabilityImages().request(fields(**given), model, None)


def test_an_answer_has_openais_shape_the_seed_and_one_picture_of_usage() -> None:
    for key in ("image", "result"):
        body = msgspec.json.encode({key: PNG, "finish_reason": "SUCCESS", "seed": 9})
        told, usage = StabilityImages().reply(body, SD)
        said = json.loads(told)
        assert said["data"] == [{"b64_json": PNG, "seed": 9}]
        assert isinstance(said["created"], int)
        assert usage == Usage("denoise", images=1)


def test_what_the_filter_blurred_is_a_refusal_and_no_answer() -> None:
    body = msgspec.json.encode({"image": PNG, "finish_reason": "CONTENT_FILTERED", "seed": 9})
    with pytest.raises(UpstreamBroken):
        StabilityImages().reply(body, SD)
    failure = failure_of(200, {}, body)
    assert (failure.kind, failure.status) == ("refusal", 200)
    assert answer_of(failure).code == "content_policy_violation"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"image": "aGVsbG8="}', b'{"image": "%%"}', b'{"image": 1}']
)
def test_what_is_no_picture_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        StabilityImages().reply(body, SD)
    assert failure_of(200, {}, body).kind == "garbage"


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "bad_request", "bad_request"),
        (401, "unauthorized", "auth"),
        (402, "payment_required", "quota"),
        (403, "content_moderation", "refusal"),
        (413, "payload_too_large", "bad_request"),
        (422, "bad_request", "bad_request"),
        (429, "rate_limit_exceeded", "rate_limit"),
        (500, "internal_error", "server"),
        (503, "service_unavailable", "overloaded"),
    ],
)
def test_its_errors_in_our_words(status: int, name: str, kind: str) -> None:
    body = msgspec.json.encode({"id": "1", "name": name, "errors": ["prompt: is too odd"]})
    failure = failure_of(status, {b"retry-after": b"7"}, body)
    assert failure.kind == kind
    assert failure.retry_after_s == 7
    if kind in {"bad_request", "refusal"}:
        assert failure.message == "prompt: is too odd"


# ---- the fake


def post(fake: Fake, path: str, body: bytes, key: str = "k1") -> tuple[int, bytes]:
    return call(fake, "POST", path, body, key)


def call(fake: Fake, method: str, path: str, body: bytes, key: str = "k1") -> tuple[int, bytes]:
    there = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=10)
    headers = {"authorization": f"Bearer {key}", "content-type": CONTENT_TYPE}
    try:
        there.request(method, path, body, headers)
        answer = there.getresponse()
        return answer.status, answer.read()
    finally:
        there.close()


def on(fake: Fake, work: Any) -> Any:
    async def run() -> Any:
        async with fake:
            return await asyncio.to_thread(work)

    return asyncio.run(run())


def test_the_fake_draws_the_shape_that_was_asked_for_and_bills_one_picture() -> None:
    fake = Fake(Settings(keys={"k1": None}))
    body = StabilityImages().request(fields(size="1024x512", seed=5), SD, None)

    def work() -> None:
        path = STABILITY_PATHS[SD]
        status, said = post(fake, path, body)
        assert status == 200
        made = json.loads(said)
        assert (made["seed"], made["finish_reason"]) == (5, "SUCCESS")
        picture = Image.open(BytesIO(b64decode(made["image"])))
        assert picture.size[0] > picture.size[1]
        assert post(fake, path, body)[1] == said  # a seed gives the same picture
        assert post(fake, path, body, "k2")[0] == 401
        assert post(fake, path, body[:-30])[0] == 400
        assert call(fake, "GET", "/results/1", b"")[0] == 404

    on(fake, work)
    assert fake.billed() == Usage("caption", images=2)


def test_the_fake_filters_and_refuses_as_stability_does() -> None:
    fake = Fake()
    fake.next(Fault(code="filter"), Fault(status=403, code="filter"), Fault(status=402))
    body = StabilityImages().request(fields(), SD, None)

    def work() -> None:
        status, said = post(fake, STABILITY_PATHS[SD], body)
        assert (status, failure_of(status, {}, said).kind) == (200, "refusal")
        for kind in ("refusal", "quota"):
            status, said = post(fake, STABILITY_PATHS[SD], body)
            assert failure_of(status, {}, said).kind == kind

    on(fake, work)
    assert fake.billed() == Usage("caption", images=1)


def test_the_fakes_new_ground_comes_later_to_who_asked_for_it() -> None:
    fake = Fake(Settings(pending=2))
    body = StabilityImages().request(fields(image=PNG), REPLACE, None)

    def work() -> None:
        status, said = post(fake, STABILITY_PATHS[REPLACE], body)
        path = f"/results/{json.loads(said)['id']}"
        assert status == 200
        assert call(fake, "GET", path, b"", "other")[0] == 404
        assert [call(fake, "GET", path, b"")[0] for _ in range(3)] == [202, 202, 200]
        assert b'"result"' in call(fake, "GET", path, b"")[1]

    on(fake, work)
    assert fake.billed() == Usage("caption", images=1)
