"""Corrections: an entry is never changed; another one takes it back, or adds the difference."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from packshot.core.clock import Clock, wall_us
from packshot.core.errors import InvalidRequest
from packshot.core.ids import new_id
from packshot.core.money import EXACT, Nanos, eur
from packshot.ledger.prices.book import Charge
from packshot.ledger.records import Settled

__all__ = ["reprice", "reverse"]


def reverse(row: Settled, reason: str = "reversed", clock: Clock = wall_us) -> Settled:
    """Return the entry that takes back all that ``row`` booked, in the cap periods of ``row``.

    Its ``original`` is in EUR, like that of every correction. Quantities stay what they were: they
    are those of the attempt, and are not booked again. `Ledger.correct` numbers and appends it.
    """
    legs = (-row.payable, -row.depreciation, -row.storage)
    return _correction(row, legs, reason, row.price, clock)


def reprice(
    row: Settled, charge: Charge, reason: str = "repriced", clock: Clock = wall_us
) -> Settled:
    """Return the entry that makes ``row`` cost what ``charge`` says: the difference, by leg.

    Raises:
        InvalidRequest: the charge has no price either.
    """
    if not charge.priced:
        raise InvalidRequest(f"attempt {row.attempt} still has no price: add one first")
    amount, credit = charge.amount, charge.credit
    legs = (
        (amount if credit == "payable" else 0) - row.payable,
        (amount if credit == "depreciation" else 0) - row.depreciation,
        (amount if credit == "storage" else 0) - row.storage,
    )
    return _correction(row, legs, reason, charge.price, clock)


def _correction(
    row: Settled, legs: tuple[Nanos, Nanos, Nanos], reason: str, price: str, clock: Clock
) -> Settled:
    payable, depreciation, storage = legs
    amount = sum(legs)
    return msgspec.structs.replace(
        row,
        attempt=new_id(),
        number=0,
        settled_at=clock(),
        outcome="correction",
        reason=reason,
        seconds_us=0,
        input_tokens=0,
        cached_tokens=0,
        written_tokens=0,
        output_tokens=0,
        images=0,
        stored_bytes=0,
        requests=0,
        held=0,
        amount=amount,
        payable=payable,
        depreciation=depreciation,
        storage=storage,
        priced=True,
        currency="EUR",
        original=str(EXACT.plus(eur(amount)) if amount else Decimal(0)),
        rate="1",
        price=price,
        corrects=row.attempt,
    )
