"""Products for the tests: shapes with a soft edge, on grounds of one's own choice."""

from __future__ import annotations

import numpy as np

from packshot.studio.background import Product
from packshot.studio.colour import linear, srgb
from packshot.studio.composite import cutout_of
from packshot.studio.matte import Matte
from packshot.studio.photo import Photo

WIDTH, HEIGHT = 120, 96


def disc(width: int = WIDTH, height: int = HEIGHT, radius: float = 28.0, soft: float = 3.0):
    """Return an alpha [height, width] of a disc whose edge is ``soft`` pixels wide."""
    y, x = np.mgrid[:height, :width]
    apart = np.hypot(x - width / 2, y - height / 2)
    return (np.clip((radius - apart) / soft + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8)


def colours(width: int = WIDTH, height: int = HEIGHT, seed: int = 3) -> np.ndarray:
    """Return a product's colours: reddish, with grain."""
    noise = np.random.default_rng(seed).integers(-12, 13, (height, width, 3))
    return (np.array((180, 60, 50)) + noise).astype(np.uint8)


def seen(product: np.ndarray, alpha: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """Return what a camera sees of a product before a ground of one colour."""
    share = (alpha.astype(np.float32) / 255)[..., None]
    behind = linear(np.full_like(product, 0) + np.array(ground, np.uint8))
    return srgb(share * linear(product) + (1 - share) * behind)


def photo_of(pixels: np.ndarray, alpha: np.ndarray | None = None, name: str = "a.png") -> Photo:
    return Photo(name, pixels, alpha, "0" * 64)


def product(alpha: np.ndarray | None = None, pixels: np.ndarray | None = None) -> Product:
    """Return a product ready to be put on a ground."""
    alpha = disc() if alpha is None else alpha
    pixels = colours(alpha.shape[1], alpha.shape[0]) if pixels is None else pixels
    matte = Matte(alpha, "alpha", mixed=False)
    return Product(cutout_of(photo_of(pixels, alpha), matte), matte)
