"""``packshot batch``: what is asked, said and returned; the worker's engine is a stub."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packshot.cli.batch_report import show
from packshot.studio.batch.report import Cost, Report
from packshot.studio.batch.state import Counts
from tests.cli.conftest import Packshot
from tests.studio.batch.stub import FACTORY

CONFIG = "ledger: {store: books/ledger.db, journal: books/journal}\n"


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch, packshot: Packshot) -> None:
    monkeypatch.setattr("packshot.studio.batch.perform.FACTORY", FACTORY)
    Path("packshot.yaml").write_text(CONFIG)


def table(*briefs: str) -> str:
    rows = "".join(f"i{k},{brief},{k}\n" for k, brief in enumerate(briefs))
    Path("t.csv").write_text("id,brief,seed\n" + rows)
    return "t.csv"


MUGS = ("red mug", "blue mug", "white shoe", "red bag", "green bottle")


def run(packshot: Packshot, model: str, *words: str, out: str = "out"):
    return packshot("batch", "t.csv", "--model", model, "--out", out, *words)


def manifest_in(folder: str = "out") -> list[dict]:
    (path,) = Path(folder, "manifests").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_from_its_plan_to_its_manifest(packshot: Packshot, model: str) -> None:
    table(*MUGS)
    done = run(packshot, model, "--yes-up-to", "1")
    assert done.code == 0, done.err
    assert "5 pictures delivered" in done.out
    assert max(map(len, done.out.splitlines()[:-2])) <= 80
    head, *rows = manifest_in()
    assert (head["items"], head["delivered"]) == (5, 5)
    assert [row["id"] for row in rows] == [f"i{k}" for k in range(5)]
    for row in rows:
        assert row["state"] == "delivered"
        assert Path("out", row["key"]).stat().st_size == row["bytes"]
        assert row["cost_nano_eur"] > 0
    report = json.loads(next(Path("out/reports").glob("*.json")).read_text())
    assert report["cost_nano_eur"] == sum(row["cost_nano_eur"] for row in rows)
    assert packshot("ledger", "verify").code == 0


def test_the_same_again_costs_nothing_and_has_the_same_manifest(
    packshot: Packshot, model: str
) -> None:
    table(*MUGS)
    run(packshot, model, "--yes-up-to", "1")
    first = manifest_in()
    again = run(packshot, model)
    assert again.code == 0
    assert "5 delivered, 0 to do" in again.out
    assert manifest_in() == first


def test_a_plan_costs_nothing(packshot: Packshot, model: str) -> None:
    table(*MUGS, "red mug")
    done = run(packshot, model, "--dry-run")
    assert done.code == 0
    assert "forecast  none" in done.out
    facts = run(packshot, model, "--dry-run", "--json").json
    assert facts["items"]["left"] == 6
    assert facts["forecast"] is None
    assert not Path("out/objects").exists()


def test_nobody_can_be_asked(packshot: Packshot, model: str) -> None:
    table(*MUGS)
    done = run(packshot, model)
    assert done.code == 2
    assert "nobody can be asked here, so say --yes-up-to EUR" in " ".join(done.err.split())
    assert not Path("out/objects").exists()


def test_a_forecast_above_what_was_agreed_is_refused(packshot: Packshot, model: str) -> None:
    table(*MUGS)
    run(packshot, model, "--yes-up-to", "1")
    table(*(f"mug {k}" for k in range(2000)))
    done = run(packshot, model, "--yes-up-to", "0.000000001")
    assert done.code == 5
    assert "2,000 pictures may cost up to" in done.err
    assert "--yes-up-to says 0.0000" in done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--yes-up-to", "much"), 2, "--yes-up-to must be a decimal number"),
        (("--yes-up-to", "-1"), 2, "must not be negative"),
        (("--recipe", "texd"), 2, "Did you mean 'text'"),
        (("--model", "none"), 3, "no model 'none'"),
        (("--caption", "me"), 2, "unknown caption 'me'"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    packshot: Packshot, model: str, words: tuple[str, ...], code: int, said: str
) -> None:
    table(*MUGS)
    done = packshot("batch", "t.csv", "--out", "out", "--model", model, *words)
    assert done.code == code
    assert said in done.err


def test_a_place_that_cannot_be_written(packshot: Packshot, model: str) -> None:
    table(*MUGS)
    Path("file").write_text("")
    done = run(packshot, model, "--yes-up-to", "1", out="file/out")
    assert done.code == 4
    assert "file" in done.err


def test_what_is_quarantined_is_said_and_may_be_tried_again(packshot: Packshot, model: str) -> None:
    table("red mug", "blue mug refused", "white shoe")
    done = run(packshot, model, "--yes-up-to", "1", "--json")
    assert done.code == 1
    assert done.json["items"]["quarantined"] == 1
    assert done.json["quarantined"] == [{"reason": "nobody can photograph this", "works": 1}]
    bad = manifest_in()[2]
    assert (bad["state"], bad["key"]) == ("quarantined", None)
    assert bad["reason"] == "nobody can photograph this"
    table("red mug", "blue mug", "white shoe")
    assert run(packshot, model, "--yes-up-to", "1", "--retry-quarantined").code == 0


def test_the_report_counts_in_plain_words_and_tells_a_reason_whole(capsys) -> None:
    reason = (
        f"flat.png: where the product is in it is not certain{' x' * 40}. Give --mask a picture"
    )
    costs = (Cost("finish", 1, 0.5, 7_000, priced=True), Cost("denoise", 1, 0.0, 0, priced=True))
    counts = Counts(items=3, works=3, todo=0, made=0, delivered=1, quarantined=2)
    hosted = (("stability/sd3.5-large", 1),)
    show(Report("b", counts, costs, ((reason, 2),), hosted=hosted), "out", "", "")
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    flat = " ".join(said.split())
    assert "1 picture delivered" in flat
    assert f"2 quarantined: {reason}" in flat
    assert "1 picture made by stability/sd3.5-large, a hosted provider" in flat
    assert "finish" in flat
    assert "denoise" not in flat, "the recipe has no such stage"


def test_json_is_one_object(packshot: Packshot, model: str) -> None:
    table(*MUGS)
    facts = run(packshot, model, "--yes-up-to", "1", "--json", "--name", "autumn").json
    assert facts["batch"] == "autumn"
    assert facts["items"]["delivered"] == 5
    assert {cost["account"] for cost in facts["costs"]} >= {"encode", "denoise", "store"}
    assert Path("out", facts["manifest"]).is_file()


def test_ctrl_c_ends_it_and_the_same_command_goes_on(
    packshot: Packshot, model: str, tmp_path: Path
) -> None:
    table(*(f"mug {k}" for k in range(60)))
    script = (
        "import sys; import packshot.studio.batch.perform as p; p.FACTORY = sys.argv.pop(1)\n"
        "import packshot.cli.batch as b; s = b.asdict\n"
        "b.asdict = lambda engine: {**s(engine), 'pause_s': 0.05}\n"
        "from packshot.cli.main import main; main()"
    )
    words = ["batch", "t.csv", "--model", model, "--out", "out", "--yes-up-to", "1"]
    child = subprocess.Popen(
        [sys.executable, "-c", script, FACTORY, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and len(list(Path("out/objects").glob("*/*"))) < 5:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "stopping after what is in work" in err
    assert "run the same command again" in err
    assert "pictures delivered" in said
    kept = len(list(Path("out/objects").glob("*/*")))
    assert 5 <= kept < 60
    assert not Path("out/manifests").exists()
    assert run(packshot, model, "--yes-up-to", "1").code == 0
    assert len(list(Path("out/objects").glob("*/*"))) == 60
    assert packshot("ledger", "verify").code == 0


def test_the_sheet_shows_pictures(packshot: Packshot, model: str, monkeypatch) -> None:
    from PIL import Image

    from packshot.studio.batch.items import Item
    from packshot.studio.batch.report import sample_sheet
    from packshot.studio.batch.state import Delivered, Made, RunState

    state = RunState(Path("run"))
    rows = [(k, bytes([k]), Item(f"i{k}", f"mug {k}", k)) for k in range(3)]
    state.replan(rows, "x")
    for todo in state.waiting("todo"):
        attempt = state.begin(todo.work)
        made = Made(attempt.render, "f", "n", "s", 1, 1, "", {})
        state.made(attempt, made)
        state.deliver(todo.work, Delivered(todo.item.id, new=True))

    class Pictures:
        def read(self, key: str, most: int = 0) -> bytes:
            if key == "i1":
                return b"no picture"
            out = io.BytesIO()
            Image.new("RGB", (64, 32), "#c02020").save(out, "PNG")
            return out.getvalue()

    content = sample_sheet(state, Pictures())
    state.close()
    assert content is not None
    sheet = Image.open(io.BytesIO(content)).convert("RGB")
    assert sheet.size[0] > 2 * 192
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert (192, 32, 32) in colours
