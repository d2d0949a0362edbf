"""The plot of `packshot cache tune`: hit rate and false hits over the threshold, as SVG.

Two panels over one axis, since the two rates are a thousandfold apart: hits from 0 to 100 %, false
hits on a logarithmic scale with the limit drawn in. SVG needs no library; every browser shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from packshot.gateway.cache.tune import Outcome

__all__ = ["plot"]

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 720, 220, 70, 20, 46, 56
OURS, ALONE, INK, FAINT = "#0b6e4f", "#c8553d", "#222", "#ddd"
LEAST = 1e-5
"""The lowest false-hit rate on the scale; none at all is drawn there."""
DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def plot(title: str, ours: Sequence[Outcome], alone: Sequence[Outcome], limit: float) -> str:
    """Return an SVG of both caches' outcomes, by rising threshold; ``limit`` is a rate, 0 to 1."""
    low, high = ours[0].threshold, ours[-1].threshold
    below = TOP + PANEL + GAP

    def x(threshold: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (threshold - low) / ((high - low) or 1)

    def hits(rate: float) -> float:
        return TOP + PANEL * (1 - rate)

    def false(rate: float) -> float:
        return below + PANEL * math.log10(max(rate, LEAST)) / math.log10(LEAST)

    parts = [
        _text(LEFT, 20, title, 15),
        _text(LEFT, TOP - 8, "hits, of pairs that one answer serves", 12),
        _text(LEFT, below - 8, "false hits, of pairs that need two", 12),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += _gridline(hits(share), f"{share:.0%}")
    for rate in DECADES:
        parts += _gridline(false(rate), f"{100 * rate:g} %" if rate > LEAST else "none")
    parts.append(_dashed(false(limit)))
    parts.append(_text(LEFT + 4, false(limit) - 5, f"limit {100 * limit:g} %", 11))
    for step in range(0, len(ours), 5):
        threshold = ours[step].threshold
        parts.append(_text(x(threshold), below + PANEL + 18, f"{threshold:.2f}", 11, "middle"))
    for rows, colour in ((alone, ALONE), (ours, OURS)):
        parts.append(_line([(x(row.threshold), hits(row.hits.rate)) for row in rows], colour))
        parts.append(_line([(x(row.threshold), false(row.false.rate)) for row in rows], colour))
    parts.append(_text(WIDTH - RIGHT - 190, 20, "guards and threshold", 12, colour=OURS))
    parts.append(_text(WIDTH - RIGHT, 20, "threshold", 12, "end", ALONE))
    height = below + PANEL + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _text(
    x: float, y: float, text: str, size: int, anchor: str = "start", colour: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _gridline(y: float, label: str) -> list[str]:
    line = f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>'
    return [line, _text(LEFT - 8, y + 4, label, 11, "end")]


def _dashed(y: float) -> str:
    return f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-dasharray="4 4"/>'


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
