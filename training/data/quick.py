"""Endless fresh small pictures for the image encoder, quick enough for a CPU.

Composing is slow where the ground is drawn. Here grounds are drawn once (``PLATES`` a ground, at
128 px, each with its own camera) and products are blended onto any of them: perspective no longer
fits, which an encoder that is to name product, colour, ground and light does not mind. What it does
mind is a fixed set of pictures: it learns them by heart.
"""

from __future__ import annotations

from pathlib import Path

import compose
import torch
from compose import DARK, LIGHT
from load import Attributes, Pictures
from torch import Tensor
from torch.nn import functional as F

PLATES = 24
SIZE = 128


class QuickPictures(Pictures):
    """As ``Pictures``, at 128 px and with grounds that repeat."""

    def __init__(self, folder: Path, device: torch.device, seed: int) -> None:
        compose.SIZE = SIZE
        super().__init__(folder, device, seed, variants=2)
        cut = self.cutouts
        small = [
            F.interpolate(v.float(), size=SIZE, mode="area")
            for v in (cut.light, cut.dark, cut.alpha)
        ]
        self.light, self.dark = (compose._decode(v) for v in small[:2])
        self.alpha = small[2] / 255
        below = compose._below_horizon(cut.origin, cut.target)
        self.kept = 1 + (cut.shadow.float() / 255 * 1.25 - 1) * below
        self.plates = [self._plates(index) for index in range(len(self.scenes["grounds"]))]

    def _plates(self, ground: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(self.rng.integers(len(self.facts), size=PLATES))
        side = torch.from_numpy(self.rng.choice([-0.5, 0.0, 0.5], PLATES)).float()
        origin, target = self.cutouts.origin[rows], self.cutouts.target[rows]
        return self.composer._plate(origin, target, self.scenes["grounds"][ground], side)

    def mixed(self, count: int) -> tuple[Tensor, Attributes]:
        """Compose ``count`` pictures, each on its own ground: floats [B, 3, 128, 128] in 0..1."""
        composer = self.composer
        ground = self.rng.integers(len(self.scenes["grounds"]), size=count)
        rows, flip, attributes = self._scenes(ground)
        index, mirrored = torch.from_numpy(rows), torch.from_numpy(flip).view(-1, 1, 1, 1)
        tint = (self._reflectance(attributes.colour).view(count, 3, 1, 1) - DARK) / (LIGHT - DARK)
        product = self.dark[index] + (self.light[index] - self.dark[index]) * tint
        layers = (product.clamp(min=0), self.alpha[index], self.kept[index])
        layers = tuple(torch.where(mirrored, v.flip(-1), v) for v in layers)
        product, alpha, kept = composer._move(*layers)
        pick = self.rng.integers(PLATES, size=count)
        plate = torch.stack([self.plates[g][0][i] for g, i in zip(ground, pick, strict=True)])
        on_ground = torch.stack([self.plates[g][1][i] for g, i in zip(ground, pick, strict=True)])
        moods = self._moods(attributes.light, attributes.side)
        shadow = (1 - (1 - kept.clamp(max=1.1)) * moods["shadow"].view(-1, 1, 1, 1)).clamp(min=0.02)
        plate = plate * (1 + (shadow - 1) * on_ground)
        picture = composer._develop(plate * (1 - alpha) + product * alpha, moods)
        return picture, attributes
