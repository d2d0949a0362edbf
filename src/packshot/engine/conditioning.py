"""What the UNet is told besides the latents: the texts, the sizes and the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from packshot.engine.networks.clip_text import CLIPText
    from packshot.engine.networks.unet import KV, UNet
    from packshot.engine.tokenizer import Tokenizer

__all__ = [
    "Conditioning",
    "EncodedTexts",
    "TextEncoder",
    "behind_zeros",
    "condition",
    "encode_texts",
    "together",
]


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A tokenizer and the network that reads its tokens."""

    tokenizer: Tokenizer
    network: CLIPText


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTexts:
    """Texts as SDXL reads them: ``tokens`` [n, 77, C1 + C2] of both encoders, ``pooled`` [n, P].

    ``dropped``: how many tokens of each text were beyond the reach of the encoders.
    """

    tokens: Tensor
    pooled: Tensor
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """All that depends on the request and not on the latents, computed once.

    ``shifts`` [steps, n, E] holds what ``UNet.forward`` takes at each step.
    """

    shifts: Tensor
    cross_kv: Sequence[KV]

    def repeated(self, count: int) -> Conditioning:
        """Repeat each row, for ``count`` pictures made together; the same tensors for one."""
        if count == 1:
            return self
        return Conditioning(
            self.shifts.repeat_interleave(count, dim=1),
            [
                (k.repeat_interleave(count, dim=0), v.repeat_interleave(count, dim=0))
                for k, v in self.cross_kv
            ],
        )


def encode_texts(first: TextEncoder, second: TextEncoder, texts: Sequence[str]) -> EncodedTexts:
    """Read ``texts`` with both encoders, in one batch each (arXiv:2307.01952, section 2.1)."""
    one, two = ([e.tokenizer.encode(text) for text in texts] for e in (first, second))
    device = next(first.network.parameters()).device
    hidden = first.network.hidden(torch.tensor([t.ids for t in one], device=device))
    states = second.network(torch.tensor([t.ids for t in two], device=device))
    return EncodedTexts(
        tokens=torch.cat([hidden, states.hidden], dim=-1),
        pooled=states.pooled,
        dropped=tuple(max(a.dropped, b.dropped) for a, b in zip(one, two, strict=True)),
    )


def together(texts: Sequence[EncodedTexts]) -> EncodedTexts:
    """Put texts into one batch, in their order."""
    return EncodedTexts(
        tokens=torch.cat([text.tokens for text in texts]),
        pooled=torch.cat([text.pooled for text in texts]),
        dropped=tuple(dropped for text in texts for dropped in text.dropped),
    )


def behind_zeros(texts: EncodedTexts) -> EncodedTexts:
    """Put a row of zeros first: what SDXL was trained to take for "no text at all"."""
    return EncodedTexts(
        tokens=torch.cat([torch.zeros_like(texts.tokens), texts.tokens]),
        pooled=torch.cat([torch.zeros_like(texts.pooled), texts.pooled]),
        dropped=(0, *texts.dropped),
    )


def condition(
    unet: UNet, texts: EncodedTexts, timesteps: Tensor, *, width: int, height: int
) -> Conditioning:
    """Compute what ``unet`` needs for every step; the picture is said to be a whole, uncropped one.

    ``timesteps`` [steps]; ``width`` and ``height`` in pixels (arXiv:2307.01952, section 2.2).
    """
    sizes = [height, width, 0, 0, height, width]
    time_ids = torch.tensor([sizes] * len(texts.pooled), device=texts.pooled.device)
    return Conditioning(
        shifts=unet.embed(timesteps, texts.pooled, time_ids),
        cross_kv=unet.cross_kv(texts.tokens),
    )
