"""A customer's photograph, read with suspicion: whatever a file holds, 8-bit sRGB comes out.

Everything that can be refused is refused before a pixel is decoded where that is possible: the
length of the file, its kind, its size. What was changed on the way (turned, colours converted, bits
dropped) is said in `Photo.notes`; the pixels that come out are those that the studio keeps.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.core.errors import BadPhoto, OutputError
from packshot.studio.colour import in_srgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Photo",
    "load_mask",
    "load_photo",
]

MAX_BYTES = 64 * 1024 * 1024
"""Longest file that is read."""

MAX_PIXELS = 40_000_000
"""Most pixels that are decoded: what a 40 megapixel camera makes, 160 MB in memory."""

MIN_SIDE = 64
"""Shortest side, in pixels: below it there is no product to speak of."""

KINDS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
SAME_KIND = {"MPO": "JPEG"}
"""A camera's JPEG with further pictures behind it; the first is the photograph."""

PLAIN = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"))
"""Pillow's modes whose way to RGB is beyond doubt. CMYK needs a profile, 16-bit grey is scaled."""


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An upright photograph in 8-bit sRGB.

    ``pixels`` [height, width, 3] and ``alpha`` [height, width] are uint8; ``alpha`` is None where
    the file has none, or one that is full everywhere. ``sha256`` is of the file, in hex. ``notes``
    say what was done to it on the way, in sentences.
    """

    name: str
    pixels: NDArray[np.uint8] = field(repr=False)
    alpha: NDArray[np.uint8] | None = field(repr=False)
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def load_photo(source: Path | bytes, name: str = "") -> Photo:
    """Read a PNG, JPEG, WebP or TIFF, from a path or as bytes called ``name`` in messages.

    Raises:
        BadPhoto: it is none of these, too large, too small, cut off, damaged, animated, of a kind
            whose colours are not certain, or transparent everywhere.
        OutputError: the file cannot be read.
    """
    data, name = _bytes(source, name)
    image, notes = _open(data, name)
    notes += _wrong_name(name, image)
    notes += _dropped_bits(image, name)
    profile = image.info.get("icc_profile")
    image = _upright(image, name, notes)
    pixels, alpha = _arrays(image, profile, name, notes)
    if alpha is not None and not alpha.any():
        raise BadPhoto(f"{name} is transparent everywhere: there is no product in it")
    return Photo(name, pixels, alpha, hashlib.sha256(data).hexdigest(), tuple(notes))


def load_mask(source: Path | bytes, photo: Photo, name: str = "") -> NDArray[np.uint8]:
    """Return a mask of ``photo`` [height, width]: 255 where the product is, 0 where it is not.

    It is the file's transparency if it has one, else its brightness.

    Raises:
        BadPhoto: as for a photograph; or it is of another size, or holds no product or no ground.
        OutputError: the file cannot be read.
    """
    import numpy as np

    data, name = _bytes(source, name)
    image, notes = _open(data, name)
    image = _upright(image, name, notes)
    if image.size != photo.size:
        raise BadPhoto(
            f"the mask {name} is {_by(image.size)} pixels, and {photo.name} is {_by(photo.size)}: "
            "a mask says of each pixel of its photograph whether it is the product"
        )
    shown = _decoded(image, name)
    shown = shown.getchannel("A") if _alpha_of(shown) is not None else shown.convert("L")
    mask = np.asarray(shown, dtype=np.uint8)
    for level, what in ((0, "black everywhere: it shows no product"), (255, "white everywhere")):
        if (mask == level).all():
            raise BadPhoto(f"the mask {name} is {what}; expected white where the product is")
    return mask


def _bytes(source: Path | bytes, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        data, name = source, name or "the photograph"
        length = len(data)
    else:
        name = name or source.name
        try:
            length = source.stat().st_size
            data = b"" if length > MAX_BYTES else source.read_bytes()
        except OSError as error:
            raise OutputError(f"cannot read {source}: {error.strerror}") from error
    if length > MAX_BYTES:
        raise BadPhoto(f"{name} has {length:,} bytes; at most {MAX_BYTES:,} are read")
    if not data:
        raise BadPhoto(f"{name} is empty")
    return data, name


def _open(data: bytes, name: str) -> tuple[Image, list[str]]:
    """Return the picture with its head read and its pixels not, and what is to be said of it."""
    import PIL.Image
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, which is judged below, and of odd metadata
            image = PIL.Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP", "TIFF"))
            frames = getattr(image, "n_frames", 1)
    except PIL.Image.DecompressionBombError:
        raise BadPhoto(f"{name} says that it has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadPhoto(f"{name} is {_kind(data)}; expected a PNG, JPEG, WebP or TIFF") from None
    except Exception as error:  # whatever a decoder trips over, the file is at fault
        raise BadPhoto(f"{name} is damaged: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"{name} is {_by(image.size)} pixels; at most {MAX_PIXELS:,} are decoded")
    if min(image.size) < MIN_SIDE:
        raise BadPhoto(f"{name} is {_by(image.size)} pixels; at least {MIN_SIDE} a side are needed")
    if frames > 1 and image.format != "MPO":
        what = "pages" if image.format == "TIFF" else "frames: it is animated"
        raise BadPhoto(f"{name} has {frames} {what}; save the one that is meant as a file")
    return image, []


def _kind(data: bytes) -> str:
    """Say what a file seems to be, from its first bytes."""
    for start, what in (
        (b"GIF8", "a GIF"),
        (b"BM", "a BMP"),
        (b"%PDF", "a PDF"),
        (b"8BPS", "a Photoshop document"),
        (b"PK\3\4", "a ZIP archive"),
        (b"<svg", "an SVG drawing"),
        (b"<", "a web page or XML"),
        (b"\x89PNG", "a PNG whose head is damaged"),
        (b"\xff\xd8\xff", "a JPEG whose head is damaged"),
    ):
        if data.startswith(start):
            return what
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or MP4"
    return "no picture that we know"


def _wrong_name(name: str, image: Image) -> list[str]:
    held = SAME_KIND.get(image.format or "", image.format or "")
    said = KINDS.get(Path(name).suffix.lower(), held)
    return [] if said == held else [f"{name} is named like a {said} and is a {held}"]


def _dropped_bits(image: Image, name: str) -> list[str]:
    """Note samples of 16 bits, which Pillow reads as 8, or which `_plain` brings to 8."""
    tiles: list[Any] = list(getattr(image, "tile", ()))
    deep = image.mode.startswith("I;16") or any("16" in str(tile[3]) for tile in tiles)
    return [f"{name} has 16 bits a channel; the upper 8 are used"] if deep else []


def _upright(image: Image, name: str, notes: list[str]) -> Image:
    """Turn the picture as its EXIF says; what cannot be read there is left alone."""
    from PIL.ImageOps import exif_transpose

    try:
        turn = image.getexif().get(0x0112, 1)  # Orientation, EXIF 2.32
    except Exception as error:  # noqa: BLE001 - metadata of any kind of damage
        notes.append(f"the EXIF of {name} cannot be read and is left out ({error})")
        return image
    if turn not in range(2, 9):
        return image
    loaded = _decoded(image, name)
    notes.append(f"{name} was turned as its EXIF says")
    return exif_transpose(loaded)


def _decoded(image: Image, name: str) -> Image:
    """Return the picture with its pixels in memory; `BadPhoto` for whatever the decoder says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # a decoder's errors are of many types, and all mean the same
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        what = "cut off: its end is missing" if cut else f"damaged: {error}"
        raise BadPhoto(f"{name} is {what}") from error
    return image


def _arrays(
    image: Image, profile: bytes | None, name: str, notes: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return the pixels in sRGB, and the alpha if any of it is less than full."""
    import numpy as np

    image = _plain(_decoded(image, name), name, has_profile=bool(profile))
    alpha = _alpha_of(image)
    colour, done = in_srgb(image, profile, name)
    notes += [done] if done else []
    pixels = np.array(colour, dtype=np.uint8)
    if alpha is None:
        return pixels, None
    kept = np.array(alpha, dtype=np.uint8)
    return pixels, None if (kept == 255).all() else kept


def _plain(image: Image, name: str, *, has_profile: bool) -> Image:
    """Return the picture as RGB, RGBA or (with a profile) CMYK; refuse what is not certain."""
    import numpy as np
    from PIL.Image import fromarray

    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK":
        if has_profile:
            return image
        raise BadPhoto(
            f"{name} is CMYK without a colour profile, so its colours are not certain; "
            "export it as sRGB"
        )
    if image.mode not in PLAIN:
        raise BadPhoto(
            f"{name} holds {image.mode} pixels; expected 8 or 16-bit RGB or grey, a palette, or "
            "CMYK with a profile"
        )
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _alpha_of(image: Image) -> Image | None:
    return image.getchannel("A") if image.mode in {"LA", "RGBA", "PA"} else None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
