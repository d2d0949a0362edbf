"""The plan: every choice checked before torch, everything that follows worked out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from packshot.core.errors import (
    InvalidRequest,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
    OutputError,
    UnknownConcept,
    UnsafeModel,
)
from packshot.studio.plan import Options, plan, plan_like
from packshot.studio.record import Maker
from packshot.studio.render import record_of
from tests.studio.stub import NATIVE, StubEngine, make_folder

BRIEF = "white sneakers on a sandy beach"


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options(BRIEF, model=str(folder), out=str(tmp_path / "out"), seed=7)


def test_what_follows_from_a_brief(options: Options, tmp_path: Path) -> None:
    planned = plan(replace(options, count=2, size="128"))
    request = planned.request
    assert request.prompt == planned.caption.text
    assert request.prompt.startswith("white sneakers on a sandy beach, soft light")
    assert request.seeds == (7, 8)
    assert (request.width, request.height) == (NATIVE, NATIVE)
    assert planned.size == (128, 128)
    assert [t.path.name for t in planned.targets] == [
        "white-sneakers-on-a-sandy-beach-7.png",
        "white-sneakers-on-a-sandy-beach-8.png",
    ]
    assert planned.usage.stage == "caption"
    assert planned.warnings == ()
    assert list((tmp_path / "out").iterdir()) == []


def test_no_seed_means_another_each_time(options: Options) -> None:
    seeds = {plan(replace(options, seed=None)).request.seeds[0] for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_raw_is_passed_on_and_another_shape_is_said(options: Options) -> None:
    planned = plan(replace(options, brief=" a thing ", raw=True, size="128x64"))
    assert planned.request.prompt == "a thing"
    assert "margins are cut off for 128x64" in planned.warnings[-1]


def test_a_size_is_rendered_at_the_nearest_bucket_and_that_is_said(options: Options) -> None:
    options = replace(options, buckets=((64, 64), (96, 64), (1024, 1024)))
    planned = plan(replace(options, size="120x88"))
    assert (planned.request.width, planned.request.height) == (96, 64)
    assert planned.size == (120, 88)
    assert "120x88 is rendered as 96x64, its margins cut off, and resized" in planned.warnings
    same = plan(replace(options, size="192x128"))
    assert "192x128 is rendered as 96x64, and resized" in same.warnings
    for size, made in (("96x64", (96, 64)), (None, (64, 64))):
        exact = plan(replace(options, size=size))
        assert (exact.request.width, exact.request.height) == exact.size == made
        assert not any("rendered as" in text for text in exact.warnings)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"brief": "  "}, InvalidRequest, "the brief is empty"),
        ({"brief": "x" * 2000}, InvalidRequest, "at most 1000"),
        ({"size": "100"}, InvalidRequest, "not a multiple of 8"),
        ({"size": "8192"}, InvalidRequest, "expected 64 to 4096"),
        ({"steps": 0}, InvalidRequest, "steps is 0, expected 1 to 1000"),
        ({"steps": 1001}, InvalidRequest, "steps is 1001"),
        ({"guidance": 0.5}, InvalidRequest, "guidance is 0.5, expected 1 to 50"),
        ({"guidance": float("nan")}, InvalidRequest, "guidance is nan"),
        ({"sampler": "dpmpp2m"}, InvalidRequest, "Did you mean 'dpmpp-2m'?.*euler-ancestral"),
        ({"schedule": "caras"}, InvalidRequest, "Did you mean 'karras'?"),
        ({"spacing": "middle"}, InvalidRequest, "leading, linspace, trailing"),
        ({"precision": "fp9"}, InvalidRequest, "unknown precision 'fp9'"),
        ({"vae_precision": "fp8"}, InvalidRequest, "unknown VAE precision 'fp8'"),
        ({"device": "gpu"}, InvalidRequest, "unknown device 'gpu'.*Valid: auto, cpu, cuda"),
        ({"device": "cuda:x"}, InvalidRequest, "unknown device"),
        ({"count": 0}, InvalidRequest, "0 pictures were asked for"),
        ({"count": 65}, InvalidRequest, "expected 1 to 64"),
        ({"seed": -1}, InvalidRequest, "seed is -1, expected 0 to"),
        ({"seed": 2**63 - 1, "count": 2}, InvalidRequest, "seed is 9223372036854775807"),
        (
            {"negative": "x" * 1001},
            InvalidRequest,
            "negative prompt has 1001 characters; at most 1000",
        ),
        ({"out": "x.gif"}, InvalidRequest, "got .gif, expected .png"),
        ({"out": "/proc/no/x.png"}, OutputError, "cannot write /proc/no/x.png"),
        ({"brief": "a kayak", "strict": True}, UnknownConcept, "not shown 'kayak'"),
        ({"model": "packshot-maxi"}, ModelNotFound, "neither a folder nor one of the packaged"),
        ({"model": "/no/such/folder"}, ModelNotFound, "no model '/no/such/folder'"),
    ],
)
def test_what_is_refused(options: Options, change, error, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        plan(replace(options, **change))
    assert "\n" not in str(caught.value)


def test_a_broken_model_is_refused(options: Options, folder: Path) -> None:
    (folder / "unet" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsafeModel, match="pickle"):
        plan(options)
    (folder / "unet" / "pytorch_model.bin").unlink()
    (folder / "lexicon.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match=r"lexicon\.json"):
        plan(options)
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelCorrupt, match=r"config\.json is not valid JSON"):
        plan(options)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"config\.json is missing"):
        plan(options)


def test_planning_needs_no_torch(options: Options) -> None:
    script = (
        "import sys\n"
        "from packshot.studio.plan import Options, plan\n"
        f"plan(Options({BRIEF!r}, model={options.model!r}, out={options.out!r}))\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_record_leads_to_the_same_request(options: Options, tmp_path: Path) -> None:
    first = plan(replace(options, size="96", sampler="euler", guidance=2.5, sharpen=None))
    made = record_of(first, StubEngine().render(first.request), 7)
    record = replace(made, size=first.size, sharpen=first.sharpen)
    again = plan_like(record, model=options.model, out=str(tmp_path / "again.png"))
    assert again.request == replace(first.request, spacing="trailing")
    assert (again.size, again.sharpen) == (first.size, first.sharpen)
    assert (again.precision, again.device) == ("fp32", "cpu")
    assert again.threads == record.threads
    assert again.warnings == ()


def test_another_model_cannot_make_it_again(options: Options, tmp_path: Path) -> None:
    first = plan(options)
    record = record_of(first, StubEngine().render(first.request), 7)
    with pytest.raises(ModelNotFound, match=r"made by 'model'.*Give --model its folder"):
        plan_like(record, model=None, out=None)
    other = make_folder(tmp_path / "other", salt="other")
    with pytest.raises(ModelError, match="Give --model the folder that made it"):
        plan_like(record, model=str(other), out=None)


def test_what_else_has_changed_is_a_warning(options: Options) -> None:
    first = plan(options)
    record = record_of(first, StubEngine().render(first.request), 7)
    drifted = replace(
        record,
        code=Maker("packshot", "0.0.1", "beef"),
        libraries=record.libraries | {"torch": "1.0"},
    )
    (warning,) = plan_like(drifted, model=options.model, out=options.out).warnings
    assert "packshot 0.0.1 (beef), torch 1.0" in warning


def test_a_tampered_record_is_refused(options: Options) -> None:
    first = plan(options)
    record = record_of(first, StubEngine().render(first.request), 7)
    for change in (
        {"steps": 10**6},
        {"device": "npu"},
        {"width": 10**6},
        {"size": (7, 7)},
        {"guidance": -1.0},
    ):
        with pytest.raises(InvalidRequest):
            plan_like(replace(record, **change), model=options.model, out=options.out)
