"""Pictures of near pairs: which are rendered, what is compared, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packshot.core.errors import InvalidRequest
from packshot.studio.near_pairs import NearPair, chosen, compare, knower, plans_of, rows, sheet
from packshot.studio.plan import Options
from packshot.studio.store import Target
from tests.studio.stub import StubEngine


class Engine(StubEngine):
    """Its pictures fit a caption by their mean."""

    def similarity(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        return np.array([[image.mean() / 255] * len(texts) for image in images], np.float32)


def pair(
    similarity: float, served: str = "red mug", own: str = "blue mug", *, hit: bool = True
) -> NearPair:
    return NearPair(served, own, similarity, hit, raw=True)


def test_pairs_are_spread_over_each_band_and_equal_captions_left_out() -> None:
    many = [pair(0.80 + step / 1000) for step in range(200)]
    found = chosen([*many, pair(0.91, own="red mug"), pair(0.95, hit=False), pair(0.5)], 2)
    served = [each.similarity for each in found if each.hit]
    assert len(served) == 10
    assert served == sorted(served)
    assert served[1] - served[0] > 0.02
    assert [each.similarity for each in found if not each.hit] == [0.95]
    (best,) = chosen(many[:30], 1, lambda each: each.similarity > 0.82)
    assert best.similarity > 0.82
    with pytest.raises(InvalidRequest, match="nothing to render"):
        chosen([pair(0.5)], 2)
    with pytest.raises(InvalidRequest, match="expected 1 to 12"):
        chosen(many, 13)


def test_both_captions_are_rendered_with_one_seed_and_compared(
    folder: Path, tmp_path: Path
) -> None:
    options = Options("", model=str(folder), out=str(tmp_path / "p.png"), steps=2, seed=7)
    pairs = [pair(0.85), pair(0.99, own="Red mug"), pair(0.99, served="", hit=False)]
    planned, refused = plans_of(pairs, options)
    assert len(refused) == 1
    engine = Engine()
    compared = compare(planned, engine)
    assert {request.seeds for request in engine.requests} == {(7,)}
    assert [request.prompt for request in engine.requests][:2] == ["red mug", "blue mug"]
    first = compared[0]
    served, own = first.pictures
    assert first.change == pytest.approx(np.abs(served.astype(int) - own.astype(int)).mean())
    assert first.fit == pytest.approx((own.mean() - served.mean()) / 255, abs=1e-6)
    table = rows(compared)
    assert [(row.low, row.high, row.count) for row in table] == [(0.85, 0.9, 1), (0.97, 1.0, 1)]
    path = sheet(compared, "about €", Target(tmp_path / "page.png", overwrite=True))
    with Image.open(path) as page:
        assert page.width > 2 * 192 * 2
        assert np.asarray(page).std() > 10


def test_what_the_model_knows(folder: Path, tmp_path: Path) -> None:
    known = knower(Options("", model=str(folder), out=str(tmp_path / "p.png")))
    assert not known(pair(0.9, served=""))
    assert known(NearPair("white sneakers", "red handbag", 0.9, hit=True))


def test_nothing_that_can_be_rendered(folder: Path, tmp_path: Path) -> None:
    options = Options("", model=str(folder), out=str(tmp_path / "p.png"))
    with pytest.raises(InvalidRequest):
        plans_of([pair(0.9, served="")], options)
