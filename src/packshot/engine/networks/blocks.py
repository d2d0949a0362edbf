"""The convolutional blocks that the UNet and the VAE share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Downsample", "ResnetBlock", "Upsample", "phased"]


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, around a residual connection.

    With ``emb`` > 0 it owns ``time_emb_proj``, from that many features to its shift; the UNet runs
    that for all steps at once and hands the shift to ``forward``.
    """

    def __init__(self, c_in: int, c_out: int, *, groups: int, eps: float, emb: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        if emb:
            self.time_emb_proj = nn.Linear(emb, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map [B,c_in,h,w] to [B,c_out,h,w]; ``shift`` [B,c_out] is added half-way."""
        h = self.conv1(F.silu(self.norm1(x)))
        if shift is not None:
            h = h + shift[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2; ``padding`` 1 is all round, 0 is below and to the right."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] to [B,C,ceil(h/2),ceil(w/2)] (``padding`` 0: floor)."""
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B,C,h,w] to [B,C,height,width]."""
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))


def phased(weight: Tensor) -> Tensor:
    """Return the weights [4*O,I,2,2] that do to a map what doubling it and ``weight`` [O,I,3,3] do.

    Of the three taps along an axis two always fall on the same source pixel: on one side for even
    outputs, on the other for odd ones. So four taps serve for nine, once for each of the phases: of
    an output in column 2x+j and row 2y+i, which is channel (2j+i)*O … of pixel (y+i, x+j), where
    the convolution pads by 1.
    """
    return _split(_split(weight, dim=2), dim=3)


def _split(weight: Tensor, dim: int) -> Tensor:
    """Return [2*n, ...] with two taps along ``dim`` of [n, ...] with three: even, then odd."""
    before, middle, after = weight.unbind(dim)
    even = torch.stack([before, middle + after], dim)
    odd = torch.stack([before + middle, after], dim)
    return torch.cat([even, odd])
