"""What a caller says of the cache for one call, by header or in the request's metadata.

::

    x-packshot-cache: no-cache                  ask the provider; keep the answer
    x-packshot-cache: no-store                  neither look nor keep
    x-packshot-cache: only-if-cached            never ask the provider: 504 where nothing is kept
    x-packshot-cache: exact                     no answer of a similar request
    x-packshot-cache: store                     keep it, whatever kind of request it is
    x-packshot-cache: ttl=3600, threshold=0.97  seconds, and the least cosine

Several stand with commas. ``metadata: {"packshot_cache": "…"}`` in the body says the same, and is
taken out before the request goes on; where both stand, the header holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.settings import LONGEST_TTL_S
from packshot.providers.base import Fields

__all__ = ["HEADER", "Control", "control_of"]

HEADER = b"x-packshot-cache"
MEMBER = "packshot_cache"
LONGEST = 200
METADATA = msgspec.json.Decoder(dict[str, msgspec.Raw])
TEXT = msgspec.json.Decoder(str)
FLAGS = {
    "no-cache": "look",
    "no-store": "keep",
    "only-if-cached": "only",
    "exact": "exact",
    "store": "store",
}
NAMES = (*FLAGS, "ttl=SECONDS", "threshold=COSINE")


@dataclass(frozen=True, slots=True)
class Control:
    """``look`` in the cache, and ``keep`` what comes; ``only`` from the cache; ``exact`` tier only;
    ``store`` although it is of a kind that is not kept; None: as configured.
    """

    look: bool = True
    keep: bool = True
    only: bool = False
    exact: bool = False
    store: bool = False
    ttl_s: int | None = None
    threshold: float | None = None


USUAL = Control()


def control_of(header: bytes | None, fields: Fields) -> Control:
    """Return what the call says; what it says in its metadata is taken out of ``fields``.

    Raises:
        InvalidRequest: it says something that is none of these.
    """
    said = fields.get("metadata")
    if said is not None and MEMBER.encode() in bytes(said):
        inside = _taken(fields, said)
        if header is None:
            return _read(inside)
    return USUAL if header is None else _read(header.decode("latin-1"))


def _taken(fields: Fields, said: msgspec.Raw) -> str:
    try:
        members = METADATA.decode(said)
        inside = TEXT.decode(members.pop(MEMBER, msgspec.Raw(b'""')))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(f"metadata.{MEMBER} is text, like {', '.join(NAMES)}") from error
    if members:
        fields["metadata"] = msgspec.Raw(msgspec.json.encode(members))
    else:
        del fields["metadata"]
    return inside


@lru_cache(256)
def _read(text: str) -> Control:
    if len(text) > LONGEST:
        raise InvalidRequest(f"x-packshot-cache has at most {LONGEST} characters")
    found = USUAL
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = part.partition("=")
        if part in FLAGS:
            found = replace(found, **{FLAGS[part]: FLAGS[part] not in {"look", "keep"}})
        elif name == "ttl" and value.isdigit() and 1 <= int(value[:12]) <= LONGEST_TTL_S:
            found = replace(found, ttl_s=int(value))
        elif name == "threshold" and (cosine := _cosine(value)) is not None:
            found = replace(found, threshold=cosine)
        else:
            raise InvalidRequest(
                f"x-packshot-cache does not know {part!r}; there are {', '.join(NAMES)}, "
                f"with at most {LONGEST_TTL_S} seconds and a cosine above 0, at most 1"
            )
    if found.only and not found.look:
        raise InvalidRequest("x-packshot-cache: only-if-cached and no-cache leave nobody to ask")
    return found if found.keep else replace(found, look=found.only)


def _cosine(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None
