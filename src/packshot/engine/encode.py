"""From pixels to latents: the picture that a render starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from packshot.core.errors import RenderFailed
from packshot.engine.denoise import Kept
from packshot.engine.limits import MAY_CHANGE, SIDE_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.core.types import Original
    from packshot.engine.networks.vae import VAE
    from packshot.engine.results import Picture

__all__ = ["encode_original", "free_latents"]


def encode_original(original: Original, vae: VAE, fallback: Callable[[], VAE]) -> Kept:
    """Return the latents of a picture, fp32 on the device of ``vae``, and which may change.

    They are the mean of what the encoder thinks possible, not a draw from it, so that they do not
    depend on the seed. Where they are no numbers they are made once more by ``fallback()``, the
    same network in fp32; RenderFailed if they are no better.
    """
    latents = _encode(vae, original.picture)
    if not bool(latents.isfinite().all()):
        latents = _encode(fallback(), original.picture)
        if not bool(latents.isfinite().all()):
            raise RenderFailed(
                "the VAE made no numbers of the original picture, in full precision too; look for "
                "the fault in its weights."
            )
    if original.mask is None:
        return Kept(latents)
    return Kept(latents, free_latents(torch.tensor(original.mask)).to(latents.device))


def free_latents(mask: Tensor) -> Tensor:
    """Return which latents [1, 1, h, w] a mask of pixels [8h, 8w] lets change.

    One is free where any of its 8x8 pixels may change: what the mask marks is all made anew, and
    nothing of the picture's old ground is kept along the edge of what stays.
    """
    marked = (mask >= MAY_CHANGE).float()
    return F.max_pool2d(marked[None, None], SIDE_MULTIPLE) > 0


def _encode(vae: VAE, picture: Picture) -> Tensor:
    """Return the mean latents [1, 4, h, w] of a picture in fp32."""
    weight = next(vae.parameters())
    pixels = torch.tensor(picture, device=weight.device).permute(2, 0, 1)[None]
    pixels = (pixels.float() / 127.5 - 1).to(weight.dtype, memory_format=torch.channels_last)
    return vae.encode(pixels).float()
