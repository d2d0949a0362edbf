"""What a request may ask for. Needs no torch: the terminal checks a call before a model loads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.core.types import SAMPLERS, SCHEDULES, SPACINGS, Original, RenderRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from packshot.engine.folder import ModelFolder

__all__ = [
    "MAX_GUIDANCE",
    "MAX_PICTURES",
    "MAX_PIXELS",
    "MAX_PROMPT",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "MAY_CHANGE",
    "MIN_SIDE",
    "SIDE_MULTIPLE",
    "default_size",
    "validate",
]

SIDE_MULTIPLE = 8  # pixels per latent
MIN_SIDE, MAX_SIDE = 64, 4096
MAX_PIXELS = 2048 * 2048
MAX_STEPS = 1000  # the training timesteps of the family
MAX_GUIDANCE = 50.0
MAX_PICTURES = 64  # in one request
MAX_SEED = 2**63 - 1
MAX_PROMPT = 10_000  # characters
MAY_CHANGE = 0.5  # what a mask says, from which on it says yes


def validate(request: RenderRequest) -> None:
    """Raise InvalidRequest for the first thing in ``request`` that no model here can do."""
    _check_prompt(request)
    _check_size(request.width, request.height)
    _check_whole("steps", request.steps, 1, MAX_STEPS)
    _check_guidance(request.guidance)
    _check_seeds(request.seeds)
    _check_names(request)
    if request.original is not None:
        _check_original(request, request.original)


def default_size(folder: ModelFolder) -> tuple[int, int]:
    """Return (width, height) in pixels that the model was trained at, from its UNet's config."""
    side = int(folder.config("unet")["sample_size"]) * SIDE_MULTIPLE
    return side, side


def _check_prompt(request: RenderRequest) -> None:
    if not request.prompt.strip():
        raise InvalidRequest("the prompt is empty; say what the picture shows.")
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        if len(text) > MAX_PROMPT:
            raise InvalidRequest(
                f"the {name} has {len(text)} characters; at most {MAX_PROMPT} are taken."
            )


def _check_size(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        _check_whole(name, side, MIN_SIDE, MAX_SIDE)
        if side % SIDE_MULTIPLE:
            below = side - side % SIDE_MULTIPLE
            raise InvalidRequest(
                f"{name} is {side}, which is not a multiple of {SIDE_MULTIPLE}; "
                f"the nearest are {below} and {below + SIDE_MULTIPLE}."
            )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"{width}x{height} is {width * height} pixels; at most {MAX_PIXELS} are rendered "
            "(as many as 2048x2048)."
        )


def _check_guidance(guidance: float) -> None:
    if not (math.isfinite(guidance) and 1 <= guidance <= MAX_GUIDANCE):
        raise InvalidRequest(
            f"guidance is {guidance:g}, expected 1 to {MAX_GUIDANCE:g} (1 switches it off)."
        )


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not 1 <= len(seeds) <= MAX_PICTURES:
        raise InvalidRequest(
            f"{len(seeds)} pictures were asked for (one per seed), expected 1 to {MAX_PICTURES}."
        )
    for seed in seeds:
        _check_whole("seed", seed, 0, MAX_SEED)


def _check_names(request: RenderRequest) -> None:
    if request.sampler not in SAMPLERS:
        raise unknown_name("sampler", request.sampler, SAMPLERS)
    if request.schedule not in SCHEDULES:
        raise unknown_name("schedule", request.schedule, SCHEDULES)
    if request.spacing is not None and request.spacing not in SPACINGS:
        raise unknown_name("spacing", request.spacing, SPACINGS)


def _check_original(request: RenderRequest, original: Original) -> None:
    shape, kind = original.picture.shape, str(original.picture.dtype)
    if shape != (request.height, request.width, 3) or kind != "uint8":
        raise InvalidRequest(
            f"the original picture is {_size(shape)} of {kind}, expected "
            f"{request.width}x{request.height} pixels of RGB in uint8, as the render is; "
            "resize it first."
        )
    strength = original.strength
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise InvalidRequest(f"strength is {strength:g}, expected more than 0, and at most 1.")
    if request.steps_taken < 1:
        raise InvalidRequest(
            f"strength {strength:g} of {request.steps} steps is less than one step; expected at "
            f"least {1 / request.steps:g}, or more steps."
        )
    if original.mask is not None:
        _check_mask(request, original.mask)


def _check_mask(request: RenderRequest, mask: NDArray[Any]) -> None:
    if mask.shape != (request.height, request.width):
        raise InvalidRequest(
            f"the mask is {_size(mask.shape)}, expected {request.width}x{request.height} pixels of "
            "one channel, as its picture is."
        )
    if mask.dtype.kind not in "bfu":
        raise InvalidRequest(f"the mask is of {mask.dtype}, expected booleans or 0 to 1.")
    low, high = float(mask.min()), float(mask.max())
    if not 0 <= low <= high <= 1:
        raise InvalidRequest(
            f"the mask holds {low:g} to {high:g}, expected 0 (keep) to 1 (may change); "
            "divide bytes by 255."
        )
    if high < MAY_CHANGE:
        raise InvalidRequest(
            f"the mask lets nothing change: it holds {high:g} at most, and from {MAY_CHANGE:g} on "
            "a pixel may."
        )


def _size(shape: tuple[int, ...]) -> str:
    """Return an array's shape as pictures' sizes are said, width first: "64x48x3"."""
    height, width, *rest = (*shape, 0, 0)[: max(2, len(shape))]
    return "x".join(map(str, (width, height, *rest)))


def _check_whole(name: str, got: int, low: int, high: int) -> None:
    if not low <= got <= high:
        raise InvalidRequest(f"{name} is {got}, expected {low} to {high}.")
