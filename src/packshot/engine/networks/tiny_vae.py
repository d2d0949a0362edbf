"""The tiny autoencoder (TAESD's layout) that makes previews in a fraction of the VAE's time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.networks.base import Network, parse, per_block, refuse_unknown

__all__ = ["TinyVAE", "TinyVAEConfig"]

_FIXED: dict[str, tuple[object, ...]] = {
    "_class_name": ("AutoencoderTiny",),
    "act_fn": ("relu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
# The magnitude and shift are those of latents stored as 8-bit pictures; block_out_channels repeats
# the decoder's; force_upcast is always off.
_WITHOUT_EFFECT = ("block_out_channels", "force_upcast", "latent_magnitude", "latent_shift")


class TinyVAEConfig(msgspec.Struct, frozen=True):
    """The keys of ``tiny_vae/config.json``."""

    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        """Widths may not change from level to level: the layout has no convolution for it."""
        for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
            widths: tuple[int, ...] = getattr(self, key)
            if len(set(widths)) != 1:
                raise ValueError(f"`{key}` is {list(widths)}; supported: all the same")
        per_block(
            "num_encoder_blocks", self.num_encoder_blocks, len(self.encoder_block_out_channels)
        )
        per_block(
            "num_decoder_blocks", self.num_decoder_blocks, len(self.decoder_block_out_channels)
        )


class TinyVAE(Network):
    """Encoder and decoder, with the contract of ``VAE``: latents as the UNet sees them."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = 2 ** (len(config.num_decoder_blocks) - 1)
        self.encoder = Layers(_encoder_layers(config))
        self.decoder = Layers(_decoder_layers(config))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of ``tiny_vae/config.json``; ``ModelCorrupt`` if not supported."""
        refuse_unknown(config, {*TinyVAEConfig.__struct_fields__, *_FIXED, *_WITHOUT_EFFECT})
        return cls(parse(config, TinyVAEConfig, _FIXED))

    def encode(self, pixels: Tensor) -> Tensor:
        """Return scaled latents [B,4,H/8,W/8] of pixels [B,3,H,W] in [-1,1]."""
        z = self.encoder((pixels + 1) / 2)
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels [B,3,8h,8w] in about [-1,1], not clamped, of scaled latents [B,4,h,w]."""
        z = latents / self.config.scaling_factor + self.config.shift_factor
        # Latents beyond three standard deviations are pressed back rather than cut off.
        return self.decoder((z / 3).tanh() * 3) * 2 - 1


class Layers(nn.Module):
    """One sequence; a module of its own because the published names start ``decoder.layers``."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers."""
        return self.layers(x)


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU, around a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels), nn.ReLU(),
            _conv(channels, channels), nn.ReLU(),
            _conv(channels, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] to the same shape."""
        return F.relu(self.conv(x) + x)


def _encoder_layers(config: TinyVAEConfig) -> list[nn.Module]:
    width = config.encoder_block_out_channels[0]
    layers: list[nn.Module] = []
    for i, count in enumerate(config.num_encoder_blocks):
        halve = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        layers += [halve if i else _conv(3, width), *(TinyBlock(width) for _ in range(count))]
    return [*layers, _conv(width, config.latent_channels)]


def _decoder_layers(config: TinyVAEConfig) -> list[nn.Module]:
    width = config.decoder_block_out_channels[0]
    layers: list[nn.Module] = [_conv(config.latent_channels, width), nn.ReLU()]
    for count in config.num_decoder_blocks[:-1]:
        layers += [TinyBlock(width) for _ in range(count)]
        layers += [nn.Upsample(scale_factor=2.0), _conv(width, width, bias=False)]
    layers += [TinyBlock(width) for _ in range(config.num_decoder_blocks[-1])]
    return [*layers, _conv(width, 3)]


def _conv(c_in: int, c_out: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)
