"""The items of a batch, read from CSV, JSON lines or Parquet, row by row and in constant memory.

A row has these columns, of which only ``brief`` must be there (and not even that one, where the
recipe needs no brief):

- ``id``: the caller's name for it; without one it is named after what it asks for;
- ``brief``: what to photograph, or where to put the product;
- ``photo``, ``mask``: files, seen from the folder of the items' file, or ``s3://…`` addresses;
- ``seed``: 0 to 2**63 - 1; without one it follows from the brief and the photo's name, so that the
  same row gives the same picture again;
- ``size``: "WxH" or one number, in pixels; without one the recipe's;
- ``deadline_s``: seconds after the run began by which it is to be made, above 0; it decides the
  place in the line, and whether a hosted provider makes it, and nothing of the picture;
- ``step.parameter``: a parameter of a step of the recipe, for this item alone. In JSON it may be an
  object by the name of the step, too.
"""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from packshot.core.errors import InvalidRequest, OutputError, PackshotError, unknown_name
from packshot.engine.limits import MAX_SEED

__all__ = ["FORMATS", "MAX_ITEMS", "Item", "Value", "read_items"]

COLUMNS = ("id", "brief", "photo", "mask", "seed", "size", "deadline_s")
PARAMETER = re.compile(r"[a-z][a-z0-9_-]*\.[a-z][a-z0-9_]*")

MAX_ITEMS = 10_000_000
"""Rows of one file; what is larger is better rendered in several runs."""

MAX_LINE = 1 << 20
"""Bytes of one row of text: a brief has 1000 characters."""

MAX_DEADLINE_S = 30 * 86400.0
"""Of an item's deadline: no batch runs for longer than a month."""

MAX_ID = 200
"""Characters of an id."""

MAX_SAID = 5
"""Bad rows that an error names; the others are counted."""

PAGE = 1024
"""Rows of a Parquet file that are in memory at once."""

DERIVED_SEEDS = 2**32
"""Seeds that follow from a row are below it, as those that `packshot render` draws."""

Value: TypeAlias = str | int | float | bool | None
Row: TypeAlias = tuple[int, Mapping[str, Any]]
"""A row's number, as an editor shows it, and its cells by column; empty cells are left out."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One thing to be made.

    ``photo`` and ``mask`` are absolute paths or addresses of objects, "" for none. ``size`` is
    "WxH", "" for the recipe's. ``parameters`` are by "step.parameter", as they were written.
    ``named`` tells whether the caller gave the id. ``deadline_s`` is seconds after the run began,
    0 for none.
    """

    id: str
    brief: str
    seed: int
    photo: str = ""
    mask: str = ""
    size: str = ""
    parameters: dict[str, Value] = {}
    named: bool = True
    deadline_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used, and why."""

    row: int
    why: str


def read_items(
    path: Path, *, brief: bool = True, check: Callable[[Item], None] | None = None
) -> Iterator[tuple[int, Item]]:
    """Yield the number and the item of each row; every row is looked at before it fails.

    ``brief`` tells whether the recipe needs one. ``check`` raises what else is wrong with an item.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: it is of no known format, lacks a column or has one that nobody knows, has
            no rows or too many, or rows that cannot be used: those are named at the end.
    """
    problems: list[Problem] = []
    bad = count = 0
    briefs = not brief
    for number, cells in _reader(path)(path):
        count += 1
        briefs = briefs or "brief" in cells
        if count > MAX_ITEMS:
            raise InvalidRequest(f"{path} has more than {MAX_ITEMS} rows: divide it")
        try:
            item = _item(cells, path.parent, brief=brief)
            if check is not None:
                check(item)
        except PackshotError as error:
            bad += 1
            if bad <= MAX_SAID:
                problems.append(Problem(number, str(error)))
            continue
        if not bad:
            yield number, item
    if not count:
        raise InvalidRequest(f"{path} has no rows: expected one for each picture")
    if not briefs:
        raise InvalidRequest(
            f"{path}: no row has a brief, and the recipe needs one: expected a column brief, "
            "what to photograph, or what to put the product on"
        )
    if bad:
        raise InvalidRequest(_all_of(path, problems, bad, count))


def _all_of(path: Path, problems: Sequence[Problem], bad: int, count: int) -> str:
    number = "row" if path.suffix.lower() == ".parquet" else "line"
    said = "; ".join(f"{number} {problem.row}: {problem.why}" for problem in problems)
    more = f"; and {bad - len(problems)} more" if bad > len(problems) else ""
    rows = "row" if bad == 1 else "rows"
    return f"{path}: {bad} {rows} of {count} cannot be used, nothing was begun. {said}{more}"


# ------------------------------------------------------------------------------ a row


def _item(cells: Mapping[str, Any], folder: Path, *, brief: bool) -> Item:
    """Return the item of a row's cells."""
    from packshot.studio.caption import check_brief, check_length

    text = _text(cells, "brief")
    if brief:
        text = check_brief(text)
    else:
        check_length("brief", text)
    parameters = {name: value for name, value in cells.items() if "." in name}
    item = Item(
        "",
        text,
        0,
        _place(_text(cells, "photo"), folder),
        _place(_text(cells, "mask"), folder),
        _text(cells, "size"),
        parameters,
        deadline_s=_deadline(cells["deadline_s"]) if "deadline_s" in cells else 0.0,
    )
    if item.mask and not item.photo:
        raise InvalidRequest("mask is given and photo is not: which photo is it the mask of?")
    shown = (text, _text(cells, "photo"), _text(cells, "mask"))
    seed = int.from_bytes(_sum_of(shown)[:8]) % DERIVED_SEEDS
    if "seed" in cells:
        seed = _seed(cells["seed"])
    item = msgspec.structs.replace(item, seed=seed)
    if "id" in cells:
        return msgspec.structs.replace(item, id=_id(_text(cells, "id")))
    asked = sorted(cell for cell in cells.items() if cell[0] != "deadline_s")
    return msgspec.structs.replace(item, id=_sum_of(asked).hex()[:16], named=False)


def _sum_of(what: object) -> bytes:
    return sha256(msgspec.msgpack.encode(what)).digest()


def _text(cells: Mapping[str, Any], name: str) -> str:
    value = cells.get(name, "")
    if isinstance(value, int) and not isinstance(value, bool) and name == "id":
        return str(value)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is text, got {value!r}")
    return value.strip()


def _id(text: str) -> str:
    if len(text) > MAX_ID or not text.isprintable():
        raise InvalidRequest(f"an id has 1 to {MAX_ID} printable characters, got {text[:60]!r}")
    return text


def _seed(value: object) -> int:
    try:
        seed = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else -1
    except ValueError:
        seed = -1
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(f"seed is {value!r}, expected a whole number from 0 to {MAX_SEED}")
    return seed


def _deadline(value: object) -> float:
    try:
        known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        seconds = float(value) if known else 0.0  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        seconds = 0.0
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise InvalidRequest(
            f"deadline_s is {value!r}, expected seconds after the run began, above 0, at most "
            f"{MAX_DEADLINE_S:.0f}"
        )
    return seconds


def _place(text: str, folder: Path) -> str:
    """Return where a picture is: an address as it is, a path from the root."""
    if not text or "://" in text:
        return text
    if "\0" in text:
        raise InvalidRequest(f"{text!r} is no path")
    return str((folder / Path(text).expanduser()).absolute())


# ------------------------------------------------------------------------------ formats


def _reader(path: Path) -> Callable[[Path], Iterable[Row]]:
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise InvalidRequest(
            f"{path} has no suffix that tells its format: expected {', '.join(FORMATS)}"
        )
    return found


@contextmanager
def _opened(path: Path) -> Generator[io.TextIOWrapper]:
    """Open a text file, whose mistakes of encoding are the caller's."""
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InvalidRequest(
            f"{path} is not UTF-8 text (it has the byte {byte:#04x}): save it as UTF-8"
        ) from error


def _csv(path: Path) -> Iterator[Row]:
    """Read comma-, semicolon- or tab-separated text with a line of names."""
    with _opened(path) as file:
        head = file.readline(MAX_LINE)
        file.seek(0)
        rows = csv.reader(file, delimiter=_delimiter(head), strict=True)
        try:
            names = _columns(path, [name.strip() for name in next(rows, list[str]())])
            for cells in rows:
                if not any(cells):
                    continue
                if len(cells) != len(names):
                    raise InvalidRequest(
                        f"{path}, line {rows.line_num}: {len(cells)} cells, expected "
                        f"{len(names)} as in the first line; is a quote missing?"
                    )
                pairs = zip(names, cells, strict=True)
                yield rows.line_num, {name: cell for name, cell in pairs if cell.strip()}
        except csv.Error as error:
            raise InvalidRequest(
                f"{path}, line {rows.line_num}: {error}; is a quote not closed, or one too many?"
            ) from error


def _delimiter(head: str) -> str:
    """Return what separates the names: spreadsheets write semicolons where a comma is decimal."""
    return max(",;\t", key=head.count)


def _columns(path: Path, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the columns if all are known, and none comes twice."""
    if not any(names):
        raise InvalidRequest(f"{path} has no first line with names: expected {', '.join(COLUMNS)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"{path} has these columns twice: {', '.join(twice)}")
    for name in names:
        _known(path, name)
    return names


def _known(path: Path, name: str) -> None:
    if name not in COLUMNS and PARAMETER.fullmatch(name) is None:
        error = unknown_name("column", name, COLUMNS)
        raise InvalidRequest(
            f"{path}: {error} A recipe's parameter is named with its step, such as render.steps."
        )


def _json_lines(path: Path) -> Iterator[Row]:
    """Read one JSON object a line."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    seen: set[str] = set()
    with _opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InvalidRequest(f"{path}, line {number}: longer than {MAX_LINE} bytes")
            if not line.strip():
                continue
            try:
                cells = _flat(decode(line))
            except msgspec.MsgspecError as error:
                raise InvalidRequest(
                    f"{path}, line {number}: expected one JSON object a line: {error}"
                ) from error
            for name in cells.keys() - seen:
                _known(path, name)
                seen.add(name)
            yield number, cells


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of an object, whose inner objects are steps with parameters."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            inner = cast("dict[str, Any]", value)
            cells.update({f"{name}.{key}": one for key, one in inner.items()})
        elif value is not None and value != "":
            cells[name] = value
    return cells


def _parquet(path: Path) -> Iterator[Row]:
    """Read a Parquet file; it needs pyarrow, which few have."""
    try:
        pa: Any = importlib.import_module("pyarrow")  # it has no types of its own
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f'{path}: Parquet needs pyarrow: pip install "packshot[parquet]"; or give a .csv'
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            _columns(path, names)
            number = 0
            for part in file.iter_batches(batch_size=PAGE):
                for row in cast("list[dict[str, Any]]", part.to_pylist()):
                    number += 1
                    yield number, _flat(row)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InvalidRequest(f"{path} is no Parquet file that can be read: {error}") from error


FORMATS: Mapping[str, Callable[[Path], Iterable[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
"""By suffix."""
