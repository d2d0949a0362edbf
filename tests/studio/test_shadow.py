"""Light as briefs say it, and the shadow that it casts."""

from __future__ import annotations

import numpy as np
import pytest

from packshot.studio.light import KINDS, SIDES, Light, light_of
from packshot.studio.shadow import shadow_layer

HEIGHT, WIDTH = 300, 400


def block() -> np.ndarray:
    """A box in the middle, standing at row 220."""
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[100:220, 160:240] = 255
    return alpha


def side(name: str) -> Light:
    return Light(next(row for row in SIDES if row.name == name), KINDS[-1])


@pytest.mark.parametrize(
    ("brief", "where", "kind"),
    [
        ("on wet slate, dramatic side light", "left", "dramatic"),
        ("on slate", "top left", "studio"),
        ("on a table, light from the left", "left", "studio"),
        ("on a table, soft light from the right", "right", "soft"),
        ("morning light from the right", "right", "morning"),
        ("on sand, bright daylight", "top left", "daylight"),
        ("at sunset, backlit", "behind", "evening"),
        ("Light From Behind", "behind", "studio"),
        ("frontal light on linen", "front", "studio"),
        ("overhead softbox", "top", "soft"),
        ("lit from the top right", "top right", "studio"),
        ("hard light from above left", "top left", "dramatic"),
    ],
)
def test_a_brief_s_words_for_light_are_understood(brief: str, where: str, kind: str) -> None:
    light = light_of(brief)
    assert (light.side.name, light.kind.name) == (where, kind)


def centre(layer: np.ndarray) -> tuple[float, float]:
    """Where the shadow outside the box lies: right of its middle, below its foot."""
    dark = (1 - layer) * (block() == 0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return float((dark * x).sum() / dark.sum()) - 200, float((dark * y).sum() / dark.sum()) - 220


@pytest.mark.parametrize(
    ("name", "right", "below"),
    [
        ("left", 1, None),
        ("right", -1, None),
        ("top left", 1, None),
        ("behind", None, 1),
        ("front", None, -1),
    ],
)
def test_the_shadow_falls_away_from_the_light(name, right, below) -> None:
    x, y = centre(shadow_layer(block(), side(name)))
    if right is not None:
        assert x * right > 5
    if below is not None:
        assert (y - centre(shadow_layer(block(), side("top")))[1]) * below > 1


@pytest.mark.parametrize("row", SIDES, ids=lambda row: row.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda row: row.name)
def test_a_shadow_is_there_at_the_foot_and_never_at_the_border(row, kind) -> None:
    layer = shadow_layer(block(), Light(row, kind))
    assert layer.shape == (HEIGHT, WIDTH)
    assert layer.min() >= 0
    assert layer.max() <= 1
    assert layer[221:224, 180:220].max() < 0.6  # contact
    border = np.concatenate((layer[0], layer[-1], layer[:, 0], layer[:, -1]))
    assert (border == 1).all()
    assert (layer[:60] == 1).mean() > 0.9  # none in the air


@pytest.mark.parametrize("name", ["left", "right", "behind"])
def test_a_shadow_that_would_leave_the_picture_fades_before_its_border(name) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[30:270, 40:360] = 255
    layer = shadow_layer(alpha, side(name))
    assert layer.min() < 0.6
    inside = np.zeros_like(alpha, bool)
    inside[16:-16, 16:-16] = True
    assert (layer[~inside] == 1).all()


def test_dramatic_light_casts_a_darker_shadow_than_soft_light() -> None:
    def darkness(name: str) -> float:
        kind = next(row for row in KINDS if row.name == name)
        layer = shadow_layer(block(), Light(side("left").side, kind))
        return float((1 - layer)[200:225, 250:300].sum())

    assert darkness("dramatic") > 1.5 * darkness("soft")


def test_where_there_is_no_product_there_is_no_shadow() -> None:
    assert (shadow_layer(np.zeros((80, 90), np.uint8), side("left")) == 1).all()


def test_a_large_photograph_s_shadow_is_the_small_one_s() -> None:
    small = shadow_layer(block(), side("left"))
    large = shadow_layer(np.kron(block(), np.ones((4, 4), np.uint8)), side("left"))
    assert large.shape == (HEIGHT * 4, WIDTH * 4)
    assert np.abs(large[2::4, 2::4] - small).mean() < 0.02
