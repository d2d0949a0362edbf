"""What a render reports while it runs, and what it returns. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packshot.core.types import NOTHING_READ, EmbeddingUse, Precision, RenderRequest, Usage

__all__ = ["OnStep", "Picture", "Progress", "RenderResult"]

Picture: TypeAlias = NDArray[np.uint8]
"""[height, width, 3], sRGB."""


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """One step done: ``step`` of ``steps`` of ``picture`` of ``pictures``, all counted from 1.

    ``preview()`` shows the picture as it is estimated at this step, by the tiny autoencoder (by the
    VAE where the folder has none); it costs nothing unless called, and may be called during
    ``on_step`` only.
    """

    picture: int
    pictures: int
    step: int
    steps: int
    preview: Callable[[], Picture]


OnStep = Callable[[Progress], None]
"""Called after each step of each picture; an exception from it ends the render there."""


@dataclass(frozen=True, slots=True, eq=False)
class RenderResult:
    """The pictures, one per seed and in that order, and how they came about.

    ``request`` is the one asked for with every default filled in; ``precision`` the arithmetic that
    was used; ``model`` and ``fingerprint`` those of the folder. ``warnings`` are sentences for the
    user; ``embeddings`` says where the texts' embeddings came from.
    """

    images: tuple[Picture, ...]
    usage: tuple[Usage, ...]
    warnings: tuple[str, ...]
    request: RenderRequest
    model: str
    fingerprint: str
    device: str
    precision: Precision
    embeddings: EmbeddingUse = NOTHING_READ
