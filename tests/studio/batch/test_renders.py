"""What the engine made is kept: the same pixels, no usage, and nothing of another request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packshot.core.types import Original, RenderRequest
from packshot.studio.batch.renders import FOLDER, KeptRenders
from tests.studio.stub import StubEngine

REQUEST = RenderRequest("a red mug", (7,), 64, 64, 4, 3.0)


def kept_in(folder: Path, about: str = "model", **how: int) -> KeptRenders:
    return KeptRenders(StubEngine(), folder, about, **how)


def asked(kept: KeptRenders) -> int:
    assert isinstance(kept.engine, StubEngine)
    return len(kept.engine.requests)


def test_the_same_request_is_made_once_in_any_process(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    made = kept.render(REQUEST)
    for again in (kept, kept_in(tmp_path)):
        found = again.render(REQUEST)
        assert np.array_equal(found.images[0], made.images[0])
        assert found.request == made.request
        assert (found.precision, found.device) == (made.precision, made.device)
        assert found.usage == ()
    assert made.usage
    assert asked(kept) == 1
    assert asked(again) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a blue mug"},
        {"seeds": (8,)},
        {"steps": 5},
        {"guidance": 3.5},
        {"negative_prompt": "text"},
        {"sampler": "euler"},
        {"width": 128},
        {"original": Original(np.zeros((64, 64, 3), np.uint8), 0.5)},
    ],
)
def test_another_request_is_another_picture(tmp_path: Path, changed: dict) -> None:
    kept = kept_in(tmp_path)
    kept.render(REQUEST)
    kept.render(replace(REQUEST, **changed))
    assert asked(kept) == 2


def test_originals_differ_by_their_pixels(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    for level in (0, 0, 1):
        picture = np.full((64, 64, 3), level, np.uint8)
        kept.render(replace(REQUEST, original=Original(picture, 0.5)))
    assert asked(kept) == 2


def test_another_model_is_another_picture(tmp_path: Path) -> None:
    kept_in(tmp_path).render(REQUEST)
    other = kept_in(tmp_path, "another")
    other.render(REQUEST)
    assert asked(other) == 1


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied"])
def test_a_spoilt_file_counts_as_absent(tmp_path: Path, harm: str) -> None:
    made = kept_in(tmp_path).render(REQUEST)
    (path,) = (tmp_path / FOLDER).iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-5], "changed": data, "emptied": b""}[harm])
    again = kept_in(tmp_path)
    assert np.array_equal(again.render(REQUEST).images[0], made.images[0])
    assert asked(again) == 1


def test_no_more_is_kept_than_was_said(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, most=2 * 64 * 64 * 3 + 500)
    for seed in range(4):
        kept.render(replace(REQUEST, seeds=(seed,)))
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
