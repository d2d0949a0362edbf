"""In which arithmetic a request is made: its own choice, its model's, and what stays in bf16."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest
from packshot.core.types import RenderRequest
from packshot.engine import engine as module
from packshot.engine.engine import Engine
from packshot.engine.fast.runner import FastRunner
from packshot.engine.model import Model

REQUEST = RenderRequest("white sneakers on a sandy beach", (7,), 64, 64, 1, 4.0)


@pytest.fixture(scope="module")
def model(as_written: Model) -> Model:
    return as_written


def loaded_in(model: Model, precision: str) -> Engine:
    """Return an engine on the plain meaning of the kernels, which says it was loaded so."""
    model = copy(model)
    model.precision = precision
    return Engine(model, runner=FastRunner(model))


def made_in(
    engine: Engine, request: RenderRequest, monkeypatch
) -> tuple[str, str, tuple[str, ...]]:
    """Return the tier that a render is made in, the precision that it tells, and its warnings."""
    tiers, denoise = [], engine.runner.denoise

    def seen(task, *rest):
        tiers.append(task.tier)
        return denoise(task, *rest)

    monkeypatch.setattr(engine.runner, "denoise", seen)
    result = engine.render(request)
    (tier,) = tiers
    return tier, result.precision, result.warnings


@pytest.mark.parametrize(
    ("loaded", "asked", "tier"),
    [
        ("bf16", None, "exact"),
        ("bf16", "auto", "exact"),
        ("bf16", "bf16", "exact"),
        ("bf16", "fp8", "fp8"),
        ("bf16", "int8", "int8"),
        ("fp8", None, "fp8"),
        ("fp8", "bf16", "exact"),
        ("int8", "fp8", "fp8"),
        ("fp32", None, "exact"),
        ("fp32", "fp32", "exact"),
    ],
)
def test_a_request_chooses_its_tier(model, monkeypatch, loaded, asked, tier):
    monkeypatch.setattr(module, "pick_precision", lambda name, _: name)
    request = replace(REQUEST, precision=asked)
    told = loaded if asked in (None, "auto") else asked
    assert made_in(loaded_in(model, loaded), request, monkeypatch) == (tier, told, ())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fine_texture": True}, "its texture is fine"),
        ({"width": 128, "height": 128}, "it has 2048x2048 pixels or more"),
    ],
)
@pytest.mark.parametrize("tier", ["fp8", "int8"])
def test_what_is_fine_stays_in_bf16_and_is_said(model, monkeypatch, change, why, tier):
    monkeypatch.setattr(module, "pick_precision", lambda name, _: name)
    monkeypatch.setattr(module, "FINE_PIXELS", 128 * 128)
    fine = replace(REQUEST, **change)
    kept = ("exact", "bf16", (f"the picture was made in bf16, not {tier}, since {why}.",))
    for loaded, asked in (("bf16", tier), (tier, None)):
        engine = loaded_in(model, loaded)
        assert made_in(engine, replace(fine, precision=asked), monkeypatch) == kept
    assert made_in(loaded_in(model, "bf16"), fine, monkeypatch) == ("exact", "bf16", ())


@pytest.mark.parametrize(
    ("loaded", "asked", "said"),
    [
        ("bf16", "fp32", "fp32 was asked of a model that was loaded in bf16; load it in fp32"),
        ("fp32", "fp8", "fp8 was asked of a model that was loaded in fp32"),
        ("fp16", "bf16", "bf16 was asked of a model that was loaded in fp16"),
        ("bf16", "fp8", "cpu does not multiply in it"),
        ("bf16", "int8", "int8 was asked for on cpu"),
    ],
)
def test_a_tier_that_cannot_be_had_is_refused_before_it_is_made(
    model, monkeypatch, loaded, asked, said
):
    engine = loaded_in(model, loaded)
    monkeypatch.setattr(engine.runner, "denoise", lambda *_: pytest.fail("it was made"))
    with pytest.raises(InvalidRequest, match=said):
        engine.render(replace(REQUEST, precision=asked))


def test_what_the_terminal_marks_as_fine_is_so_in_the_request(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch
):
    from packshot.cli import render
    from packshot.cli.main import main

    seen = []
    monkeypatch.setattr(render, "_deliver", lambda plan, *_, **__: seen.append(plan.request))
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--fine-texture"]):
        with pytest.raises(SystemExit):
            main(["render", "a linen shirt", "--model", str(tiny_sdxl), *words])
    assert [request.fine_texture for request in seen] == [False, True]
