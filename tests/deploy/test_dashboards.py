"""The dashboards: what is committed is what is made, and a real Prometheus answers every query."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from packshot.gateway import names as live
from packshot.gateway import snapshots
from packshot.gateway.snapshots import Snapshot
from packshot.ledger import exporter, names
from packshot.ledger.metrics import Lag, Memory, render_metrics
from packshot.ledger.settings import CapRow
from tests.deploy.prometheus import ROOT, ask, prometheus, wait_for
from tests.ledger.world import World, busy

FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
VARIABLES = {"$__range": "1h", "$__rate_interval": "1m", "$team": ".*"}


def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the generator as a module, without leaving anything of it behind."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    file = ROOT / "deploy" / "make_dashboards.py"
    spec = importlib.util.spec_from_file_location("make_dashboards", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def expressions() -> Iterator[tuple[str, str]]:
    """Yield the title and expression of every query of every panel, its variables filled in."""
    for file in FILES:
        for panel in read(file)["panels"]:
            for target in panel["targets"]:
                expr = target["expr"]
                for variable, value in VARIABLES.items():
                    expr = expr.replace(variable, value)
                yield f"{file.stem}: {panel['title']}", expr


QUERIES = list(expressions())


def test_the_committed_files_are_what_the_generator_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = load(monkeypatch)
    assert {file.stem for file in FILES} == set(make.DASHBOARDS)
    for file in FILES:
        said = "run ./packshot python deploy/make_dashboards.py"
        assert file.read_text(encoding="utf-8") == make.dashboard(file.stem), said


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_is_sound(file: Path) -> None:
    made = read(file)
    assert made["uid"] == f"packshot-{file.stem}"
    assert len(made["uid"]) <= 40
    declared = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(made["panels"])))
    assert used <= declared
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_every_metric_is_shown_and_only_metrics_that_exist() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    recorded = set(re.findall(r"record: (\S+)", rules))
    known = {metric.name for metric in names.METRICS} | recorded
    for metric in live.METRICS:
        known.add(metric.name + ("_bucket" if metric.kind == "histogram" else ""))
    shown: set[str] = set()
    for text in (rules, *(expr for _, expr in QUERIES)):
        shown |= set(re.findall(r"\b(?:packshot[_:]|cost_per)[\w:]+", text)) - {"packshot-cost"}
    assert shown == known


def gateway_page(n: int) -> str:
    """Return the page of a gateway at its ``n``-th scrape; one call in two fails."""
    made = Snapshot()
    for metric in live.METRICS:
        labels = tuple("503" if label == "status" else f"a-{label}" for label in metric.labels)
        if metric.kind == "histogram":
            made.histograms[metric.name] = {labels: [n] * (len(metric.bounds) + 1) + [n]}
        elif metric.kind == "gauge":
            made.gauges[metric.name] = {labels: 1}
        else:
            made.counters[metric.name] = {labels: n * metric.unit}
    requests = made.counters[live.REQUESTS.name]
    requests["chat", "", "openai", "gpt-4o", "200"] = n
    return snapshots.page(made)


def test_the_rules_leave_out_the_same_stages_as_the_dashboards() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    said = set(re.findall(r'stage!~"([^"]*)"', rules))
    assert said == {"|" + "|".join(names.GATEWAY_STAGES)}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Yield the port of a Prometheus that scrapes a ledger in which renders go on being booked."""
    folder = tmp_path_factory.mktemp("prometheus")
    world, memory, done = World(folder), Memory(), threading.Event()
    cap, lag = CapRow("team", Decimal("0.0001"), "month", "red"), Lag(Decimal(1), 1)
    scrapes = count(1)
    busy(world)

    def page() -> str:
        paid = render_metrics(world.store, world.now, lag=lag, caps=[cap], memory=memory)
        return paid + gateway_page(next(scrapes))

    def work() -> None:
        while not done.wait(0.5):
            busy(world, renders=2)

    with exporter.server(page, "127.0.0.1", 0) as running:
        threads = [
            threading.Thread(target=running.serve_forever, args=(0.05,)),
            threading.Thread(target=work),
        ]
        for thread in threads:
            thread.start()
        try:
            with prometheus(folder, running.server_address[1]) as port:
                yield port
        finally:
            done.set()
            running.shutdown()
            for thread in threads:
                thread.join()
            world.store.close()


@pytest.mark.slow
@pytest.mark.parametrize(("title", "expr"), QUERIES, ids=[title for title, _ in QUERIES])
def test_prometheus_answers(asked: int, title: str, expr: str) -> None:
    if "offset 1w" in expr:  # this Prometheus has no last week: it may only be understood
        assert ask(asked, "/api/v1/query", query=expr)["resultType"] == "vector"
        return
    result = wait_for(asked, expr)
    assert result, title
    assert all(float(sample["value"][1]) >= 0 for sample in result)


@pytest.mark.slow
def test_prometheus_computes_the_cost_of_a_render(asked: int) -> None:
    """A round of `busy`: two renders of 10 µEUR, one given up of 9 and 0.5 of waste.

    The ratio of what came in a window comes near it once more than a part of a round was scraped.
    """

    def near(result: list[Any]) -> bool:
        return bool(result) and 0.9e-5 < float(result[0]["value"][1]) < 1.6e-5

    recorded = wait_for(asked, "packshot:cost_per_render_eur:1h", near)
    assert near(recorded), recorded
    (gauge,) = wait_for(asked, 'cost_per_render_eur{window="1h"}')
    assert 1e-5 <= float(gauge["value"][1]) < 1.6e-5


@pytest.mark.slow
def test_shares_of_stages_sum_to_one(asked: int) -> None:
    for rule in ("packshot:stage_cost_ratio:1h", "packshot:stage_time_ratio:1h"):
        result = wait_for(asked, rule)
        assert sum(float(sample["value"][1]) for sample in result) == pytest.approx(1)


@pytest.mark.slow
def test_prometheus_evaluates_every_rule(asked: int) -> None:
    assert wait_for(asked, 'ALERTS{alertname="PackshotUnpriced", alertstate="pending"}')
    groups = ask(asked, "/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} == {"ok"}
