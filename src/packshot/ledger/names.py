"""The names of every metric that packshot exposes: the one place where they are written down.

Amounts are EUR, times seconds (the base units that Prometheus asks for). docs/metrics.md says the
same for people; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["GATEWAY_STAGES", "METRICS", "Metric", "labelled"]

GATEWAY_STAGES = ("chat", "embeddings", "images", "raw")
"""Stages of calls that belong to no render (`packshot.ledger.records.Dimensions`)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of series: its name, its kind, its labels in their order, and what it tells.

    ``unit``: a counter of whole numbers counts in parts of this; ``bounds`` are a histogram's.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    unit: int = 1
    bounds: tuple[float, ...] = ()


def labelled(names: Sequence[str], values: Sequence[str]) -> str:
    """Return the labels of a series as the text format writes them, without the braces.

    Backslash, quote and newline are escaped, as the format defines.
    """
    pairs = zip(names, values, strict=True)
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


COST = Metric(
    "packshot_cost_eur_total",
    "counter",
    ("account", "stage", "provider", "model", "team", "recipe", "device"),
    "EUR booked, corrections apart.",
)
CORRECTIONS = Metric(
    "packshot_cost_corrections_eur_total",
    "counter",
    ("sign", "provider", "model", "team"),
    'EUR that correcting entries added (sign="up") or took back (sign="down").',
)
VIRTUAL_KEY_COST = Metric(
    "packshot_virtual_key_cost_eur_total",
    "counter",
    ("virtual_key", "team"),
    "EUR booked by virtual key, corrections apart.",
)
ATTEMPTS = Metric(
    "packshot_attempts_total",
    "counter",
    ("outcome", "stage", "provider", "model"),
    "Settled attempts.",
)
STAGE_SECONDS = Metric(
    "packshot_stage_seconds_total",
    "counter",
    ("stage", "recipe", "team"),
    "Seconds spent in a stage.",
)
WASTE = Metric(
    "packshot_waste_eur_total",
    "counter",
    ("reason", "stage", "provider", "team"),
    "EUR billed for what was not delivered.",
)
WASTED_ATTEMPTS = Metric(
    "packshot_wasted_attempts_total",
    "counter",
    ("reason", "stage", "provider", "team"),
    "Attempts that were billed and not delivered.",
)
AVOIDED = Metric(
    "packshot_avoided_cost_eur_total",
    "counter",
    ("kind", "stage", "provider", "model", "team", "virtual_key"),
    "EUR that answers served again would have cost; in no other family.",
)
AVOIDED_HITS = Metric(
    "packshot_avoided_calls_total",
    "counter",
    ("kind", "stage", "provider", "model", "team", "virtual_key"),
    "Answers that were served again.",
)
RENDERS = Metric(
    "packshot_renders_total",
    "counter",
    ("outcome",),
    "Renders that were delivered, or given up (an hour of silence without a picture).",
)
COST_PER_RENDER = Metric(
    "cost_per_render_eur",
    "gauge",
    ("window",),
    "EUR of the renders of the last hour or day, waste included, per delivered render.",
)
UNPRICED = Metric(
    "packshot_unpriced_total",
    "counter",
    ("provider", "model"),
    "Attempts that were booked without a known price.",
)
UNPRICED_NOW = Metric(
    "packshot_unpriced_attempts",
    "gauge",
    ("provider", "model"),
    "Attempts without a known price that no correction has priced yet.",
)
UP = Metric("packshot_ledger_up", "gauge", (), "1 if the ledger can be read, else 0.")
LAG = Metric(
    "packshot_ledger_lag_seconds",
    "gauge",
    (),
    "Age of the oldest settled attempt that is in a journal and not in the store.",
)
BACKLOG = Metric(
    "packshot_ledger_backlog_attempts",
    "gauge",
    (),
    "Settled attempts that are in a journal and not in the store; estimated where they are many.",
)
DAMAGED = Metric(
    "packshot_ledger_damaged_journals",
    "gauge",
    (),
    "Segments of journals in which bytes are no record; what stands around them is stored.",
)
BUDGET_LIMIT = Metric(
    "packshot_budget_limit_eur", "gauge", ("scope", "name", "per"), "The limit of a cap."
)
BUDGET_USED = Metric(
    "packshot_budget_used_eur",
    "gauge",
    ("scope", "name", "per"),
    "EUR booked in the cap's current period, corrections included, open holds not.",
)
BUDGET_RATIO = Metric(
    "packshot_budget_used_ratio",
    "gauge",
    ("scope", "name", "per"),
    "Booked over limit in the cap's current period; 1 for a cap of nothing.",
)

METRICS: tuple[Metric, ...] = (
    COST,
    CORRECTIONS,
    VIRTUAL_KEY_COST,
    ATTEMPTS,
    STAGE_SECONDS,
    WASTE,
    WASTED_ATTEMPTS,
    AVOIDED,
    AVOIDED_HITS,
    RENDERS,
    COST_PER_RENDER,
    UNPRICED,
    UNPRICED_NOW,
    UP,
    LAG,
    BACKLOG,
    DAMAGED,
    BUDGET_LIMIT,
    BUDGET_USED,
    BUDGET_RATIO,
)
