"""SDXL's UNet for a GPU: `networks.unet.UNet` on fused kernels, with the same weights.

What differs from the plain network is where sums are taken, not what is summed:

- A bias is not added where it arises but with the next pass over the data: by the normalisation
  that reads it, or by the product whose constant it becomes. `maps.Map` and the residual stream of
  the transformers carry such debts along.
- GroupNorm, SiLU and the rounding to fp8 are one operation.
- Queries, keys and values are one product; keys and values of the text are given.
- A product that ends a residual branch adds to the stream in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from packshot.engine.fast.dense import Dense, DenseFp8, DenseInt8, Product, after_layer_norm
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
from packshot.engine.fast.products import TORCH, Multiplier
from packshot.engine.networks import blocks
from packshot.engine.networks import unet as plain

__all__ = ["KV", "Attend", "Block", "FastUNet"]

KV = tuple[Tensor, Tensor]
"""Keys and values [B,T,C] of one attention to the text; views."""


class Attend(Protocol):
    """Queries, keys, values [B,heads,N,D] to [B,heads,N,D]; with ``quant`` in fp8."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None
    ) -> Tensor: ...


class Block:
    """`networks.unet.TransformerBlock`. The stream lacks the biases of all products before it."""

    def __init__(
        self, block: plain.TransformerBlock, owed: Tensor, by: Multiplier, *, one_pass: bool
    ) -> None:
        self.one_pass = one_pass
        self.norms = (block.norm1, block.norm2, block.norm3)
        self.heads = block.attn1.heads
        self.width = block.attn1.to_q.out_features // self.heads
        (out_1,), (out_2,) = (each(attn.to_out, nn.Linear) for attn in (block.attn1, block.attn2))
        gated, _, out_3 = block.ff.net
        if not isinstance(gated, plain.GatedLinear) or not isinstance(out_3, nn.Linear):
            raise TypeError(f"{block.ff} is no gated unit.")
        self.qkv: Product = Dense.of(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, by=by)
        self.q: Dense | DenseFp8 | DenseInt8 = Dense.of(block.attn2.to_q, by=by)
        self.gated: Dense | DenseFp8 | DenseInt8 = Dense(_alternating(gated.proj.weight), by)
        self.gated_bias = _alternating(gated.proj.bias)
        self.out_1: Product = Dense.of(out_1, by=by)
        self.out_2: Product = Dense.of(out_2, by=by)
        self.out_3: Product = Dense.of(out_3, by=by)
        # What the stream lacks at each normalisation, and at the end.
        first = owed + out_1.bias.float()
        second = first + out_2.bias.float()
        self.owed = (owed, first, second)
        self.owes = second + out_3.bias.float()

    def in_fp8(self, own: float, text: float, gated: float) -> None:
        """Turn all products to fp8, for what leaves both attentions and the gated unit at most.

        But the one after self-attention where a library computes that, which writes no fp8.
        """
        norms = self.norms
        self.qkv, self.q, self.gated = (
            after_layer_norm(exact(product), norm)
            for product, norm in zip((self.qkv, self.q, self.gated), norms, strict=True)
        )
        if self.one_pass:
            self.out_1 = DenseFp8.of(exact(self.out_1), own)
        self.out_2 = DenseFp8.of(exact(self.out_2), text)
        self.out_3 = DenseFp8.of(exact(self.out_3), gated)

    def in_int8(self, kernels: Kernels) -> None:
        """Turn the same products to int8."""
        self.qkv, self.q, self.gated, self.out_3 = (
            DenseInt8.of(exact(product), kernels)
            for product in (self.qkv, self.q, self.gated, self.out_3)
        )

    def __call__(
        self, kernels: Kernels, attend: Attend, t: Tensor, add: Tensor | None, kv: KV, batch: int
    ) -> Tensor | None:
        """Add this block's work to the stream ``t`` [M,C] (+ ``add``); return what is left."""
        h = self._norm(kernels, 0, t, add, self.qkv)
        q, k, v = self.qkv(h).view(batch, -1, 3, self.heads, self.width).unbind(2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = attend(q, k, v, quant=self.out_1.quant)
        add = self.out_1.add_to(t, _tokens(y))
        h = self._norm(kernels, 1, t, add, self.q)
        add = self.out_2.add_to(t, self._asked(kernels, h, kv))
        h = self._norm(kernels, 2, t, add, self.gated)
        return self.out_3.add_to(t, self._gated(kernels, h))

    def _asked(self, kernels: Kernels, h: Tensor, kv: KV) -> Tensor:
        """Return the attention to the text: queries and all in one pass where that pays."""
        product, quant = self.q, self.out_2.quant
        k, v = (_heads(x, self.heads) for x in kv)
        if (
            self.one_pass
            and not isinstance(product, DenseInt8)
            and kernels.ask_pays(*h.shape, fp8=product.quant is not None)
        ):
            return kernels.ask(h, product.weight, k, v, scale=product.scale, quant=quant)
        q = _heads(product(h).view(len(k), -1, h.shape[1]), self.heads)
        return _tokens(kernels.attend(q, k, v, quant=quant))

    def _gated(self, kernels: Kernels, h: Tensor) -> Tensor:
        """Return the gated unit's output: in one pass where the chip lets our kernel multiply."""
        gated, quant = self.gated, self.out_3.quant
        if self.one_pass and not isinstance(gated, DenseInt8):
            return kernels.geglu(h, gated.weight, self.gated_bias, scale=gated.scale, quant=quant)
        return kernels.gate(gated(h), self.gated_bias, quant=quant)

    def _norm(
        self, kernels: Kernels, which: int, t: Tensor, add: Tensor | None, into: Product
    ) -> Tensor:
        norm, owed = self.norms[which], self.owed[which]
        return kernels.layer_norm(
            t, norm.weight, norm.bias, norm.eps, add=add, shift=owed, quant=into.quant
        )


def exact(product: Product) -> Dense:
    """Return a product that is in its own type yet."""
    if not isinstance(product, Dense):
        raise TypeError("the products of this network are rounded already; build another one.")
    return product


def _alternating(x: Tensor) -> Tensor:
    """Return the rows of values and then gates as a value's, its gate's, the next value's."""
    return torch.stack(x.chunk(2), dim=1).flatten(0, 1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return [B,N,C], heads side by side, as [B,heads,N,D]: a view."""
    return x.view(len(x), -1, heads, x.shape[-1] // heads).transpose(1, 2)


def _tokens(y: Tensor) -> Tensor:
    """Return [B,heads,N,D] as [B*N,heads*D]."""
    return y.transpose(1, 2).reshape(-1, y.shape[1] * y.shape[3])


class Transformer:
    """`networks.unet.Transformer`: in and out of a residual stream of tokens."""

    def __init__(self, transformer: plain.Transformer, by: Multiplier, *, one_pass: bool) -> None:
        self.norm = group_norm_of(transformer.norm)
        weight_in, bias_in = linear_of(transformer.proj_in)
        weight_out, bias_out = linear_of(transformer.proj_out)
        self.proj_in, self.proj_out = Dense(weight_in, by), Dense(weight_out, by)
        owed = bias_in.float()
        self.blocks: list[Block] = []
        for block in each(transformer.transformer_blocks, plain.TransformerBlock):
            self.blocks.append(Block(block, owed, by, one_pass=one_pass))
            owed = self.blocks[-1].owes
        self.bias = bias_out.float() + weight_out.float() @ owed

    def __call__(self, kernels: Kernels, attend: Attend, x: Map, kv: Iterator[KV]) -> Map:
        """Map [B,P,C] to the same shape. ``x`` is used up."""
        y, tokens = x.normed(kernels, self.norm, silu=False)
        t, add = self.proj_in(tokens.flatten(0, 1)), None
        for block in self.blocks:
            add = block(kernels, attend, t, add, next(kv), len(y))
        if add is not None:
            t += add
        self.proj_out.add_to(y.view(t.shape), t)
        return Map(x.size, y, bias=self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution on the way down, at the bottom or on the way up."""

    resnets: list[Resnet]
    transformers: list[Transformer]
    down: Convolution | None = None
    up: Upsample | None = None


class FastUNet:
    """The network. Built of a plain one on the same device, whose weights it shares or copies.

    ``one_pass``: whether `Kernels.geglu`, `Kernels.ask` and `Kernels.convolve` run here; they take
    a Hopper GPU or a later one.
    """

    def __init__(
        self,
        unet: plain.UNet,
        kernels: Kernels,
        attend: Attend,
        by: Multiplier = TORCH,
        *,
        one_pass: bool = True,
    ) -> None:
        self.kernels = kernels
        self.attend = attend
        self.conv_in, self.conv_out = Convolution.of(unet.conv_in), Convolution.of(unet.conv_out)
        self.norm_out = group_norm_of(unet.conv_norm_out)

        def level(
            block: plain.DownBlock | plain.MidBlock | plain.UpBlock,
            down: Convolution | None = None,
            up: Upsample | None = None,
        ) -> Level:
            transformers = each(block.attentions, plain.Transformer)
            return Level(
                [
                    Resnet(resnet, by, own=one_pass)
                    for resnet in each(block.resnets, blocks.ResnetBlock)
                ],
                [Transformer(found, by, one_pass=one_pass) for found in transformers],
                down,
                up,
            )

        self.down: list[Level] = []
        for block in each(unet.down_blocks, plain.DownBlock):
            halving = [Convolution.of(d.conv) for d in each(block.downsamplers, blocks.Downsample)]
            self.down.append(level(block, down=halving[0] if halving else None))
        self.mid = level(unet.mid_block)
        self.up: list[Level] = []
        for block in each(unet.up_blocks, plain.UpBlock):
            doubling = each(block.upsamplers, blocks.Upsample)
            self.up.append(level(block, up=Upsample(doubling[0]) if doubling else None))

        resnets = [resnet for part in self.levels() for resnet in part.resnets]
        self.widths = [len(resnet.convs[0].bias) for resnet in resnets]
        self._biases = torch.cat([resnet.convs[0].bias for resnet in resnets])
        texts = [m.attn2 for m in unet.modules() if isinstance(m, plain.TransformerBlock)]
        layers = [layer for attn in texts for layer in (attn.to_k, attn.to_v)]
        self.kv_weight = torch.cat([layer.weight for layer in layers])
        self._kv_widths = [layer.out_features for layer in layers]

    @property
    def dtype(self) -> torch.dtype:
        """The type of what goes in, and of what comes out."""
        return self.kv_weight.dtype

    def levels(self) -> list[Level]:
        """Return all levels, in the order of the network."""
        return [*self.down, self.mid, *self.up]

    def blocks(self) -> Iterator[Block]:
        """Yield the transformer blocks, in the order of the network."""
        for level in self.levels():
            for transformer in level.transformers:
                yield from transformer.blocks

    def shifts(self, embedded: Tensor) -> Tensor:
        """Return what `__call__` takes of `UNet.embed`'s [...,E]: with the first biases in it."""
        return (embedded.float() + self._biases.float()).to(embedded.dtype)

    def split_kv(self, kv: Tensor) -> list[KV]:
        """Return every block's keys and values: views of [B,T,sum], text states @ ``kv_weight``."""
        parts = torch.split(kv, self._kv_widths, dim=-1)
        return list(zip(parts[0::2], parts[1::2], strict=True))

    def __call__(
        self, x: Tensor, size: tuple[int, int], shifts: Tensor, cross_kv: Sequence[KV]
    ) -> Tensor:
        """Return the prediction [B,P,4] for latents [B,P,4] of ``size`` (h, w).

        ``shifts`` [B,E]: a row of what `shifts` returns; ``cross_kv`` of `split_kv`.
        """
        given = iter(torch.split(shifts, self.widths, dim=-1))
        kv = iter(cross_kv)
        state = Map(size, self.conv_in(self.kernels, x, size), bias=self.conv_in.bias)
        skips = [state]
        for level in self.down:
            for i in range(len(level.resnets)):
                state = self._stage(level, i, state, given, kv)
                skips.append(state)
            if level.down is not None:
                state = self._down(state, level.down)
                skips.append(state)
        state = self._stage(self.mid, 0, state, given, kv)
        state = self.mid.resnets[1](self.kernels, state, next(given))
        for level in self.up:
            for i in range(len(level.resnets)):
                state = self._stage(level, i, state, given, kv, skips.pop())
            if level.up is not None:
                # To the size of the next skip: it is odd where the way down rounded up.
                state = level.up(self.kernels, state, skips[-1].size)
        _, y = state.normed(self.kernels, self.norm_out, silu=True)
        return self.conv_out(self.kernels, y, size) + self.conv_out.bias

    def _stage(
        self,
        level: Level,
        index: int,
        state: Map,
        shifts: Iterator[Tensor],
        kv: Iterator[KV],
        skip: Map | None = None,
    ) -> Map:
        """One resnet, and the transformer after it where there is one."""
        beside = None if skip is None else skip.settle(self.kernels)
        state = level.resnets[index](self.kernels, state, next(shifts), beside)
        if level.transformers:
            state = level.transformers[index](self.kernels, self.attend, state, kv)
        return state

    def _down(self, state: Map, conv: Convolution) -> Map:
        y = conv(self.kernels, state.settle(self.kernels), state.size)
        size = ((state.size[0] + 1) // 2, (state.size[1] + 1) // 2)
        return Map(size, y, bias=conv.bias)
