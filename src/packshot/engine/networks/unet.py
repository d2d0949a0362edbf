"""SDXL's UNet: what noise is in these latents, given a text and a step (arXiv:2307.01952 §2).

The work is split by how often it changes. ``embed`` (all that depends on the step, the pooled text
and the sizes) and ``cross_kv`` (keys and values of the text) run once per request, so that
``forward``, which runs once per step, touches only the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.core.errors import ModelCorrupt
from packshot.engine.networks.base import Network, parse, per_block, refuse_unknown
from packshot.engine.networks.blocks import Downsample, ResnetBlock, Upsample

__all__ = ["KV", "UNet", "UNetConfig"]

KV = tuple[Tensor, Tensor]
"""Keys and values of one attention layer, each [B, heads, tokens, channels per head]."""

_FIXED: dict[str, tuple[object, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": ("text_time",),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
# Without effect here: dropout is for training, the heads are those of another embedding type, and
# upcast_attention asks for the fp32 softmax that F.scaled_dot_product_attention has anyway.
_WITHOUT_EFFECT = ("dropout", "addition_embed_type_num_heads", "upcast_attention")


class UNetConfig(msgspec.Struct, frozen=True):
    """The keys of ``unet/config.json`` that shape the network.

    ``attention_head_dim`` is, by an old slip of the format, the *number* of heads.
    """

    sample_size: int
    block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    down_block_types: tuple[Literal["DownBlock2D", "CrossAttnDownBlock2D"], ...]
    up_block_types: tuple[Literal["UpBlock2D", "CrossAttnUpBlock2D"], ...]
    cross_attention_dim: int
    addition_time_embed_dim: int
    projection_class_embeddings_input_dim: int
    in_channels: int = 4
    out_channels: int = 4
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    def levels(self) -> tuple[Level, ...]:
        """Return one ``Level`` per resolution, finest first."""
        n = len(self.block_out_channels)
        layers = per_block("layers_per_block", self.layers_per_block, n)
        heads = per_block("attention_head_dim", self.attention_head_dim, n)
        depth = per_block("transformer_layers_per_block", self.transformer_layers_per_block, n)
        down = per_block("down_block_types", self.down_block_types, n)
        up = per_block("up_block_types", self.up_block_types, n)[::-1]
        return tuple(
            Level(c, layers[i], heads[i], depth[i], "Cross" in down[i], "Cross" in up[i])
            for i, c in enumerate(self.block_out_channels)
        )


class Level(NamedTuple):
    """One resolution: its width, its resnets, and the transformer after each of them."""

    channels: int
    layers: int
    heads: int
    depth: int
    attends_down: bool
    attends_up: bool


class UNet(Network):
    """The network; see the module's docstring for its three calls."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = config.levels()
        c, emb = levels[0].channels, 4 * levels[0].channels
        self.conv_in = nn.Conv2d(config.in_channels, c, 3, padding=1)
        self.time_embedding = Mlp(c, emb)
        self.add_embedding = Mlp(config.projection_class_embeddings_input_dim, emb)
        # Down, mid and up are registered in the order of `forward`, on which `_resnets` relies.
        self.down_blocks = nn.ModuleList()
        skips = [c]  # the widths of the states that the down blocks leave for the up blocks
        for level in levels:
            last = level is levels[-1]
            self.down_blocks.append(DownBlock(config, level, skips[-1], emb, last=last))
            skips += [level.channels] * (level.layers + (not last))
        self.mid_block = MidBlock(config, levels[-1], emb)
        self.up_blocks = nn.ModuleList()
        width = skips[-1]
        for level in reversed(levels):
            taken = [skips.pop() for _ in range(level.layers + 1)]
            self.up_blocks.append(UpBlock(config, level, width, taken, emb, last=not skips))
            width = level.channels
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, c, config.norm_eps)
        self.conv_out = nn.Conv2d(c, config.out_channels, 3, padding=1)
        self._shift_widths = [resnet.conv1.out_channels for resnet in self._resnets()]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of ``unet/config.json``; ``ModelCorrupt`` for what is not supported."""
        refuse_unknown(config, {*UNetConfig.__struct_fields__, *_FIXED, *_WITHOUT_EFFECT})
        return cls(parse(config, UNetConfig, _FIXED))

    @property
    def shift_width(self) -> int:
        """E, the numbers that `embed` returns for each step and text."""
        return sum(self._shift_widths)

    def embed(self, timesteps: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """Return the shifts [S,B,E] of all resnets, for S timesteps and a batch of B texts.

        ``timesteps`` [S] in 0…999; ``pooled`` [B,P] of the second text encoder; ``time_ids`` [B,6]
        in pixels: original height, width, crop top, left, target height, width (arXiv:2307.01952
        §2.2). ``forward`` takes the row of its step.
        """
        sizes = self._sinusoids(time_ids.flatten(), self.config.addition_time_embed_dim)
        sizes = sizes.reshape(len(time_ids), -1)
        added = self.add_embedding(torch.cat([pooled, sizes.to(pooled.dtype)], dim=-1))
        times = self._sinusoids(timesteps, self.config.block_out_channels[0]).to(pooled.dtype)
        emb = F.silu(self.time_embedding(times)[:, None] + added)
        return torch.cat([resnet.time_emb_proj(emb) for resnet in self._resnets()], dim=-1)

    def cross_kv(self, text: Tensor) -> list[KV]:
        """Return keys and values of the text states [B,T,C] for each cross-attention, in order."""
        return [block.attn2.kv(text) for block in self._blocks()]

    def forward(self, latents: Tensor, emb: Tensor, cross_kv: Sequence[KV]) -> Tensor:
        """Return the prediction [B,4,h,w], noise or velocity as the model was trained, of one step.

        ``latents`` [B,4,h,w] scaled to the network's input; ``emb`` [B,E] a row of ``embed``.
        """
        shifts = iter(torch.split(emb, self._shift_widths, dim=-1))
        cross = iter(cross_kv)
        x = self.conv_in(latents)
        skips = [x]
        for down in self.down_blocks:
            skips += down(skips[-1], shifts, cross)
        x = self.mid_block(skips[-1], shifts, cross)
        for up in self.up_blocks:
            x = up(x, skips, shifts, cross)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def predict(
        self, latents: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        """Return ``forward`` for one step with nothing computed beforehand; ``timestep`` is 0-d."""
        emb = self.embed(timestep.reshape(1), pooled, time_ids)
        return self(latents, emb[0], self.cross_kv(text))

    def _resnets(self) -> list[ResnetBlock]:
        return [m for m in self.modules() if isinstance(m, ResnetBlock)]

    def _blocks(self) -> list[TransformerBlock]:
        return [m for m in self.modules() if isinstance(m, TransformerBlock)]

    def _sinusoids(self, values: Tensor, width: int) -> Tensor:
        """Return fp32 [N,width]: sines and cosines of [N], frequencies from 1 to 1/10,000."""
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32, device=values.device)
        frequencies = torch.exp(-math.log(10_000) * steps / (half - self.config.freq_shift))
        angles = values.float()[:, None] * frequencies
        pair = (angles.sin(), angles.cos())
        return torch.cat(pair[::-1] if self.config.flip_sin_to_cos else pair, dim=-1)


class Mlp(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [...,c_in] to [...,c_out]."""
        return self.linear_2(F.silu(self.linear_1(x)))


class DownBlock(nn.Module):
    """Resnets, each followed by a transformer where the level has one, then a downsampling."""

    def __init__(
        self, config: UNetConfig, level: Level, c_in: int, emb: int, *, last: bool
    ) -> None:
        super().__init__()
        c = level.channels
        widths = [c_in] + [c] * (level.layers - 1)
        self.resnets = nn.ModuleList(_resnet(config, width, c, emb) for width in widths)
        self.attentions = _transformers(config, level, level.layers * level.attends_down)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c, padding=1)])

    def forward(self, x: Tensor, shifts: Iterator[Tensor], cross: Iterator[KV]) -> list[Tensor]:
        """Return every state on the way; the last one is the input of the next block."""
        states: list[Tensor] = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, next(shifts))
            x = self.attentions[i](x, cross) if self.attentions else x
            states.append(x)
        return states + [downsample(x) for downsample in self.downsamplers]


class MidBlock(nn.Module):
    """Resnet, transformer, resnet at the coarsest resolution."""

    def __init__(self, config: UNetConfig, level: Level, emb: int) -> None:
        super().__init__()
        self.attentions = _transformers(config, level, 1)
        self.resnets = nn.ModuleList(
            _resnet(config, level.channels, level.channels, emb) for _ in range(2)
        )

    def forward(self, x: Tensor, shifts: Iterator[Tensor], cross: Iterator[KV]) -> Tensor:
        """Map [B,C,h,w] to the same shape."""
        x = self.attentions[0](self.resnets[0](x, next(shifts)), cross)
        return self.resnets[1](x, next(shifts))


class UpBlock(nn.Module):
    """As ``DownBlock``, but each resnet also takes a state of the way down, and it upsamples."""

    def __init__(
        self,
        config: UNetConfig,
        level: Level,
        c_in: int,
        skips: Sequence[int],
        emb: int,
        *,
        last: bool,
    ) -> None:
        super().__init__()
        c = level.channels
        widths = [c_in] + [c] * level.layers
        self.resnets = nn.ModuleList(
            _resnet(config, width + skip, c, emb) for width, skip in zip(widths, skips, strict=True)
        )
        self.attentions = _transformers(config, level, (level.layers + 1) * level.attends_up)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(c)])

    def forward(
        self, x: Tensor, skips: list[Tensor], shifts: Iterator[Tensor], cross: Iterator[KV]
    ) -> Tensor:
        """Use up the last of ``skips``; return [B,C,h,w] at the resolution of the next one."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), next(shifts))
            x = self.attentions[i](x, cross) if self.attentions else x
        for upsample in self.upsamplers:
            # To the size of the next skip: it is odd where the way down rounded up.
            x = upsample(x, *skips[-1].shape[-2:])
        return x


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, around a residual connection."""

    def __init__(self, config: UNetConfig, level: Level) -> None:
        super().__init__()
        c, self.linear = level.channels, config.use_linear_projection
        self.norm = nn.GroupNorm(config.norm_num_groups, c, eps=1e-6)
        self.proj_in = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(c, level.heads, config.cross_attention_dim) for _ in range(level.depth)
        )
        self.proj_out = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, cross: Iterator[KV]) -> Tensor:
        """Map [B,C,h,w] to the same shape; both permutations are free where memory is NHWC."""
        b, c, h, w = x.shape
        y = self.norm(x) if self.linear else self.proj_in(self.norm(x))
        y = y.permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = self.proj_in(y) if self.linear else y
        for block in self.transformer_blocks:
            y = block(y, next(cross))
        y = self.proj_out(y) if self.linear else y
        y = y.reshape(b, h, w, c).permute(0, 3, 1, 2)
        return x + (y if self.linear else self.proj_out(y))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a LayerNorm and added on."""

    def __init__(self, channels: int, heads: int, c_text: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, c_text)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, cross_kv: KV) -> Tensor:
        """Map tokens [B,N,C] to the same shape."""
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.kv(h))
        x = x + self.attn2(self.norm2(x), cross_kv)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention whose keys and values may be made beforehand (``kv``)."""

    def __init__(self, channels: int, heads: int, c_context: int) -> None:
        super().__init__()
        if channels % heads:
            raise ModelCorrupt(f"a width of {channels} is not a multiple of {heads} heads.")
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(c_context, channels, bias=False)
        self.to_v = nn.Linear(c_context, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def kv(self, context: Tensor) -> KV:
        """Return keys and values of [B,T,c_context]."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def forward(self, x: Tensor, kv: KV) -> Tensor:
        """Map queries from [B,N,C] to the same shape."""
        y = F.scaled_dot_product_attention(self._split(self.to_q(x)), *kv)
        return self.to_out[0](y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """Return [B,N,C] as [B,heads,N,C/heads]."""
        b, n, c = x.shape
        return x.reshape(b, n, self.heads, c // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """To four times the width, gated, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        # The format counts a dropout, which is only for training, between the two.
        self.net = nn.Sequential(
            GatedLinear(channels, inner), nn.Identity(), nn.Linear(inner, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,N,C] to the same shape."""
        return self.net(x)


class GatedLinear(nn.Module):
    """A linear layer whose output is gated by the GELU of another (GEGLU, arXiv:2002.05202)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [...,c_in] to [...,c_out]."""
        value, gate = torch.chunk(self.proj(x), 2, dim=-1)
        return value * F.gelu(gate)


def _resnet(config: UNetConfig, c_in: int, c_out: int, emb: int) -> ResnetBlock:
    return ResnetBlock(c_in, c_out, groups=config.norm_num_groups, eps=config.norm_eps, emb=emb)


def _transformers(config: UNetConfig, level: Level, count: int) -> nn.ModuleList:
    return nn.ModuleList(Transformer(config, level) for _ in range(count))
