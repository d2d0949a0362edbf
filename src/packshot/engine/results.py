"""What a render reports while it runs, and what it returns. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packshot.core.types import Precision, RenderRequest, Usage

__all__ = ["EmbeddingUse", "OnStep", "Picture", "Progress", "RenderResult"]

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


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """How many texts were read from the `EmbeddingCache` (``hits``) and by the encoders.

    ``saved_s`` is what the hits took when they were encoded, less what it took to find them now;
    an empty negative prompt that the model reads as zeros counts as neither.
    """

    hits: int = 0
    misses: int = 0
    saved_s: float = 0.0

    @property
    def rate(self) -> float:
        """The share of hits, 0 to 1; 0 where there was nothing to read."""
        return self.hits / max(1, self.hits + self.misses)

    def __add__(self, other: EmbeddingUse) -> EmbeddingUse:
        """Return the sum of two."""
        return EmbeddingUse(
            self.hits + other.hits, self.misses + other.misses, self.saved_s + other.saved_s
        )


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
    embeddings: EmbeddingUse = EmbeddingUse()
