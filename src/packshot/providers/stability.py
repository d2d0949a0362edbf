"""Stability's API of pictures (v2beta): an OpenAI images call that Stability answers.

The caller's JSON has OpenAI's names (``prompt``, ``size``, ``n``, ``output_format``) and those of
Stability that OpenAI lacks (``seed``, ``negative_prompt``, ``image`` in base64, ``strength`` …);
the model says which endpoint is meant. Stability takes a form, and makes one picture a call.

A picture that Stability's filter blurred comes under the status 200, with a reason: it is a refusal
(`packshot.providers.failures`), never an answer. What replaces a background comes later: the answer
is an id at first (`packshot.gateway.wire.later` waits for the picture).

Source: public clients of the API, whose own pages cannot be read without a browser. No call of the
live service was made: what a key of your own shows otherwise is a bug of ours.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Sequence
from math import log
from time import time
from typing import Literal, TypeAlias

import msgspec

from packshot.core.errors import Inexpressible, InvalidRequest, unknown_name
from packshot.core.types import Usage
from packshot.providers.base import Api, Fields, Relay, Surface
from packshot.providers.forms import form
from packshot.providers.framing import broken
from packshot.providers.rows import ROWS, STABILITY_PATHS, Need, Row

__all__ = ["MAX_SEED", "RATIOS", "StabilityImages", "media_type", "ratio_of"]

MAX_SEED = 4_294_967_294
"""The largest seed; 0 lets Stability draw one."""

LONGEST_PROMPT = 10_000
"""Characters."""

LARGEST_IMAGE = 10 << 20
"""Bytes of a whole request, by Stability's own limit; a picture in it has fewer."""

RATIOS: dict[str, float] = {
    "16:9": 16 / 9,
    "1:1": 1.0,
    "21:9": 21 / 9,
    "2:3": 2 / 3,
    "3:2": 3 / 2,
    "4:5": 4 / 5,
    "5:4": 5 / 4,
    "9:16": 9 / 16,
    "9:21": 9 / 21,
}
"""The shapes that Stability makes, of about a megapixel each; no other sizes can be asked for."""

MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}

REPLACE = "replace-background-and-relight"
ALWAYS = frozenset(
    {"model", "prompt", "n", "seed", "negative_prompt", "output_format", "response_format", "user"}
)
SHAPE = frozenset({"size", "aspect_ratio"})
FROM_IMAGE = frozenset({"image", "strength"})
RELIGHT = frozenset(
    {
        "image",
        "foreground_prompt",
        "light_source_direction",
        "light_source_strength",
        "preserve_original_subject",
        "original_background_depth",
        "keep_original_background",
    }
)
TAKES: dict[str, frozenset[str]] = {
    "sd3.5-large": ALWAYS | SHAPE | FROM_IMAGE,
    "sd3.5-large-turbo": ALWAYS | SHAPE | FROM_IMAGE,
    "sd3.5-medium": ALWAYS | SHAPE | FROM_IMAGE,
    "stable-image-core": ALWAYS | SHAPE | {"style_preset"},
    "stable-image-ultra": ALWAYS | SHAPE | FROM_IMAGE | {"style_preset"},
    REPLACE: ALWAYS | RELIGHT,
}
"""The models, and the fields that each of them takes."""

Share: TypeAlias = float | None


class _Asked(msgspec.Struct):
    """The caller's fields; what is None was not said."""

    prompt: str
    model: str = ""
    n: int | None = None
    size: str | None = None
    aspect_ratio: str | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    image: str | None = None
    strength: Share = None
    style_preset: str | None = None
    foreground_prompt: str | None = None
    light_source_direction: Literal["above", "below", "left", "right"] | None = None
    light_source_strength: Share = None
    preserve_original_subject: Share = None
    original_background_depth: Share = None
    keep_original_background: bool | None = None


ASKED = msgspec.json.Decoder(_Asked)


class _Made(msgspec.Struct):
    """An answer; ``result`` is what ``image`` is called where it came later."""

    image: str = ""
    result: str = ""
    finish_reason: str = "SUCCESS"
    seed: int = 0


MADE = msgspec.json.Decoder(_Made)


class StabilityImages:
    """Pictures of Stability's: made from words, from a picture, or on another ground."""

    surface: Surface = "images"
    api: Api = "stability"
    path: str = ""  # each model has its own: `Row.paths`

    def __init__(self, row: Row = ROWS["stability"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, _output_limit: int | None, /) -> bytes:
        """Return the form for the target; see `Exchange.request`."""
        if model not in TAKES:
            raise unknown_name("model of Stability", model[:100], TAKES)
        for name in fields:
            if name not in TAKES[model] and bytes(fields[name]) != b"null":
                raise Inexpressible(name, f"Stability's {model} takes no such thing")
        try:
            asked = ASKED.decode(msgspec.json.encode(fields))
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"a picture is asked for otherwise: {error}") from error
        _check(asked)
        image = None if asked.image is None else _picture(asked.image)
        if model == REPLACE:
            return _relight(asked, image)
        return _generate(asked, image, model)

    def reply(self, body: bytes, _model: str, /) -> tuple[bytes, Usage | None]:
        """Return OpenAI's answer with the picture and its seed, and that one was made.

        Raises:
            UpstreamBroken: there is no picture in it, or the filter's blurred one.
        """
        try:
            made = MADE.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise broken("an answer that is not the JSON of its API") from error
        if made.finish_reason != "SUCCESS":
            raise broken(f"no picture: {made.finish_reason[:40]!r}")
        picture = made.image or made.result
        _check_made(picture)
        data = {"b64_json": picture, "seed": made.seed}
        # The stage of a picture that is made in one go; prices do not depend on it.
        usage = Usage("denoise", images=1)
        return msgspec.json.encode({"created": int(time()), "data": [data]}), usage

    def relay(self, _fields: Fields, _model: str, /) -> Relay:
        """Refuse: there is no stream of pictures."""
        raise InvalidRequest("pictures are not streamed: leave stream out")

    def needs(self, fields: Fields, /) -> Sequence[Need]:
        """Return what the request needs of a target: to see a picture, where it holds one."""
        return ("vision",) if bytes(fields.get("image", b"null")) != b"null" else ()


def ratio_of(width: int, height: int) -> str:
    """Return the nearest shape that Stability makes, by ratio: "3:2" for 1216 x 832."""
    wanted = log(width / height)
    return min(RATIOS, key=lambda name: abs(log(RATIOS[name]) - wanted))


def media_type(data: bytes) -> str:
    """Return the media type of a PNG, JPEG or WebP file by its first bytes; "" for another."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), "")


def _check(asked: _Asked) -> None:
    """Refuse what Stability would refuse, before money is held for it."""
    if asked.n not in {None, 1}:
        raise Inexpressible("n", "Stability makes one picture a call: send n calls")
    if asked.response_format == "url":
        raise Inexpressible("response_format", "Stability sends the picture itself: b64_json")
    if not asked.prompt.strip() or len(asked.prompt) > LONGEST_PROMPT:
        raise InvalidRequest(f"prompt has 1 to {LONGEST_PROMPT} characters")
    if asked.negative_prompt is not None and len(asked.negative_prompt) > LONGEST_PROMPT:
        raise InvalidRequest(f"negative_prompt has at most {LONGEST_PROMPT} characters")
    if asked.seed is not None and not 0 <= asked.seed <= MAX_SEED:
        raise InvalidRequest(f"seed is 0 to {MAX_SEED}, got {asked.seed}")
    if asked.aspect_ratio is not None and asked.aspect_ratio not in RATIOS:
        raise unknown_name("aspect_ratio", asked.aspect_ratio[:40], RATIOS)
    if asked.strength is not None and asked.image is None:
        raise InvalidRequest("strength says how far to go from an image, and there is none")
    for name in (
        "strength",
        "light_source_strength",
        "preserve_original_subject",
        "original_background_depth",
    ):
        share: float | None = getattr(asked, name)
        if share is not None and not 0.0 <= share <= 1.0:
            raise InvalidRequest(f"{name} is 0 to 1, got {share:g}")


def _generate(asked: _Asked, image: tuple[bytes, str] | None, model: str) -> bytes:
    texts = {"prompt": asked.prompt, **_common(asked)}
    if STABILITY_PATHS[model].endswith("/sd3"):
        texts["model"] = model
        texts["mode"] = "text-to-image" if image is None else "image-to-image"
    if asked.style_preset is not None:
        texts["style_preset"] = asked.style_preset
    if image is None:
        texts["aspect_ratio"] = asked.aspect_ratio or _shape(asked.size)
        return form(texts, {"none": (b"", "application/octet-stream")})
    texts["strength"] = f"{0.75 if asked.strength is None else asked.strength:g}"
    return form(texts, {"image": image})


def _relight(asked: _Asked, image: tuple[bytes, str] | None) -> bytes:
    if image is None:
        raise InvalidRequest(f"{REPLACE} needs an image: the product's, in base64")
    texts = {"background_prompt": asked.prompt, **_common(asked)}
    for name in sorted(RELIGHT - {"image"}):
        value: object = getattr(asked, name)
        if value is not None:
            texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return form(texts, {"subject_image": image})


def _common(asked: _Asked) -> dict[str, str]:
    texts = {"output_format": asked.output_format or "png"}
    if asked.negative_prompt:
        texts["negative_prompt"] = asked.negative_prompt
    if asked.seed is not None:
        texts["seed"] = str(asked.seed)
    return texts


def _shape(size: str | None) -> str:
    if size is None or size == "auto":
        return "1:1"
    width, _, height = size.partition("x")
    sides = [int(side) for side in (width, height) if side.isascii() and side.isdigit()]
    if len(sides) != 2 or len(size) > 11 or not all(sides):
        raise InvalidRequest(f'size is like "1024x1024", got {size[:40]!r}')
    return ratio_of(*sides)


def _picture(text: str) -> tuple[bytes, str]:
    """Return a picture that the caller sent as base64, bare or as a data URL, and its type."""
    if text.startswith("data:"):
        text = text.partition(";base64,")[2]
    try:
        data = b64decode(text, validate=True)
    except (NotBase64, ValueError) as error:
        raise InvalidRequest("image must be a picture in base64") from error
    kind = media_type(data)
    if not kind:
        raise InvalidRequest("image must be a PNG, JPEG or WebP picture")
    if len(data) > LARGEST_IMAGE:
        raise InvalidRequest(f"image has {len(data)} bytes, Stability takes {LARGEST_IMAGE}")
    return data, kind


def _check_made(text: str) -> None:
    """Hold what came to be a picture: its caller pays for it."""
    try:
        known = media_type(b64decode(text, validate=True))
    except (NotBase64, ValueError) as error:
        raise broken("a picture that is no base64") from error
    if not known:
        raise broken("an answer without a picture")
