"""The records that pass between layers: frozen, free of torch, of prices and of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "NOTHING_READ",
    "PRECISIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "STAGES",
    "VAE_PRECISIONS",
    "EmbeddingUse",
    "Original",
    "Precision",
    "RenderRequest",
    "Sampler",
    "Schedule",
    "Spacing",
    "Stage",
    "Usage",
    "UsageDetail",
]

Stage = Literal["caption", "encode", "denoise", "decode", "finish", "store"]
"""The parts of a render, in order (DESIGN §3)."""

Sampler = Literal["euler", "euler-ancestral", "dpmpp-2m"]
"""Stepping rules; ``engine.samplers.SAMPLERS`` has one function for each."""

Schedule = Literal["default", "karras"]
"""How noise levels are spread over the steps."""

Spacing = Literal["leading", "trailing", "linspace"]
"""Which training timesteps the default schedule visits."""

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8"]
"""Arithmetic of the networks; ``auto`` is fp32 on a CPU and bf16 on a GPU.

``fp8`` and ``int8`` are bf16 but for the large products of the UNet; on GPUs, fp8 where it is.
"""

STAGES: tuple[Stage, ...] = get_args(Stage)
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
VAE_PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """A picture that a render starts from, instead of noise alone; equal to itself only.

    ``picture`` is [height, width, 3] uint8 sRGB, of the size of the render. ``strength`` above 0,
    to 1, is the share of the steps that are taken: more of them leave less of the picture.
    ``mask`` [height, width], booleans or numbers of 0 to 1, marks by 0.5 and more what may change;
    None lets everything change. What may not change is kept but for the loss of the autoencoder:
    who needs the very pixels puts them back.
    """

    picture: NDArray[np.uint8]
    strength: float
    mask: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One call of the engine: a caption, and a seed for each picture wanted.

    ``width`` and ``height`` are pixels of the picture as the model makes it, multiples of 8.
    ``guidance`` 1.0 switches classifier-free guidance off. ``spacing`` None takes the model's own.
    ``steps`` lays out the noise levels; with an ``original`` only the last of them are visited.
    ``precision`` None is that of the loaded model; one that was loaded in bf16 can also do fp8.
    ``fine_texture`` marks cloth and the like, which is never made in eight bits.
    """

    prompt: str
    seeds: tuple[int, ...]
    width: int
    height: int
    steps: int
    guidance: float
    negative_prompt: str = ""
    sampler: Sampler = "dpmpp-2m"
    schedule: Schedule = "default"
    spacing: Spacing | None = None
    original: Original | None = None
    precision: Precision | None = None
    fine_texture: bool = False

    @property
    def steps_taken(self) -> int:
        """How many steps each picture takes: ``steps``, or the whole ones of their strength."""
        if self.original is None:
            return self.steps
        # 0.58 of 50 is 29, though the nearest doubles multiply to a little less.
        return min(self.steps, int(self.steps * self.original.strength + 1e-9))


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """How many texts were read from the engine's `EmbeddingCache` (``hits``) and by the encoders.

    ``saved_s`` is what the hits took when they were encoded, less what it took to find them now;
    an empty negative prompt that the model reads as zeros counts as neither.
    """

    hits: int = 0
    misses: int = 0
    saved_s: float = 0.0

    @property
    def rate(self) -> float:
        """The share of hits, 0 to 1; 0 where there was nothing to read."""
        return self.hits / max(1, self.hits + self.misses)

    def __add__(self, other: EmbeddingUse) -> EmbeddingUse:
        """Return the sum of two."""
        return EmbeddingUse(
            self.hits + other.hits, self.misses + other.misses, self.saved_s + other.saved_s
        )

    def __sub__(self, earlier: EmbeddingUse) -> EmbeddingUse:
        """Return what came since ``earlier``, of one count that grows."""
        return EmbeddingUse(
            self.hits - earlier.hits, self.misses - earlier.misses, self.saved_s - earlier.saved_s
        )


NOTHING_READ = EmbeddingUse()


class UsageDetail(msgspec.Struct, frozen=True, gc=False):
    """The parts of a `Usage` that few providers count, and charge otherwise; all 0 or more.

    Where a usage has one, its tokens of pictures and of sound are counted: what is not among them
    is text. ``input_image_tokens`` and ``input_audio_tokens`` are parts of ``input_tokens``, the
    cached ones parts of both those and ``cached_tokens``, the output ones of ``output_tokens``.
    ``written_long_tokens`` are the part of ``written_tokens`` that is kept for an hour, not for
    minutes. ``searches`` are those of the web that the provider made for the call.
    """

    written_long_tokens: int = 0
    input_image_tokens: int = 0
    cached_image_tokens: int = 0
    output_image_tokens: int = 0
    input_audio_tokens: int = 0
    cached_audio_tokens: int = 0
    output_audio_tokens: int = 0
    searches: int = 0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What one stage or one attempt consumed; never money (only the ledger knows prices).

    ``seconds`` is time on ``device`` (its kind: "cpu", "h100"); ``steps`` and ``pixels`` are totals
    over the pictures made. ``input_tokens`` counts every token that went in: ``cached_tokens`` and
    ``written_tokens`` (read from, written to the provider's prompt cache) are parts of it, whatever
    the provider's own counting. ``image_size`` is "1024x1024", ``image_quality`` the provider's
    word. ``stored_bytes`` were written to the object store by ``requests`` requests. ``tier`` is
    how the provider says that it served the call: "standard", "batch", "flex", "priority", or
    another word of its own. ``detail`` is None where nobody counted what is in it.
    """

    stage: Stage
    seconds: float = 0.0
    device: str = ""
    steps: int = 0
    pixels: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    image_size: str = ""
    image_quality: str = ""
    stored_bytes: int = 0
    requests: int = 0
    tier: str = "standard"
    detail: UsageDetail | None = None
