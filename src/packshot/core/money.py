"""Money: an integer of nano-EUR, and the one place where a fraction is rounded to it.

An amount of money is never a float. Prices are exact decimals in their own currency; a charge
multiplies them out exactly and is rounded once, half to even, to 10⁻⁹ EUR.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import TypeAlias

from packshot.core.errors import InvalidRequest

__all__ = ["NANO", "Nanos", "decimal_of", "eur", "nanos_of", "show_eur"]

Nanos: TypeAlias = int
"""An amount of money in nano-EUR; negative in a reversing entry only."""

NANO = 1_000_000_000
"""Nano-EUR in one EUR."""

EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""Wide enough that no product of quantity, price and rate is rounded on the way."""


def decimal_of(value: str | int | Decimal, what: str = "amount") -> Decimal:
    """Return ``value`` as a finite decimal; ``what`` names it in the error.

    Raises:
        InvalidRequest: it is no number, or not finite. Floats are refused by type.
    """
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise InvalidRequest(f"{what} must be a decimal number, got {value!r}") from error
    if not number.is_finite():
        raise InvalidRequest(f"{what} must be finite, got {value!r}")
    return number


def nanos_of(eur_amount: Decimal) -> Nanos:
    """Return EUR as nano-EUR, rounded once, half to even."""
    scaled = EXACT.multiply(eur_amount, Decimal(NANO))
    return int(scaled.to_integral_value(rounding=ROUND_HALF_EVEN))


def eur(amount: Nanos) -> Decimal:
    """Return nano-EUR as EUR, exactly."""
    return Decimal(amount).scaleb(-9)


def show_eur(amount: Nanos, places: int = 6) -> str:
    """Return an amount for people: ``0.000812`` EUR, rounded half to even to ``places`` digits."""
    return f"{eur(amount).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN):f}"
