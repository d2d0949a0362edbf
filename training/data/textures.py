"""Procedural grounds: tileable albedo sheets, made once, and sampled with mip-maps.

Every function has one signature, ``(noise, generator) -> [3, S, S]`` linear reflectance on a sheet
that covers ``EXTENT`` x ``EXTENT`` world units (a product's diagonal is 2) and tiles seamlessly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 1024
EXTENT = 8.0

Texture = Callable[["Noise"], Tensor]


class Noise:
    """Tileable value noise on a SIZE x SIZE sheet, drawn from one generator."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device
        axis = (torch.arange(SIZE, device=device) + 0.5) / SIZE
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def value(self, cells_x: int, cells_y: int) -> Tensor:
        """Smooth noise in 0..1 with so many cells across the sheet."""
        grid = torch.rand(cells_y, cells_x, generator=self.generator).to(self.device)
        return self._sample(grid, self.x, self.y)

    def fractal(self, cells_x: int, cells_y: int, octaves: int = 5) -> Tensor:
        """Sum of octaves, each at double frequency and half amplitude; mean about 0.5."""
        total = torch.zeros_like(self.x)
        weight, norm = 0.5, 0.0
        for octave in range(octaves):
            scale = 2**octave
            if max(cells_x, cells_y) * scale > SIZE:
                break
            total += weight * self.value(cells_x * scale, cells_y * scale)
            norm += weight
            weight *= 0.5
        return total / norm

    def uniform(self, low: float, high: float) -> float:
        """One number of the generator."""
        return low + (high - low) * float(torch.rand(1, generator=self.generator))

    @staticmethod
    def _sample(grid: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rows, columns = grid.shape
        fx, fy = x * columns, y * rows
        ix, iy = fx.floor().long(), fy.floor().long()
        u, v = fx - ix, fy - iy
        u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
        x0, x1 = ix % columns, (ix + 1) % columns
        y0, y1 = iy % rows, (iy + 1) % rows
        top = grid[y0, x0] * (1 - u) + grid[y0, x1] * u
        bottom = grid[y1, x0] * (1 - u) + grid[y1, x1] * u
        return top * (1 - v) + bottom * v


def linear(*srgb: float) -> Tensor:
    """SRGB 0..1 to linear light, shaped [3, 1, 1]."""
    value = torch.tensor(srgb, dtype=torch.float32)
    light = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return light.view(3, 1, 1)


def _paint(value: Tensor, colour: Tensor) -> Tensor:
    return value.clamp(0.01, 1.0) * colour.to(value.device)


def sand(noise: Noise) -> Tensor:
    """Dry sand: dunes, wind ripples, grains."""
    ripple = torch.sin(2 * math.pi * (14 * noise.y + 3 * noise.x + 2.2 * noise.fractal(6, 6, 3)))
    grain = noise.value(512, 512)
    value = 0.92 + 0.34 * (noise.fractal(8, 8) - 0.5) + 0.08 * ripple + 0.24 * (grain - 0.5)
    return _paint(value, linear(0.93, 0.80, 0.59))


def _wood(noise: Noise, planks: int, light: Tensor, dark: Tensor) -> Tensor:
    column = (noise.x * planks).floor()
    along = noise.x * planks - column
    shade = torch.rand(planks, generator=noise.generator).to(noise.device)[column.long() % planks]
    grain = noise.fractal(256, 6, 3)
    rings = torch.sin(2 * math.pi * (9 * noise.fractal(24, 2, 3) + 4 * shade)) * 0.5 + 0.5
    mix = (0.45 * grain + 0.3 * rings + 0.35 * shade).clamp(0, 1)
    gap = (torch.minimum(along, 1 - along) / 0.012).clamp(0, 1)
    tone = light.to(noise.device) * (1 - mix) + dark.to(noise.device) * mix
    return (tone * (0.35 + 0.65 * gap)).clamp(0.005, 1)


def light_wood(noise: Noise) -> Tensor:
    """Oak boards."""
    return _wood(noise, 12, linear(0.83, 0.66, 0.46), linear(0.60, 0.42, 0.25))


def dark_wood(noise: Noise) -> Tensor:
    """Walnut boards."""
    return _wood(noise, 12, linear(0.36, 0.22, 0.14), linear(0.17, 0.09, 0.055))


def parquet(noise: Noise) -> Tensor:
    """Narrow honey-coloured boards."""
    return _wood(noise, 26, linear(0.86, 0.72, 0.53), linear(0.70, 0.53, 0.35))


def marble(noise: Noise) -> Tensor:
    """White stone with grey veins."""
    warp = noise.fractal(4, 4, 6) * 2 - 1
    fine = noise.fractal(10, 10, 5) * 2 - 1
    veins = torch.exp(-(torch.sin(2 * math.pi * (2 * noise.x + noise.y + 0.9 * warp)).abs() * 11))
    thin = torch.exp(-(torch.sin(2 * math.pi * (3 * noise.y - 2 * noise.x + fine)).abs() * 22))
    return _paint(0.90 - 0.42 * veins - 0.2 * thin - 0.07 * warp, linear(0.965, 0.96, 0.95))


def slate(noise: Noise) -> Tensor:
    """Cleft dark stone."""
    layers = noise.fractal(16, 7, 6)
    return _paint(
        0.075 + 0.11 * (layers - 0.42) + 0.02 * noise.value(512, 512), linear(0.95, 0.98, 1.0)
    )


def concrete(noise: Noise) -> Tensor:
    """Grey cast floor with stains and pores."""
    pores = (noise.value(300, 300) - 0.86).clamp(min=0) * 3
    value = (
        0.42
        + 0.26 * (noise.fractal(5, 5, 6) - 0.5)
        + 0.08 * (noise.value(512, 512) - 0.5)
        - 0.2 * pores
    )
    return _paint(value, linear(0.97, 0.965, 0.95))


def paving(noise: Noise) -> Tensor:
    """Square paving stones."""
    count = 14
    column, row = noise.x * count, noise.y * count
    shade = torch.rand(count, count, generator=noise.generator).to(noise.device)
    tone = shade[row.floor().long() % count, column.floor().long() % count]
    edge = torch.stack([column % 1, 1 - column % 1, row % 1, 1 - row % 1]).amin(0)
    joint = (edge / 0.035).clamp(0, 1)
    value = (0.30 + 0.16 * tone + 0.16 * (noise.fractal(20, 20) - 0.5)) * (0.35 + 0.65 * joint)
    return _paint(value, linear(0.95, 0.93, 0.90))


def grass(noise: Noise) -> Tensor:
    """Mown lawn: blades and lighter patches."""
    blades = (noise.fractal(220, 60, 3) - 0.25).clamp(min=0)
    patch = noise.fractal(6, 6, 3)
    green, light = (
        linear(0.27, 0.46, 0.13).to(noise.device),
        linear(0.52, 0.66, 0.22).to(noise.device),
    )
    return ((0.3 + 1.9 * blades**1.2) * (green * (1 - patch) + light * patch)).clamp(0.005, 1)


def soil(noise: Noise) -> Tensor:
    """Forest floor: earth, needles, dead leaves."""
    leaves = (noise.fractal(90, 90, 3) - 0.5).clamp(min=0) * 2.6
    earth = linear(0.28, 0.20, 0.13).to(noise.device)
    leaf = linear(0.55, 0.37, 0.18).to(noise.device)
    moss = linear(0.28, 0.36, 0.12).to(noise.device)
    patch = (noise.fractal(7, 7, 3) * 1.6 - 0.5).clamp(0, 1)
    tone = earth * (1 - leaves) + (leaf * (1 - patch) + moss * patch) * leaves
    return (tone * (0.5 + noise.fractal(200, 200, 2))).clamp(0.004, 1)


def linen(noise: Noise) -> Tensor:
    """Woven cloth with soft folds."""
    weave = torch.sin(2 * math.pi * 170 * noise.x) * torch.sin(2 * math.pi * 170 * noise.y)
    folds = noise.fractal(7, 3, 3)
    value = 0.80 + 0.10 * weave + 0.34 * (folds - 0.5) + 0.08 * (noise.value(512, 512) - 0.5)
    return _paint(value, linear(0.87, 0.82, 0.74))


def snow(noise: Noise) -> Tensor:
    """Fresh snow: drifts in blue shade, sparkle."""
    drift = noise.fractal(6, 6, 4)
    value = 0.88 + 0.30 * (drift - 0.5) + 0.12 * (noise.value(512, 512) - 0.5)
    return _paint(value, linear(0.94, 0.97, 1.0))


def paper(noise: Noise) -> Tensor:
    """Seamless paper, tinted by the ground's colour when composed."""
    return (0.97 + 0.03 * (noise.fractal(8, 8) - 0.5)) * torch.ones(3, 1, 1, device=noise.device)


TEXTURES: dict[str, Texture] = {
    "sand": sand,
    "light_wood": light_wood,
    "dark_wood": dark_wood,
    "parquet": parquet,
    "marble": marble,
    "slate": slate,
    "concrete": concrete,
    "paving": paving,
    "grass": grass,
    "soil": soil,
    "linen": linen,
    "snow": snow,
    "paper": paper,
}
"""Grounds by the name that ``scenes.yaml`` uses."""


def sheets(name: str, variants: int, device: torch.device) -> list[Tensor]:
    """Return the mip-map pyramid of ``variants`` sheets: [V, 3, S, S], [V, 3, S/2, S/2], ..."""
    pictures = []
    for variant in range(variants):
        generator = torch.Generator().manual_seed(1000 + variant)
        pictures.append(TEXTURES[name](Noise(generator, device)))
    level = torch.stack(pictures)
    pyramid = [level]
    while level.shape[-1] > 16:
        level = F.avg_pool2d(level, 2)
        pyramid.append(level)
    return pyramid
