"""Which threshold a route should have: hit rate, false hits and money over labelled pairs.

A pair's similarity is computed once; a threshold then lets through the pairs that the guards do not
stop and whose similarity reaches it. Beside it stands what a threshold alone does, as in other
semantic caches. Pure functions over the pairs; `packshot cache tune` shows what they return.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.embed import Vectors
from packshot.gateway.cache.guards import compare
from packshot.gateway.cache.sequential import Interval, exact_interval
from packshot.gateway.cache.slots import read

__all__ = [
    "THRESHOLDS",
    "LabelledPair",
    "Outcome",
    "Scored",
    "best",
    "load_pairs",
    "outcomes",
    "score",
]

THRESHOLDS = tuple(round(0.80 + step / 100, 2) for step in range(20))
"""0.80 to 0.99, in steps of a hundredth."""
MOST_PAIRS = 1_000_000


class LabelledPair(msgspec.Struct, frozen=True):
    """Two requests of a route; ``same`` says whether one answer serves both.

    ``nano_eur`` is what answering the second by the upstream costs; 0 where nobody knows.
    ``answer_a`` and ``answer_b`` are their own answers, where they are known.
    """

    a: str
    b: str
    same: bool
    route: str = ""
    kind: str = ""
    nano_eur: int = 0
    answer_a: str = ""
    answer_b: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair with its cosine (-1 to 1), and whether the guards let it through."""

    pair: LabelledPair
    similarity: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a threshold does: hits of the ``same`` pairs, false hits of the ``other``, money saved.

    ``hits`` and ``false`` carry Clopper and Pearson's 95 % intervals; ``unpriced`` counts the hits
    whose pair does not say what it costs.
    """

    threshold: float
    hits: Interval
    false: Interval
    hit_count: int
    false_count: int
    same: int
    other: int
    saved_nano_eur: int
    unpriced: int


def load_pairs(path: Path) -> list[LabelledPair]:
    """Read a file of one JSON object a line: ``{"a": …, "b": …, "same": true}``.

    Members that it does not know are passed over. Raises `InvalidRequest` with the number of the
    line that cannot be read.
    """
    decode = msgspec.json.Decoder(LabelledPair).decode
    pairs: list[LabelledPair] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    pairs.append(_decoded(decode, line, f"{path}, line {number}"))
                if len(pairs) > MOST_PAIRS:
                    raise InvalidRequest(f"{path} has more than {MOST_PAIRS:,} pairs")
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}") from error
    if not pairs:
        raise InvalidRequest(f"{path} has no pairs; one JSON object a line is expected: {EXAMPLE}")
    return pairs


EXAMPLE = json.dumps({"a": "red mug", "b": "a red mug", "same": True})


def _decoded(decode: Any, line: bytes, where: str) -> LabelledPair:  # noqa: ANN401
    try:
        return cast("LabelledPair", decode(line))
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{where}: {error}; a line looks like {EXAMPLE}") from error


def score(
    pairs: Sequence[LabelledPair],
    encode: Callable[[Sequence[str]], Vectors],
    must_match: Sequence[str],
    tell: Callable[[], None] = lambda: None,
) -> tuple[list[Scored], list[Scored]]:
    """Return the pairs as our cache sees them, and as a cache does that has a threshold alone.

    ``encode`` turns texts into vectors of length 1; ``tell`` is called after each pair.
    """
    ours: list[Scored] = []
    alone: list[Scored] = []
    for pair in pairs:
        left, right = read(pair.a), read(pair.b)
        rows = encode([left.gist, right.gist, pair.a, pair.b])
        agrees = compare(left, right, must_match).agree
        ours.append(Scored(pair, float(rows[0] @ rows[1]), agrees))
        alone.append(Scored(pair, float(rows[2] @ rows[3]), agrees=True))
        tell()
    return ours, alone


def outcomes(scored: Sequence[Scored], thresholds: Sequence[float] = THRESHOLDS) -> list[Outcome]:
    """Return what each threshold does to the pairs."""
    same = [row for row in scored if row.pair.same]
    other = [row for row in scored if not row.pair.same]
    return [_outcome(same, other, threshold) for threshold in thresholds]


def _outcome(same: Sequence[Scored], other: Sequence[Scored], threshold: float) -> Outcome:
    hits = [row for row in same if row.agrees and row.similarity >= threshold]
    false = sum(row.agrees and row.similarity >= threshold for row in other)
    return Outcome(
        threshold,
        exact_interval(len(hits), len(same)),
        exact_interval(false, len(other)),
        len(hits),
        false,
        len(same),
        len(other),
        sum(row.pair.nano_eur for row in hits),
        sum(not row.pair.nano_eur for row in hits),
    )


def best(rows: Sequence[Outcome], limit: float) -> Outcome | None:
    """Return the outcome with the most hits whose false hits are within ``limit`` (a rate).

    Of equal ones the highest threshold: it costs nothing and is the most careful. None when all
    thresholds are above the limit: such a route should have no semantic tier.
    """
    fine = [row for row in rows if row.false.rate <= limit]
    return max(fine, key=lambda row: (row.hit_count, row.threshold), default=None)
