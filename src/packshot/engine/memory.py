"""How much of a GPU's memory a model takes, known before there is a GPU: from files' headers alone.

What is laid out in memory is counted: weights, the copies that the fused kernels read, buffers.
What a library takes while it works cannot be: four constants were fitted to three measurements
(`MEASURED`), which leaves none to check them by. `Footprint.room` is there for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, cast

from packshot.core.errors import ModelCorrupt
from packshot.engine.buckets import MAX_BUCKETS, Size, batches_of
from packshot.engine.limits import SIDE_MULTIPLE

if TYPE_CHECKING:
    from pathlib import Path

    from packshot.engine.folder import ModelFolder

__all__ = [
    "MEASURED",
    "Ask",
    "Footprint",
    "Part",
    "Shapes",
    "Tier",
    "footprint",
    "read_shapes",
    "smaller",
]

Tier = Literal["bf16", "fp8", "int8"]
TIERS: tuple[Tier, ...] = ("bf16", "fp8", "int8")
"""What runs on the fused kernels; fp32 runs the plain networks, which were not measured."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a network, by its name."""

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
MAX_HEADER = 100_000_000
"""Bytes of a safetensors file's header: the library's own limit."""

BF16 = 2
WINDOW, TOKENS = 128, 77  # as `packshot.engine.fast.graphs` has them

UNET_BYTES = 6_200
"""Of a picture's latent pixel, with guidance counted twice, while SDXL's UNet runs. Fitted."""

DECODER_BYTES = 1_150
"""Of a finished pixel, while SDXL's decoder runs. Fitted; two maps of 256 channels and one of 128
in bf16 are 1,280."""

GRAPH_BYTES = 2_000_000
"""Of a captured graph, beyond what all graphs share. Fitted."""

TRIAL_BYTES = 900_000_000
"""What cuDNN tries its convolutions in, and torch keeps. Fitted."""

COPIES = 2
"""What a network works in is there twice: where a shape is tried, and in the graphs' own pool."""

CUDA_BYTES = 900_000_000
"""Of the driver and the libraries, which torch does not count; seen on an H100."""

MARGIN = 0.1
"""Of all: equal runs of a mix reserved 16.7 to 17.9 GB."""

MEASURED = (
    "One H100, SDXL's shape in bf16 and fp8, reserved by torch:",
    "16.3 GB with one size of 1024x1024, 16.3 GB with nine sizes,",
    "17.5 GB with batches of eight.",
)
"""What the constants are fitted to, in lines for a terminal."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be rendered: ``sizes`` in pixels, so many ``pictures`` at a time, in ``tiers``."""

    sizes: tuple[Size, ...]
    pictures: tuple[int, ...] = (1,)
    tiers: tuple[Tier, ...] = ("bf16",)

    def shapes(self) -> list[tuple[Size, int]]:
        """Return each size with each number of pictures that are made together."""
        return [
            (size, batch)
            for size in self.sizes
            for batch in sorted({b for n in self.pictures for b in batches_of(n, prod(size))})
        ]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes for one thing."""

    what: str
    size: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that is taken of the memory."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """The best estimate, in bytes."""
        return sum(part.size for part in self.parts)

    @property
    def room(self) -> int:
        """What a GPU should have at least, in bytes: with a margin for what was not measured."""
        return round(self.total * (1 + MARGIN))


def read_shapes(folder: ModelFolder) -> dict[str, Shapes]:
    """Return the shapes of each network that a render needs, without reading a tensor.

    Raises:
        ModelError: a file is missing, or is no safetensors file.
    """
    return {
        name: {key: shape for file in folder.weights(name) for key, shape in _header(file)}
        for name in NETWORKS
    }


def footprint(shapes: Mapping[str, Shapes], ask: Ask) -> Footprint:
    """Return what a model with networks of these ``shapes`` takes on the fused kernels."""
    unet = shapes["unet"]
    weights = sum(_count(network) for network in shapes.values())
    made = ask.shapes()
    rows = {2 * batch for _, batch in made}
    texts = sum(rows) * TOKENS * _width(unet, "attn2.to_k.weight", "attn2.to_v.weight")
    steps = min(MAX_BUCKETS, len(made) * len(ask.tiers))
    longest = max(rows) * WINDOW * _width(unet, "conv1.weight")
    graphs = steps + min(MAX_BUCKETS, len(ask.sizes)) + 1
    return Footprint(
        (
            Part("weights in bf16", weights * BF16),
            *(Part(f"copies for the kernels, {t}", _packed(shapes, t)) for t in ask.tiers),
            Part("texts, and tables of the steps", (texts + steps * longest) * BF16),
            Part("while the networks run", TRIAL_BYTES + COPIES * _working(shapes, made)),
            Part(f"{graphs} captured graphs, {GRAPH_BYTES // 10**6} MB each", graphs * GRAPH_BYTES),
            Part("CUDA itself", CUDA_BYTES),
        )
    )


def smaller(ask: Ask) -> list[tuple[str, Ask]]:
    """Return asks for less, and what each gives up; the least painful first."""
    found: list[tuple[str, Ask]] = []
    tier, size = ask.tiers[0], "{}x{}".format(*ask.sizes[0])
    alone = f"{tier} alone, " if len(ask.tiers) > 1 else ""
    pictures = max(ask.pictures)
    less = replace(ask, tiers=(tier,))
    if alone:
        found.append((f"{tier} alone", less))
    while pictures > 1:
        pictures //= 2
        less = replace(less, pictures=(pictures,))
        found.append((f"{alone}{pictures} at a time", less))
    if len(ask.sizes) > 1:
        found.append((f"{alone}1 at a time, {size} alone", replace(less, sizes=ask.sizes[:1])))
    return found


def _packed(shapes: Mapping[str, Shapes], tier: Tier) -> int:
    """Return the bytes of what `fast.unet.FastUNet` holds beside the weights."""
    unet = shapes["unet"]
    attention = ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight")
    stacked = _count(unet, *attention, "ff.net.0.proj.weight")
    texts = _count(unet, "attn2.to_k.weight", "attn2.to_v.weight")
    doubling = sum(_count(shapes[name], "upsamplers.0.conv.weight") for name in ("unet", "vae"))
    always = texts + doubling * 16 // 9  # four taps for nine, in four phases
    if tier == "bf16":
        return BF16 * (stacked + always)
    # They are stacked in bf16 before they are rounded, and torch keeps that memory.
    return BF16 * always + max(BF16 * stacked, rounded(unet, tier))


def rounded(unet: Shapes, tier: Tier) -> int:
    """Return how many numbers of the network ``tier`` holds in eight bits: all else is shared."""
    products = ("to_q", "attn1.to_k", "attn1.to_v", "ff.net.0.proj", "ff.net.2")
    if tier == "fp8":
        products = (*products, "to_out.0")
    found = _count(unet, *(f"{name}.weight" for name in products))
    return found + (_convolutions(unet) if tier == "fp8" else 0)


def _convolutions(unet: Shapes) -> int:
    """Return how many weights are in the convolutions of resnets, but for the last level's."""
    levels = [int(name.split(".")[1]) for name in unet if name.startswith("up_blocks.")]
    last = f"up_blocks.{max(levels, default=0)}."
    held = {name: shape for name, shape in unet.items() if not name.startswith(last)}
    return _count(held, "conv1.weight", "conv2.weight")


def _working(shapes: Mapping[str, Shapes], made: Iterable[tuple[Size, int]]) -> int:
    """Return the bytes that the hungrier network takes at its worst; they run in turn."""
    unet = shapes["unet"]["conv_in.weight"][0] / 320
    decoder = shapes["vae"]["decoder.conv_out.weight"][1] / 128
    worst = 0.0
    for size, batch in made:
        latents = 2 * batch * prod(size) / SIDE_MULTIPLE**2
        worst = max(worst, UNET_BYTES * unet * latents, DECODER_BYTES * decoder * prod(size))
    return round(worst)


def _count(network: Shapes, *endings: str) -> int:
    """Return how many numbers are in the tensors whose names end so, or in all."""
    return sum(prod(shape) for name, shape in network.items() if name.endswith(endings or ("",)))


def _width(network: Shapes, *endings: str) -> int:
    return sum(shape[0] for name, shape in network.items() if name.endswith(endings))


def _header(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each tensor: 8 bytes of length, and JSON, open a safetensors file.

    https://github.com/huggingface/safetensors#format
    """
    try:
        with file.open("rb") as opened:
            length = min(MAX_HEADER, int.from_bytes(opened.read(8), "little"))
            header = cast("dict[str, dict[str, list[int]]]", json.loads(opened.read(length)))
        return [
            (name, tuple(map(int, row["shape"])))
            for name, row in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(f"{file} is no safetensors file: {error}.") from error
