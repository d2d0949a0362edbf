"""Pairs to tune a threshold on, out of an operator's own traffic.

Two sources. The audit log has hits, each with a verdict, all above the threshold in force. The
content log, where virtual keys keep one, has requests with their answers; of these, near requests
of one caller and one partition are paired as the cache would have compared them.

A pair of the content log is labelled by its two answers, and only where they tell. A request's
word that the other lacks, and that its own answer repeats and the other's does not, shows that two
answers were needed. Requests in which nothing differs are judged as the audit judges hits. Where
something differs and no answer shows it, nobody knows, and the pair is left out and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from re import compile as pattern

from packshot.core.errors import InvalidRequest
from packshot.gateway.access import VirtualKey
from packshot.gateway.cache.audit import verdict_of
from packshot.gateway.cache.audit_log import Check
from packshot.gateway.cache.embed import Vectors
from packshot.gateway.cache.replay import text_of, whole_of
from packshot.gateway.cache.request import Unreadable, cached_request, spoken
from packshot.gateway.cache.similarity import VectorIndex
from packshot.gateway.cache.slots import LONGEST_TEXT, read
from packshot.gateway.cache.tune import LabelledPair
from packshot.gateway.content import Content
from packshot.gateway.job import Job, open_fields
from packshot.gateway.plan import Route

__all__ = ["MOST_ASKED", "Asked", "Traffic", "asked_of", "from_checks", "near_pairs"]

MOST_ASKED = 5_000
"""Different requests of a route that are paired; the newest."""

NEIGHBOURS = 8
"""Pairs that one request is the first of, at most: of templated traffic all is near to all."""

NEAREST = 0.80
"""The least cosine of a pair: the lowest threshold that is tried."""

JUDGED = pattern(r"\S+ \(judge-\d+\): ")
SURFACES = ("chat", "messages")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the traffic: what it says, in which partition, and its answer's text."""

    route: str
    partition: str
    text: str
    answer: str


@dataclass(slots=True)
class Traffic:
    """Pairs with a label, by whom they were labelled, and by route how many nobody could label."""

    pairs: list[LabelledPair] = field(default_factory=list[LabelledPair])
    sources: Counter[str] = field(default_factory=Counter[str])
    unsure: Counter[str] = field(default_factory=Counter[str])

    def add(self, pair: LabelledPair) -> None:
        """Take a pair, whose ``kind`` says who labelled it."""
        self.pairs.append(pair)
        self.sources[pair.kind] += 1


def from_checks(checks: Iterable[Check], traffic: Traffic) -> None:
    """Add the pairs of checked hits: labelled by a person, a judge, or the audit's slots."""
    for check in checks:
        if check.verdict == "open":
            traffic.unsure[check.route] += 1
            continue
        judged = "judge" if JUDGED.match(check.note) else "slots"
        traffic.add(
            LabelledPair(
                check.kept,
                check.asked,
                check.verdict == "same",
                check.route,
                kind="person" if check.judge else judged,
                answer_a=check.served,
                answer_b=check.fresh,
            )
        )


# ---------------------------------------------------------------- the content log
def asked_of(contents: Iterable[Content]) -> Iterator[Asked]:
    """Yield the requests that the semantic tier would compare, with good answers of text."""
    for content in contents:
        if content.status == 200 and content.surface in SURFACES:
            found = _asked(content)
            if found is not None:
                yield found


def _asked(content: Content) -> Asked | None:
    surface = "chat" if content.surface == "chat" else "messages"
    route = content.route or f"{content.provider}/{content.model}"
    try:
        fields = open_fields(content.request)
        job = Job(
            content.id, surface, VirtualKey(content.virtual_key), Route(route, ()), fields,
            content.model, False, 0.0, 0.0, "chat",
        )  # fmt: skip
        said = spoken(cached_request(job, 2.0))
    except (Unreadable, InvalidRequest):
        return None
    body: bytes | None = content.response
    if not body.lstrip().startswith(b"{"):
        body = whole_of(surface, body, None)
    answer = text_of(surface, body) if body else ""
    return Asked(route, *said, answer) if said and answer else None


def near_pairs(
    asked: Iterable[Asked],
    encode: Callable[[Sequence[str]], Vectors],
    same_above: float,
    traffic: Traffic,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Add pairs of near requests. ``encode`` turns texts into vectors of length 1; ``same_above``
    is the cosine of two answers from which they may say the same; ``tell`` is called after each
    request.
    """
    by_route: dict[str, dict[tuple[str, str], Asked]] = defaultdict(dict)
    for each in asked:
        newest = by_route[each.route]
        newest.pop((each.partition, each.text), None)
        newest[each.partition, each.text] = each
        if len(newest) > MOST_ASKED:
            del newest[next(iter(newest))]
    for rows in by_route.values():
        parts: dict[str, list[Asked]] = defaultdict(list)
        for each in rows.values():
            parts[each.partition].append(each)
        for part in parts.values():
            _pair(part, encode, same_above, traffic, tell)


def _pair(
    part: Sequence[Asked],
    encode: Callable[[Sequence[str]], Vectors],
    same_above: float,
    traffic: Traffic,
    tell: Callable[[], None],
) -> None:
    """Pair each request with the nearest of those before it, as the cache would have found them."""
    index: VectorIndex | None = None
    for number, each in enumerate(part):
        vector = encode([read(each.text).gist or each.text])[0]
        if index is None:
            index = VectorIndex(len(vector))
        for match in index.nearest(vector, NEIGHBOURS, NEAREST):
            before = part[match.key]
            label = _label(before, each, encode, same_above)
            if label is None:
                traffic.unsure[each.route] += 1
                continue
            traffic.add(
                LabelledPair(
                    before.text,
                    each.text,
                    label,
                    each.route,
                    kind="slots",
                    answer_a=before.answer,
                    answer_b=each.answer,
                )
            )
        index.add(number, vector)
        tell()


def _label(
    a: Asked, b: Asked, encode: Callable[[Sequence[str]], Vectors], same_above: float
) -> bool | None:
    """Tell whether one answer serves both, None where the answers do not show it."""
    if a.answer == b.answer:
        return True
    asked = _said(a.text), _said(b.text)
    answered = _said(a.answer), _said(b.answer)
    only = asked[0] - asked[1], asked[1] - asked[0]
    if any(only[i] & (answered[i] - answered[1 - i]) for i in (0, 1)):
        return False
    if any(only):
        return None
    rows = encode([a.answer, b.answer])
    cosine = float(rows[0] @ rows[1])
    one = verdict_of(b.text, a.answer, b.answer, cosine, same_above)
    two = verdict_of(a.text, b.answer, a.answer, cosine, same_above)
    return one == two == "same"


def _said(text: str) -> Counter[tuple[str, str]]:
    """Return what a text says, each as often as it says it."""
    return Counter((slot.type, slot.value) for slot in read(text[:LONGEST_TEXT]).slots)
