"""`packshot cost`: every report from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packshot.cli.cost import EMPTY, _money, _row, app
from packshot.cli.main import app as main
from packshot.core.errors import InvalidRequest, PackshotError
from packshot.ledger.records import Avoided, Dimensions, Stamped
from packshot.ledger.reports.period import day_of
from packshot.ledger.reports.stages import Line
from packshot.ledger.stores import open_store
from tests.ledger.reports.worlds import DAY, world

Cost = Callable[..., str]
SINCE = ("--since", day_of(DAY))
HITS = (("exact", 1200), ("semantic", 34))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Return a function that runs `packshot cost` where no ledger is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, PackshotError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def cost(empty: Cost, tmp_path: Path) -> Cost:
    """Return the same where the small ledger is."""
    file = tmp_path / "state" / "packshot" / "ledger.db"
    file.parent.mkdir(parents=True)
    store = open_store(str(file))
    store.append(world())
    store.close()
    return empty


def test_stage_table(cost: Cost) -> None:
    said = cost(*SINCE, "--until", "2025-11-09")
    assert "3 renders delivered" in said
    assert "0.002400  77% 0.000800" in said
    assert "+100%" in said
    assert max(map(len, said.splitlines())) <= 80
    rows = json.loads(cost(*SINCE, "--by", "team", "--json"))
    assert [row["name"] for row in rows] == ["red", "blue", "total"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("render", "r0"), "render r0-id: delivered"),
        (("render", "r0"), " EUR, of it waste 0.000"),
        (("render", "x"), "caption, failed_billed: timeout"),
        (("waste", *SINCE), "timeout"),
        (("unpriced", *SINCE), "openai   new"),
        (("forecast", "--renders", "1_000_000", *SINCE), "1,000,000 renders: 1033.33 EUR"),
        (("waste", *SINCE, "--json"), '"amount": 100000'),
        (("waste", *SINCE, "--by", "team", "--model", "gpt-4o"), "timeout red"),
        (("unpriced", *SINCE, "--by", "team"), "red  openai   new"),
        (("unpriced", *SINCE, "--provider", "fal"), "has a price"),
        (
            ("forecast", "--renders", "10", "--since", "2025-11-07", "--until", "2025-11-08"),
            "10 renders: 0.00 EUR\n",
        ),
        (("export", *SINCE, "--json"), '"BilledCost": "0.000200000"'),
        (("export", *SINCE, "--csv", "x.csv"), "x.csv: 11 entries"),
    ],
)
def test_reports(cost: Cost, words: tuple[str, ...], expected: str) -> None:
    said = cost(*words)
    assert expected in said
    if "--json" not in words:
        assert max(map(len, said.splitlines())) <= 80


def test_import(cost: Cost, tmp_path: Path) -> None:
    file = tmp_path / "i.csv"
    file.write_text(f"date,model,amount\n{day_of(DAY)},gpt-4o,0.002\n")
    words = ("import", str(file), "--provider", "openai")
    assert "0.000300" in cost(*words)
    assert "1 correcting entries" in cost(*words, "--correct")
    assert "0 correcting entries" in cost(*words, "--correct")
    with pytest.raises(InvalidRequest, match="--store names a store to read"):
        cost(*words, "--correct", "--store", "state/packshot/ledger.db")


@pytest.mark.parametrize(
    ("nanos", "shown"),
    [
        (0, "0.000000"),
        (1, "<0.000001"),
        (-999, "-0.000001"),
        (1_000, "0.000001"),
        (999_999_999, "1.000000"),
        (1_000_000_000, "1.00"),
    ],
)
def test_little_is_not_shown_as_nothing(nanos: int, shown: str) -> None:
    assert _money(nanos) == shown


@pytest.mark.parametrize(("seconds", "wall"), [(0, "-"), (1, "0%")])
def test_no_seconds_are_not_a_share_of_them(seconds: int, wall: str) -> None:
    line = Line("chat", 1, seconds, 0.0, 5, 1.0, None, None, 5, 5, None, 0)
    assert _row(line, 1.0)[2] == wall


@pytest.mark.parametrize("words", [(), ("waste",), ("unpriced",), ("render", "a")])
def test_an_empty_ledger_says_so(empty: Cost, words: tuple[str, ...]) -> None:
    assert empty(*words) == EMPTY + "\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--by", "nothing"),
        ("--last", "x"),
        ("export",),
        ("forecast", "--renders", "many"),
        ("--store", "none.db"),
    ],
)
def test_a_bad_call(cost: Cost, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        cost(*words)


def test_what_was_avoided_stands_beside_and_in_no_sum(cost: Cost, tmp_path: Path) -> None:
    before = json.loads(cost(*SINCE, "--json"))
    assert "avoided" not in cost(*SINCE)
    of = Dimensions(stage="chat", provider="openai", model="m", route="caption", virtual_key="one")
    rows = [Avoided(DAY, kind, of, hits, hits * 2_000_000) for kind, hits in HITS]
    store = open_store(str(tmp_path / "state" / "packshot" / "ledger.db"))
    store.append([Stamped("saver", 1, seq, each) for seq, each in enumerate(rows, 1)])
    store.close()
    said = cost(*SINCE)
    assert "avoided: 2.47 EUR, 1,234 answers from the cache (packshot cost avoided)" in said
    by_route = cost(*SINCE, "--by", "route")  # a route that only avoided has no row of zeros
    assert "caption" not in by_route
    assert "avoided: 2.47 EUR" in by_route
    assert max(map(len, said.splitlines())) <= 80
    after = json.loads(cost(*SINCE, "--json"))
    assert [(row["avoided"], row["avoided_hits"]) for row in after if row["avoided"]] == [
        (2_468_000_000, 1234)
    ] * 2
    costs = {row["name"]: row["amount"] for row in after if row["amount"]}
    assert costs == {row["name"]: row["amount"] for row in before if row["amount"]}
    done = CliRunner().invoke(main, ["cost", "avoided", *SINCE, "--by", "virtual_key"])
    assert [line.split() for line in done.output.splitlines()] == [
        ["virtual_key", "kind", "answers", "EUR"],
        ["one", "exact", "1,200", "2.400000"],
        ["one", "semantic", "34", "0.068000"],
        ["total", "1,234", "2.468000"],
    ]
    empty = CliRunner().invoke(main, ["cost", "avoided", *SINCE, "--team", "blue"])
    assert "nothing was avoided" in empty.output
