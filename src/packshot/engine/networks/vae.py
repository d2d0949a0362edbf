"""SDXL's autoencoder: from pixels to latents an eighth of the size, and back (arXiv:2112.10752)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.networks.base import Network, parse, per_block, refuse_unknown
from packshot.engine.networks.blocks import Downsample, ResnetBlock, Upsample

__all__ = ["VAE", "VAEConfig"]

_EPS = 1e-6
_FIXED: dict[str, tuple[object, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "out_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
# Names of the attention's weights in files from before 2023, and what they became.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class VAEConfig(msgspec.Struct, frozen=True):
    """The keys of ``vae/config.json``.

    ``force_upcast``: in fp16 the activations overflow, so run this one in fp32 or bf16.
    """

    block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...]
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    force_upcast: bool = True

    def __post_init__(self) -> None:
        for key in ("down_block_types", "up_block_types"):
            per_block(key, getattr(self, key), len(self.block_out_channels))


class VAE(Network):
    """Encoder and decoder. Latents are scaled as the UNet sees them: to about unit variance."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = 2 ** (len(config.block_out_channels) - 1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        z = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of ``vae/config.json``; ``ModelCorrupt`` for what is not supported."""
        refuse_unknown(config, {*VAEConfig.__struct_fields__, *_FIXED})
        return cls(parse(config, VAEConfig, _FIXED))

    @staticmethod
    def adapt_key(key: str) -> str | None:
        """Return the name here of a published weight, old or new."""
        return re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda match: f"{match[1]}.{_OLD_NAMES[match[2]]}.",
            key,
        )

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [B,4,H/8,W/8], unscaled, of pixels [B,3,H,W] in [-1,1]."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean latents [B,4,H/8,W/8], scaled, of pixels [B,3,H,W] in [-1,1]."""
        mean, _ = self.moments(pixels)
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels [B,3,8h,8w] in about [-1,1], not clamped, of scaled latents [B,4,h,w]."""
        z = latents / self.config.scaling_factor + self.config.shift_factor
        return self.decoder(self.post_quant_conv(z))


class Encoder(nn.Module):
    """Resnets and downsamplings, then the middle, to twice as many channels as the latents have."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(config, widths[max(i - 1, 0)], width, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(config, widths[-1])
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels [B,3,H,W] to [B,8,H/8,W/8]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """The middle, then resnets and upsamplings; one resnet more per level than the encoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config, widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(config, widths[max(i - 1, 0)], width, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map unscaled latents [B,4,h,w] to pixels [B,3,8h,8w]."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class DownBlock(nn.Module):
    """Resnets, then a downsampling."""

    def __init__(self, config: VAEConfig, c_in: int, c_out: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, c_in, c_out, config.layers_per_block)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out, padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,c_in,h,w] to [B,c_out,h/2,w/2] (the last block: not halved)."""
        for module in (*self.resnets, *self.downsamplers):
            x = module(x)
        return x


class MidBlock(nn.Module):
    """Resnet, attention over all pixels, resnet."""

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, config.norm_num_groups)])
        self.resnets = _resnets(config, channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] to the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    """Resnets, then an upsampling."""

    def __init__(self, config: VAEConfig, c_in: int, c_out: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, c_in, c_out, config.layers_per_block + 1)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,c_in,h,w] to [B,c_out,2h,2w] (the last block: not doubled)."""
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x, 2 * x.shape[-2], 2 * x.shape[-1])
        return x


class Attention(nn.Module):
    """Self-attention of one head over the pixels of a feature map, added on."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] to the same shape."""
        b, c, h, w = x.shape
        y = self.group_norm(x).permute(0, 2, 3, 1).reshape(b, 1, h * w, c)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](y).reshape(b, h, w, c).permute(0, 3, 1, 2)


def _resnets(config: VAEConfig, c_in: int, c_out: int, count: int) -> nn.ModuleList:
    widths = [c_in] + [c_out] * (count - 1)
    return nn.ModuleList(
        ResnetBlock(width, c_out, groups=config.norm_num_groups, eps=_EPS) for width in widths
    )
