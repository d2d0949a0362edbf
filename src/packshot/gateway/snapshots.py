"""One page of metrics for N workers: each writes what it counted once a second, one adds it up.

A worker's file is replaced whole (written beside it, then renamed), so a reader sees the one before
or the one after. A worker that starts again under the same name reads its file first and counts on
from there: what a dead worker had counted stays. Gauges count only while a worker is alive.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import msgspec

from packshot.core.errors import OutputError
from packshot.gateway.names import METRICS, OTHER, WORKERS, Metric
from packshot.ledger.names import labelled
from packshot.ledger.private import make_private_folder, write_private

__all__ = [
    "CONTENT_TYPE",
    "FRESH_US",
    "Snapshot",
    "add_up",
    "begin",
    "merge",
    "page",
    "read",
    "write",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FRESH_US = 10_000_000
"""A worker that wrote nothing for so long is not alive: ten times the interval."""

MODELS = 200
"""Models that have series of their own on a page; those of the configuration come first."""

SUFFIX = ".metrics"

Labels: TypeAlias = tuple[str, ...]


class Snapshot(msgspec.Struct):
    """What one worker counted, by metric; ``at`` is when, in µs since 1970.

    A histogram's numbers are its buckets (not cumulative; the last is beyond all bounds) and,
    behind them, the sum of seconds. ``models`` are those that have series, with when they were
    first seen: 0 for the configuration's.
    """

    at: int = 0
    counters: dict[str, dict[Labels, int]] = msgspec.field(
        default_factory=dict[str, dict[Labels, int]]
    )
    histograms: dict[str, dict[Labels, list[float]]] = msgspec.field(
        default_factory=dict[str, dict[Labels, list[float]]]
    )
    gauges: dict[str, dict[Labels, float]] = msgspec.field(
        default_factory=dict[str, dict[Labels, float]]
    )
    models: dict[str, int] = msgspec.field(default_factory=dict[str, int])


def begin(folder: Path) -> None:
    """Start all counters from 0: for the gateway's start, before its workers'.

    Raises:
        OutputError: the folder cannot be used.
    """
    try:
        make_private_folder(folder)
        for old in folder.glob(f"*{SUFFIX}"):
            old.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: {error}: metrics are kept there; see server.state") from error


def write(folder: Path, worker: str, snapshot: Snapshot) -> None:
    """Replace a worker's file.

    Raises:
        OSError: it cannot be written; the one before is untouched.
    """
    beside = folder / f".{worker}.{os.getpid()}"
    write_private(beside, msgspec.msgpack.encode(_flat(snapshot)))
    beside.replace(folder / f"{worker}{SUFFIX}")


def read(folder: Path, worker: str) -> Snapshot | None:
    """Return what a worker wrote last; None where there is nothing, or nothing that is whole."""
    return _read(folder / f"{worker}{SUFFIX}")


def merge(folder: Path, now: int) -> Snapshot:
    """Return the sum over all workers, at ``now`` (µs since 1970)."""
    found = [each for path in sorted(folder.glob(f"*{SUFFIX}")) if (each := _read(path))]
    total = Snapshot(now)
    alive = 0
    for each in found:
        for model, seen in each.models.items():
            total.models[model] = min(seen, total.models.get(model, seen))
    by_age = sorted(total.models, key=lambda model: (total.models[model], model))
    total.models = {model: total.models[model] for model in by_age[:MODELS]}
    for each in found:
        _add(total, each)
        if now - each.at <= FRESH_US:
            alive += 1
            for name, rows in each.gauges.items():
                mine = total.gauges.setdefault(name, {})
                for labels, value in rows.items():
                    labels = _kept(name, labels, total.models)  # noqa: PLW2901
                    mine[labels] = mine.get(labels, 0) + value
    total.gauges[WORKERS.name] = {(): alive}
    return total


def page(total: Snapshot) -> str:
    """Return the page for Prometheus (text format 0.0.4)."""
    parts: list[str] = []
    for metric in METRICS:
        lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        if metric.kind == "histogram":
            for labels, numbers in sorted(total.histograms.get(metric.name, {}).items()):
                lines += _histogram(metric, labels, numbers)
        else:
            rows = (total.gauges if metric.kind == "gauge" else total.counters).get(metric.name, {})
            for labels, value in sorted((rows or ({} if metric.labels else {(): 0})).items()):
                lines.append(
                    f"{_series(metric.name, metric.labels, labels)} {_number(metric, value)}"
                )
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def add_up(into: Snapshot, base: Snapshot) -> Snapshot:
    """Add what was counted before to what is counted now; return it."""
    for model, seen in base.models.items():
        into.models[model] = min(seen, into.models.get(model, seen))
    _add(into, base)
    return into


def _add(total: Snapshot, each: Snapshot) -> None:
    for name, rows in each.counters.items():
        mine = total.counters.setdefault(name, {})
        for labels, value in rows.items():
            labels = _kept(name, labels, total.models)  # noqa: PLW2901
            mine[labels] = mine.get(labels, 0) + value
    for name, table in each.histograms.items():
        sums = total.histograms.setdefault(name, {})
        for labels, numbers in table.items():
            labels = _kept(name, labels, total.models)  # noqa: PLW2901
            before = sums.get(labels)
            if before is None:
                sums[labels] = list(numbers)
            elif len(before) == len(numbers):  # bounds of another version are not added up
                sums[labels] = [a + b for a, b in zip(before, numbers, strict=True)]


MODEL_AT = {
    metric.name: (metric.labels.index("provider"), metric.labels.index("model"))
    for metric in METRICS
    if "model" in metric.labels
}


def _kept(name: str, labels: Labels, models: Mapping[str, int]) -> Labels:
    """Return labels in which a model that has no series is "other"."""
    at = MODEL_AT.get(name)
    if at is None or not labels[at[1]] or f"{labels[at[0]]}/{labels[at[1]]}" in models:
        return labels
    return (*labels[: at[1]], OTHER, *labels[at[1] + 1 :])


def _flat(snapshot: Snapshot) -> tuple[int, Rows, Rows, Rows, dict[str, int]]:
    """Return it without tuples as keys, which msgpack cannot have."""
    return (
        snapshot.at,
        _rows(snapshot.counters),
        _rows(snapshot.histograms),
        _rows(snapshot.gauges),
        snapshot.models,
    )


Number: TypeAlias = "int | float | list[float]"
Rows: TypeAlias = dict[str, list[tuple[Labels, Number]]]


def _rows(tables: Mapping[str, Mapping[Labels, Number]]) -> Rows:
    return {name: list(table.items()) for name, table in tables.items()}


COUNTS = dict[str, list[tuple[Labels, int]]]
TABLES = dict[str, list[tuple[Labels, list[float]]]]
GAUGES = dict[str, list[tuple[Labels, float]]]
DECODER = msgspec.msgpack.Decoder(tuple[int, COUNTS, TABLES, GAUGES, dict[str, int]])


def _read(path: Path) -> Snapshot | None:
    with suppress(OSError, msgspec.MsgspecError):
        at, counters, histograms, gauges, models = DECODER.decode(path.read_bytes())
        return Snapshot(
            at,
            {name: dict(rows) for name, rows in counters.items()},
            {name: dict(rows) for name, rows in histograms.items()},
            {name: dict(rows) for name, rows in gauges.items()},
            models,
        )
    return None


def _histogram(metric: Metric, labels: Labels, numbers: list[float]) -> Iterable[str]:
    sums = [int(each) for each in accumulate(numbers[:-1])]
    # Most lines of a page are buckets, so their labels are written once for all of them.
    named = labelled(metric.labels, labels)
    before = f"{metric.name}_bucket{{{named}{',' if named else ''}le="
    for bound, count in zip((*metric.bounds, None), sums, strict=True):
        shown = "+Inf" if bound is None else f"{bound:.6g}"
        yield f'{before}"{shown}"}} {count}'
    yield f"{_series(metric.name + '_sum', metric.labels, labels)} {numbers[-1]:.9g}"
    yield f"{_series(metric.name + '_count', metric.labels, labels)} {sums[-1]}"


def _number(metric: Metric, value: float) -> str:
    if metric.unit != 1:
        return f"{Decimal(int(value)) / metric.unit:f}"
    return f"{value:d}" if isinstance(value, int) else f"{value:g}"


def _series(name: str, names: Labels, labels: Labels) -> str:
    named = labelled(names, labels)
    return f"{name}{{{named}}}" if named else name
