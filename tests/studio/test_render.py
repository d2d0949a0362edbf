"""The main path: finished pictures on disk, every stage metered, and the same bits again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packshot.core.types import STAGES, Usage
from packshot.studio.plan import Options, plan, plan_like
from packshot.studio.preview import watch_into
from packshot.studio.record import read_record
from packshot.studio.render import render, total
from packshot.studio.store import FORMATS
from tests.studio.stub import StubEngine, picture_of


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options("white sneakers", model=str(folder), out=str(tmp_path / "out"), seed=7, steps=3)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_each_seed_gets_its_picture(options: Options) -> None:
    planned = plan(replace(options, count=3, sharpen=None))
    delivery = render(planned, StubEngine())
    assert [p.seed for p in delivery.pictures] == [7, 8, 9]
    for picture in delivery.pictures:
        assert (pixels(picture.path) == picture_of(planned.request, picture.seed)).all()
        assert read_record(picture.path).seed == picture.seed


def test_every_stage_is_metered_once_and_in_order(options: Options) -> None:
    usage = render(plan(replace(options, count=2)), StubEngine()).usage
    assert tuple(part.stage for part in usage) == STAGES
    assert all(part.seconds >= 0 for part in usage)
    by_stage = {part.stage: part for part in usage}
    assert by_stage["denoise"].steps == 6
    assert by_stage["finish"].pixels == 2 * 64 * 64


def test_sums_are_per_stage() -> None:
    parts = [
        Usage("denoise", 1.0, "cpu", steps=3, pixels=8),
        Usage("encode", 0.5, "cpu"),
        Usage("denoise", 2.0, "cpu", steps=4, pixels=16),
    ]
    assert total(parts) == (
        Usage("encode", 0.5, "cpu"),
        Usage("denoise", 3.0, "cpu", steps=7, pixels=24),
    )


def test_what_the_engine_says_is_passed_on(options: Options) -> None:
    long = "white sneakers, " + "very " * 100
    delivery = render(plan(replace(options, brief=long, raw=True)), StubEngine())
    assert "the prompt is long" in delivery.warnings
    assert (delivery.device, delivery.precision) == ("cpu", "fp32")


@pytest.mark.parametrize("extension", FORMATS)
def test_like_makes_the_same_file_again(options: Options, tmp_path: Path, extension: str) -> None:
    first = tmp_path / f"first{extension}"
    render(plan(replace(options, out=str(first), size="96x64", guidance=3.25)), StubEngine())
    again = tmp_path / f"again{extension}"
    render(plan_like(read_record(first), model=options.model, out=str(again)), StubEngine())
    assert again.read_bytes() == first.read_bytes()


def test_the_record_has_every_choice(options: Options) -> None:
    chosen = replace(
        options,
        brief="red sneakers",
        size="96x64",
        steps=4,
        guidance=2.25,
        negative="blur",
        sampler="euler-ancestral",
        schedule="karras",
        spacing="linspace",
        vae_precision="fp32",
        sharpen=None,
    )
    planned = plan(chosen)
    record = read_record(render(planned, StubEngine()).pictures[0].path)
    for name in ("brief", "steps", "guidance", "negative", "sampler", "schedule", "spacing"):
        assert getattr(record, name) == getattr(chosen, name), name
    assert (record.vae_precision, record.sharpen, record.raw) == ("fp32", None, False)
    assert (record.width, record.height, record.size) == (64, 64, (96, 64))
    assert (record.precision, record.device, record.seed) == ("fp32", "cpu", 7)
    assert record.caption == planned.caption.text
    assert record.model.fingerprint == planned.folder.fingerprint


def test_an_interrupt_leaves_no_file(options: Options, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        render(plan(options), StubEngine(fail_at=2))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_preview_shows_the_newest_estimate(options: Options, tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    planned = plan(replace(options, count=2))
    seen: list[bool] = []
    watch = watch_into(path)

    def on_step(progress) -> None:
        watch(progress)
        seen.append(path.exists())
        if progress.step == progress.steps:
            newest = picture_of(planned.request, planned.request.seeds[progress.picture - 1])
            assert (pixels(path) == newest).all()

    render(planned, StubEngine(), on_step)
    assert len(seen) == 6
    assert all(seen)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["preview.png"]
