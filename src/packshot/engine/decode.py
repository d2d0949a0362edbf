"""From latents to pixels, and the check that a picture came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import RenderFailed

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.engine.networks.tiny_vae import TinyVAE
    from packshot.engine.networks.vae import VAE
    from packshot.engine.results import Picture

__all__ = ["decode_checked", "decode_preview", "flat"]

# A picture whose every channel spans less than one of the 256 levels shows nothing.
ONE_LEVEL = 1 / 255


def decode_checked(
    latents: Tensor, vae: VAE, fallback: Callable[[], VAE]
) -> tuple[Picture, tuple[str, ...]]:
    """Decode latents [1, c, h, w] to a picture, and return it with warnings for the user.

    A picture with NaN or infinity in it, or of one flat colour, is decoded once more by
    ``fallback()``, the same network in fp32; if it is no better, raises RenderFailed.
    """
    pixels = _decode(vae, latents)
    fault = _fault(pixels)
    if not fault:
        return _to_uint8(pixels), ()
    pixels = _decode(fallback(), latents)
    if still := _fault(pixels):
        raise RenderFailed(f"the picture {still}, in full precision too; {_cause(latents)}")
    return _to_uint8(pixels), (f"the picture {fault} and was decoded once more, in fp32.",)


def decode_preview(latents: Tensor, vae: VAE | TinyVAE) -> Picture:
    """Decode latents [1, c, h, w] to a picture without a look at it."""
    return _to_uint8(_decode(vae, latents))


def _decode(vae: VAE | TinyVAE, latents: Tensor) -> Tensor:
    """Return pixels [3, H, W] in fp32, 0 … 1 but for what the network overshoots."""
    dtype = next(vae.parameters()).dtype
    latents = latents.to(dtype, memory_format=torch.channels_last)
    return vae.decode(latents)[0].float() / 2 + 0.5


def _fault(pixels: Tensor) -> str:
    """Say what is wrong with a picture, "" for nothing; the host reads the device once."""
    shown = pixels.clamp(0, 1)
    spread = (shown.amax(dim=(1, 2)) - shown.amin(dim=(1, 2))).max()
    spread = torch.where(pixels.isfinite().all(), spread, torch.nan).item()
    if math.isnan(spread):
        return "came out as not-a-number"
    return "" if spread >= ONE_LEVEL else "came out as one flat colour"


def flat(levels: Tensor) -> Tensor:
    """Tell whether levels [H, W, 3], 0 … 255, are all of one colour: a boolean on their device."""
    return levels.amax(dim=(0, 1)).eq(levels.amin(dim=(0, 1))).all()


def _cause(latents: Tensor) -> str:
    if bool(latents.isfinite().all()):
        return "the latents are sound, so look for the fault in the weights of the VAE."
    return "the latents were no numbers before that: render with precision fp32."


def _to_uint8(pixels: Tensor) -> Picture:
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).cpu().contiguous().numpy()
