"""The engine: ``Engine.render`` names all that happens between a request and its pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from packshot.core.errors import InvalidRequest
from packshot.engine import limits
from packshot.engine.conditioning import behind_zeros
from packshot.engine.decode import decode_preview
from packshot.engine.denoise import noise_of
from packshot.engine.devices import Meter, device_errors, device_kind, pick_device, pick_precision
from packshot.engine.embeddings import EmbeddingCache, TextReader
from packshot.engine.encode import encode_original
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
from packshot.engine.results import OnStep, Picture, Progress, RenderResult
from packshot.engine.runner import Task, pick_runner, preloading
from packshot.engine.samplers import plan
from packshot.engine.similarity import cosines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from packshot.core.types import EmbeddingUse, Precision, RenderRequest
    from packshot.engine.buckets import Size
    from packshot.engine.conditioning import EncodedTexts
    from packshot.engine.denoise import Kept, Watch
    from packshot.engine.runner import Decoded, Runner, Tell, Tier

__all__ = ["Engine"]


EIGHT_BITS = ("fp8", "int8")

FINE_PIXELS = 2048 * 2048
"""From so many pixels on, a picture is not made in eight bits."""


class Engine:
    """A loaded model. It keeps nothing of a request, so one that fails leaves it as it was.

    ``embeddings`` keeps what the text encoders made of texts; None reads each anew. ``runner`` runs
    the networks; None takes the fastest for the model.
    """

    def __init__(
        self,
        model: Model,
        embeddings: EmbeddingCache | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.model = model
        self.embeddings = embeddings
        self.runner = pick_runner(model) if runner is None else runner
        self._texts = TextReader(model, self.runner.encode, self.runner.name, cache=embeddings)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        vae_precision: Precision = "auto",
    ) -> Engine:
        """Open a model folder and put its networks on a device.

        ``device``: auto (a GPU if there is one), cpu, cuda or cuda:N. ``precision``: auto is fp32
        on a CPU and bf16 on a GPU. ``vae_precision``: auto is the same, but fp32 where fp16 would
        overflow. Raises ModelError for a folder that cannot be used and InvalidRequest for a
        device or a precision that does not exist.
        """
        chosen = pick_device(device)
        opened = ModelFolder.open(folder)
        with preloading(chosen, precision):
            model = Model(opened, chosen, precision, vae_precision)
        return cls(model)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that the model was trained on."""
        return limits.default_size(self.model.folder)

    @property
    def device_kind(self) -> str:
        """What the device is called where prices are: "cpu", "h100"."""
        return device_kind(self.model.device)

    def render(self, request: RenderRequest, on_step: OnStep | None = None) -> RenderResult:
        """Make one picture for each seed of ``request``.

        ``on_step`` is told of every step of every picture, and may end the render by raising; its
        exception comes out here. Pictures that do not fit together are made in smaller batches.
        Raises InvalidRequest (see ``limits.validate``), and RenderFailed: OutOfMemory where one
        picture does not fit, DeviceLost where the process can use its device no more.
        """
        limits.validate(request)
        request = replace(request, spacing=request.spacing or self.model.noise.spacing)
        count, pixels = len(request.seeds), len(request.seeds) * request.width * request.height
        meter = Meter(self.model.device)
        with torch.inference_mode(), device_errors():
            with meter.stage("encode", pixels=_pixels_read(request)):
                texts, use = self._encode(request)
                kept = self._encode_original(request)
            with meter.stage("denoise", steps=count * request.steps_taken, pixels=pixels):
                batches = self._denoise(request, texts, kept, on_step)
                latents = [row for rows in batches for row in rows]
            with meter.stage("decode", pixels=pixels):
                images, faults = self._decode(latents)
        warnings = (*_truncations(texts), *faults, *self._not_kept(), *self._held_back(request))
        warnings = (*warnings, *self.runner.told())
        return self._result(request, images, warnings, meter, use)

    def warm(
        self, sizes: Sequence[Size], pictures: Sequence[int] = (1,), tell: Tell | None = None
    ) -> int:
        """Prepare for renders of ``sizes`` in the model's precision, as `runner.Runner.warm` does.

        Of each size the tier is prepared that it will be made in: `FINE_PIXELS` are in bf16.
        Without it, each shape is prepared by the first render that has it: a second or two.
        """
        wanted = _tier_of(self.model.precision)
        tiers: dict[Size, Tier] = {size: "exact" if _fine(*size) else wanted for size in sizes}
        made = 0
        for tier in dict.fromkeys(tiers.values()):
            alike = tuple(size for size in tiers if tiers[size] == tier)
            made += self.runner.warm(alike, pictures, (tier,), tell)
        return made

    def similarity(self, images: Sequence[Picture], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the cosines [images, texts] of the model's own CLIP pair.

        They rank pictures of this model; they are not those of another CLIP. Raises ModelNotFound
        if the folder has no image encoder.
        """
        model = self.model
        with torch.inference_mode():
            return cosines(model.vision, model.readers[1], model.processor, images, texts)

    def _encode(self, request: RenderRequest) -> tuple[EncodedTexts, EmbeddingUse]:
        """Return the rows of the network's batch: without guidance the prompt, else two."""
        zeros = not request.negative_prompt and self.model.zeros_mean_no_text
        if request.guidance == 1 or zeros:
            texts, use = self._texts.read([request.prompt])
            return texts if request.guidance == 1 else behind_zeros(texts), use
        return self._texts.read([request.negative_prompt, request.prompt])

    def _encode_original(self, request: RenderRequest) -> Kept | None:
        if request.original is None:
            return None
        return encode_original(request.original, self.model.vae, lambda: self.model.vae_fp32)

    def _denoise(
        self,
        request: RenderRequest,
        texts: EncodedTexts,
        kept: Kept | None,
        on_step: OnStep | None,
    ) -> Iterator[Tensor]:
        """Yield the clean latents of the pictures, batch after batch."""
        model = self.model
        steps = plan(
            model.noise,
            sampler=request.sampler,
            schedule=request.schedule,
            spacing=request.spacing or model.noise.spacing,
            steps=request.steps,
            device=model.device,
            enter=_entry(request),
        )
        size = (request.width, request.height)
        task = Task(steps, texts, *size, request.guidance, kept, self._tier(request))
        shape = (model.unet.config.in_channels, *_latent_size(request))
        waiting = [*self.runner.batches(len(request.seeds), request.width * request.height)]
        first = 0
        while waiting:
            count = waiting.pop(0)
            noise = noise_of(request.seeds[first : first + count], shape, model.device)
            watch = self._watch(request, first, on_step)
            try:
                yield self.runner.denoise(task, count, noise, watch)
            except torch.OutOfMemoryError:
                self.runner.release()
                if count == 1:
                    raise
                waiting[:0] = [count // 2, count - count // 2]
            else:
                first += count

    def _tier(self, request: RenderRequest) -> Tier:
        """Return the arithmetic of the UNet's large products; `InvalidRequest` if it has none."""
        loaded, wanted = self.model.precision, self._wanted(request)
        eight = wanted in EIGHT_BITS
        if wanted != loaded and not (
            loaded in ("bf16", *EIGHT_BITS) and (eight or wanted == "bf16")
        ):
            raise InvalidRequest(
                f"precision {wanted} was asked of a model that was loaded in {loaded}; load it in "
                f"{wanted}, or leave the precision out of the request."
            )
        if not eight or _too_fine(request):
            return "exact"
        pick_precision(wanted, self.model.device)
        return _tier_of(wanted)

    def _wanted(self, request: RenderRequest) -> Precision:
        """Return the precision that a request asks for, or the model was loaded in."""
        own = request.precision
        return self.model.precision if own is None or own == "auto" else own

    def _held_back(self, request: RenderRequest) -> tuple[str, ...]:
        """Say where a request was made in bf16 that asked for eight bits."""
        wanted = self._wanted(request)
        if wanted not in EIGHT_BITS or not _too_fine(request):
            return ()
        why = "its texture is fine" if request.fine_texture else "it has 2048x2048 pixels or more"
        return (f"the picture was made in bf16, not {wanted}, since {why}.",)

    def _watch(self, request: RenderRequest, first: int, on_step: OnStep | None) -> Watch | None:
        """Turn a step of a batch into one ``Progress`` for each of its pictures."""
        if on_step is None:
            return None

        def watch(done: int, clean: Tensor) -> None:
            for picture, latents in enumerate(clean, first + 1):
                preview = partial(self._preview, latents[None])
                on_step(Progress(picture, len(request.seeds), done, request.steps_taken, preview))

        return watch

    def _preview(self, latents: Tensor) -> Picture:
        return decode_preview(latents, self.model.tiny_vae)

    def _decode(self, latents: Sequence[Tensor]) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
        decoded = self._decoded(latents)
        images = tuple(image for image, _ in decoded)
        return images, tuple(warning for _, warnings in decoded for warning in warnings)

    def _decoded(self, latents: Sequence[Tensor]) -> list[Decoded]:
        """Decode, once more where there is no room beside what the steps have taken."""
        try:
            return self.runner.decode(latents)
        except torch.OutOfMemoryError:
            self.runner.release()
        return self.runner.decode(latents)

    def _result(
        self,
        request: RenderRequest,
        images: tuple[Picture, ...],
        warnings: tuple[str, ...],
        meter: Meter,
        use: EmbeddingUse,
    ) -> RenderResult:
        model = self.model
        return RenderResult(
            images=images,
            usage=tuple(meter.usage),
            warnings=warnings,
            request=request,
            model=model.folder.name,
            fingerprint=model.folder.fingerprint,
            device=str(model.device),
            precision="bf16" if self._held_back(request) else self._wanted(request),
            embeddings=use,
        )

    def _not_kept(self) -> tuple[str, ...]:
        """Say why embeddings are not kept, where they should be."""
        problem = self.embeddings.problem if self.embeddings else ""
        return (f"text embeddings are kept in memory only: {problem}",) if problem else ()


def _too_fine(request: RenderRequest) -> bool:
    """Tell what stays in bf16: what eight bits were seen to cost most in."""
    return request.fine_texture or _fine(request.width, request.height)


def _fine(width: int, height: int) -> bool:
    return width * height >= FINE_PIXELS


def _tier_of(precision: Precision) -> Tier:
    return "fp8" if precision == "fp8" else "int8" if precision == "int8" else "exact"


def _latent_size(request: RenderRequest) -> tuple[int, int]:
    return request.height // limits.SIDE_MULTIPLE, request.width // limits.SIDE_MULTIPLE


def _entry(request: RenderRequest) -> int | None:
    """Return the index of the step at which the original is entered, None for noise alone.

    What a mask frees at full strength is not to see what was there before.
    """
    if request.original is None:
        return None
    skipped = request.steps - request.steps_taken
    return skipped if skipped or request.original.mask is None else None


def _pixels_read(request: RenderRequest) -> int:
    """Return how many pixels the VAE encodes: those of one picture, for all that start from it."""
    return 0 if request.original is None else request.width * request.height


def _truncations(texts: EncodedTexts) -> tuple[str, ...]:
    """Say for each text that was too long what became of it; the prompt is the last one."""
    names = ("negative prompt", "prompt")[-len(texts.dropped) :]
    return tuple(
        f"the {name} is {dropped} tokens longer than the model reads; its end has no effect."
        for name, dropped in zip(names, texts.dropped, strict=True)
        if dropped
    )
