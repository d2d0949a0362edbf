"""How often the cache was wrong, from checked hits: an interval, and a test that stops early.

Hits are checked one after the other and the verdicts looked at each time, so a test of fixed size
would cry wolf sooner or later. `evidence` may be looked at as often as one likes: it is a mixture
of likelihood ratios against the largest rate allowed, thus a non-negative supermartingale of mean
at most 1 while the true rate is within the limit, and by Ville's inequality (1939) the chance that
it ever reaches 1/α is at most α. (Wald, "Sequential tests of statistical hypotheses", 1945;
Robbins, "Statistical methods related to the law of the iterated logarithm", 1970, for mixtures;
Johari et al., "Always valid inference", 2017, for tests watched by people.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from packshot.core.errors import InvalidRequest

__all__ = ["Interval", "evidence", "exact_interval", "exceeds", "wilson_interval"]

MULTIPLES = tuple(2.0**power for power in range(1, 11))
"""Alternatives of the mixture, in multiples of the limit: twice it to a thousand times it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate, and bounds that hold the true one with the confidence asked for; all 0 to 1."""

    rate: float
    low: float
    high: float


def evidence(false: int, checked: int, limit: float) -> float:
    """Return the logarithm of the evidence that more than ``limit`` of the hits are false.

    ``false`` of ``checked`` hits were false; ``limit`` is a rate between 0 and 1. It depends on the
    counts alone, not on the order. Raises `InvalidRequest` for counts or a limit out of range.
    """
    _check(false, checked)
    if not 0 < limit < 1:
        raise InvalidRequest(f"the limit of false hits is {limit}, expected between 0 and 1")
    rates = [limit * multiple for multiple in MULTIPLES if limit * multiple < 1]
    rates = rates or [(1 + limit) / 2]
    terms = [
        false * math.log(rate / limit) + (checked - false) * math.log((1 - rate) / (1 - limit))
        for rate in rates
    ]
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms) / len(terms))


def exceeds(false: int, checked: int, limit: float, alpha: float = 0.01) -> bool:
    """Tell whether a semantic tier is to be turned off: the rate is above ``limit``.

    While it is not, this is ever true with a chance of at most ``alpha``, however long one looks.
    """
    return evidence(false, checked, limit) >= -math.log(alpha)


def exact_interval(false: int, checked: int, confidence: float = 0.95) -> Interval:
    """Return Clopper and Pearson's interval (Biometrika 1934): never too narrow."""
    _check(false, checked)
    if not checked:
        return Interval(0.0, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = _beta_quantile(tail, false, checked - false + 1) if false else 0.0
    high = _beta_quantile(1 - tail, false + 1, checked - false) if false < checked else 1.0
    return Interval(false / checked, low, high)


def wilson_interval(false: int, checked: int, z: float = 1.959964) -> Interval:
    """Return Wilson's interval (JASA 1927), at ``z`` standard deviations (95 % by default)."""
    _check(false, checked)
    if not checked:
        return Interval(0.0, 0.0, 1.0)
    rate, scale = false / checked, 1 + z * z / checked
    middle = (rate + z * z / (2 * checked)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / checked + (z / (2 * checked)) ** 2)
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))


def _check(false: int, checked: int) -> None:
    if not 0 <= false <= checked:
        raise InvalidRequest(f"{false} false of {checked} checked: expected 0 ≤ false ≤ checked")


def _beta_quantile(share: float, a: float, b: float) -> float:
    """Return where Beta(a, b) has ``share`` of its mass below, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_below(middle, a, b) < share else (low, middle)
    return (low + high) / 2


def _beta_below(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction.

    DLMF 8.17.22 (https://dlmf.nist.gov/8.17), evaluated by Lentz's method; it converges fast below
    the mean, so above it the symmetry is used.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_below(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / a * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    d = 1 / (1 - (a + b) * x / (a + 1))
    c, fraction = 1.0, d
    for m in range(1, 1_000):
        for term in (
            m * (b - m) * x / ((a - 1 + 2 * m) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 1 + 2 * m)),
        ):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(1 - c * d) < 1e-14:
            break
    return fraction
