"""The operator's file of prices: a row can be added at its end, and nothing in it is changed."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path

from packshot.core.errors import InvalidRequest, OutputError
from packshot.ledger.prices.book import PriceBook, own_file, own_rows, read_rows
from packshot.ledger.prices.rows import PriceRow
from packshot.ledger.settings import Settings

__all__ = ["add"]

HEAD = "book:\n  prices:\n"


def add(settings: Settings, row: PriceRow) -> Path:
    """Append a row to the operator's file, durably, and return the file's path.

    Raises:
        InvalidRequest: a row of the same thing starts on that day or later, its currency has no
            rate, or the file is not one that rows can be appended to.
        OutputError: the file cannot be read or written.
    """
    path = own_file(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            # Two that add at once: the second checks against what the first has written.
            fcntl.flock(file, fcntl.LOCK_EX)
            _check(settings, row)
            file.seek(0)
            before = file.read()
            line = _line(before, row)
            _try(before + line, row, path)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _check(settings: Settings, row: PriceRow) -> None:
    own, rates = own_rows(settings)
    same = [each for each in own if _thing(each) == _thing(row)]
    latest = max((each.start for each in same), default=None)
    if latest is not None and row.start <= latest:
        raise InvalidRequest(
            f"a price of {row.name} holds from {latest} already, got {row.start}; what was charged "
            f"does not change, so date the new one later"
        )
    PriceBook.load((*own, row), rates)


def _thing(row: PriceRow) -> tuple[str, ...]:
    return row.provider, row.model, row.unit, row.size, row.quality, row.tier


def _line(before: bytes, row: PriceRow) -> bytes:
    fields: dict[str, str | int] = {
        "provider": row.provider,
        "model": row.model,
        "unit": row.unit,
        "price": f"{row.price:f}",
        "currency": row.currency,
        "per": row.per,
        "since": row.start.isoformat(),
        "size": row.size,
        "quality": row.quality,
        "tier": row.tier,
        "source": row.source,
    }
    head = HEAD if not before.strip() else "" if before.endswith(b"\n") else "\n"
    # JSON is YAML, and quotes what needs it.
    return f"{head}    - {json.dumps(fields, ensure_ascii=False)}\n".encode()


def _try(text: bytes, row: PriceRow, path: Path) -> None:
    """Read the file as it would be, so that the one that is there is never broken."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as trial:
        trial.write(text)
        trial.flush()
        try:
            rows, _ = read_rows(Path(trial.name))
        except InvalidRequest as error:
            message = str(error).replace(trial.name, str(path))
            raise InvalidRequest(
                f"a row cannot be appended: {message}; `prices:` must be the last list of the file"
            ) from error
    if not rows or rows[-1] != row:
        raise InvalidRequest(f"{path} would not give the row back: expected {row}, got {rows[-1:]}")
