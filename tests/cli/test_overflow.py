"""``packshot render`` where the device is not there: asked for elsewhere, shown and booked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packshot.ledger.stores import open_store
from packshot.providers.fake import Fake
from packshot.providers.fake_script import Fault, Rule, Settings
from packshot.studio.record import read_record
from tests.cli.conftest import Done, Packshot
from tests.studio.batch.stub import FACTORY
from tests.studio.provider import provider

BRIEF = "white sneakers on a sandy beach"
SD = "stability/sd3.5-large"
YAML = """
providers:
  stability:
    base_url: {one}/v2beta
    keys: [{value: env.STABILITY_KEY, name: only}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 2}}
ledger: {gpu_eur_per_hour: {cpu: 0.05}}
studio: {store: ./out, overflow: {to: stability/sd3.5-large, when_wait_exceeds_s: 20}}
"""


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, packshot: Packshot) -> Iterator[Fake]:
    monkeypatch.setenv("STABILITY_KEY", "hush-1")
    with provider(Settings(keys={"hush-1": None})) as fake:
        Path("packshot.yaml").write_text(YAML.replace("{one}", fake.url))
        yield fake


def render(packshot: Packshot, model: str, *words: str) -> Done:
    return packshot(
        "render", BRIEF, "--model", model, "--device", "cuda:99", "--seed", "7", "--out", "x.png",
        *words,
    )  # fmt: skip


def rows(state_home: Path, columns: str) -> list[tuple]:
    store = open_store(str(state_home / "packshot" / "ledger.db"), read_only=True)
    try:
        assert store.verify() == []
        return store.query(f"select {columns} from entries order by seq")  # noqa: S608
    finally:
        store.close()


def test_no_such_device_goes_there_and_says_so(packshot, model, there, state_home) -> None:
    done = render(packshot, model, "--size", "128x64")
    assert (done.code, Path("x.png").is_file()) == (0, True)
    assert "made by stability/sd3.5-large, for no device is alive here" in " ".join(
        done.err.split()
    )
    assert "made by stability/sd3.5-large, a hosted provider" in done.out
    assert " 0.055900000 " in next(row for row in done.out.splitlines() if " denoise " in row)
    assert all(len(line) <= 80 for line in done.out.splitlines())
    record = read_record(Path("x.png"))
    assert record.hosted is not None
    assert (record.hosted.why, record.hosted.seed, record.size) == ("device", 7, (128, 64))
    booked = rows(state_home, "stage, provider, device, amount, tags, outcome")
    assert [row for row in booked if row[1]] == [
        ("denoise", "stability", "", 55_900_000, "key=only,overflow=device", "succeeded")
    ]
    assert sorted(row[0] for row in booked) == ["caption", "denoise", "finish", "store"]
    again = packshot("render", "--like", "x.png")
    assert again.code == 2
    assert "cannot be made again" in again.err


def test_as_json(packshot, model, there, state_home) -> None:
    facts = render(packshot, model, "--json").json
    assert facts["hosted"] == [
        {
            "provider": "stability",
            "model": "sd3.5-large",
            "route": SD,
            "why": "device",
            "seed": 7,
        }
    ]
    assert facts["device"] == SD
    assert facts["cost_nano_eur"] == sum(row[0] for row in rows(state_home, "amount"))


def test_an_outage_there_too_is_one_line_and_1(packshot, model, there) -> None:
    there.rule(Rule(fault=Fault(status=503)))
    done = render(packshot, model)
    assert done.code == 1
    assert "the hosted provider made no picture" in " ".join(done.err.split())
    assert not Path("x.png").exists()


def test_what_the_filter_refused_is_told(packshot, model, there) -> None:
    there.rule(Rule(fault=Fault(code="filter")))
    done = render(packshot, model)
    assert done.code == 1
    assert "content filter" in " ".join(done.err.split())
    assert len(there.truth) == 1


def test_the_budget_of_the_overflow_bounds_it(packshot, model, there, state_home) -> None:
    path = Path("packshot.yaml")
    path.write_text(path.read_text().replace("s: 20}", "s: 20, budget: {eur: 0.10}}"))
    assert render(packshot, model).code == 0
    done = render(packshot, model)
    assert done.code == 1
    assert "studio/overflow" in " ".join(done.err.split())
    assert len(there.truth) == 1
    assert sum(row[0] for row in rows(state_home, "amount") if row[0] == 55_900_000) == 55_900_000


def test_without_an_overflow_it_is_the_mistake_that_it_was(packshot, model) -> None:
    done = render(packshot, model)
    assert done.code == 2
    assert "cuda:99" in done.err


def test_a_device_that_is_there_asks_nobody(packshot, model, there, engine) -> None:
    done = packshot("render", BRIEF, "--model", model, "--seed", "7", "--out", "x.png")
    assert done.code == 0
    assert len(engine.requests) == 1
    assert there.truth == []
    assert there.connections == set()
    assert read_record(Path("x.png")).hosted is None


# ---------------------------------------------------------------- config check


def check(packshot: Packshot, old: str = "", new: str = "") -> Done:
    text = Path("packshot.yaml").read_text()
    Path("packshot.yaml").write_text(text.replace(old, new) if old else text)
    return packshot("config", "check")


def test_config_check_knows_it_and_warns_where_nothing_bounds_it(packshot, there) -> None:
    done = check(packshot)
    assert done.code == 0
    assert "studio.overflow has no budget" in " ".join(done.err.split())
    assert "hush" not in done.out + done.err
    done = check(packshot, "s: 20}", "s: 20, budget: {eur: 5, per: day}}")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("to: stability/sd3.5-large", "to: stability/sd9", "it has sd3.5-large"),
        ("to: stability/sd3.5-large", "to: stabilty/sd3.5-large", "Did you mean 'stability'"),
        ("s: 20}", "s: 0}", "when_wait_exceeds_s is above 0"),
        ("s: 20}", "s: 20, back_below_s: 30}", "back_below_s is 0"),
        ("s: 20}", "s: 20, dwell_s: -1}", "dwell_s is 0 to 3600"),
        ("s: 20}", "s: 20, budget: {eur: -1}}", "eur is 0 to"),
        ("s: 20}", "s: 20, ground_to: openai/x}", "unknown provider 'openai'"),
        ("s: 20}", "s: 20, whn: 1}", "unknown key 'whn'"),
        ("s: 20}", "s: 20, batch: true}", "say what they may cost"),
        ("s: 20}", "s: 20, batch: maybe}", "batch"),
        ("to: stability/sd3.5-large, ", "", "to must be given"),
        (
            "s: 20}",
            "s: 20, budget: {eur: 1}}, gateway_url: 'http://127.0.0.1:9'",
            "cannot bound",
        ),
    ],
)
def test_config_check_refuses_what_could_never_be_meant(packshot, there, old, new, said) -> None:
    done = check(packshot, old, new)
    assert done.code == 2
    assert said in " ".join(done.err.split())


# ---------------------------------------------------------------- batch


def test_a_batch_on_a_device_that_is_not_there_is_made_there(packshot, model, there, state_home):
    Path("briefs.csv").write_text("id,brief,seed\na,white sneakers,1\nb,a red mug,2\n")
    done = packshot(
        "batch", "briefs.csv", "--out", "out", "--model", model, "--device", "cuda:99",
        "--yes-up-to", "5", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["hosted"] == [{"model": SD, "pictures": 2}]
    bought = [row for row in rows(state_home, "provider, batch, tags, amount") if row[0]]
    assert [row[3] for row in bought] == [55_900_000] * 2
    assert {row[2] for row in bought} == {"key=only,overflow=device"}
    assert all(row[1] for row in bought)
    assert len(there.truth) == 2


@pytest.fixture
def batch(packshot: Packshot, model: str, there: Fake, monkeypatch: pytest.MonkeyPatch):
    """``packshot batch`` with a stub in the worker; the ledger knows what its pictures take."""
    monkeypatch.setattr("packshot.studio.batch.perform.FACTORY", FACTORY)

    def run(*words: str) -> Done:
        return packshot("batch", "t.csv", "--out", "out", "--model", model, *words)

    Path("t.csv").write_text("id,brief\na,mug\nb,cup\nc,jug\nd,pot\n")
    assert run("--yes-up-to", "1").code == 0
    return run


LATE = "id,brief,deadline_s\na,red mug,0.000001\nb,red cup,0.000001\nc,red jug,86400\nd,red pot,\n"


def test_the_plan_says_what_goes_out_and_what_that_costs(batch, there) -> None:
    Path("t.csv").write_text(LATE)
    done = batch("--dry-run")
    assert done.code == 0
    assert "about 2 pictures to stability/sd3.5-large, 0.0559 EUR each" in done.out
    assert "about 0.1118 EUR beside the cost here" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert batch("--dry-run", "--json").json["elsewhere"] == {
        "works": 2,
        "to": SD,
        "each": 55_900_000,
        "budget": None,
        "period": "",
        "cost_nano_eur": 111_800_000,
    }
    assert there.truth == []


def test_what_goes_out_counts_against_what_was_agreed(batch, there, state_home) -> None:
    Path("t.csv").write_text(LATE)
    done = batch("--yes-up-to", "0.10")
    assert done.code == 5
    assert "about 2 pictures to stability/sd3.5-large, 0.0559 EUR each" in " ".join(
        done.err.split()
    )
    assert there.truth == []
    assert batch("--yes-up-to", "0.12").code == 0
    bought = [row for row in rows(state_home, "provider, tags, amount, stage") if row[0]]
    assert bought == [("stability", "key=only,overflow=deadline", 55_900_000, "denoise")] * 2
    assert len(there.truth) == 2


def test_the_budget_bounds_what_is_expected_and_what_is_spent(batch, there, state_home) -> None:
    path = Path("packshot.yaml")
    path.write_text(path.read_text().replace("s: 20}", "s: 20, budget: {eur: 0.06}}"))
    Path("t.csv").write_text(LATE)
    assert batch("--dry-run", "--json").json["elsewhere"]["cost_nano_eur"] == 60_000_000
    assert "the overflow's budget: 0.06 EUR (month)" in batch("--dry-run").out
    assert batch("--yes-up-to", "0.05").code == 5
    done = batch("--yes-up-to", "1")
    assert done.code == 0
    assert "stayed here" in " ".join(done.err.split())
    assert "studio/overflow" in done.err
    assert len(there.truth) == 1


def test_a_long_batch_stays_where_nobody_said_otherwise(batch, there) -> None:
    path = Path("packshot.yaml")
    path.write_text(path.read_text().replace("s: 20}", "s: 0.000001}"))
    Path("t.csv").write_text(LATE.replace("0.000001", "").replace("86400", ""))
    assert "elsewhere" not in batch("--dry-run").out
    assert batch("--yes-up-to", "1").code == 0
    assert (there.truth, there.connections) == ([], set())


def test_a_long_batch_goes_out_where_the_operator_says_so(batch, there, state_home) -> None:
    path = Path("packshot.yaml")
    with_budget = "s: 0.000001, batch: true, budget: {eur: 5}}"
    path.write_text(path.read_text().replace("s: 20}", with_budget))
    Path("t.csv").write_text("id,brief\n" + "".join(f"m{n},mug {n}\n" for n in range(40)))
    assert batch("--dry-run", "--json").json["elsewhere"]["works"] == 40
    assert batch("--yes-up-to", "5").code == 0
    bought = [row for row in rows(state_home, "provider, tags, amount") if row[0]]
    assert set(bought) == {("stability", "key=only,overflow=wait", 55_900_000)}
    assert len(there.truth) == len(bought)


# ---------------------------------------------------------------- shoot


MUG = Path(__file__).parents[2] / "examples" / "photos" / "mug.png"


def test_a_shoot_has_its_ground_made_there_and_its_product_kept(
    packshot, model, there, state_home, monkeypatch
) -> None:
    monkeypatch.setattr("packshot.gateway.wire.later.EVERY_S", 0.01)
    path = Path("packshot.yaml")
    ground = "ground_to: stability/replace-background-and-relight, when"
    path.write_text(path.read_text().replace("when", ground))
    done = packshot(
        "shoot", str(MUG), "on wet slate", "--model", model, "--device", "cuda:99", "-n", "2",
        "--seed", "3", "--out", "x.png", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    facts = done.json
    assert len(facts["pictures"]) == 2
    for picture in facts["pictures"]:
        assert Path(picture["path"]).is_file()
        assert {row["check"]: row["value"] for row in picture["verified"]}["core_max"] == 0
    bought = [row for row in rows(state_home, "provider, render, model, amount") if row[0]]
    assert {row[1] for row in bought} == set(facts["renders"])
    assert {row[2:] for row in bought} == {("replace-background-and-relight", 68_800_000)}
    assert facts["cost_nano_eur"] == sum(row[0] for row in rows(state_home, "amount"))
