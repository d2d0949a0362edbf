"""Storage costs while it lies there: on an account apart from the cost of a render.

What lies there is measured by looking: a file counts from the time it was last written until it is
found to be gone. A day is booked once it is over (UTC), once per bucket, whoever does it and how
often; days that were missed are made up for by what lies there now. So run it daily: what came and
went between two runs is seen by nobody.
"""

from __future__ import annotations

import os
import time
from calendar import monthrange
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from packshot.core.clock import HOUR_US, SECOND_US, Clock, wall_us
from packshot.core.errors import InvalidRequest, LedgerUnavailable, OutputError
from packshot.core.money import EXACT, nanos_of
from packshot.ledger.drain import locked
from packshot.ledger.prices.rows import PriceRow
from packshot.ledger.private import make_private_folder
from packshot.ledger.records import Dimensions, Settled, Stamped
from packshot.ledger.settings import Settings, StorageRow
from packshot.ledger.stores.base import Store

__all__ = ["Daily", "Rates", "Stored", "accrue", "attempt_of", "book_days", "measured", "writing"]

GB = 10**9
"""Bytes in the GB of the price lists."""

DAY_US = 24 * HOUR_US

MOST_DAYS = 400
"""Days that one run makes up for at the most."""

WAIT_S = 30.0
"""Seconds to wait while a drain writes the store."""


class Rates(Protocol):
    """What is asked of a price book."""

    @property
    def own(self) -> Sequence[PriceRow]:
        """The operator's rows."""
        ...

    @property
    def shipped(self) -> Sequence[PriceRow]:
        """Our own."""
        ...

    def rate(self, currency: str, day: date, /) -> Decimal | None:
        """Return EUR for one of a currency."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """What lay in a bucket of a storage service on one day (UTC).

    ``byte_us`` is bytes times the microseconds that each lay there: a GB all day is 8.64e19.
    ``per_gb_month`` is the price of that day in ``currency``, ``rate`` EUR for one of it, and
    ``source`` the price row's name.
    """

    day: date
    provider: str
    bucket: str
    byte_us: int
    per_gb_month: Decimal
    team: str = ""
    currency: str = "EUR"
    rate: Decimal = Decimal(1)
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for number in (Decimal(self.byte_us), self.per_gb_month, self.rate):
            if not number.is_finite() or number < 0:
                raise InvalidRequest(f"bytes, price, rate: finite, not negative; got {self}")


def accrue(stored: Sequence[Stored], first: int = 1) -> list[Settled]:
    """Return the entries of some days, numbered from ``first``, each rounded once, half to even.

    A day costs its part of its own month (1/28 to 1/31). An attempt's id comes from the day and the
    bucket alone: `Store` takes each once, however often this runs.
    """
    return [_entry(number, each) for number, each in enumerate(stored, first)]


def attempt_of(day: date, provider: str, bucket: str) -> str:
    """Return the id of a day's entry for a bucket."""
    return f"storage:{day.isoformat()}:{provider}:{bucket}"


def measured(folder: Path) -> list[tuple[int, int]]:
    """Return bytes and time of the last write (microseconds) of each file in a folder, all depths.

    Links are not followed. What is deleted meanwhile is not there.

    Raises:
        OutputError: the folder is not there or cannot be read: that is not the same as empty.
    """
    try:
        return list(_files(folder))
    except OSError as error:
        raise OutputError(f"what {folder} stores cannot be measured: {error}") from error


def _files(folder: Path) -> Iterator[tuple[int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield found.st_size, found.st_mtime_ns // 1000
            except FileNotFoundError:
                continue


def book_days(
    store: Store, rates: Rates, row: StorageRow, now: int, since: date | None = None
) -> list[Settled]:
    """Book the days of a folder that are over and not booked yet; return their entries.

    The first run begins with ``since``, else with yesterday. Days up to the last that was booked
    are left alone.

    Raises:
        InvalidRequest: nobody knows the price of a GB-month; nothing is booked.
        OutputError: the folder cannot be measured.
        LedgerUnavailable: the store cannot be read or written.
    """
    yesterday = _day_of(now) - timedelta(days=1)
    worker = f"storage:{row.provider}:{row.bucket}"
    marks = store.query(
        "SELECT seq, number FROM journals WHERE worker = ? AND epoch = 1", (worker,)
    )
    number = 0
    first = since or yesterday
    if marks:
        last, number = marks[0]
        first = date.fromordinal(last) + timedelta(days=1)
    days = [first + timedelta(days=k) for k in range((yesterday - first).days + 1)][:MOST_DAYS]
    if not days:
        return []
    files = measured(row.folder)
    stored = [_stored(row, day, files, rates) for day in days]
    entries = accrue(stored, number + 1)
    # A day is its own sequence, so that of two that book it at once the store takes one.
    rows = [
        Stamped(worker, 1, day.toordinal(), entry) for day, entry in zip(days, entries, strict=True)
    ]
    return entries if store.append(rows) else []


class Daily:
    """Books the storage of the settings' folders, whenever a day is over."""

    def __init__(
        self, settings: Settings, rates: Rates, store: Store, clock: Clock = wall_us
    ) -> None:
        self._settings, self._rates, self._store, self._clock = settings, rates, store, clock
        self._next = 0

    def due(self) -> list[Settled]:
        """Return what was booked, nothing where it is not time: once a day, an hour after an error.

        Raises:
            PackshotError: as `book_days`; folders before the one that failed are booked.
        """
        now = self._clock()
        if 0 < self._next - now < DAY_US + HOUR_US:
            return []
        self._next = now + HOUR_US
        booked: list[Settled] = []
        with writing(self._settings.journal):
            for row in self._settings.storage:
                booked += book_days(self._store, self._rates, row, now)
        self._next = now - now % DAY_US + DAY_US
        return booked


@contextmanager
def writing(journal: Path) -> Generator[None]:
    """Keep the drain from the store for the block: one process writes it at a time.

    Raises:
        LedgerUnavailable: a drain has been writing for `WAIT_S`.
    """
    until = time.monotonic() + WAIT_S
    make_private_folder(journal)
    while True:
        with locked(journal / "drain.lock") as alone:
            if alone:
                yield
                return
        if time.monotonic() > until:
            raise LedgerUnavailable(f"a drain has been writing the store for {WAIT_S:.0f} s")
        time.sleep(0.05)


def _stored(row: StorageRow, day: date, files: Iterable[tuple[int, int]], rates: Rates) -> Stored:
    begin = _start_of(day)
    end = begin + DAY_US
    byte_us = sum(size * max(0, end - max(since, begin)) for size, since in files)
    price = _price_of(rates, row, day)
    rate = rates.rate(price.currency, day)
    if rate is None:
        raise InvalidRequest(
            f"no rate of {price.currency} is known for {day}: add one to ledger.exchange_rates"
        )
    return Stored(
        day=day,
        provider=row.provider,
        bucket=row.bucket,
        byte_us=byte_us,
        per_gb_month=price.price / price.per,
        team=row.team,
        currency=price.currency,
        rate=rate,
        source=f"{price.source}: {price.provider}/{price.model or '*'}@{price.start}",
    )


def _price_of(rates: Rates, row: StorageRow, day: date) -> PriceRow:
    """Return the row in force: the operator's before ours, the bucket's before the provider's."""
    for rows in (rates.own, rates.shipped):
        for model in (row.bucket, ""):
            held = [
                price
                for price in rows
                if (price.provider, price.model, price.unit) == (row.provider, model, "gb_month")
                and price.start <= day
            ]
            if held:
                return max(held, key=lambda price: price.start)
    raise InvalidRequest(
        f"no price of a GB-month is known for {row.provider}/{row.bucket} on {day}: add one with"
        f" `packshot prices add {row.provider}/{row.bucket} --unit gb_month …`; days that have a"
        " price then are booked by the next run"
    )


def _entry(number: int, each: Stored) -> Settled:
    days = monthrange(each.day.year, each.day.month)[1]
    exact = EXACT.divide(
        EXACT.multiply(Decimal(each.byte_us), each.per_gb_month), Decimal(GB * DAY_US * days)
    )
    amount = nanos_of(EXACT.multiply(exact, each.rate))
    begin = _start_of(each.day)
    price = f"{each.per_gb_month:f} {each.currency}/GB-month @{each.day.isoformat()}"
    return Settled(
        attempt=attempt_of(each.day, each.provider, each.bucket),
        number=number,
        held_at=0,
        dispatched_at=begin,
        # The last microsecond of the day: within its month, also on the 31st.
        settled_at=begin + DAY_US - 1,
        outcome="accrual",
        reason="stored",
        dimensions=Dimensions(
            provider=each.provider,
            model=each.bucket,
            team=each.team,
            tags=(f"bucket={each.bucket}",),
        ),
        stored_bytes=each.byte_us // DAY_US,
        account="storage",
        amount=amount,
        storage=amount,
        currency=each.currency,
        original=str(exact),
        rate=str(each.rate),
        price=f"{each.source}: {price}" if each.source else price,
    )


def _start_of(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND_US


def _day_of(at: int) -> date:
    return datetime.fromtimestamp(at // SECOND_US, UTC).date()
