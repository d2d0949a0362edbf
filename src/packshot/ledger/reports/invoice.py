"""What a provider's invoice says against what the ledger says, per model and day (UTC)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from packshot.core.clock import SECOND_US
from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.ids import new_id
from packshot.core.money import EXACT, Nanos, decimal_of, eur, nanos_of
from packshot.ledger.records import Dimensions, Settled
from packshot.ledger.reports.period import DAY_US, day_of
from packshot.ledger.stores.base import Store

__all__ = ["Billed", "Corrector", "Difference", "correct", "read_invoice", "reconcile"]

NAMES = {
    "day": ("date", "day", "start_time_iso", "usage_date", "ChargePeriodStart"),
    "model": ("model", "line_item", "SkuId", "ServiceName"),
    "amount": ("amount", "cost", "amount_value", "BilledCost"),
}
CURRENCY = ("currency", "amount_currency", "BillingCurrency")


class Corrector(Protocol):
    """What takes corrections: `packshot.ledger.ledger.Ledger`."""

    def correct(self, correction: Settled) -> Settled:
        """Append a correcting entry."""
        ...


@dataclass(frozen=True, slots=True)
class Billed:
    """A line of an invoice: the day as microseconds since 1970, the amount in its currency."""

    day: int
    model: str
    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A model on a day: nano-EUR that the ledger and the invoice say."""

    day: int
    model: str
    booked: Nanos
    billed: Nanos

    @property
    def amount(self) -> Nanos:
        """What the ledger lacks; negative where it has too much."""
        return self.billed - self.booked


def read_invoice(file: Path, currency: str = "USD") -> list[Billed]:
    """Return the lines of an invoice; ``currency`` is meant where the file names none.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: a column is missing, or a value wrong; the message has its line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as source:
            rows = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OutputError(f"cannot read {file}: {error}") from error
    if not rows:
        raise InvalidRequest(f"{file} has no lines; expected day, model and amount")
    columns = {what: _column(file, rows[0], what, names) for what, names in NAMES.items()}
    unit = next((name for name in CURRENCY if name in rows[0]), "")
    found: list[Billed] = []
    for line, row in enumerate(rows, 2):
        text = row[columns["day"]] or ""
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            raise InvalidRequest(f"{file}:{line}: expected a day, got {text!r}") from error
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        day = int(at.timestamp()) * SECOND_US
        amount = decimal_of(row[columns["amount"]] or "", f"{file}:{line}: amount")
        # OpenAI's lines read "gpt-4o-2024-08-06, input".
        model = (row[columns["model"]] or "").partition(",")[0].strip()
        money = ((row.get(unit) or "") if unit else "").strip().upper() or currency
        found.append(Billed(day - day % DAY_US, model, amount, money))
    return found


def reconcile(
    store: Store, provider: str, lines: Sequence[Billed], rate: Decimal | None = None
) -> list[Difference]:
    """Return each model and day of the invoice's days, with what both sides say.

    ``rate`` is EUR per unit of the invoice's currency; else that of the provider's last entry in
    it.

    Raises:
        InvalidRequest: there is no line, or no rate.
    """
    if not lines:
        raise InvalidRequest("the invoice has no lines")
    billed: dict[tuple[int, str], Decimal] = defaultdict(Decimal)
    rates = {each: _rate(store, provider, each, rate) for each in {b.currency for b in lines}}
    for line in lines:
        key = (line.day, line.model)
        billed[key] = EXACT.add(billed[key], EXACT.multiply(line.amount, rates[line.currency]))
    days = {line.day for line in lines}
    rows = store.query(
        "SELECT hour, model, SUM(amount) FROM rollups WHERE provider = ? AND hour >= ? AND hour < ?"
        " GROUP BY hour, model",
        (provider, min(days), max(days) + DAY_US),
    )
    booked: dict[tuple[int, str], int] = defaultdict(int)
    for hour, model, amount in rows:
        booked[hour - hour % DAY_US, model] += int(amount)
    return [
        Difference(*key, booked=booked.get(key, 0), billed=nanos_of(billed.get(key, Decimal(0))))
        for key in sorted({*billed, *booked})
        if key[0] in days
    ]


def correct(
    store: Store,
    ledger: Corrector,
    provider: str,
    differences: Sequence[Difference],
    source: str,
    total: Callable[[int], tuple[str, ...]] = lambda _: (),
) -> int:
    """Append correcting entries that make up for the differences; return how many.

    A difference is shared out over the cap periods that the calls of that model and day were held
    against, by what they cost (by how many they were, where they cost nothing), with an entry for
    each; ``total`` names the periods of an instant where the ledger knows of no such call. An entry
    is dated on the last microsecond of its day, so that the same invoice then shows no difference.
    It is debited to the account on which that model cost most that day; to waste where the ledger
    knows of no such call. Call it within `packshot.ledger.clerk.corrector`, which keeps other runs
    out; what is appended when it is stopped half-way is no difference to the next run.

    Raises:
        LedgerUnavailable: the journal takes nothing more.
    """
    count = 0
    for each in differences:
        for part in _parts(store, provider, each, total) if each.amount else ():
            ledger.correct(_entry(store, provider, each, part, source))
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class _Part:
    """A share of a difference: whose it is, as far as all its calls agree."""

    caps: tuple[str, ...]
    team: str
    virtual_key: str
    batch: str
    amount: Nanos


def _parts(
    store: Store, provider: str, each: Difference, total: Callable[[int], tuple[str, ...]]
) -> Iterator[_Part]:
    rows = store.query(
        "SELECT caps, MIN(team), MAX(team), MIN(virtual_key), MAX(virtual_key), MIN(batch),"
        " MAX(batch), SUM(amount), COUNT(*) FROM entries WHERE provider = ? AND model = ?"
        " AND settled_at >= ? AND settled_at < ? GROUP BY caps ORDER BY caps",
        (provider, each.model, each.day, each.day + DAY_US),
    )
    if not rows:
        yield _Part(total(each.day + DAY_US - 1), "", "", "", each.amount)
        return
    weights = [int(row[7]) for row in rows]
    if min(weights) < 0 or not sum(weights):
        weights = [int(row[8]) for row in rows]
    whole, upto, given = sum(weights), 0, 0
    for row, weight in zip(rows, weights, strict=True):
        upto += weight
        amount = each.amount * upto // whole - given  # the shares make the whole, to the nano-EUR
        given += amount
        if amount:
            caps = tuple(row[0].split(",")) if row[0] else ()
            team, key, batch = (row[k] if row[k] == row[k + 1] else "" for k in (1, 3, 5))
            yield _Part(caps, team, key, batch, amount)


def _entry(store: Store, provider: str, each: Difference, part: _Part, source: str) -> Settled:
    found = store.query(
        "SELECT account, stage FROM rollups WHERE provider = ? AND model = ? AND hour >= ?"
        " AND hour < ? GROUP BY account, stage ORDER BY SUM(amount) DESC, account, stage LIMIT 1",
        (provider, each.model, each.day, each.day + DAY_US),
    )
    account, stage = found[0] if found else ("waste", "")
    return Settled(
        attempt=new_id(),
        number=0,  # the ledger numbers it
        held_at=0,
        dispatched_at=0,
        settled_at=each.day + DAY_US - 1,
        outcome="correction",
        reason=f"invoice {source}: {provider} {day_of(each.day)}",
        dimensions=Dimensions(
            stage=stage,
            provider=provider,
            model=each.model,
            team=part.team,
            virtual_key=part.virtual_key,
            batch=part.batch,
        ),
        account=account,
        amount=part.amount,
        payable=part.amount,
        original=f"{eur(part.amount):f}",
        caps=part.caps,
    )


def _column(file: Path, row: dict[str, str], what: str, names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            return name
    raise InvalidRequest(
        f"{file} has no column for the {what}: expected one of {', '.join(names)};"
        f" got {', '.join(row)}"
    )


def _rate(store: Store, provider: str, currency: str, given: Decimal | None) -> Decimal:
    if currency == "EUR":
        return Decimal(1)
    if given is not None:
        return given
    found = store.query(
        "SELECT rate FROM entries WHERE provider = ? AND currency = ? AND rate <> ''"
        " ORDER BY seq DESC LIMIT 1",
        (provider, currency),
    )
    if not found:
        raise InvalidRequest(
            f"the ledger has no rate for {currency} from {provider};"
            f" give --rate, EUR per {currency}"
        )
    return decimal_of(found[0][0], "rate")
