"""The most that a call of text can cost: some lines over its tokens, asked before every such call.

`packshot.ledger.prices.tokens.bound_of` says the same of any call, tier by tier; here that is
worked out once for a model, and what is cheaper than another line everywhere is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

from packshot.core.money import Nanos
from packshot.ledger.prices.tokens import Tariff, dearest_of

__all__ = ["Ceiling", "Line", "ceiling_of"]


class Line(NamedTuple):
    """What a call of more than ``above`` input tokens costs at most, over a common denominator.

    ``into`` and ``out`` are of one token, ``fixed`` of the call; ``above`` is -1 for every call.
    """

    above: int
    into: int
    out: int
    fixed: int

    def within(self, other: Line) -> bool:
        """Whether no call costs more by this line than by the other."""
        return (
            self.above >= other.above
            and self.into <= other.into
            and self.out <= other.out
            and self.fixed <= other.fixed
        )


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Lines in nano-EUR over ``bottom``; without any, no price is known."""

    lines: tuple[Line, ...]
    bottom: int

    def of(self, tokens: int, output: int) -> Nanos | None:
        """Return the most that ``tokens`` in and ``output`` out can cost, rounded up."""
        top = -1
        for above, into, out, fixed in self.lines:
            if tokens > above:
                cost = tokens * into + output * out + fixed
                top = max(top, cost)
        return None if top < 0 else -(-top // self.bottom)


def ceiling_of(tariffs: Iterable[Tariff]) -> Ceiling | None:
    """Return the ceiling over tariffs, any of which may apply; None where time is what costs."""
    found = list(tariffs)
    if any(tier.us is not None for tariff in found for tier in tariff.tiers):
        return None
    bottom = lcm(*(tariff.bottom for tariff in found))
    lines: list[Line] = []
    for tariff in found:
        scale = tariff.nano * (bottom // tariff.bottom)
        for tier in tariff.tiers:
            into, out, _ = dearest_of(tier)
            if into is None and out is None and tier.image is None and not tier.request:
                continue
            costs = (each * scale for each in (into or 0, out or 0, tier.request or 0))
            lines.append(Line(tier.above or -1, *costs))
    kept: list[Line] = []
    for line in sorted(lines, key=lambda line: (line.above, *(-each for each in line[1:]))):
        if not any(line.within(other) for other in kept):
            kept.append(line)
    return Ceiling(tuple(kept), bottom)
