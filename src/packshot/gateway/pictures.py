"""A picture that packshot itself asks a provider for: what is asked, and what came of it."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos
from packshot.gateway.plan import Plan

__all__ = [
    "Picture",
    "PictureAsk",
    "PictureTrouble",
    "check_pictures",
    "picture_body",
    "picture_in",
]

PictureTrouble: TypeAlias = Literal["", "unanswered", "deadline", "budget", "refused"]


@dataclass(frozen=True, slots=True)
class PictureAsk:
    """One picture. ``route`` is a route or "provider/model".

    ``size`` is (width, height): providers make the nearest shape that they know. ``seed`` is 1 to
    4,294,967,294. ``image`` is the file of a picture to start from, or of the product for a model
    that replaces grounds; ``strength`` (0 to 1) how far to go from it. ``more`` are further fields,
    as the provider has them. ``deadline`` is a `time.monotonic`; ``booked_on`` is as in
    `packshot.gateway.client.Ask`. ``account`` is whose budget it is under: the virtual key that the
    ledger has it by.
    """

    route: str
    prompt: str
    deadline: float
    size: tuple[int, int] | None = None
    seed: int | None = None
    negative: str = ""
    image: bytes | None = field(default=None, repr=False)
    strength: float | None = None
    more: Mapping[str, str | float | bool] = field(default_factory=dict[str, "str | float | bool"])
    booked_on: Mapping[str, str] = field(default_factory=dict[str, str])
    account: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """What came of an ask: the file of a picture (PNG, JPEG or WebP), or why there is none.

    ``kind`` is one word for the trouble: as of a `packshot.gateway.client.Reply`, or "refused" by a
    content filter or for what was asked, which is not to be routed around. ``seed`` is the one that
    was used, as the provider says. ``cost`` is that of all attempts, also of those that failed.
    """

    data: bytes = field(default=b"", repr=False)
    seed: int = 0
    trouble: str = ""
    kind: PictureTrouble = ""
    provider: str = ""
    model: str = ""
    attempts: int = 0
    cost: Nanos = 0
    priced: bool = True


class _Made(msgspec.Struct):
    b64_json: str
    seed: int = 0


class _Answer(msgspec.Struct):
    data: list[_Made]


def picture_body(ask: PictureAsk) -> bytes:
    """Return the JSON of an ask, as the gateway's own door takes it."""
    fields: dict[str, object] = {"model": ask.route, "prompt": ask.prompt}
    if ask.image is None and ask.size is not None:
        fields["size"] = "{}x{}".format(*ask.size)
    if ask.seed is not None:
        fields["seed"] = ask.seed
    if ask.negative:
        fields["negative_prompt"] = ask.negative
    if ask.image is not None:
        fields["image"] = b64encode(ask.image).decode("ascii")
    if ask.strength is not None:
        fields["strength"] = ask.strength
    return msgspec.json.encode({**fields, **ask.more})


def picture_in(body: bytes) -> tuple[bytes, int, str]:
    """Return the picture of an answer and its seed, or why there is none."""
    try:
        made = msgspec.json.decode(body, type=_Answer).data[0]
        return b64decode(made.b64_json, validate=True), made.seed, ""
    except (msgspec.MsgspecError, NotBase64, ValueError, IndexError):
        return b"", 0, "the answer holds no picture"


def check_pictures(plan: Plan, route: str) -> None:
    """Raise `InvalidRequest` for a route of which a target makes no pictures."""
    found = plan.routes.get(route) or plan.route(route, "images")
    for target in found.targets:
        if "images" not in target.provider.exchanges:
            makers = [p.name for p in plan.providers.values() if "images" in p.exchanges]
            raise InvalidRequest(
                f"{target.name} makes no pictures; of the providers that are configured "
                f"{', '.join(makers) or 'none'} does"
            )
        known = [model for model, _ in target.provider.row.paths]
        if known and target.model not in known:
            raise InvalidRequest(
                f"{target.provider.name} has no {target.model!r}; it has {', '.join(known)}"
            )
