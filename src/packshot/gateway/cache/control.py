"""What a caller says of the cache for one call.

::

    x-packshot-cache: no-cache                  ask the provider; keep the answer
    x-packshot-cache: no-store                  neither look nor keep
    x-packshot-cache: only-if-cached            never ask the provider: 504 where nothing is kept
    x-packshot-cache: exact                     no answer of a similar request
    x-packshot-cache: store                     keep it, whatever kind of request it is
    x-packshot-cache: ttl=3600, threshold=0.97  seconds, and the least cosine

Several stand with commas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.settings import LONGEST_TTL_S

__all__ = ["Control", "control_of"]

LONGEST = 200
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


def control_of(said: bytes | None) -> Control:
    """Return what the call says.

    Raises:
        InvalidRequest: it says something that is none of these.
    """
    return USUAL if said is None else _read(said.decode("latin-1"))


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
