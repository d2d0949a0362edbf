"""Compose training pictures from cut-outs, on the GPU, in linear light.

A ground plane with the cut-out's own camera, a backdrop behind its horizon, the cut-out's shadow
on the ground, the product in the asked colour, then exposure, white balance and contrast of the
asked light. One call composes a batch on one ground; everything random comes from one generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from camera import FOV_DEGREES
from textures import EXTENT, linear, sheets
from torch import Tensor
from torch.nn import functional as F

SIZE = 256
LIGHT, DARK = 0.80, 0.03  # as in render_cutouts.py
ENCODE_RANGE = 4.0  # as in render_cutouts.py


@dataclass(frozen=True)
class Cutouts:
    """Decoded cut-outs on the device, uint8: light, dark [N, 3, S, S], alpha, shadow [N, 1, ...].

    ``origin`` and ``target`` are the cameras [N, 3].
    """

    light: Tensor
    dark: Tensor
    alpha: Tensor
    shadow: Tensor
    origin: Tensor
    target: Tensor


class Composer:
    """Holds the textures and panoramas; ``compose`` makes pictures."""

    def __init__(
        self,
        scenes: dict[str, Any],
        panoramas: dict[str, Tensor],
        device: torch.device,
        variants: int = 6,
    ) -> None:
        self.scenes, self.device, self.variants = scenes, device, variants
        self.panoramas = {name: _soften(p.to(device)) for name, p in panoramas.items()}
        names = {row["texture"] for row in scenes["grounds"]}
        self.sheets = {name: sheets(name, variants, device) for name in sorted(names)}
        self.generator = torch.Generator(device).manual_seed(0)

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        """[count, 1, 1, 1] numbers."""
        return low + (high - low) * torch.rand(
            count, 1, 1, 1, generator=self.generator, device=self.device
        )

    def compose(
        self,
        cut: Cutouts,
        rows: Tensor,
        flip: Tensor,
        ground: dict[str, Any],
        colour: Tensor,
        moods: dict[str, Tensor],
    ) -> Tensor:
        """Return pictures [B, 3, S, S] in 0..1 (sRGB).

        ``rows`` [B] picks cut-outs, ``flip`` [B] mirrors them, ``colour`` [B, 3] is the linear
        reflectance of the tint; ``moods`` holds exposure [B], balance [B, 3], contrast [B],
        shadow [B] and side [B] (-1 light from the left, +1 from the right, after flipping).
        """
        count = len(rows)
        light, dark = _decode(cut.light[rows]), _decode(cut.dark[rows])
        tint = (colour.view(count, 3, 1, 1) - DARK) / (LIGHT - DARK)
        product = (dark + (light - dark) * tint).clamp(min=0)
        alpha = cut.alpha[rows].float() / 255
        kept = F.interpolate(cut.shadow[rows].float() / 255 * 1.25, size=SIZE, mode="bilinear")
        mirrored = flip.view(count, 1, 1, 1)
        product, alpha, kept = (
            torch.where(mirrored, v.flip(-1), v) for v in (product, alpha, kept)
        )
        kept = 1 + (kept - 1) * _below_horizon(cut.origin[rows], cut.target[rows])
        product, alpha, kept = self._move(product, alpha, kept)

        plate, on_ground = self._plate(cut.origin[rows], cut.target[rows], ground, moods["side"])
        shadow = (1 - (1 - kept.clamp(max=1.1)) * moods["shadow"].view(-1, 1, 1, 1)).clamp(min=0.02)
        plate = plate * (1 + (shadow - 1) * on_ground)
        picture = plate * (1 - alpha) + product * alpha
        return self._develop(picture, moods)

    def _move(self, product: Tensor, alpha: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vary size, proportions and place of the product with its shadow.

        A product that the frame cuts keeps its place, or the cut would show as an edge.
        """
        count = len(product)
        rim = torch.cat([alpha[..., 0], alpha[..., -1], alpha[..., 0, :], alpha[..., -1, :]], -1)
        whole = (rim.amax((1, 2)) < 0.5).float().view(-1, 1, 1, 1)
        size = 1 + whole * self.uniform(count, -0.18, 0.08)
        stretch = 1 + whole * self.uniform(count, -0.06, 0.06)
        right, down = (
            whole * self.uniform(count, -0.09, 0.09),
            whole * self.uniform(count, -0.06, 0.06),
        )
        zero = torch.zeros_like(size)
        across = torch.cat([1 / (size * stretch), zero, right], 3)
        matrix = torch.cat([across, torch.cat([zero, 1 / size, down], 3)], 2)[:, 0]
        grid = F.affine_grid(matrix, [count, 1, SIZE, SIZE], align_corners=False)
        stack = F.grid_sample(
            torch.cat([product, alpha], 1), grid, mode="bicubic", align_corners=False
        )
        kept = F.grid_sample(kept, grid, padding_mode="border", align_corners=False)
        return stack[:, :3].clamp(min=0), stack[:, 3:].clamp(0, 1), kept

    def _plate(
        self, origin: Tensor, target: Tensor, ground: dict[str, Any], side: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ground and backdrop without product [B, 3, S, S], and where the ground is."""
        count = len(origin)
        ray, across, up = _rays(origin, target)
        down = (-ray[:, 1]).clamp(min=1e-3)
        distance = origin[:, 1].view(-1, 1, 1) / down
        elevation = -torch.atan2((target - origin)[:, 1], (target - origin)[:, [0, 2]].norm(dim=1))
        slope = up + torch.tan(-elevation).view(-1, 1, 1)  # 0 at the horizon, in image-plane units
        sweep = ground["backdrop"] == "studio"
        cut = -0.06 if ground["backdrop"] in ("sea", "winter") else -0.045
        edge = cut + 0.012 * torch.sin(4 * across + 6.28 * self.uniform(count, 0, 1)[:, 0])
        on_ground = torch.sigmoid((edge - slope) / (0.035 if sweep else 0.006)).unsqueeze(1)
        surface = self._surface(origin, ray, distance, ground)
        focus = (target - origin).norm(dim=1).view(-1, 1, 1)
        lamp = 1 + 0.22 * side.view(-1, 1, 1, 1) * across.unsqueeze(1) / 0.25
        falloff = (1.12 - 0.12 * (distance / focus).clamp(max=3)).unsqueeze(1)
        backdrop = self._backdrop(across, slope, ground, count)
        if sweep:
            fog = ((distance / focus - 1) / 2.2).clamp(0, 1).unsqueeze(1)
            surface = surface * (1 - fog) + backdrop * fog
        surface = surface * falloff * lamp
        return surface * on_ground + backdrop * (1 - on_ground), on_ground

    def _surface(
        self, origin: Tensor, ray: Tensor, distance: Tensor, ground: dict[str, Any]
    ) -> Tensor:
        count = len(origin)
        far = distance.clamp(max=80)
        px = origin[:, 0].view(-1, 1, 1) + ray[:, 0] * far
        pz = origin[:, 2].view(-1, 1, 1) + ray[:, 2] * far
        angle = self.uniform(count, 0, 2 * math.pi)[:, 0]
        if ground["texture"] in ("light_wood", "dark_wood", "parquet", "paving"):
            azimuth = torch.atan2(origin[:, 0], origin[:, 2]).view(-1, 1, 1)
            angle = azimuth + self.uniform(count, -0.5, 0.5)[:, 0]
        cos, sin = torch.cos(angle), torch.sin(angle)
        offset = self.uniform(count, 0, 1)[:, 0]
        u = ((cos * px - sin * pz) / EXTENT + offset) * 2
        v = ((sin * px + cos * pz) / EXTENT + 2.7 * offset) * 2
        pyramid = self.sheets[ground["texture"]]
        variant = torch.randint(
            self.variants, (count,), generator=self.generator, device=self.device
        )
        grid = torch.stack([_wrap(u), _wrap(v)], -1)
        focus = 4.5
        texel = 0.5 * far / SIZE / (EXTENT / 1024)  # footprint of one pixel, in texels of level 0
        stretch = (far / origin[:, 1].view(-1, 1, 1)).clamp(1, 8) ** 0.5
        blur = 1.0 + 9.0 * ((far - focus).abs() / focus).clamp(0, 2.5)
        level = torch.log2((texel * stretch * blur).clamp(min=1)).clamp(max=len(pyramid) - 1.01)
        out = torch.zeros(count, 3, SIZE, SIZE, device=self.device)
        for index, sheet in enumerate(pyramid):
            weight = (1 - (level - index).abs()).clamp(min=0)
            if index and not bool((weight > 0).any()):
                continue
            sample = F.grid_sample(
                sheet[variant], grid, mode="bilinear", padding_mode="border", align_corners=False
            )
            out += sample * weight.unsqueeze(1)
        if "rgb" in ground and ground["texture"] == "paper":
            out = out * linear(*[c / 255 for c in ground["rgb"]]).to(self.device)
        return out * self.uniform(count, 0.9, 1.1)

    def _backdrop(
        self, across: Tensor, slope: Tensor, ground: dict[str, Any], count: int
    ) -> Tensor:
        kind = ground["backdrop"]
        if kind == "pano":
            return self._panorama(across, slope, ground["panoramas"], count)
        if kind in ("sea", "winter"):
            return self._sea(across, slope, count, winter=kind == "winter")
        if kind == "bokeh":
            return self._bokeh(across, slope, count)
        if kind == "wall":
            return self._wall(across, slope, count)
        base = linear(*[c / 255 for c in ground["rgb"]]).to(self.device)
        glow = 1.04 + 0.25 * slope.clamp(0, 1).unsqueeze(1) * self.uniform(count, -0.6, 1)
        spot = 0.12 * torch.exp(
            -(((across.unsqueeze(1) - self.uniform(count, -0.2, 0.2)) / 0.2) ** 2)
        )
        return base * (glow + spot) * self.uniform(count, 0.92, 1.08)

    def _panorama(self, across: Tensor, slope: Tensor, names: list[str], count: int) -> Tensor:
        name = names[
            int(torch.randint(len(names), (1,), generator=self.generator, device=self.device))
        ]
        picture = self.panoramas[name]
        turn = self.uniform(count, 0, 1)[:, 0]
        u = (torch.atan(across * 2.2) / (2 * math.pi) + turn) % 1 * 2 - 1
        v = (0.5 - torch.atan(slope * 2.2) / math.pi) * 2 - 1
        grid = torch.stack([u, v], -1)
        sample = F.grid_sample(
            picture.expand(count, -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        return sample * self.uniform(count, 0.7, 1.0)

    def _sea(self, across: Tensor, slope: Tensor, count: int, *, winter: bool) -> Tensor:
        if winter:
            top, low, band = (
                linear(0.62, 0.76, 0.92),
                linear(0.90, 0.93, 0.97),
                linear(0.55, 0.63, 0.68),
            )
        else:
            top, low, band = (
                linear(0.38, 0.62, 0.90),
                linear(0.84, 0.91, 0.96),
                linear(0.12, 0.44, 0.58),
            )
        top, low, band = (c.to(self.device) for c in (top, low, band))
        mix = (slope / 0.3).clamp(0, 1).unsqueeze(1)
        sky = low * (1 - mix) + top * mix
        for _ in range(5):
            cx, cy = self.uniform(count, -0.35, 0.35), self.uniform(count, 0.05, 0.3)
            wide, high = self.uniform(count, 0.05, 0.16), self.uniform(count, 0.012, 0.035)
            cloud = torch.exp(
                -(
                    ((across.unsqueeze(1) - cx) / wide) ** 2
                    + ((slope.unsqueeze(1) - cy) / high) ** 2
                )
            )
            sky = sky + (1.0 - sky) * cloud * self.uniform(count, 0, 0.6)
        depth = (-slope / 0.06).clamp(0, 1).unsqueeze(1)
        water = band * (1.25 - 0.45 * depth) + 0.08 * low
        if winter:
            hills = 0.03 * torch.sin(9 * across + 6.28 * self.uniform(count, 0, 1)[:, 0])
            water, shore = band * 1.0, torch.sigmoid((slope - 0.03 - hills) / 0.012).unsqueeze(1)
        else:
            shore = torch.sigmoid(slope / 0.004).unsqueeze(1)
            foam = torch.exp(-(((slope + 0.052) / 0.007) ** 2)).unsqueeze(1)
            water = water * (1 - 0.6 * foam) + 0.9 * 0.6 * foam
        return (sky * shore + water * (1 - shore)) * self.uniform(count, 0.92, 1.06)

    def _bokeh(self, across: Tensor, slope: Tensor, count: int) -> Tensor:
        picture = linear(0.16, 0.12, 0.10).to(self.device).expand(count, 3, SIZE, SIZE) * 0.7
        glow = linear(1.0, 0.76, 0.46).to(self.device)
        for _ in range(14):
            cx, cy = self.uniform(count, -0.27, 0.27), self.uniform(count, -0.02, 0.3)
            radius = self.uniform(count, 0.010, 0.030)
            reach = ((across.unsqueeze(1) - cx) ** 2 + (slope.unsqueeze(1) - cy) ** 2).sqrt()
            disc = torch.sigmoid((radius - reach) / 0.002)
            picture = picture + disc * glow * self.uniform(count, 0.1, 0.75)
        return picture

    def _wall(self, across: Tensor, slope: Tensor, count: int) -> Tensor:
        wall = linear(0.93, 0.91, 0.87).to(self.device) * (
            0.8 + 0.25 * slope.clamp(0, 1)
        ).unsqueeze(1)
        centre, half = self.uniform(count, -0.25, 0.25), self.uniform(count, 0.05, 0.1)
        sill = self.uniform(count, 0.06, 0.12)
        inside = torch.sigmoid((half - (across.unsqueeze(1) - centre).abs()) / 0.008)
        window = inside * torch.sigmoid((slope.unsqueeze(1) - sill) / 0.008)
        board = torch.sigmoid((0.012 - slope.unsqueeze(1)) / 0.004)
        return wall * (1 - window) + 1.25 * window - 0.18 * board * wall

    def _develop(self, picture: Tensor, moods: dict[str, Tensor]) -> Tensor:
        count = len(picture)
        exposure = moods["exposure"].view(-1, 1, 1, 1) * self.uniform(count, 0.95, 1.05)
        x = picture * exposure * moods["balance"].view(-1, 3, 1, 1)
        axis = torch.linspace(-1, 1, SIZE, device=self.device)
        radius = axis.view(1, -1) ** 2 + axis.view(-1, 1) ** 2
        contrast = moods["contrast"].view(-1, 1, 1, 1)
        x = x * (1 - (0.06 + 0.25 * contrast.clamp(min=0)) * radius)
        x = x * 0.92
        x = (x * (2.51 * x + 0.03)) / (
            x * (2.43 * x + 0.59) + 0.14
        )  # filmic curve: Narkowicz 2015, ACES fit
        x = x.clamp(0, 1)
        x = torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
        x = x + contrast * (x - 0.45) * (1 - (2 * x - 1) ** 2)
        noise = torch.randn(x.shape, generator=self.generator, device=self.device)
        return (x + 0.004 * noise).clamp(0, 1)


def _decode(code: Tensor) -> Tensor:
    return (code.float() / 255) ** 2 * ENCODE_RANGE


def _wrap(coordinate: Tensor) -> Tensor:
    """Fold -inf..inf onto -1..1 by mirroring, as grid_sample cannot repeat."""
    phase = (coordinate + 1) % 4
    return torch.where(phase < 2, phase - 1, 3 - phase)


def _rays(origin: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rays [B, 3, S, S] and image-plane coordinates [1, S, S] (right, up)."""
    forward = F.normalize(target - origin, dim=1)
    world_up = torch.tensor([0.0, 1.0, 0.0], device=origin.device).expand_as(forward)
    right = F.normalize(torch.linalg.cross(forward, world_up), dim=1)
    up = torch.linalg.cross(right, forward)
    half = math.tan(math.radians(FOV_DEGREES / 2))
    axis = ((torch.arange(SIZE, device=origin.device) + 0.5) / SIZE * 2 - 1) * half
    x, y = axis.view(1, 1, -1).expand(1, SIZE, SIZE), (-axis).view(1, -1, 1).expand(1, SIZE, SIZE)
    ray = (
        forward.view(-1, 3, 1, 1)
        + x.unsqueeze(1) * right.view(-1, 3, 1, 1)
        + y.unsqueeze(1) * up.view(-1, 3, 1, 1)
    )
    return F.normalize(ray, dim=1), x, y


def _below_horizon(origin: Tensor, target: Tensor) -> Tensor:
    """[B, 1, S, 1] 1 where a cut-out's own ground is close enough to have caught a shadow."""
    sight = target - origin
    tilt = sight[:, 1] / sight[:, [0, 2]].norm(dim=1)
    half = math.tan(math.radians(FOV_DEGREES / 2))
    up = -((torch.arange(SIZE, device=origin.device) + 0.5) / SIZE * 2 - 1) * half
    return torch.sigmoid((-0.075 - (up.view(1, -1) + tilt.view(-1, 1))) / 0.008).view(
        -1, 1, SIZE, 1
    )


def _soften(panorama: Tensor) -> Tensor:
    """A panorama [3, H, W] as an out-of-focus backdrop [1, 3, H, W]: suns clipped, blurred."""
    bright = panorama.amax(0, keepdim=True)
    limit = torch.quantile(bright.float(), 0.97)
    picture = (panorama * (limit / bright.clamp(min=1e-6)).clamp(max=1)).unsqueeze(0)
    padded = F.pad(picture, (16, 16, 0, 0), mode="circular")
    for _ in range(3):
        padded = F.avg_pool2d(padded, 5, stride=1, padding=2, count_include_pad=False)
    picture = padded[..., 16:-16]
    return picture * (0.5 / picture.mean().clamp(min=1e-6))
