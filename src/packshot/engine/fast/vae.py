"""SDXL's decoder for a GPU: `networks.vae.Decoder` on fused kernels, from latents to bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.engine.fast.dense import Dense
from packshot.engine.fast.maps import Kernels, Map, Resnet, Upsample, convolve
from packshot.engine.networks import vae as plain

__all__ = ["FastDecoder"]

QUERIES = 2048
"""Pixels whose attention is computed at a time: 128 MB of scores for a picture of 1024x1024."""


class FastDecoder:
    """The decoder of ``vae`` on its device, whose weights it shares."""

    def __init__(self, vae: plain.VAE, kernels: Kernels) -> None:
        self.vae = vae
        self.kernels = kernels
        decoder = vae.decoder
        blocks = (decoder.mid_block, *decoder.up_blocks)
        self.resnets = {id(r): Resnet(r) for block in blocks for r in block.resnets}
        self.upsamplers = {id(u): Upsample(u.conv) for block in blocks[1:] for u in block.upsamplers}
        self.attention = Attention(decoder.mid_block.attentions[0])

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return levels uint8 [B,8h,8w,3] for scaled latents [B,4,h,w] of any type.

        And whether all of them came from numbers: a boolean on the device.
        """
        vae, kernels, decoder = self.vae, self.kernels, self.vae.decoder
        z = latents / vae.config.scaling_factor + vae.config.shift_factor
        z = z.to(decoder.conv_in.weight.dtype).permute(0, 2, 3, 1)
        size = (z.shape[1], z.shape[2])
        point = vae.post_quant_conv
        z = F.linear(z.flatten(1, 2), point.weight.flatten(1), point.bias)
        x = Map(size, convolve(decoder.conv_in, z, size), bias=decoder.conv_in.bias)
        mid = decoder.mid_block
        x = self._resnet(x, mid.resnets[0])
        x = self.attention(kernels, x)
        x = self._resnet(x, mid.resnets[1])
        for up in decoder.up_blocks:
            for resnet in up.resnets:
                x = self._resnet(x, resnet)
            for upsample in up.upsamplers:
                x = self.upsamplers[id(upsample)](kernels, x, (2 * x.size[0], 2 * x.size[1]))
        _, y = x.normed(kernels, decoder.conv_norm_out, silu=True)
        y = convolve(decoder.conv_out, y, x.size) + decoder.conv_out.bias
        return kernels.to_uint8(y).view(len(y), *x.size, 3), y.isfinite().all()

    def _resnet(self, x: Map, resnet: nn.Module) -> Map:
        return self.resnets[id(resnet)](self.kernels, x, None)


class Attention:
    """`networks.vae.Attention`: one head of 512 channels, too wide for the usual kernels.

    Two matrix products around a softmax, a strip of queries at a time; the scores are fp32.
    """

    def __init__(self, attention: plain.Attention) -> None:
        self.norm = attention.group_norm
        parts = (attention.to_q, attention.to_k, attention.to_v)
        scale = attention.to_q.in_features**-0.5
        weights = [part.weight for part in parts]
        biases = [part.bias for part in parts]
        self.weight = torch.cat([weights[0] * scale, *weights[1:]])
        self.bias = torch.cat([biases[0] * scale, *biases[1:]])
        self.out = Dense.of(attention.to_out[0])
        self.out_bias = attention.to_out[0].bias

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
