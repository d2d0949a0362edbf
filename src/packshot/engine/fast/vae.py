"""SDXL's decoder for a GPU: `networks.vae.Decoder` on fused kernels, from latents to bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.dense import Dense
from packshot.engine.fast.maps import (
    Convolution,
    Kernels,
    Map,
    Resnet,
    Upsample,
    each,
    group_norm_of,
    linear_of,
)
from packshot.engine.networks import blocks
from packshot.engine.networks import vae as plain

__all__ = ["FastDecoder"]

QUERIES = 2048
"""Pixels whose attention is computed at a time: 128 MB of scores for a picture of 1024x1024."""


class FastDecoder:
    """The decoder of ``vae`` on its device, whose weights it shares."""

    def __init__(self, vae: plain.VAE, kernels: Kernels) -> None:
        decoder = vae.decoder
        self.kernels = kernels
        self.config = vae.config
        self.point = linear_of(vae.post_quant_conv)
        self.conv_in = Convolution.of(decoder.conv_in)
        self.conv_out = Convolution.of(decoder.conv_out)
        self.norm_out = group_norm_of(decoder.conv_norm_out)
        first, second = each(decoder.mid_block.resnets, blocks.ResnetBlock)
        (attention,) = each(decoder.mid_block.attentions, plain.Attention)
        self.mid = (Resnet(first), Attention(attention), Resnet(second))
        self.levels: list[tuple[list[Resnet], list[Upsample]]] = [
            (
                [Resnet(resnet) for resnet in each(block.resnets, blocks.ResnetBlock)],
                [Upsample(upsample) for upsample in each(block.upsamplers, blocks.Upsample)],
            )
            for block in each(decoder.up_blocks, plain.UpBlock)
        ]

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return levels uint8 [B,8h,8w,3] for scaled latents [B,4,h,w] of any type.

        And whether all of them came from numbers: a boolean on the device.
        """
        kernels = self.kernels
        z = latents / self.config.scaling_factor + self.config.shift_factor
        z = z.to(self.conv_in.weight.dtype).permute(0, 2, 3, 1)
        size = (z.shape[1], z.shape[2])
        z = F.linear(z.flatten(1, 2), *self.point)
        x = Map(size, self.conv_in(kernels, z, size), bias=self.conv_in.bias)
        first, attention, second = self.mid
        x = second(kernels, attention(kernels, first(kernels, x, None)), None)
        for resnets, upsamples in self.levels:
            for resnet in resnets:
                x = resnet(kernels, x, None)
            for upsample in upsamples:
                x = upsample(kernels, x, (2 * x.size[0], 2 * x.size[1]))
        _, y = x.normed(kernels, self.norm_out, silu=True)
        y = self.conv_out(kernels, y, x.size) + self.conv_out.bias
        return kernels.to_uint8(y).view(len(y), *x.size, 3), y.isfinite().all()


class Attention:
    """`networks.vae.Attention`: one head of 512 channels, too wide for the usual kernels.

    Two matrix products around a softmax, a strip of queries at a time; the scores are fp32.
    """

    def __init__(self, attention: plain.Attention) -> None:
        self.norm = group_norm_of(attention.group_norm)
        parts = (attention.to_q, attention.to_k, attention.to_v)
        scale = attention.to_q.in_features**-0.5
        weights = [part.weight for part in parts]
        biases = [part.bias for part in parts]
        self.weight = torch.cat([weights[0] * scale, *weights[1:]])
        self.bias = torch.cat([biases[0] * scale, *biases[1:]])
        (out,) = each(attention.to_out, nn.Linear)
        self.out, self.out_bias = Dense.of(out), out.bias

    def __call__(self, kernels: Kernels, x: Map) -> Map:
        """Map [B,P,C] to the same shape. ``x`` is used up."""
        y, h = x.normed(kernels, self.norm, silu=False)
        h = F.linear(h, self.weight, self.bias)
        for picture, (q, k, v) in enumerate(zip(*h.chunk(3, dim=-1), strict=True)):
            for first in range(0, len(q), QUERIES):
                scores = _product(q[first : first + QUERIES], k.t())
                seen = kernels.softmax(scores, v.dtype) @ v
                self.out.add_to(y[picture, first : first + QUERIES], seen)
        return Map(x.size, y, bias=self.out_bias)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product in fp32, which it is summed in anyway."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
