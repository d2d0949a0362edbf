"""The page for Prometheus: exact sums, counters that never fall, bounded labels, sound text."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import InvalidRequest, LedgerUnavailable
from packshot.core.money import NANO
from packshot.ledger import exporter, metrics, names
from packshot.ledger.lag import Lag
from packshot.ledger.metrics import Memory, render_metrics, text_of
from packshot.ledger.settings import CapRow, Settings
from tests.ledger.world import NOW, World, busy

DAY_US = 24 * HOUR_US
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def samples(page: str) -> dict[tuple[str, tuple[str, ...]], Decimal]:
    """Return the values of a page by name and label values, from its text, exactly."""
    exact: dict[tuple[str, tuple[str, ...]], Decimal] = {}
    texts = [line for line in page.splitlines() if not line.startswith("#")]
    parsed = [s for family in text_string_to_metric_families(page) for s in family.samples]
    assert len(texts) == len(parsed)
    for text, sample in zip(texts, parsed, strict=True):
        value = Decimal(text.rpartition(" ")[2])
        assert float(value) == sample.value
        exact[sample.name, tuple(sample.labels.values())] = value
    assert len(exact) == len(texts), "a series stands on the page twice"
    return exact


def values(world: World, metric: names.Metric, **more: object) -> dict[tuple[str, ...], Decimal]:
    page = render_metrics(world.store, world.now, **more)  # pyright: ignore[reportArgumentType]
    return {labels: v for (name, labels), v in samples(page).items() if name == metric.name}


def total(world: World) -> Decimal:
    return Decimal(world.store.query("SELECT sum(amount) FROM entries")[0][0]) / NANO


def counters(page: str) -> dict[tuple[str, tuple[str, ...]], Decimal]:
    own = {metric.name for metric in names.METRICS if metric.kind == "counter"}
    return {key: value for key, value in samples(page).items() if key[0] in own}


def test_cost_plus_and_minus_corrections_is_what_the_ledger_holds(world: World) -> None:
    busy(world)
    moved = values(world, names.CORRECTIONS)
    up = sum(v for (sign, *_), v in moved.items() if sign == "up")
    down = sum(v for (sign, *_), v in moved.items() if sign == "down")
    cost = sum(values(world, names.COST).values())
    assert (up, down) == (Decimal("0.00000095"), Decimal("0.0000009"))
    assert cost + up - down == total(world)


def test_cost_has_the_dimensions_of_the_entry(world: World) -> None:
    world.book(1, stage="caption", provider="openai", model="m", recipe="packshot", device="")
    key = ("caption", "caption", "openai", "m", "red", "packshot", "")
    assert values(world, names.COST) == {key: Decimal("1e-9")}


def test_cost_by_virtual_key(world: World) -> None:
    busy(world)
    assert values(world, names.VIRTUAL_KEY_COST) == {("vk-red", "red"): Decimal("3E-7")}


def test_attempts_and_seconds_leave_out_what_is_no_attempt(world: World) -> None:
    busy(world, renders=2)
    attempts = values(world, names.ATTEMPTS)
    assert {outcome for outcome, *_ in attempts} == {"succeeded", "failed_billed"}
    assert attempts["succeeded", "store", "", ""] == 2
    assert values(world, names.STAGE_SECONDS)["store", "packshot", "red"] == 1


def test_a_void_is_an_attempt_that_cost_nothing(world: World) -> None:
    world.book(0, outcome="failed_free", reason="refused")
    assert values(world, names.ATTEMPTS) == {("failed_free", "denoise", "", ""): 1}
    assert not values(world, names.COST)
    assert not values(world, names.CORRECTIONS)


def test_renders_by_outcome_and_their_cost(world: World) -> None:
    world.render("delivered")
    world.render("under way", delivered=False)
    world.render("lost", delivered=False, at=NOW - 2 * HOUR_US)
    assert values(world, names.RENDERS) == {("delivered",): 1, ("given_up",): 1}
    costs = values(world, names.COST_PER_RENDER)
    assert costs == {("1h",): Decimal("0.000019"), ("24h",): Decimal("0.000028")}


def test_without_a_delivered_render_there_is_no_cost_per_render(world: World) -> None:
    world.render("lost", delivered=False)
    assert not values(world, names.COST_PER_RENDER)


def test_waste_is_counted_by_reason(world: World) -> None:
    busy(world)
    key = ("timeout", "denoise", "stability", "red")
    assert values(world, names.WASTE) == {key: Decimal("5e-7")}
    assert values(world, names.WASTED_ATTEMPTS) == {key: 1}
    by_account = {account: v for (account, *_), v in values(world, names.COST).items()}
    assert by_account["waste"] == Decimal("5e-7")


def test_a_correction_prices_what_was_unpriced(world: World) -> None:
    what = {"provider": "fal", "model": "new"}
    first = world.book(0, priced=False, **what)
    world.book(0, priced=False, **what)
    assert values(world, names.UNPRICED_NOW) == {("fal", "new"): 2}
    world.book(700, outcome="correction", corrects=first.attempt, **what)
    assert values(world, names.UNPRICED_NOW) == {("fal", "new"): 1}
    assert values(world, names.UNPRICED) == {("fal", "new"): 2}


def test_lag_and_backlog(world: World) -> None:
    lag = Lag(Decimal("2.5"), 3)
    assert values(world, names.LAG, lag=lag) == {(): Decimal("2.5")}
    assert values(world, names.BACKLOG, lag=lag) == {(): 3}
    assert values(world, names.DAMAGED, lag=Lag(Decimal(0), 0, 2)) == {(): 2}
    assert not values(world, names.LAG)


@pytest.mark.parametrize(("per", "spent"), [("hour", 1), ("day", 3), ("month", 7), ("ever", 15)])
def test_a_budget_counts_its_own_period(world: World, per: str, spent: int) -> None:
    ages = (0, 2 * HOUR_US, 3 * DAY_US, 40 * DAY_US)
    for i, age in enumerate(ages):
        world.book(2**i * NANO, at=NOW - age)
        world.book(2**i * NANO, at=NOW - age, team="blue")
    cap = CapRow("team", Decimal(10), per, "red")  # pyright: ignore[reportArgumentType]
    key = ("team", "red", per)
    assert values(world, names.BUDGET_USED, caps=[cap]) == {key: spent}
    assert values(world, names.BUDGET_RATIO, caps=[cap]) == {key: Decimal(spent) / 10}
    both = CapRow("total", Decimal(0), per)  # pyright: ignore[reportArgumentType]
    assert values(world, names.BUDGET_USED, caps=[both]) == {("total", "", per): 2 * spent}
    assert values(world, names.BUDGET_RATIO, caps=[both]) == {("total", "", per): 1}


def test_a_budget_s_day_begins_in_its_time_zone(world: World) -> None:
    world.now = NOW + 12 * HOUR_US - SECOND_US  # 23:59:59 UTC, the day after in Berlin
    world.book(NANO, at=NOW)
    cap = CapRow("total", Decimal(1), "day")
    assert values(world, names.BUDGET_USED, caps=[cap], timezone="UTC") == {("total", "", "day"): 1}
    berlin = values(world, names.BUDGET_USED, caps=[cap], timezone="Europe/Berlin")
    assert berlin == {("total", "", "day"): 0}


def test_counters_begin_again_with_the_month_and_keep_their_series(world: World) -> None:
    memory = Memory()
    busy(world)
    before = counters(render_metrics(world.store, world.now, memory=memory))
    world.now += 6 * DAY_US
    after = counters(render_metrics(world.store, world.now, memory=memory))
    assert set(after.values()) == {0}
    assert {key for key in before if key[0] == names.COST.name} == {
        key for key in after if key[0] == names.COST.name
    }
    world.book(5)
    later = counters(render_metrics(world.store, world.now, memory=memory))
    assert sum(v for (name, _), v in later.items() if name == names.COST.name) == Decimal("5e-9")


def test_the_beyond_of_a_label_s_limit_is_other_and_nothing_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "VALUES_PER_LABEL", 2)
    for i, team in enumerate(("a", "b", "c", "d")):
        world.book(10**i, team=team, at=NOW - 30 * DAY_US)  # last month: d and c cost most
        world.book(1, team=team)
    cost = values(world, names.COST)
    assert {labels[4] for labels in cost} == {"c", "d", "other"}
    assert sum(cost.values()) == Decimal("4e-9")


def test_the_beyond_of_a_family_s_limit_is_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SERIES_PER_FAMILY", 3)
    for i in range(6):
        world.book(1, team=f"t{i}", at=NOW - (6 - i) * HOUR_US)
    cost = values(world, names.COST)
    assert len(cost) == 4
    assert cost[("other",) * 7] == Decimal("3e-9")


def test_who_has_a_series_keeps_it_for_the_month(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "VALUES_PER_LABEL", 2)
    memory = Memory()
    seen: dict[tuple[str, tuple[str, ...]], Decimal] = {}
    for team in ("m", "n", "a", "z", "b", "m"):  # "a" would come first by name, within the hour
        world.book(1, team=team)
        page = counters(render_metrics(world.store, world.now, memory=memory))
        assert all(page[key] >= value for key, value in seen.items())
        seen = page
    teams = {labels[4] for name, labels in seen if name == names.COST.name}
    assert teams == {"m", "n", "other"}


def test_with_the_month_those_who_cost_most_get_the_series(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "VALUES_PER_LABEL", 1)
    memory = Memory()
    world.book(1, team="first", at=NOW - HOUR_US)
    world.book(100, team="dear")
    assert {labels[4] for labels in values(world, names.COST, memory=memory)} == {"first", "other"}
    world.now += 6 * DAY_US
    assert {labels[4] for labels in values(world, names.COST, memory=memory)} == {"dear", "other"}


def test_a_late_delivery_does_not_lower_the_counter_of_the_given_up(world: World) -> None:
    memory = Memory()
    world.render("late", delivered=False, at=NOW - 2 * HOUR_US)
    assert values(world, names.RENDERS, memory=memory)["given_up",] == 1
    world.book(1, stage="store", render="late")
    assert values(world, names.RENDERS, memory=memory) == {("delivered",): 1, ("given_up",): 1}


@given(st.text(st.sampled_from('\\"\nn{},= aü'), min_size=1, max_size=20))
@example("\\")
@example("a\nb")
@example('"\\n')
def test_any_label_value_comes_back_as_it_went_in(text: str) -> None:
    page = metrics.family(names.RENDERS, {(text,): 1})
    (family,) = text_string_to_metric_families(page)
    assert [s.labels["outcome"] for s in family.samples] == [text]


def test_a_long_value_is_cut(world: World) -> None:
    world.book(5, account="waste", outcome="failed_billed", reason="x" * 5000)
    ((reason, *_),) = values(world, names.WASTE)
    assert reason == "x" * metrics.LABEL_CHARACTERS


def test_every_family_is_on_the_page_and_no_other(world: World) -> None:
    busy(world)
    page = render_metrics(world.store, world.now, lag=Lag(Decimal(0), 0))
    kinds = {f"# TYPE {metric.name} {metric.kind}" for metric in names.METRICS}
    assert {line for line in page.splitlines() if line.startswith("# TYPE")} == kinds


def test_promtool_finds_nothing_to_say(world: World) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    busy(world)
    page = render_metrics(world.store, world.now, lag=Lag(Decimal("0.25"), 1))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_ledger_that_cannot_be_read_is_down_and_says_why_elsewhere() -> None:
    said: list[str] = []

    def fail() -> str:
        raise LedgerUnavailable("postgresql://user:secret@host is away")

    page = text_of(fail, said.append)
    assert samples(page) == {(names.UP.name, ()): 0}
    assert "secret" not in page
    assert said


def test_a_store_that_is_not_there_is_down(tmp_path: Path) -> None:
    settings = Settings(store=str(tmp_path / "none.db"), journal=tmp_path)
    page = exporter.page_of(settings, Memory(), lambda: NOW)
    assert samples(page) == {(names.UP.name, ()): 0}


def test_the_page_of_a_configured_ledger(world: World) -> None:
    busy(world)
    caps = (CapRow("total", Decimal(1)),)
    settings = Settings(store=str(world.path), journal=world.path.parent / "journal", caps=caps)
    found = samples(exporter.page_of(settings, Memory(), lambda: NOW))
    assert found[names.UP.name, ()] == 1
    assert found[names.BACKLOG.name, ()] == 0
    accrued = Decimal(40) / NANO  # in no cap
    assert found[names.BUDGET_USED.name, ("total", "", "month")] == total(world) - accrued


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "example.org", ""])
def test_it_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(InvalidRequest, match="loopback"):
        exporter.server(str, host, 0)


def test_a_taken_port_is_a_clear_error() -> None:
    first = exporter.server(str, "127.0.0.1", 0)
    with first, pytest.raises(InvalidRequest, match="--port"):
        exporter.server(str, "127.0.0.1", first.server_address[1])


@pytest.fixture
def port() -> Iterator[int]:
    with exporter.server(lambda: "up 1\n", "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


def ask(port: int, path: str, host: str) -> tuple[int, str | None, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()


@pytest.mark.parametrize("host", ["127.0.0.1:9477", "localhost", "[::1]:9477"])
def test_the_server_serves_the_page(port: int, host: str) -> None:
    assert ask(port, "/metrics", host) == (200, metrics.CONTENT_TYPE, b"up 1\n")


@pytest.mark.parametrize(
    ("path", "host", "code"),
    [("/", "localhost", 404), ("/metrics", "evil.example:80", 403), ("/metrics", "", 403)],
)
def test_the_server_serves_nothing_else(port: int, path: str, host: str, code: int) -> None:
    assert ask(port, path, host)[0] == code


def test_the_page_of_metrics_names_each_with_its_labels() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if "packshot_gateway_" not in row]  # tests/gateway has those
    said = {}
    for row in rows:
        name, kind, labels, _ = (cell.strip() for cell in row.strip("|").split("|"))
        said[name.strip("`")] = (kind, tuple(labels.replace("`", "").split(", ")) if labels else ())
    assert said == {m.name: (m.kind, m.labels) for m in names.METRICS}
    for limit in (metrics.VALUES_PER_LABEL, metrics.SERIES_PER_FAMILY, metrics.LABEL_CHARACTERS):
        assert str(limit) in text
