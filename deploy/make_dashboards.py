"""Makes the Grafana dashboards in ``deploy/grafana/``: run it after a change here, and commit both.

The JSON is of Grafana 11's schema (39). What is shown is written down here once, as rows of panels;
names of metrics come from `packshot.ledger.names` and `packshot.gateway.names`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packshot.gateway import names as live
from packshot.ledger import names

FOLDER = Path(__file__).parent / "grafana"
SCHEMA = 39
WIDTH = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

OF_RENDERS = 'stage!~"|' + "|".join(names.GATEWAY_STAGES) + '"'
TEAM = 'team=~"$team"'
COST, WASTE = names.COST.name, names.WASTE.name
SECONDS, RENDERS = names.STAGE_SECONDS.name, names.RENDERS.name


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: its title, its kind in Grafana, its unit there, and expressions by legend."""

    title: str
    kind: str
    unit: str
    queries: dict[str, str]
    width: int = 12
    help: str = ""


def spent(by: str, where: str = TEAM, over: str = "$__range", metric: str = COST) -> str:
    """Return the expression for EUR by a label over a time."""
    return f"sum by ({by}) (increase({metric}{{{where}}}[{over}]))"


def share(by: str, metric: str, where: str) -> str:
    """Return the expression for the share of each value of a label, 0 to 1."""
    one = f"increase({metric}{{{where}}}[$__range])"
    return f"sum by ({by}) ({one}) / on () group_left () (sum({one}) > 0)"


COST_PER_RENDER = [
    Panel(
        "Cost per render, last hour",
        "stat",
        "currencyEUR",
        {"EUR": f'{names.COST_PER_RENDER.name}{{window="1h"}}'},
        6,
        "From the ledger itself: corrections and waste are in it.",
    ),
    Panel(
        "Cost per render, last day",
        "stat",
        "currencyEUR",
        {"EUR": f'{names.COST_PER_RENDER.name}{{window="24h"}}'},
        6,
    ),
    Panel(
        "Against a week ago",
        "stat",
        "percentunit",
        {
            "change": "packshot:cost_per_render_eur:1d"
            " / (packshot:cost_per_render_eur:1d offset 1w) - 1"
        },
        6,
    ),
    Panel("Ledger is behind by", "stat", "s", {"lag": names.LAG.name}, 6),
    Panel(
        "Cost per render",
        "timeseries",
        "currencyEUR",
        {
            "ledger, last hour": f'{names.COST_PER_RENDER.name}{{window="1h"}}',
            "rule, last hour": "packshot:cost_per_render_eur:1h",
            "rule, last day": "packshot:cost_per_render_eur:1d",
        },
        24,
    ),
    Panel(
        "Renders",
        "timeseries",
        "short",
        {"{{outcome}}": f"sum by (outcome) (increase({RENDERS}[$__rate_interval]))"},
    ),
    Panel(
        "Attempts",
        "timeseries",
        "short",
        {"{{outcome}}": f"sum by (outcome) (increase({names.ATTEMPTS.name}[$__rate_interval]))"},
    ),
]
STAGES = [
    Panel(
        "Share of cost",
        "piechart",
        "percentunit",
        {"{{stage}}": share("stage", COST, f"{OF_RENDERS},{TEAM}")},
    ),
    Panel(
        "Share of time",
        "piechart",
        "percentunit",
        {"{{stage}}": share("stage", SECONDS, f"{OF_RENDERS},{TEAM}")},
    ),
    Panel(
        "Share of cost, hour by hour",
        "timeseries",
        "percentunit",
        {"{{stage}}": "packshot:stage_cost_ratio:1h"},
    ),
    Panel(
        "Share of time, hour by hour",
        "timeseries",
        "percentunit",
        {"{{stage}}": "packshot:stage_time_ratio:1h"},
    ),
    Panel(
        "EUR by provider and model",
        "table",
        "currencyEUR",
        {"{{provider}} {{model}}": spent("provider, model", f"{OF_RENDERS},{TEAM}")},
    ),
    Panel(
        "EUR by device and account",
        "table",
        "currencyEUR",
        {"{{device}} {{account}}": spent("device, account")},
    ),
]
TEAMS = [
    Panel("EUR by team", "bargauge", "currencyEUR", {"{{team}}": spent("team")}),
    Panel(
        "Budget used",
        "bargauge",
        "percentunit",
        {"{{scope}} {{name}} per {{per}}": names.BUDGET_RATIO.name},
    ),
    Panel(
        "EUR per day",
        "timeseries",
        "currencyEUR",
        {"{{team}}": 'packshot:team_cost_eur:1d{team=~"$team"}'},
        24,
    ),
    Panel("EUR by recipe", "table", "currencyEUR", {"{{recipe}}": spent("team, recipe")}),
    Panel(
        "EUR by virtual key",
        "table",
        "currencyEUR",
        {"{{virtual_key}}": spent("team, virtual_key", metric=names.VIRTUAL_KEY_COST.name)},
    ),
    Panel(
        "EUR by provider and model",
        "table",
        "currencyEUR",
        {"{{provider}} {{model}}": spent("provider, model")},
    ),
    Panel(
        "EUR avoided by answers from the cache",
        "timeseries",
        "currencyEUR",
        {
            "{{kind}} {{team}}": spent(
                "kind, team", over="$__rate_interval", metric=names.AVOIDED.name
            )
        },
    ),
    Panel(
        "Answers from the cache by virtual key",
        "table",
        "short",
        {"{{virtual_key}}": spent("team, virtual_key", metric=names.AVOIDED_HITS.name)},
    ),
    Panel(
        "EUR spent, and limit",
        "table",
        "currencyEUR",
        {
            "spent {{scope}} {{name}}": names.BUDGET_USED.name,
            "limit {{scope}} {{name}}": names.BUDGET_LIMIT.name,
        },
    ),
]
WASTED = [
    Panel(
        "Share of cost that is waste",
        "stat",
        "percentunit",
        {"waste": "packshot:waste_ratio:1h"},
        6,
    ),
    Panel(
        "EUR wasted",
        "stat",
        "currencyEUR",
        {"EUR": f"sum(increase({WASTE}{{{TEAM}}}[$__range]))"},
        6,
    ),
    Panel(
        "Renders given up",
        "stat",
        "short",
        {"renders": f'sum(increase({RENDERS}{{outcome="given_up"}}[$__range]))'},
        6,
    ),
    Panel(
        "Attempts without a price",
        "stat",
        "short",
        {"attempts": f"sum({names.UNPRICED_NOW.name}) or vector(0)"},
        6,
    ),
    Panel(
        "EUR by reason",
        "timeseries",
        "currencyEUR",
        {"{{reason}}": spent("reason", over="$__rate_interval", metric=WASTE)},
        24,
    ),
    Panel(
        "Where",
        "table",
        "currencyEUR",
        {"{{stage}} {{provider}}": spent("reason, stage, provider", metric=WASTE)},
    ),
    Panel(
        "How often",
        "table",
        "short",
        {"{{reason}}": spent("reason, provider", metric=names.WASTED_ATTEMPTS.name)},
    ),
    Panel(
        "Corrections",
        "timeseries",
        "currencyEUR",
        {
            "{{sign}} {{provider}}": f"sum by (sign, provider)"
            f" (increase({names.CORRECTIONS.name}[$__rate_interval]))"
        },
    ),
    Panel(
        "Booked without a price",
        "timeseries",
        "short",
        {"{{provider}} {{model}}": f"increase({names.UNPRICED.name}[$__rate_interval])"},
    ),
    Panel(
        "Attempts not yet in the store, and damaged journals",
        "timeseries",
        "short",
        {"attempts": names.BACKLOG.name, "damaged journals": names.DAMAGED.name},
    ),
    Panel("Ledger can be read", "timeseries", "short", {"up": names.UP.name}),
]


def rate(metric: live.Metric, by: str, where: str = "") -> str:
    """Return the expression for a counter's increase per second by labels."""
    return f"sum by ({by}) (rate({metric.name}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: live.Metric, by: str = "") -> str:
    """Return the expression for a quantile of a histogram."""
    buckets = f"rate({metric.name}_bucket[$__rate_interval])"
    return f"histogram_quantile({share:g}, sum by ({f'le, {by}' if by else 'le'}) ({buckets}))"


GATEWAY = [
    Panel("Workers", "stat", "short", {"workers": live.WORKERS.name}, 4),
    Panel("Share of errors", "stat", "percentunit", {"5xx": "packshot:gateway_error_ratio:5m"}, 4),
    Panel(
        "Overhead, 99 %", "stat", "s", {"overhead": "packshot:gateway_overhead_seconds:p99_5m"}, 4
    ),
    Panel("In flight", "stat", "short", {"requests": live.IN_FLIGHT.name}, 4),
    Panel(
        "Keys that are out", "stat", "short", {"keys": f"sum({live.KEY_OUT.name}) or vector(0)"}, 4
    ),
    Panel("Own errors", "stat", "short", {"errors": f"increase({live.ERRORS.name}[$__range])"}, 4),
    Panel(
        "Requests per second",
        "timeseries",
        "reqps",
        {"{{route}} {{status}}": rate(live.REQUESTS, "route, status")},
    ),
    Panel(
        "Duration, 95 %",
        "timeseries",
        "s",
        {"{{route}} {{model}}": quantile(0.95, live.DURATION, "route, model")},
    ),
    Panel(
        "First byte of a stream, 95 %",
        "timeseries",
        "s",
        {"{{route}} {{model}}": quantile(0.95, live.FIRST_BYTE, "route, model")},
    ),
    Panel(
        "Overhead",
        "timeseries",
        "s",
        {"median": quantile(0.5, live.OVERHEAD), "99 %": quantile(0.99, live.OVERHEAD)},
        help="Time of a request that was not spent waiting for a provider.",
    ),
    Panel(
        "Attempts per second",
        "timeseries",
        "reqps",
        {"{{provider}} {{outcome}}": rate(live.ATTEMPTS, "provider, outcome")},
    ),
    Panel(
        "Retries and fallbacks per second",
        "timeseries",
        "reqps",
        {
            "retry {{provider}}: {{why}}": rate(live.RETRIES, "provider, why"),
            "fallback to {{provider}}": rate(live.FALLBACKS, "provider"),
            "refused {{provider}}": rate(live.REFUSED_RETRIES, "provider"),
        },
    ),
    Panel(
        "Circuit breakers",
        "timeseries",
        "short",
        {
            "open {{provider}} {{key}} {{model}}": live.BREAKER_OPEN.name,
            "opened {{provider}} {{model}}": f"increase({live.OPENED.name}[$__rate_interval])",
        },
    ),
    Panel(
        "Keys",
        "timeseries",
        "short",
        {
            "rests {{provider}} {{key}}": live.KEY_RESTS.name,
            "out {{provider}} {{key}}: {{why}}": live.KEY_OUT.name,
        },
    ),
    Panel(
        "Tokens per second",
        "timeseries",
        "short",
        {"{{direction}} {{model}}": rate(live.TOKENS, "direction, model")},
    ),
    Panel(
        "EUR per hour",
        "timeseries",
        "currencyEUR",
        {"{{route}} {{model}}": f"3600 * {rate(live.COST, 'route, model')}"},
        help="Known when a request ended; the ledger has it all.",
    ),
    Panel(
        "Connections",
        "timeseries",
        "short",
        {
            "{{state}} {{provider}}": live.CONNECTIONS.name,
            "waiting {{provider}}": live.WAITING.name,
            "streams read on": live.DRAINS.name,
        },
    ),
    Panel(
        "Shared limits, and telemetry that was dropped",
        "timeseries",
        "short",
        {
            "workers without them": live.LIMITS_AWAY.name,
            "decided alone": f"increase({live.LOCAL_LIMITS.name}[$__rate_interval])",
            "dropped {{what}}": f"increase({live.DROPPED.name}[$__rate_interval])",
        },
    ),
    Panel(
        "Response cache, calls per second",
        "timeseries",
        "short",
        {"{{result}}": f"sum by (result) (rate({live.CACHE.name}[$__rate_interval]))"},
    ),
    Panel(
        "EUR per hour that the cache saved",
        "timeseries",
        "currencyEUR",
        {
            "{{route}} {{kind}}": (
                f"3600 * sum by (route, kind) (rate({live.CACHE_SAVED.name}[$__rate_interval]))"
            )
        },
    ),
    Panel(
        "Semantic hits that were checked",
        "timeseries",
        "short",
        {
            "{{route}} {{verdict}}": f"increase({live.CACHE_CHECKS.name}[$__rate_interval])",
            "{{route}} is off": live.CACHE_OFF.name,
        },
    ),
    Panel(
        "Texts that a provider was asked to embed",
        "timeseries",
        "short",
        {"{{result}}": rate(live.CACHE_EMBEDDINGS, "result")},
    ),
    Panel(
        "Answers in memory",
        "timeseries",
        "short",
        {"answers": live.CACHE_ENTRIES.name, "bytes": live.CACHE_BYTES.name},
    ),
]
DASHBOARDS = {
    "gateway": ("Gateway", GATEWAY),
    "cost-per-render": ("Cost per render", COST_PER_RENDER),
    "stages": ("Stage shares", STAGES),
    "teams": ("Teams and budgets", TEAMS),
    "waste": ("Waste", WASTED),
}


def panel_json(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    """Return a panel as Grafana reads it, at its place on the grid."""
    instant = panel.kind in {"table", "piechart", "bargauge", "stat"}
    targets = [
        {
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend,
            "refId": chr(ord("A") + i),
            "instant": instant,
            "range": not instant,
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for i, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": targets,
    }


def placed(panels: list[Panel]) -> list[dict[str, Any]]:
    """Return the panels from left to right, a row begun where one would not fit."""
    x = y = 0
    made: list[dict[str, Any]] = []
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        made.append(panel_json(number, panel, x, y))
        x += panel.width
    return made


def variables() -> list[dict[str, Any]]:
    """Return what the viewer picks: the Prometheus to ask, and teams."""
    team = {
        "name": "team",
        "label": "Team",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({COST}, team)", "refId": "team"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    return [source, team]


def dashboard(key: str) -> str:
    """Return the text of a dashboard's file."""
    title, panels = DASHBOARDS[key]
    made = {
        "uid": f"packshot-{key}",
        "title": f"packshot: {title}",
        "tags": ["packshot"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "time": {"from": "now-24h", "to": "now"},
        "refresh": "1m",
        "templating": {"list": variables()},
        "panels": placed(panels),
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard(name), encoding="utf-8")
