"""Rules and alerts: promtool takes them, they ring when they should, and each has its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.prometheus import ROOT, RULES, tool

UNIT_TESTS = sorted(Path(__file__).parent.glob("*.test.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
HEADINGS = ["What it means", "How bad it is", "First", "How to fix it", "How to tell it is over"]


def alerts() -> list[dict[str, Any]]:
    text = (RULES / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


ALERTS = alerts()


def promtool(*arguments: str, folder: Path) -> None:
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *(str(file) for file in RULES.glob("*.yml")), folder=RULES)


def test_alerts_ring_when_they_should_and_are_quiet_else(tmp_path: Path) -> None:
    for file in (*RULES.glob("*.yml"), *UNIT_TESTS):
        shutil.copy(file, tmp_path)
    promtool("test", "rules", *(file.name for file in UNIT_TESTS), folder=tmp_path)


def test_every_alert_is_unit_tested() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in UNIT_TESTS)
    for alert in ALERTS:
        parts = re.split(r"(?m)^      - ", text)
        own = [part for part in parts if f"alertname: {alert['alert']}" in part]
        assert any("exp_alerts: []" in part for part in own), alert["alert"]
        assert any("exp_alerts: []" not in part for part in own), alert["alert"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_waits_says_how_bad_it_is_and_names_its_page(alert: dict[str, Any]) -> None:
    assert alert["for"]
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert {"summary", "description", "runbook"} == alert["annotations"].keys()
    page = (ROOT / alert["annotations"]["runbook"]).read_text(encoding="utf-8")
    assert f"`{alert['alert']}`" in page
    headings = re.findall(r"(?m)^## (.+)$", page)
    assert headings == HEADINGS
    first = page.partition("## First")[2].partition("\n## ")[0]
    assert len(re.findall(r"(?m)^    \./packshot ", first)) == 3


def test_every_page_belongs_to_an_alert() -> None:
    named = {Path(alert["annotations"]["runbook"]).name for alert in ALERTS}
    assert {page.name for page in RUNBOOKS.glob("*.md")} == named | {"README.md"}
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in index for name in named)
