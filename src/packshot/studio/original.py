"""A picture to start from, and its mask: from files to what the engine takes and a record names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packshot.core.errors import InvalidRequest
from packshot.core.types import Original
from packshot.studio.defaults import MASKED_STRENGTH, STRENGTH
from packshot.studio.finish import fit
from packshot.studio.photo import Photo, load_photo

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Source", "Start", "open_start", "start_again"]


@dataclass(frozen=True, slots=True)
class Source:
    """What a record keeps of a start: names, and SHA-256 in hex, of the picture's and mask's files.

    ``mask`` and ``mask_sha256`` are "" where everything might change.
    """

    image: str
    image_sha256: str
    strength: float
    mask: str = ""
    mask_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """What the engine starts from, where it came from, and what was done to it on the way."""

    original: Original
    source: Source
    warnings: tuple[str, ...] = ()


def open_start(
    image: Path | None, mask: Path | None, strength: float | None, size: tuple[int, int]
) -> Start | None:
    """Return the start at the engine's ``size`` (width, height), None without an ``image``.

    The picture is resampled from its centre with Lanczos, on white where it is transparent. The
    mask is of the same size as the file of the picture, white where it may change. ``strength``
    None is that of `defaults`.

    Raises:
        BadPhoto: a file is none, or a mask not one of this picture.
        OutputError: a file cannot be read.
        InvalidRequest: a mask or a strength without a picture.
    """
    if image is not None:
        return _open(image, mask, strength, size)
    for name, given in (("mask", mask), ("strength", strength)):
        if given is not None:
            raise InvalidRequest(
                f"a {name} was given, and no picture to start from; give --image its file, or "
                f"leave out --{name}"
            )
    return None


def start_again(
    source: Source | None, image: Path | None, mask: Path | None, size: tuple[int, int]
) -> Start | None:
    """Return the start that a record tells of, from the files that it came from.

    Raises:
        InvalidRequest: a file is missing, is another one, or is given where there was none.
        BadPhoto, OutputError: as for `open_start`.
    """
    names = (source.image, source.mask) if source else ("", "")
    for option, given, name in zip(("image", "mask"), (image, mask), names, strict=True):
        if name and given is None:
            raise InvalidRequest(f"the picture was made from {name}; give --{option} that file")
        if given is not None and not name:
            raise InvalidRequest(f"the picture was made without {given}; leave out --{option}")
    if source is None or image is None:
        return None
    start = _open(image, mask, source.strength, size)
    _check_same("image", start.source.image_sha256, source.image_sha256, source.image)
    _check_same("mask", start.source.mask_sha256, source.mask_sha256, source.mask)
    return start


def _open(image: Path, mask: Path | None, strength: float | None, size: tuple[int, int]) -> Start:
    photo = load_photo(image)
    marks = None if mask is None else load_photo(mask)
    if strength is None:
        strength = STRENGTH if marks is None else MASKED_STRENGTH
    source = Source(
        image=photo.name,
        image_sha256=photo.sha256,
        strength=strength,
        mask=marks.name if marks else "",
        mask_sha256=marks.sha256 if marks else "",
    )
    free = None if marks is None else _free(marks, photo, size)
    return Start(Original(_pixels(photo, size), strength, free), source, _notes(photo, size))


def _check_same(option: str, got: str, expected: str, name: str) -> None:
    if got != expected:
        raise InvalidRequest(
            f"--{option} is not the file that the picture was made from: its SHA-256 is "
            f"{got[:12]}, expected {expected[:12]} ({name})"
        )


def _pixels(photo: Photo, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return [height, width, 3], opaque, at the size of the render."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    image = fromarray(photo.pixels)
    if photo.alpha is not None:
        white = fromarray(np.full_like(photo.pixels, 255))
        white.paste(image, mask=fromarray(photo.alpha))
        image = white
    box = fit(photo.size, size)
    return np.asarray(image.resize(size, Resampling.LANCZOS, box=box), dtype=np.uint8)


def _free(mask: Photo, photo: Photo, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mask's brightness, 0 to 1, over the same part of the picture and as large."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    if mask.size != photo.size:
        raise InvalidRequest(
            f"the mask {mask.name} is {mask.size[0]}x{mask.size[1]} pixels, and {photo.name} is "
            f"{photo.size[0]}x{photo.size[1]}; expected one of the same size"
        )
    if mask.alpha is not None:
        raise InvalidRequest(
            f"the mask {mask.name} is transparent in places, which may mean either; save it "
            "opaque, white where the picture may change and black where it may not"
        )
    grey = fromarray(mask.pixels).convert("L")
    level = np.asarray(grey.resize(size, Resampling.BOX, box=fit(photo.size, size)))
    return level.astype(np.float32) / np.float32(255)


def _notes(photo: Photo, size: tuple[int, int]) -> tuple[str, ...]:
    """Say what of the picture the engine does not get to see."""
    notes = list(photo.notes)
    if photo.alpha is not None:
        notes.append(f"{photo.name} is transparent in places; they are white to start with")
    if photo.size[0] * size[1] != photo.size[1] * size[0]:
        theirs, ours = ("x".join(map(str, pixels)) for pixels in (photo.size, size))
        notes.append(f"{photo.name} is {theirs}; its margins are cut off for the model's {ours}")
    return tuple(notes)
