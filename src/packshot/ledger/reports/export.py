"""All entries, as they are and in the words of FOCUS, the FinOps Foundation's format (1.x).

FOCUS columns have its names; ours follow with ``x_`` before them, as it wants for what it has not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from packshot.core.clock import SECOND_US
from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.money import eur
from packshot.ledger.reports.period import Period, where
from packshot.ledger.stores.base import Store

__all__ = ["COLUMNS", "exported", "focus", "write_csv", "write_parquet"]

COLUMNS = (
    *("seq", "attempt", "held_at", "dispatched_at", "settled_at", "outcome", "reason", "render"),
    *("recipe", "stage", "provider", "model", "route", "virtual_key", "team", "batch", "device"),
    *("tags", "seconds_us", "input_tokens", "cached_tokens", "written_tokens", "output_tokens"),
    *("images", "image_size", "image_quality", "stored_bytes", "requests", "held", "account"),
    *("amount", "payable", "depreciation", "storage", "priced", "currency", "original", "rate"),
    *("price", "corrects", "caps", "worker", "epoch", "number"),
)
"""The columns of ``entries``, without the hash."""

PAGE = 5000


def exported(
    store: Store, period: Period, only: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a period as rows of the export, in the ledger's order."""
    condition, values = where(period, only or {}, "settled_at")
    last = 0
    while rows := store.query(
        f"SELECT {', '.join(COLUMNS)} FROM entries WHERE seq > ? AND {condition}"  # noqa: S608 - names of ours
        " ORDER BY seq LIMIT ?",
        (last, *values, PAGE),
    ):
        last = rows[-1][0]
        for row in rows:
            entry = dict(zip(COLUMNS, row, strict=True))
            yield {**focus(entry), **{f"x_{name}": value for name, value in entry.items()}}


def focus(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's FOCUS columns; costs are exact decimals in EUR."""
    settled = int(entry["settled_at"])
    cost = eur(int(entry["amount"]))
    quantity, unit = _consumed(entry)
    month = datetime.fromtimestamp(settled // SECOND_US, UTC).replace(
        day=1, hour=0, minute=0, second=0
    )
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    tags = _tags(str(entry["tags"]))
    return {
        "BilledCost": cost,
        "EffectiveCost": cost,
        "ListCost": cost,
        "ContractedCost": cost,
        "BillingCurrency": "EUR",
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(following),
        "ChargePeriodStart": _time(int(entry["dispatched_at"]) or settled),
        "ChargePeriodEnd": _time(settled),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if entry["outcome"] == "correction" else None,
        "ChargeDescription": " ".join(filter(None, (entry["account"], entry["reason"]))),
        "ChargeFrequency": "Usage-Based",
        "ProviderName": entry["provider"] or "own devices",
        "PublisherName": entry["provider"] or "own devices",
        "InvoiceIssuerName": entry["provider"] or "own devices",
        "ServiceName": entry["model"] or entry["device"] or entry["account"],
        "ServiceCategory": _category(entry),
        "SubAccountId": entry["virtual_key"] or None,
        "SubAccountName": entry["team"] or None,
        "SkuId": entry["price"] or None,
        "ResourceId": entry["render"] or entry["batch"] or None,
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "Tags": tags,
    }


def write_csv(rows: Iterator[dict[str, Any]], file: Path) -> int:
    """Write rows as CSV and return how many there were.

    Raises:
        OutputError: the file cannot be written.
    """
    count = 0
    try:
        with file.open("w", newline="", encoding="utf-8") as target:
            for count, row in enumerate(map(_flat, rows), 1):
                if count == 1:
                    csv.writer(target).writerow(row)
                csv.writer(target).writerow(row.values())
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error
    return count


def write_parquet(rows: Iterator[dict[str, Any]], file: Path) -> int:
    """Write rows as Parquet, costs as decimals of 9 digits, and return how many there were.

    Raises:
        OutputError: the file cannot be written.
        InvalidRequest: pyarrow is not installed.
    """
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InvalidRequest("--parquet needs pyarrow: install packshot[parquet]") from error
    flat = map(_flat, rows)
    batch = list(islice(flat, PAGE))
    count = 0
    kinds: dict[type[object], Any] = {
        Decimal: arrow.decimal128(38, 9),
        int: arrow.int64(),
        float: arrow.float64(),
    }
    first = batch[0] if batch else {}
    schema = arrow.schema([(name, kinds.get(_kind(first, name), arrow.string())) for name in first])
    try:
        with parquet.ParquetWriter(file, schema) as writer:
            while batch:
                writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
                count += len(batch)
                batch = list(islice(flat, PAGE))
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error}") from error
    return count


def _kind(row: Mapping[str, Any], name: str) -> type[object]:
    # What may be missing in the first row is known by name.
    value: object = row[name]
    return {"per_render": int, "trend": float}.get(name) or value.__class__


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose cells are no mappings: a CSV or Parquet column holds the tags as JSON."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
        for name, value in row.items()
    }


def _tags(joined: str) -> dict[str, str]:
    pairs = (tag.partition("=") for tag in joined.split(",") if tag)
    return {name: value for name, _, value in pairs}


def _category(entry: Mapping[str, Any]) -> str:
    if entry["storage"] or entry["account"] == "storage":
        return "Storage"
    return "AI and Machine Learning" if entry["provider"] else "Compute"


def _consumed(entry: Mapping[str, Any]) -> tuple[Decimal, str]:
    tokens = int(entry["input_tokens"]) + int(entry["output_tokens"])
    if tokens:
        return Decimal(tokens), "Tokens"
    for name, unit in (("images", "Images"), ("stored_bytes", "Bytes"), ("requests", "Requests")):
        if entry[name]:
            return Decimal(int(entry[name])), unit
    return Decimal(int(entry["seconds_us"])).scaleb(-6), "Seconds"


def _time(at: int) -> str:
    return _iso(datetime.fromtimestamp(at // SECOND_US, UTC))


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
