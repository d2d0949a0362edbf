"""SDXL's UNet for a GPU: `networks.unet.UNet` on fused kernels, with the same weights.

What differs from the plain network is where sums are taken, not what is summed:

- A bias is not added where it arises but with the next pass over the data: by the normalisation
  that reads it, or by the product whose constant it becomes. `Map` and the residual stream of the
  transformers carry such debts along.
- GroupNorm is an affine of each channel; sums, affine and SiLU are two passes.
- Queries, keys and values are one product; keys and values of the text are given.
- A product that ends a residual branch adds to the stream in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import torch
from torch import Tensor, nn

from packshot.engine.fast.dense import Dense, DenseInt8, Product, after_layer_norm
from packshot.engine.fast.maps import Kernels, Map, Resnet, Upsample, convolve
from packshot.engine.networks import unet as plain
from packshot.engine.networks import blocks

__all__ = ["KV", "Attend", "FastUNet"]

KV = tuple[Tensor, Tensor]
"""Keys and values [B,T,C] of one attention to the text; views."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values [B,heads,N,D] to [B,heads,N,D]."""


class Block:
    """`networks.unet.TransformerBlock`. The stream lacks the biases of all products before it."""

    def __init__(self, block: plain.TransformerBlock, owed: Tensor, *, one_pass: bool) -> None:
        self.one_pass = one_pass
        self.norms = (block.norm1, block.norm2, block.norm3)
        self.heads = block.attn1.heads
        self.qkv: Product = Dense.of(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        self.out_1 = Dense.of(block.attn1.to_out[0])
        self.q: Product = Dense.of(block.attn2.to_q)
        self.out_2 = Dense.of(block.attn2.to_out[0])
        gate, last = block.ff.net[0].proj, block.ff.net[2]
        self.gated: Product = Dense(_alternating(gate.weight))
        self.gated_bias = _alternating(gate.bias)
        self.out_3: Product = Dense.of(last)
        # What the stream lacks at each normalisation, and at the end.
        first = owed + block.attn1.to_out[0].bias.float()
        second = first + block.attn2.to_out[0].bias.float()
        self.owed = (owed, first, second)
        self.owes = second + last.bias.float()

    def in_fp8(self, largest: float) -> None:
        """Turn all products but those after attention to fp8; ``largest`` leaves the gated unit."""
        norms = self.norms
        self.qkv, self.q, self.gated = (
            after_layer_norm(exact(product), norm)
            for product, norm in zip((self.qkv, self.q, self.gated), norms, strict=True)
        )
        self.out_3 = exact(self.out_3).in_fp8(largest)

    def in_int8(self, kernels: Kernels) -> None:
        """Turn the same products to int8."""
        self.qkv, self.q, self.gated, self.out_3 = (
            DenseInt8.of(exact(product), kernels)
            for product in (self.qkv, self.q, self.gated, self.out_3)
        )

    def __call__(
        self, kernels: Kernels, attend: Attend, t: Tensor, add: Tensor | None, kv: KV, batch: int
    ) -> Tensor | None:
        """Add this block's work to the stream ``t`` [M,C] (+ ``add``); return what is left to add."""
        h = self._norm(kernels, 0, t, add, self.qkv)
        q, k, v = self.qkv(h).view(batch, -1, 3, self.heads, t.shape[1] // self.heads).unbind(2)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        add = self.out_1.add_to(t, _tokens(y))
        h = self._norm(kernels, 1, t, add, self.q)
        y = kernels.attend_text(self.q(h).view(batch, -1, t.shape[1]), *kv, self.heads)
        add = self.out_2.add_to(t, y.flatten(0, 1))
        h = self._norm(kernels, 2, t, add, self.gated)
        return self.out_3.add_to(t, self._gated(kernels, h))

    def _gated(self, kernels: Kernels, h: Tensor) -> Tensor:
        """Return the gated unit's output: in one pass where the chip lets our kernel multiply."""
        gated, quant = self.gated, self.out_3.quant
        if isinstance(gated, Dense) and self.one_pass:
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
    if not isinstance(product, Dense) or product.quant is not None:
        raise TypeError("the products of this network are rounded already; build another one.")
    return product


def _alternating(x: Tensor) -> Tensor:
    """Return the rows of values and then gates as a value's, its gate's, the next value's …"""
    return torch.stack(x.chunk(2), dim=1).flatten(0, 1)


def _tokens(y: Tensor) -> Tensor:
    """Return [B,heads,N,D] as [B*N,heads*D]."""
    return y.transpose(1, 2).reshape(-1, y.shape[1] * y.shape[3])


class Transformer:
    """`networks.unet.Transformer`: in and out of a residual stream of tokens."""

    def __init__(self, transformer: plain.Transformer, *, one_pass: bool) -> None:
        self.norm = transformer.norm
        proj_in, proj_out = transformer.proj_in, transformer.proj_out
        self.proj_in = Dense(proj_in.weight.flatten(1))
        self.proj_out = Dense(proj_out.weight.flatten(1))
        owed = proj_in.bias.float()
        self.blocks: list[Block] = []
        for block in transformer.transformer_blocks:
            self.blocks.append(Block(block, owed, one_pass=one_pass))
            owed = self.blocks[-1].owes
        self.bias = proj_out.bias.float() + self.proj_out.weight.float() @ owed

    def __call__(self, kernels: Kernels, attend: Attend, x: Map, kv: Iterator[KV]) -> Map:
        """Map [B,P,C] to the same shape. ``x`` is used up."""
        y, tokens = x.normed(kernels, self.norm, silu=False)
        t, add = self.proj_in(tokens.flatten(0, 1)), None
        for block in self.blocks:
            add = block(kernels, attend, t, add, next(kv), len(y))
        if add is not None:
            t += add
        y.view(t.shape).addmm_(t, self.proj_out.weight.t())
        return Map(x.size, y, bias=self.bias)


class FastUNet:
    """The network. Built of a plain one on the same device, whose weights it shares or copies.

    ``one_pass``: whether `Kernels.geglu` runs here; it takes a Hopper GPU or a later one.
    """

    def __init__(
        self, unet: plain.UNet, kernels: Kernels, attend: Attend, *, one_pass: bool = True
    ) -> None:
        self.unet = unet
        self.kernels = kernels
        self.attend = attend
        made: dict[int, Resnet | Transformer | Upsample] = {}
        self._made = made
        for module in unet.modules():
            if isinstance(module, blocks.ResnetBlock):
                made[id(module)] = Resnet(module)
            elif isinstance(module, plain.Transformer):
                made[id(module)] = Transformer(module, one_pass=one_pass)
            elif isinstance(module, blocks.Upsample):
                made[id(module)] = Upsample(module.conv)
        self.widths = [r.block.conv1.out_channels for r in self._resnets()]
        self._biases = torch.cat([r.block.conv1.bias for r in self._resnets()])
        layers = [m for b in self.unet.modules() if isinstance(b, plain.TransformerBlock)
                  for m in (b.attn2.to_k, b.attn2.to_v)]
        self.kv_weight = torch.cat([layer.weight for layer in layers])
        self._kv_widths = [layer.out_features for layer in layers]

    text_length = 77

    @property
    def dtype(self) -> torch.dtype:
        return self.kv_weight.dtype

    def split_kv(self, kv: Tensor) -> list[KV]:
        """Return keys and values of every block, views of [B,T,sum] = text states @ ``kv_weight``."""
        parts = torch.split(kv, self._kv_widths, dim=-1)
        return list(zip(parts[0::2], parts[1::2], strict=True))

    def blocks(self) -> Iterator[Block]:
        """Yield the transformer blocks, in the order of the network."""
        for made in self._made.values():
            if isinstance(made, Transformer):
                yield from made.blocks

    def _resnets(self) -> list[Resnet]:
        return [made for made in self._made.values() if isinstance(made, Resnet)]

    def shifts(self, embedded: Tensor) -> Tensor:
        """Return what `__call__` takes of `UNet.embed`'s [...,E]: with conv1's biases in it."""
        return (embedded.float() + self._biases.float()).to(embedded.dtype)

    def __call__(
        self, x: Tensor, size: tuple[int, int], shifts: Tensor, cross_kv: Sequence[KV]
    ) -> Tensor:
        """Return the prediction [B,P,4] for latents [B,P,4] of ``size`` (h, w).

        ``shifts`` [B,E]: a row of what `shifts` returns; ``cross_kv`` of `UNet.cross_kv`.
        """
        unet, kernels = self.unet, self.kernels
        given = iter(torch.split(shifts, self.widths, dim=-1))
        kv = iter(cross_kv)
        state = Map(size, convolve(unet.conv_in, x, size), bias=unet.conv_in.bias)
        skips = [state]
        for down in unet.down_blocks:
            for i, resnet in enumerate(down.resnets):
                state = self._level(state, resnet, down.attentions, i, given, kv)
                skips.append(state)
            for downsample in down.downsamplers:
                state = self._down(state, downsample.conv)
                skips.append(state)
        mid = unet.mid_block
        state = self._level(state, mid.resnets[0], mid.attentions, 0, given, kv)
        state = self._level(state, mid.resnets[1], [], 0, given, kv)
        for up in unet.up_blocks:
            for i, resnet in enumerate(up.resnets):
                skip = skips.pop()
                state = self._level(state, resnet, up.attentions, i, given, kv, skip)
            for upsample in up.upsamplers:
                made = self._made[id(upsample)]
                assert isinstance(made, Upsample)
                state = made(kernels, state, skips[-1].size)
        _, y = state.normed(kernels, unet.conv_norm_out, silu=True)
        return convolve(unet.conv_out, y, size) + unet.conv_out.bias

    def _level(
        self,
        state: Map,
        resnet: nn.Module,
        attentions: Sequence[nn.Module] | nn.ModuleList,
        index: int,
        shifts: Iterator[Tensor],
        kv: Iterator[KV],
        skip: Map | None = None,
    ) -> Map:
        """One resnet, and the transformer after it where there is one."""
        made = self._made[id(resnet)]
        assert isinstance(made, Resnet)
        beside = None if skip is None else skip.settle(self.kernels)
        state = made(self.kernels, state, next(shifts).contiguous(), beside)
        if len(attentions):
            transformer = self._made[id(attentions[index])]
            assert isinstance(transformer, Transformer)
            state = transformer(self.kernels, self.attend, state, kv)
        return state

    def _down(self, state: Map, conv: nn.Conv2d) -> Map:
        y = convolve(conv, state.settle(self.kernels), state.size)
        size = ((state.size[0] + 1) // 2, (state.size[1] + 1) // 2)
        return Map(size, y, bias=conv.bias)
